"""A domain: a family of parameter sets that an abstract training step stays in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from agt_lightning.adversaries import Adversary
from agt_lightning.aggregation import SampleSet
from agt_lightning.aggregation.mean_clipping import MeanClipping
from agt_lightning.capture import Graph
from agt_lightning.distributed import SINGLE_PROCESS, ProcessGroup
from agt_lightning.domains.head import HeadBounds
from agt_lightning.errors import AgtError
from agt_lightning.interval import Interval
from agt_lightning.propagation.config import CertificationConfig
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.propagation.passes import BoundedBatch, ValueBounds


@dataclass(frozen=True)
class TrainingSetup:
    """A training before its first step, by which a domain decides whether it applies.

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
        """Yield name, settings and optimizer state of every parameter that was moved."""
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield names[id(parameter)], group, self.optimizer.state.get(parameter, {})


class ParameterSet(Protocol):
    """A set of parameters that certificates can bound outputs over, beside the box.

    Attributes:
        costly: whether bounds take a replay of the training, so that they are computed only on request.
    """

    @property
    def costly(self) -> bool: ...  # noqa: D102 - stands in the class docstring

    def on(self, graph: Graph, names: Mapping[str, str], module: nn.Module, dtype: torch.dtype) -> HeadBounds | None:
        """Return bounds for the trained layers that a graph ends in; None if it does not end in layers of this set.

        Args:
            graph: a captured graph of the module.
            names: names of parameters in the module by value name.
            module: owner of the parameters.
            dtype: floating point type to compute in.
        """


@runtime_checkable
class FlipCounter(HeadBounds, Protocol):
    """Bounds of a head from which the number of harmless label flips follows."""

    def certified_flips(self, inputs: Interval) -> Tensor:
        """Return the largest number of labels of the whole data set whose change alters no prediction, (b,).

        Args:
            inputs: features that enter the head, (b, d), known exactly.
        """


class DomainLostError(AgtError):
    """A domain does not cover this step, or bounds nothing any more; other domains are not affected."""


StepData = TypeVar("StepData")


class Domain(ABC, Generic[StepData]):
    """A set that contains the parameters of every run an adversary could have caused, kept while a module trains.

    A step has two halves, for training makes its own between them: `bound_step` reads the batch at the parameters
    before the step, `update` moves the set once the optimizer has moved the parameters. Eight methods are abstract;
    the others are for domains that help others or log something.

    A class of your own is used by `CertifiedTraining(adversary, domains=["box", MyDomain])`.
    """

    name: ClassVar[str]
    """Key of this domain in checkpoints, certificates and logs."""

    uses_poisoned_prefix: ClassVar[bool] = True
    """Whether it reads `BoundedBatch.frozen`."""

    reads_value_bounds: ClassVar[bool] = True
    """Whether `bound_step` uses the bounds of other domains on layer outputs."""

    follows_clipping: ClassVar[bool] = False
    """Whether `clip` covers clipping of the mean gradient; other domains must refuse it in `problems`."""

    tightens: ClassVar[bool] = False
    """Whether its bounds are cut to those of all other domains after each step, by `tighten`."""

    counts_flips: ClassVar[bool] = False
    """Whether the bounds of its parameter set are a `FlipCounter`."""

    @classmethod
    @abstractmethod
    def build(cls, module: nn.Module, adversary: Adversary, config: CertificationConfig) -> Self:
        """Return the domain at a module's initial parameters: the set of that one point."""

    @abstractmethod
    def problems(self, setup: TrainingSetup) -> list[str]:
        """Return every reason why this domain does not apply, each with its way out."""

    @abstractmethod
    def bound_step(self, step: Step, value_bounds: Sequence[ValueBounds]) -> StepData:
        """Return all that `update` needs of the step's batches.

        Args:
            step: the step.
            value_bounds: bounds of other domains on layer outputs, one per micro-batch; empty if there are none.

        Raises:
            DomainLostError: if the set has grown out of all bounds, or the step is none that the domain covers.
        """

    @abstractmethod
    def update(self, data: StepData, optimizer_step: OptimizerStep) -> None:
        """Move the set with the step that the optimizer has made.

        Raises:
            DomainLostError: if this step is none that the domain covers.
        """

    @abstractmethod
    def box(self) -> dict[str, Interval] | None:
        """Return the interval of each parameter, by name; None if the domain does not keep them at every step."""

    @abstractmethod
    def fingerprint_tensors(self) -> Iterator[Tensor]:
        """Yield tensors that identify the set: equal across processes if and only if the sets are."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return all that a checkpoint must keep: tensors, numbers and strings."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the `state` of an interrupted run."""

    def exact_box(self) -> dict[str, Interval]:
        """Return the interval of each parameter, by name, even if that takes more work than a step."""
        return self.box() or {}

    def parameter_set(self) -> ParameterSet | None:
        """Return the set for certificates of outputs; None if the box is all that this domain knows."""
        return None

    def bound_values(self, step: Step) -> list[ValueBounds]:
        """Return bounds on layer outputs that other domains can use in this step, one per micro-batch.

        Returns:
            A list that is empty if there are none.
        """
        return []

    def found_values(self, data: StepData) -> list[ValueBounds]:
        """Return what `bound_step` found of the layer outputs that it was given bounds for, one per micro-batch.

        Returns:
            A list that is empty if there is nothing new.
        """
        return []

    def gradient_bounds(self, data: StepData) -> Mapping[str, Interval]:
        """Return bounds on the gradient that the optimizer will apply, by parameter name; empty if there are none."""
        return {}

    def clip(self, data: StepData, clipping: MeanClipping, names: Sequence[str]) -> StepData:
        """Return the step's data after training clips the mean gradient.

        Args:
            data: from `bound_step`.
            clipping: how training clips.
            names: parameters that are clipped together.
        """
        return data

    def tighten(self, other: Mapping[str, Interval]) -> None:  # noqa: B027 - most domains keep no intervals
        """Cut the set to intervals of another domain, which contain the same runs."""

    def metrics(self) -> dict[str, float]:
        """Return numbers that are logged after each step as ``agt/<name>``."""
        return {}

    def remarks(self) -> list[str]:
        """Return sentences for the log about how bounds are computed, without their subject, `CertifiedTraining`."""
        return []

    def record(self) -> dict[str, object]:
        """Return what a certificate states about this domain, ready for JSON."""
        return {}
