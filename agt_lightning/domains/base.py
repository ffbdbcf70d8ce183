"""What a domain is: a family of parameter sets that an abstract training step stays in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from agt_lightning.adversaries import Adversary
from agt_lightning.aggregation import SampleSet
from agt_lightning.aggregation.mean_clipping import MeanClipping
from agt_lightning.distributed import SINGLE_PROCESS, ProcessGroup
from agt_lightning.errors import AgtError
from agt_lightning.interval import Interval
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.propagation.passes import PoisonedPrefix, ValueBounds
from agt_lightning.propagation.samples import MicroBatch
from agt_lightning.rules.base import Value


@dataclass(frozen=True)
class TrainingSetup:
    """What a domain must know before the first step to say whether it applies.

    Args:
        module: the module in training.
        bounded: the captured loss of a batch.
        adversary: the threat model.
        optimizer: of the module; None if there is none.
        clipping: how training clips the mean gradient; None if it does not.
    """

    module: nn.Module
    bounded: BoundedObjective
    adversary: Adversary
    optimizer: torch.optim.Optimizer | None
    clipping: MeanClipping | None


@dataclass(frozen=True)
class BoundedBatch:
    """One micro-batch of a step.

    Args:
        bounded: its captured loss.
        batch: the data.
        rows: positions of its poisonable samples; None means all.
        nominal: all values of the loss at the module's own parameters, on the data as it is.
        frozen: values for poisonable samples within the adversary's reach, those that depend on no trained parameter;
            None where no domain asks for them.
        ids: integers that name the samples in all epochs, (b,); None if they have no names.
    """

    bounded: BoundedObjective
    batch: MicroBatch
    rows: Tensor | None
    nominal: Mapping[str, Value]
    frozen: PoisonedPrefix | None = None
    ids: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.bounded.size(self.batch.data)


@dataclass(frozen=True)
class Step:
    """One optimizer step, before it is made.

    Args:
        module: at the parameters before the step.
        adversary: the threat model.
        parts: the micro-batches of this process.
        scale: factor in front of each micro-batch's loss.
        samples: weights and poisonable samples of all micro-batches of all processes together, by rank.
        gradient: gradient of the step's loss at the module's parameters, by parameter name.
        processes: all that make this step together, each with its own micro-batches.
    """

    module: nn.Module
    adversary: Adversary
    parts: tuple[BoundedBatch, ...]
    scale: float
    samples: SampleSet
    gradient: Mapping[str, Tensor]
    processes: ProcessGroup = SINGLE_PROCESS


@dataclass(frozen=True)
class OptimizerStep:
    """One optimizer step, after it was made.

    Args:
        parameters: as the optimizer left them, with the gradients that it applied, by name.
        before: their values before the step.
        optimizer: with the settings that it used.
    """

    parameters: Mapping[str, nn.Parameter]
    before: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer

    def updates(self) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
        """Name, settings and remembered state of every parameter that was moved."""
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield names[id(parameter)], group, self.optimizer.state.get(parameter, {})


class DomainLostError(AgtError):
    """A domain does not cover this step, or bounds nothing any more; other domains are not affected."""


StepData = TypeVar("StepData")


class Domain(ABC, Generic[StepData]):
    """Keeps a set that contains the parameters of every run an adversary could have caused.

    A step has two halves, for training makes its own between them: `bound_step` looks at the batch with the parameters
    before the step, `update` moves the set once the optimizer has moved the parameters.
    """

    name: ClassVar[str]
    uses_poisoned_prefix: ClassVar[bool] = True
    """Whether it reads `BoundedBatch.frozen`."""

    @abstractmethod
    def problems(self, setup: TrainingSetup) -> list[str]:
        """Every reason why this domain does not apply, each with its way out."""

    def bound_values(self, step: Step) -> list[ValueBounds]:
        """What it knows of values before the box looks at them, one per micro-batch; empty if nothing."""
        return []

    @abstractmethod
    def bound_step(self, step: Step, value_bounds: Sequence[ValueBounds]) -> StepData:
        """What the coming update needs.

        Args:
            step: the step.
            value_bounds: what other domains know of values, one per micro-batch; none if nothing is known.

        Raises:
            DomainLostError: if the set has grown out of all bounds.
        """

    @abstractmethod
    def update(self, data: StepData, optimizer_step: OptimizerStep) -> None:
        """Move the set with the step that the optimizer has made.

        Raises:
            DomainLostError: if this step is none that the domain covers.
        """

    @abstractmethod
    def box(self) -> dict[str, Interval] | None:
        """Bounds on the parameters it knows, by name; None if it bounds none one by one."""

    def exact_box(self) -> dict[str, Interval]:
        """Bounds on all parameters that take more work than a step, by name; those of `box` without such."""
        return self.box() or {}

    def record(self) -> dict[str, object]:
        """What a certificate says of it, beside its name."""
        return {}

    @abstractmethod
    def fingerprint_tensors(self) -> Iterator[Tensor]:
        """Tensors that are the same in all processes exactly if the set is."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Tensors, numbers and strings that a checkpoint keeps."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
