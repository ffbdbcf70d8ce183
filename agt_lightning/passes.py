"""The two passes over a batch: per-sample gradient bounds of clean data (equation 6) and of poisoned data (7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agt_lightning.adversaries import Adversary
from agt_lightning.aggregation import SampleSet
from agt_lightning.capture import reached
from agt_lightning.capture.dropout import RandomState
from agt_lightning.errors import UncertifiableError
from agt_lightning.gradients import FactoredGradient, stack
from agt_lightning.interval import Interval
from agt_lightning.objective import BoundedObjective, select

Poisonable = Callable[[object], Tensor] | str
"""Which samples can be poisoned: a function from batch to boolean mask, or the key of such a mask in the batch."""


@dataclass(frozen=True)
class MicroBatch:
    """A batch and what else its training step could see.

    Args:
        data: the batch.
        state: the generators' state when the step began, from which dropout drew its masks; None if unknown.
    """

    data: object
    state: RandomState | None = None

    @classmethod
    def of(cls, batch: object) -> MicroBatch:
        """The batch itself if it is one already."""
        return batch if isinstance(batch, MicroBatch) else cls(batch)


@dataclass(frozen=True)
class Pass:
    """Per-sample gradient bounds of one micro-batch.

    Args:
        clean: by parameter, for the data as it is, with the parameters anywhere in their box.
        poisoned: the same for poisonable samples within the adversary's balls; empty if nothing can be poisoned.
        weights: weight w_i of each sample in the applied gradient, (b,).
        poisonable: positions of the poisonable samples; None means all.
    """

    clean: Mapping[str, FactoredGradient]
    poisoned: Mapping[str, FactoredGradient]
    weights: Tensor
    poisonable: Tensor | None


def propagate(
    bounded: BoundedObjective,
    module: nn.Module,
    batch: MicroBatch,
    box: Mapping[str, Interval],
    adversary: Adversary,
    *,
    scale: float,
    rows: Tensor | None,
    dtype: torch.dtype,
) -> Pass:
    """Both passes over one micro-batch; the poisoned one keeps what the adversary cannot touch.

    Args:
        bounded: the captured loss of this batch.
        module: owner of the buffers.
        batch: the batch.
        box: bounds by parameter name.
        adversary: the threat model.
        scale: factor in front of this micro-batch's loss.
        rows: positions of the poisonable samples; None means all.
        dtype: floating point type to compute in.
    """
    values = bounded.forward(bounded.inputs(module, batch.data, box, dtype, batch.state))
    size = bounded.size(batch.data)
    clean = bounded.gradients(values, size, dtype)
    device = next(iter(box.values())).device
    weights = torch.full((size,), scale * bounded.sample_weight(size), dtype=dtype, device=device)
    perturbed = bounded.perturbed_leaves(adversary)
    if adversary.n == 0 or not perturbed or (rows is not None and len(rows) == 0):
        return Pass(clean, {}, weights, rows)
    inputs = bounded.poisoned(values, adversary, rows)
    touched = reached(bounded.program.graph, perturbed)
    known = {
        name: select(value, rows) if name in bounded.program.samples else value
        for name, value in values.items()
        if name not in touched and name not in inputs
    }
    poisoned = bounded.gradients(bounded.forward(inputs, known), size, dtype)
    return Pass(clean, poisoned, weights, rows)


def propagate_nominal(
    bounded: BoundedObjective, module: nn.Module, batch: MicroBatch, dtype: torch.dtype
) -> dict[str, FactoredGradient]:
    """Per-sample gradients at the module's own parameters, on the data as it is."""
    points = {name: Interval.point(p.detach().to(dtype)) for name, p in module.named_parameters()}
    values = bounded.forward(bounded.inputs(module, batch.data, points, dtype, batch.state))
    return bounded.gradients(values, bounded.size(batch.data), dtype)


def poisonable_rows(poisonable: Poisonable | None, batch: object, size: int) -> Tensor | None:
    """Positions of the samples that can be poisoned; None means all.

    Raises:
        KeyError: if ``poisonable`` names a key that the batch does not have.
        ValueError: if the mask is not boolean of shape (batch,).
    """
    if poisonable is None:
        return None
    mask = _named_mask(poisonable, batch) if isinstance(poisonable, str) else poisonable(batch)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != (size,):
        got = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(type(mask))
        raise ValueError(f"Expected `poisonable` to give a boolean mask of shape ({size},), but got {got}.")
    return mask.nonzero().squeeze(1)


def _named_mask(key: str, batch: object) -> object:
    if not isinstance(batch, Mapping) or key not in batch:
        raise KeyError(f"Expected a batch with the key {key!r} of `poisonable`, but got {type(batch).__name__}.")
    return batch[key]


def sample_set(passes: Sequence[Pass]) -> SampleSet:
    """The samples of all micro-batches of a step, one after another."""
    weights = torch.cat([part.weights for part in passes])
    if all(part.poisonable is None for part in passes):
        return SampleSet(weights)
    rows, offset = [], 0
    for part in passes:
        size = len(part.weights)
        every = torch.arange(size, device=weights.device)
        rows.append(offset + (every if part.poisonable is None else part.poisonable))
        offset += size
    return SampleSet(weights, torch.cat(rows))


def stacked(parts: Sequence[Mapping[str, FactoredGradient]]) -> dict[str, FactoredGradient]:
    """Gradients of all micro-batches of a step, one sample after another, by parameter.

    Raises:
        UncertifiableError: if some micro-batch does not use a parameter that another uses.
    """
    names = dict.fromkeys(name for part in parts for name in part)
    for name in names:
        if any(name not in part for part in parts):
            raise UncertifiableError(
                [f"`{name}` is used in some micro-batches of a step and not in others. Use the same code for all."]
            )
    return {name: stack([part[name] for part in parts]) for name in names}
