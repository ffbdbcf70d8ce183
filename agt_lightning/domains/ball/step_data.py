"""Data of a step of the radius: values of samples at the nominal parameters, targets, and the poison."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.aggregation import Choice
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.losses import LabelPerturbation, Target
from agt_lightning.interval import Interval


@dataclass(frozen=True)
class Samples:
    """Some samples at the nominal parameters.

    Args:
        inputs: features x that enter the head, (b, d).
        layers: result of each linear layer, first to last, (b, h) ... (b, K).
        layer_bounds: bounds on each of them over all parameters that another domain allows as well; None without
            another domain.
        input_error: how far the features of a run can be from ``inputs``, Euclidean, (b,); None if they are exact.
        target_error: the same of targets, (b,).
    """

    inputs: Tensor
    layers: tuple[Tensor, ...]
    layer_bounds: tuple[Interval, ...] | None = None
    input_error: Tensor | None = None
    target_error: Tensor | None = None

    @property
    def outputs(self) -> Tensor:
        """Outputs f of the head, (b, K)."""
        return self.layers[-1]

    @property
    def output_bounds(self) -> Interval | None:
        """Bounds on the outputs from another domain; None without one."""
        return None if self.layer_bounds is None else self.layer_bounds[-1]

    def __getitem__(self, rows: Tensor) -> Samples:
        """Return the given samples."""
        bounds = None if self.layer_bounds is None else tuple(values[rows] for values in self.layer_bounds)
        errors = (None if error is None else error[rows] for error in (self.input_error, self.target_error))
        return Samples(self.inputs[rows], tuple(values[rows] for values in self.layers), bounds, *errors)


@dataclass(frozen=True)
class Poison:
    """The changes that the adversary can make to poisonable samples.

    Args:
        rows: their positions among all samples, (m,).
        n: largest number of poisoned samples, or of sources that have some.
        labels: targets that the adversary can write.
        features: perturbation of features; None if they stay.
        layer_bounds: bounds on each layer's results for poisoned features from another domain, (m, ...); None without
            one.
        membership: ones where a sample belongs to a source, else zeros, (m, sources), if n counts sources; else None.
        per_epoch: whether these n are all that the adversary changes in an epoch, each of them in one step of it.
    """

    rows: Tensor
    n: int
    labels: LabelPerturbation
    features: Perturbation | None = None
    layer_bounds: tuple[Interval, ...] | None = None
    membership: Tensor | None = None
    per_epoch: bool = False

    @property
    def choice(self) -> Choice:
        """The sets of these samples that the adversary can change together."""
        return Choice(self.n, self.membership)

    def covers(self, samples: int) -> bool:
        """Whether all of so many samples can be poisoned, so that `rows` are all of them in order."""
        return torch.equal(self.rows, torch.arange(samples, device=self.rows.device))


@dataclass(frozen=True)
class StepData:
    """All samples of a step.

    Args:
        samples: at the nominal parameters.
        target: their targets, clean.
        poison: changes that the adversary can make to them; None if none.
        summands: longest sum that leads to an element of the gradient: over the samples of a micro-batch, and over
            micro-batches and processes; None means one over all samples.
    """

    samples: Samples
    target: Target
    poison: Poison | None
    summands: int | None = None

    @property
    def sum_roundings(self) -> int:
        """Number of roundings on the way of a sample's gradient into the sum, those of its weight included."""
        return (len(self.samples.inputs) if self.summands is None else self.summands) + 8

    @property
    def own_roundings(self) -> int:
        """The same for sums over all samples here, which are not split into micro-batches."""
        return max(len(self.samples.inputs) + 8, self.sum_roundings)
