"""What a step shows of a head: samples at the nominal parameters, and what the adversary can do to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.losses import LabelPerturbation
from agt_lightning.interval import Interval


@dataclass(frozen=True)
class Samples:
    """Some samples at the nominal parameters, with what another domain knows of them over both domains' parameters.

    Args:
        inputs: features x that enter the head, (b, d).
        layers: result of each linear layer, first to last, (b, h) ... (b, K).
        boxes: bounds on each of them; None without another domain.
    """

    inputs: Tensor
    layers: tuple[Tensor, ...]
    boxes: tuple[Interval, ...] | None = None

    @property
    def outputs(self) -> Tensor:
        """Outputs of the head, (b, K)."""
        return self.layers[-1]

    @property
    def output_box(self) -> Interval | None:
        """Bounds on the outputs, if another domain knows some."""
        return None if self.boxes is None else self.boxes[-1]

    def __getitem__(self, rows: Tensor) -> Samples:
        """The given samples."""
        boxes = None if self.boxes is None else tuple(box[rows] for box in self.boxes)
        return Samples(self.inputs[rows], tuple(values[rows] for values in self.layers), boxes)


@dataclass(frozen=True)
class Poison:
    """What the adversary can do to the samples that can be poisoned.

    Args:
        rows: their positions among all samples, (m,).
        n: largest number of poisoned samples.
        labels: targets within reach.
        moves: movement of features; None if they stay.
        boxes: bounds on each layer's results for poisoned features from another domain, (m, ...); None without one.
    """

    rows: Tensor
    n: int
    labels: LabelPerturbation
    moves: Perturbation | None = None
    boxes: tuple[Interval, ...] | None = None

    def reaches_all(self, samples: int) -> bool:
        """Whether its rows are all of so many samples, in order."""
        return torch.equal(self.rows, torch.arange(samples, device=self.rows.device))
