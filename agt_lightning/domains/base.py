"""The interface of a domain, and the records of one training step that it is given."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from agt_lightning.adversaries import Adversary
from agt_lightning.adversaries.base import counted, counts_dataset, counts_sources
from agt_lightning.aggregation import BatchEdits, Choice, SampleSet
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
    """A training before a step on a new kind of batch, from which a domain decides whether it applies.

    Args:
        module: the module in training.
        bounded: the captured loss of such a batch.
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
        samples: weights, poisonable samples and sources, if they are named, of all micro-batches of all processes
            together, by rank.
        gradient: gradient of the step's loss at the module's parameters, by parameter name; not clipped.
        processes: the group that makes this step together, each process with its own micro-batches.
        edits: the insertions and deletions of the adversary; None if it changes samples in place.
    """

    module: nn.Module
    adversary: Adversary
    parts: tuple[BoundedBatch, ...]
    scale: float
    samples: SampleSet
    gradient: Mapping[str, Tensor]
    processes: ProcessGroup = SINGLE_PROCESS
    edits: BatchEdits | None = None

    @property
    def chosen(self) -> SampleSet:
        """The samples as the adversary chooses among them: with their sources if its n counts these."""
        return self.samples if counts_sources(self.adversary) else replace(self.samples, sources=None)

    @property
    def choice(self) -> Choice:
        """The sets of poisonable samples that the adversary can change in this step."""
        return Choice(self.adversary.n, self.chosen.membership)


def bounds_count(adversary: Adversary, *, in_dataset: bool = False) -> str:
    """Return what n counts in bounds of a domain, in words, for its record.

    Bounds that count in each batch can rest on those of another domain that counts in the data set, so that they are no
    bounds for an adversary of each batch.

    Args:
        adversary: the threat model.
        in_dataset: whether the bounds count samples of the data set, as only an adversary that does so allows.

    Example:
        >>> from agt_lightning import BoundedAdversary
        >>> bounds_count(BoundedAdversary(n=1, nu=1, q=0, counts="sources"))
        'n sources of each batch, as the adversary does'
        >>> bounds_count(BoundedAdversary(n=1, nu=1, q=0, per="dataset"))
        'n samples of each batch, for an adversary with n of the whole data set, which can do no more'
    """
    if in_dataset:
        return "n samples of the whole data set, as the adversary does"
    within = "for an adversary with n of the whole data set, which can do no more"
    rest = within if counts_dataset(adversary) else "as the adversary does"
    return f"n {counted(adversary)} of each batch, {rest}"


@dataclass(frozen=True)
class OptimizerStep:
    """One optimizer step, after it was made.

    Args:
        parameters: as the optimizer left them, by name.
        before: their values before the step.
        optimizer: of the module, with the settings that it used.
        gradients: that it applied; those in ``grad`` unless given, where an optimizer can have added momentum.
        buffers: those of the module after the step, by name.
    """

    parameters: Mapping[str, nn.Parameter]
    before: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)

    def applied(self, name: str) -> Tensor:
        """Return the gradient of a parameter that has one."""
        gradient = self.gradients.get(name, self.parameters[name].grad)
        assert gradient is not None
        return gradient

    def updates(self) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
        """Yield name, settings and optimizer state of every parameter that has a gradient."""
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield names[id(parameter)], group, self.optimizer.state.get(parameter, {})


class ParameterSet(Protocol):
    """A set of parameters that certificates can bound outputs over, beside the box.

    Attributes:
        costly: whether bounds take a replay of the training. Validation in the course of a training then uses the set
            only if its domain alone is in use; validation after it, by `trainer.validate`, uses every set.
    """

    @property
    def costly(self) -> bool: ...  # noqa: D102 - stands in the class docstring

    def head_bounds(
        self, graph: Graph, names: Mapping[str, str], module: nn.Module, dtype: torch.dtype
    ) -> HeadBounds | None:
        """Return bounds for the trained layers that a graph ends in; None if it does not end in layers of this set.

        Args:
            graph: a captured graph of the module.
            names: parameter names in the module, by value name in the graph.
            module: owner of the parameters.
            dtype: floating point type to compute in.
        """


@runtime_checkable
class ReplayedBounds(HeadBounds, Protocol):
    """Bounds of a head that take a replay of the training, so that outputs and margins are asked for together."""

    def foresee(self, inputs: Interval, target: Tensor) -> None:
        """Make what `bound_values` and `margins` will be asked for, by one replay.

        Args:
            inputs: features that enter the head, (b, d).
            target: integers (b,), of several outputs.
        """


@runtime_checkable
class FlipCounter(HeadBounds, Protocol):
    """Bounds of a head that also bound how many flipped labels leave a prediction as it is."""

    def certified_flips(self, inputs: Interval, gap: float = 0.0) -> Tensor:
        """Return the largest n, (b,), such that no flip of n labels in the whole data set alters the prediction.

        Args:
            inputs: features that enter the head, (b, d), as a point.
            gap: by how much two outputs must differ so that they decide.
        """


class DomainLostError(AgtError):
    """A domain does not cover a step, or its bounds are no longer finite; other domains are not affected."""


StepData = TypeVar("StepData")


class Domain(ABC, Generic[StepData]):
    """A set that contains the parameters of every run an adversary could have caused, kept while a module trains.

    Each training step has two halves, and the optimizer's own step lies between them: `bound_step` reads the batch at
    the parameters before the step; `update` moves the set after the optimizer moved the parameters. Eight methods are
    abstract; the others are for domains that exchange bounds, serve certificates or log something.

    Use a domain of your own by `CertifiedTraining(adversary, domains=["box", MyDomain])`. If several processes train,
    all of them must hold the same set at every step, and `bound_step` alone may call collectives of ``step.processes``.
    """

    name: ClassVar[str]
    """Key of this domain in checkpoints, certificates and logs."""

    reads_value_bounds: ClassVar[bool] = True
    """Whether `bound_step` uses other domains' bounds on layer outputs."""

    follows_clipping: ClassVar[bool] = False
    """Whether `clip` covers clipping of the mean gradient; if not, `problems` must refuse it."""

    tightens: ClassVar[bool] = False
    """Whether the set is cut to the boxes of all other domains after each step, by `tighten`."""

    covers_batch_statistics: ClassVar[bool] = False
    """Whether steps are covered whose batches are normalized by their own statistics."""

    covers_sources: ClassVar[bool] = False
    """Whether adversaries are covered whose n counts sources, by `Step.chosen`."""

    counts_flips: ClassVar[bool] = False
    """Whether the bounds of its parameter set are a `FlipCounter`."""

    automatic: ClassVar[bool] = True
    """Whether ``domains="auto"`` includes this domain; if not, it must be named."""

    @classmethod
    @abstractmethod
    def build(cls, module: nn.Module, adversary: Adversary, config: CertificationConfig) -> Self:
        """Return the domain at a module's initial parameters: the set of that one point."""

    @abstractmethod
    def problems(self, setup: TrainingSetup) -> list[str]:
        """Return every reason why this domain does not apply, each with its way out; empty if it applies."""

    @abstractmethod
    def bound_step(self, step: Step, value_bounds: Sequence[ValueBounds]) -> StepData:
        """Return the data of this step that `update` needs.

        Args:
            step: the step, before it is made.
            value_bounds: bounds of another domain on layer outputs, one per micro-batch; empty if there are none.

        Raises:
            DomainLostError: if the set's bounds are no longer finite, or the domain does not cover this step; in every
                process, or in none.
        """

    @abstractmethod
    def update(self, data: StepData, optimizer_step: OptimizerStep) -> None:
        """Move the set with the step that the optimizer has made.

        Args:
            data: from `bound_step`, or from `clip` if training clips the mean gradient.
            optimizer_step: the step, after it was made.

        Raises:
            DomainLostError: if the domain does not cover this step.
        """

    @abstractmethod
    def box(self) -> dict[str, Interval] | None:
        """Return the interval of each parameter, by name; None if the domain keeps no intervals at every step."""

    @abstractmethod
    def fingerprint_tensors(self) -> Iterator[Tensor]:
        """Yield tensors that identify the set: equal across processes if and only if the sets are."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the state that a checkpoint must keep, as tensors, numbers and strings."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state` of an interrupted run."""

    def join(self, family: Mapping[str, Domain[Any]]) -> None:  # noqa: B027 - most domains need no others
        """Meet the domains that are kept beside this one, by name, before the first step.

        Args:
            family: those in use, this one among them; domains that are lost later disappear from it.
        """

    def restart_optimizer(self) -> None:
        """Go on with a new optimizer, whose state is empty in every run, as `Trainer.fit` makes one when called again.

        Raises:
            DomainLostError: unless overridden, since the domain may keep bounds on the state of the old one.
        """
        raise DomainLostError(
            "it does not define `restart_optimizer`, so training cannot go on with a new optimizer. Define it, train "
            "in one `fit`, or resume from a checkpoint"
        )

    def running_statistics(self) -> dict[str, Interval]:
        """Return bounds on running statistics of batch normalization that training has moved, by name of the buffer."""
        return {}

    def exact_box(self) -> dict[str, Interval]:
        """Return the interval of each parameter, by name, even if that takes more work than a step."""
        return self.box() or {}

    def parameter_set(self) -> ParameterSet | None:
        """Return the set for certificates of outputs; None if the domain has no set beside its box."""
        return None

    def bound_values(self, step: Step) -> list[ValueBounds]:
        """Return bounds on layer outputs that other domains can use in this step, before any `bound_step`.

        Returns:
            One per micro-batch, or an empty list if there are none.
        """
        return []

    def found_values(self, data: StepData) -> list[ValueBounds]:
        """Return the bounds on layer outputs that `bound_step` made, for the domains whose turn comes later.

        They cover the outputs that it was given bounds for.

        Returns:
            One per micro-batch, or an empty list if there are none.
        """
        return []

    def gradient_bounds(self, data: StepData) -> Mapping[str, Interval]:
        """Return bounds on the gradient that the optimizer is about to apply, by parameter name.

        Returns:
            Empty if the domain bounds no gradient.
        """
        return {}

    def clip(self, data: StepData, clipping: MeanClipping, names: Sequence[str]) -> StepData:
        """Return the step's data for a training that clips the mean gradient; called if `follows_clipping` is true.

        Args:
            data: from `bound_step`.
            clipping: how training clips.
            names: parameters that are clipped together.
        """
        return data

    def tighten(self, other: Mapping[str, Interval]) -> None:  # noqa: B027 - most domains keep no intervals
        """Intersect the set with the box of another domain, which contains the same runs."""

    def metrics(self) -> dict[str, float]:
        """Return numbers that are logged after each step as ``agt/<name>``."""
        return {}

    def relative_size(self) -> float | None:
        """Return how large the set is, relative to the parameters in it: from about 1 on it says nothing about them.

        Returns:
            A ratio of two lengths, without a unit; None if the set has no such size.
        """
        return None

    def remarks(self) -> list[str]:
        """Return sentences for the log about how bounds are computed, each without its subject `CertifiedTraining`."""
        return []

    def record(self) -> dict[str, object]:
        """Return what a certificate states about this domain, ready for JSON."""
        return {}


def relative_to_center(radius: float, size: float) -> float:
    """Return how large a set is, relative to its center; infinite if that is zero, or the set is not bounded.

    Args:
        radius: of the set.
        size: of its center, in the same unit.

    Example:
        >>> relative_to_center(0.5, 2.0), relative_to_center(0.0, 0.0), relative_to_center(0.1, 0.0)
        (0.25, 0.0, inf)
    """
    if radius == 0:
        return 0.0
    return radius / size if size > 0 and radius < math.inf else math.inf
