"""A step at the module's own parameters: the part of this process, and what all processes make of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from agt_lightning.aggregation import Clipping, SampleSet, bounded_descent, clipped_mean
from agt_lightning.distributed import Entry, ProcessGroup
from agt_lightning.engine.duplicates import require_distinct
from agt_lightning.engine.step_bounds import Tolerance
from agt_lightning.errors import UncertifiableError
from agt_lightning.gradients import FactoredGradient


@dataclass(frozen=True)
class OwnPart:
    """The samples of one process in a step, with their gradients at the module's own parameters.

    Args:
        gradients: of each sample, by parameter name.
        samples: weights in the step's loss over all processes, and which samples can be poisoned.
        marks: numbers that tell samples apart, (b,); None where there is one process.
    """

    gradients: Mapping[str, FactoredGradient]
    samples: SampleSet
    marks: Tensor | None = None

    def mean(self, name: str, budget: int) -> Tensor:
        """This part's share of the gradient."""
        return bounded_descent(self.gradients[name], None, self.samples, 0, budget).lower

    def clipped_mean(self, name: str, clipping: Clipping, budget: int) -> Tensor:
        """The same if each sample's gradient is clipped."""
        return clipped_mean(self.gradients[name], self.samples.weights, clipping, budget)

    def scale(self, name: str) -> Tensor:
        """Size that rounding errors of the share are relative to, a number."""
        weights = self.samples.weights
        return weights.new_tensor(self.gradients[name].scale(weights))


def all_samples(processes: ProcessGroup, own: OwnPart) -> SampleSet:
    """The samples of all processes, by rank.

    Raises:
        UncertifiableError: in every process, if they share a sample or train different parameters.
    """
    if processes.size == 1:
        return own.samples
    rows = own.samples.poisonable
    assert own.marks is not None
    message: dict[str, Entry] = {"weights": own.samples.weights, "marks": own.marks}
    message["parameters"] = json.dumps(sorted(own.gradients))
    received = processes.gather(message if rows is None else {**message, "rows": rows})
    if len({str(part["parameters"]) for part in received}) > 1:
        raise UncertifiableError(
            ["The processes of a step use different parameters. Use the same code in all of them."]
        )
    weights = [_tensor(part["weights"]) for part in received]
    rows_of = [
        _tensor(part["rows"]) if "rows" in part else torch.arange(len(own_weights), device=own_weights.device)
        for part, own_weights in zip(received, weights, strict=True)
    ]
    require_distinct([_tensor(part["marks"])[own_rows] for part, own_rows in zip(received, rows_of, strict=True)])
    if all("rows" not in part for part in received):
        return SampleSet(torch.cat(weights))
    starts = torch.tensor([0, *(len(part) for part in weights)]).cumsum(0).tolist()
    positions = [start + own_rows for start, own_rows in zip(starts, rows_of, strict=False)]
    return SampleSet(torch.cat(weights), torch.cat(positions))


def tolerances(processes: ProcessGroup, own: OwnPart, relative: Mapping[str, float]) -> dict[str, Tolerance]:
    """How far sums over the samples of all processes can stray; with one process, sizes are summed up when asked for.

    Args:
        processes: all of them.
        own: this process's part.
        relative: rounding with respect to the sum of the gradients' sizes, by parameter name.
    """
    if processes.size == 1:
        return {name: Tolerance(relative[name], partial(_size, own, name)) for name in own.gradients}
    sizes = processes.sum({name: own.scale(name) for name in own.gradients})
    return {name: Tolerance(relative[name], partial(float, size)) for name, size in sizes.items()}


def _size(own: OwnPart, name: str) -> float:
    return float(own.scale(name))


def average_gradients(module: nn.Module, processes: ProcessGroup) -> None:
    """Replace each gradient by its mean over the processes, as `DistributedDataParallel` does."""
    if processes.size == 1:
        return
    parameters = dict(module.named_parameters())
    used = processes.union(name for name, parameter in parameters.items() if parameter.grad is not None)
    own = {name: _gradient(parameters[name]) for name in used}
    for name, total in processes.sum(own).items():
        parameters[name].grad = total / processes.size


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _tensor(entry: Entry) -> Tensor:
    assert isinstance(entry, Tensor)
    return entry
