"""Small steps on clipped gradients for the lemma of theory.md, section 10.12, and the attacks that try to break it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from agt_lightning.aggregation import BatchEdits, Choice
from agt_lightning.domains.ball.clipped import ClippedAnalysis, Edits, ForeignSamples, Replacements
from agt_lightning.domains.ball.layers import Layer, LayerBall
from agt_lightning.domains.ball.radius import next_radius
from agt_lightning.domains.ball.step_data import Samples, StepData
from agt_lightning.domains.losses import HeadLoss, HuberError, LogisticLoss, SoftmaxLoss, SquaredError
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels

F64 = torch.float64
LOSSES: dict[str, HeadLoss] = {
    "squared": SquaredError(0.5),
    "huber": HuberError(1.0, 0.7),
    "logistic": LogisticLoss(1.0),
    "softmax": SoftmaxLoss(1.0),
}


@dataclass(frozen=True)
class Problem:
    """One step on clipped gradients.

    Args:
        kind: of the loss, by `LOSSES`.
        weight: (K, d + 1), the last column a bias.
        inputs: (b, d).
        targets: (b, K), or classes (b,).
        kappa: clipping level.
        radius: of the ball.
        rate: learning rate.
        decay: weight decay.
        n: of the adversary.
        edits: whether samples are inserted and deleted; else they are replaced.
        mean: whether the loss is a mean over the samples; else it is their sum times 1 / b.
    """

    kind: str
    weight: Tensor
    inputs: Tensor
    targets: Tensor
    kappa: float
    radius: float
    rate: float
    decay: float = 0.0
    n: int = 1
    edits: bool = True
    mean: bool = True

    @classmethod
    def random(cls, seed: int, kind: str, outputs: int, *, b: int = 5, d: int = 2, **settings: object) -> Problem:
        """Draw samples, parameters and settings."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=F64)

        targets = {
            "softmax": torch.randint(0, outputs, (b,), generator=generator),
            "logistic": torch.randint(0, 2, (b, outputs), generator=generator).to(F64),
        }
        return cls(
            kind,
            normal(outputs, d + 1),
            normal(b, d) * (1 + 2 * torch.rand(b, 1, generator=generator, dtype=F64)),
            targets.get(kind, normal(b, outputs)),
            **settings,  # type: ignore[arg-type]
        )

    @property
    def full(self) -> Tensor:
        """``x̂``, (b, d + 1)."""
        return torch.cat([self.inputs, torch.ones_like(self.inputs[:, :1])], dim=1)

    def clipped(self, weight: Tensor) -> Tensor:
        """Each sample's clipped gradient, (..., b, K, d + 1), from parameters (..., K, d + 1)."""
        outputs = torch.einsum("...kd,bd->...bk", weight, self.full)
        if self.kind == "squared":
            slope = outputs - self.targets
        elif self.kind == "huber":
            slope = (outputs - self.targets).clamp(-0.7, 0.7)
        elif self.kind == "logistic":
            slope = outputs.sigmoid() - self.targets
        else:
            slope = outputs.softmax(dim=-1) - F.one_hot(self.targets, outputs.shape[-1]).to(F64)
        rows = slope[..., :, None] * self.full[:, None, :]
        norms = rows.flatten(-2).norm(dim=-1)[..., None, None]
        return rows * (self.kappa / norms.clamp(min=1e-300)).clamp(max=1)

    def size_weight(self, size: int) -> float:
        """Weight of a sample in a batch of so many."""
        return 1 / (size if self.mean else len(self.inputs))

    @property
    def foreign(self) -> ForeignSamples:
        """What the adversary can bring and take, as the library has it."""
        if not self.edits:
            return Replacements(Choice(self.n), None)
        b = len(self.inputs)
        changes = BatchEdits.changes(self.n, b)
        return Edits(BatchEdits(self.n, {change: self.size_weight(b + change) for change in changes}), None)

    def changes(self) -> Iterator[tuple[list[int], int]]:
        """Yield the samples that stay, and the number of those that come, for every change that there is."""
        everything = range(len(self.inputs))
        for gone in range(self.n + 1):
            for taken in combinations(everything, gone):
                kept = [row for row in everything if row not in taken]
                for came in range(self.n - gone + 1) if self.edits else (gone,):
                    yield kept, came

    @property
    def analysis(self) -> ClippedAnalysis:
        """The library's analysis of this step."""
        layer = Layer(self.weight[:, :-1], self.weight[:, -1], trains_bias=True)
        samples = Samples(self.inputs, (self.full @ self.weight.T,))
        target = ClassLabels(self.targets) if self.kind == "softmax" else Interval.point(self.targets)
        ball = LayerBall((layer,), self.radius)
        return ClippedAnalysis(ball, StepData(samples, target, None), LOSSES[self.kind], self.kappa)

    @property
    def sample_weights(self) -> Tensor:
        """w of each sample, (b,)."""
        return torch.full((len(self.inputs),), self.size_weight(len(self.inputs)), dtype=F64)

    def certified(self) -> float:
        """The library's next radius."""
        constants = self.analysis.step_constants(self.sample_weights, self.foreign)
        return next_radius(self.radius, constants, self.rate, self.decay)

    def reached(self, steps: int = 60, starts: int = 12) -> float:
        """The largest distance after the step that gradient ascent over the ball finds, with every change tried.

        Samples that come may have any gradient of norm κ: they push along the distance.
        """
        generator = torch.Generator().manual_seed(0)
        clean = self.clipped(self.weight)
        before = self.size_weight(len(self.inputs)) * clean.sum(dim=0)
        largest = 0.0
        for kept, came in self.changes():
            weight = self.size_weight(len(kept) + came)
            delta = torch.randn(starts, *self.weight.shape, generator=generator, dtype=F64)
            for step in range(steps):
                delta = self._inside(delta).requires_grad_()
                after = weight * self.clipped(self.weight + delta)[:, kept].sum(dim=1)
                moved = (1 - self.rate * self.decay) * delta - self.rate * (after - before)
                distance = moved.flatten(1).norm(dim=1) + self.rate * weight * came * self.kappa
                largest = max(largest, float(distance.detach().max()))
                (ascent,) = torch.autograd.grad(distance.sum(), delta)
                length = ascent.flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-300)
                delta = (delta + self.radius * ascent / length / (1 + step / 8)).detach()
        return largest

    def _inside(self, delta: Tensor) -> Tensor:
        norms = delta.detach().flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-300)
        return delta.detach() * (self.radius / norms).clamp(max=1)
