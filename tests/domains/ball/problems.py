"""Small problems for the one-step lemma, many of one shape at a time, and what the library certifies for each.

This is the only place that builds inputs of `agt_lightning.domains.ball` for the attacks.
Axis letters: ``g`` problems, ``b`` samples, ``d`` features, ``h`` hidden units, ``k`` outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from agt_lightning.domains.ball.layers import Layer, LayerBall
from agt_lightning.domains.ball.linear import LinearAnalysis
from agt_lightning.domains.ball.one_hidden import OneHiddenAnalysis
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.radius import StepConstants, next_radius
from agt_lightning.domains.ball.step_data import Poison, Samples, StepData
from agt_lightning.domains.ball.unstable import Pairs, UnstableUnits, knapsack
from agt_lightning.domains.losses import (
    HeadLoss,
    HuberError,
    LabelPerturbation,
    LogisticLoss,
    SoftmaxLoss,
    SquaredError,
    Target,
)
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels

LOSSES = ("squared", "huber", "logistic", "softmax")
LABELS = (None, "box", "ball", "flip")


@dataclass(frozen=True)
class Form:
    """What problems of one batch share.

    Args:
        loss: one of `LOSSES`.
        labels: how targets are poisoned: in a box, in a Euclidean ball, or flipped; None if they stay.
        p: norm of the ball of features; None if they stay.
        hidden: whether there is a hidden layer.
        trains_first: whether the bias of the first layer is trained; without a hidden layer there is none.
        trains_second: whether the bias of the last layer is trained.
        scale: factor of the loss.
        delta: of the Huber loss.
        slope: of the Huber loss.
        boxed: whether the parameters are in a box as well, whose bounds on values are passed on.
    """

    loss: str
    labels: str | None
    p: float | None
    hidden: bool = True
    trains_first: bool = True
    trains_second: bool = True
    scale: float = 1.0
    delta: float = 0.5
    slope: float = 1.0
    boxed: bool = False

    @property
    def head_loss(self) -> HeadLoss:
        """The library's loss."""
        if self.loss == "huber":
            return HuberError(self.scale, self.delta, self.slope)
        return {"squared": SquaredError, "logistic": LogisticLoss, "softmax": SoftmaxLoss}[self.loss](self.scale)


@dataclass(frozen=True)
class Problems:
    """A nominal point, data, adversary and settings, with a leading axis of problems everywhere.

    Args:
        form: what they share.
        first: W₁, (g, h, d); unused without a hidden layer.
        first_bias: (g, h).
        second: W₂, (g, k, h); of a linear head (g, k, d).
        second_bias: (g, k).
        inputs: (g, b, d).
        targets: (g, b, k), or classes (g, b).
        weights: (g, b).
        poisonable: boolean (g, b), the same number in each problem.
        n: number of poisoned samples.
        epsilon: radius of each feature, (g, d).
        nu: radius of labels, (g,).
        radius: R, (g,).
        rate: (g,).
        decay: (g,).
        box: half-width of the box of parameters, (g,).
    """

    form: Form
    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    inputs: Tensor
    targets: Tensor
    weights: Tensor
    poisonable: Tensor
    n: int
    epsilon: Tensor
    nu: Tensor
    radius: Tensor
    rate: Tensor
    decay: Tensor
    box: Tensor

    def __len__(self) -> int:
        return len(self.radius)

    def at_radius(self, radius: Tensor) -> Problems:
        """The same problems at other radii."""
        return replace(self, radius=radius)

    def layers(self, g: int) -> tuple[Tensor, ...]:
        """Results of the layers of one problem at the nominal parameters."""
        inputs = self.inputs[g]
        if not self.form.hidden:
            return (inputs @ self.second[g].T + self.second_bias[g],)
        hidden = inputs @ self.first[g].T + self.first_bias[g]
        return hidden, hidden.clamp(min=0) @ self.second[g].T + self.second_bias[g]

    def target(self, g: int, rows: Tensor | None = None) -> Target:
        """Targets of one problem."""
        values = self.targets[g] if rows is None else self.targets[g][rows]
        return ClassLabels(values) if self.form.loss == "softmax" else Interval.point(values)

    def label_perturbation(self, g: int, rows: Tensor) -> LabelPerturbation:
        """What can be written in place of the targets."""
        clean, kind, nu = self.target(g, rows), self.form.labels, float(self.nu[g])
        if isinstance(clean, ClassLabels):
            return LabelPerturbation(clean, ClassLabels(clean.index, flippable=kind is not None))
        if kind is None:
            return LabelPerturbation(clean, clean)
        if kind == "flip":
            return LabelPerturbation(clean, Interval(torch.zeros_like(clean.lower), torch.ones_like(clean.lower)))
        around = Interval(clean.lower - nu, clean.upper + nu)
        return LabelPerturbation(clean, around, nu if kind == "ball" else None)

    def perturbation(self, g: int, rows: Tensor) -> Perturbation | None:
        """How features can move."""
        if self.form.p is None:
            return None
        widths = self.epsilon[g].expand(len(rows), -1).clone()
        return Perturbation(widths) if math.isinf(self.form.p) else Perturbation(widths, self.epsilon[g], self.form.p)

    def boxes(self, g: int, moved: bool) -> tuple[Interval, ...] | None:
        """Bounds on the layers' results over the box of parameters, by interval arithmetic."""
        if not self.form.boxed:
            return None
        rho, inputs = float(self.box[g]), self.inputs[g]
        away = self.epsilon[g].expand_as(inputs) if moved else torch.zeros_like(inputs)
        first_bias, second_bias = rho * self.form.trains_first, rho * self.form.trains_second
        if not self.form.hidden:
            return (_product(inputs - away, inputs + away, self.second[g], rho, self.second_bias[g], second_bias),)
        hidden = _product(inputs - away, inputs + away, self.first[g], rho, self.first_bias[g], first_bias)
        on = hidden.lower.clamp(min=0), hidden.upper.clamp(min=0)
        return hidden, _product(*on, self.second[g], rho, self.second_bias[g], second_bias)

    def samples(self, g: int) -> Samples:
        """All samples of one problem."""
        return Samples(self.inputs[g], self.layers(g), self.boxes(g, moved=False))

    def poison(self, g: int) -> Poison | None:
        """The adversary of one problem."""
        rows = self.poisonable[g].nonzero().squeeze(1)
        if self.n == 0 or len(rows) == 0:
            return None
        boxes = self.boxes(g, moved=True)
        known = None if boxes is None else tuple(box[rows] for box in boxes)
        return Poison(rows, self.n, self.label_perturbation(g, rows), self.perturbation(g, rows), known)

    def ball(self, g: int) -> LayerBall:
        """The layers and the ball."""
        second = Layer(self.second[g], self.second_bias[g], self.form.trains_second)
        first = Layer(self.first[g], self.first_bias[g], self.form.trains_first)
        return LayerBall((first, second) if self.form.hidden else (second,), float(self.radius[g]))

    def constants(self, g: int) -> StepConstants:
        """Suprema over the ball."""
        data = StepData(self.samples(g), self.target(g), self.poison(g))
        analysis = OneHiddenAnalysis if self.form.hidden else LinearAnalysis
        return analysis.step_constants(self.ball(g), data, self.weights[g], self.form.head_loss)

    def certified(self) -> Tensor:
        """The next radius of every problem, (g,)."""
        return torch.tensor(
            [
                next_radius(float(self.radius[g]), self.constants(g), float(self.rate[g]), float(self.decay[g]))
                for g in range(len(self))
            ],
            dtype=torch.float64,
        )


def _product(lower: Tensor, upper: Tensor, weight: Tensor, rho: float, bias: Tensor, bias_rho: float) -> Interval:
    """``W z + β`` for z between the bounds and W within ``rho``: extremes are at corners of each product."""
    corners = torch.stack([z[:, None, :] * w for z in (lower, upper) for w in (weight - rho, weight + rho)])
    low, high = corners.amin(dim=0).sum(dim=2) + bias, corners.amax(dim=0).sum(dim=2) + bias
    slack = 1e-13 * (1 + low.abs() + high.abs() + corners.abs().amax(dim=0).sum(dim=2))
    return Interval(low - bias_rho - slack, high + bias_rho + slack)


def random_problems(
    form: Form, count: int, d: int, h: int, k: int, b: int, n: int, generator: torch.Generator
) -> Problems:
    """Problems on all scales: some at a fit, some units exactly at zero, repeated samples, unequal weights."""

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    def spread(low: float, high: float, *shape: int) -> Tensor:
        share = torch.rand(count, *shape, dtype=torch.float64, generator=generator)
        return torch.exp(math.log(low) + share * math.log(high / low))

    def coin(chance: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, dtype=torch.float64, generator=generator) < chance

    h = h if form.hidden else d
    inputs = noise(count, b, d) * spread(0.1, 3, 1, 1)
    inputs = torch.where(coin(0.2, 1, 1), inputs[:, :1] + 0.01 * noise(count, b, d), inputs)
    first = noise(count, h, d) * spread(0.03, 3, 1, 1)
    first_bias = noise(count, h) * spread(0.01, 2, 1)
    through = (first * inputs[:, :1]).sum(dim=2)  # the unit is at zero for the first sample, nearly or exactly
    first_bias = torch.where(coin(0.3, h), -through + 1e-3 * noise(count, h) * coin(0.5, h), first_bias)
    first = torch.where(coin(0.05, h, 1), torch.zeros_like(first), first)
    second = noise(count, k, h) * spread(0.03, 3, 1, 1)
    second_bias = noise(count, k)
    hidden = (inputs @ first.mT + first_bias[:, None]).clamp(min=0) if form.hidden else inputs
    outputs = hidden @ second.mT + second_bias[:, None]
    if form.loss == "softmax":
        targets = torch.randint(0, k, (count, b), generator=generator)
    elif form.loss == "logistic":
        targets = torch.randint(0, 2, (count, b, k), generator=generator).double()
    else:
        targets = outputs + noise(count, b, k) * spread(1e-3, 3, 1, 1)
    order = torch.rand(count, b, generator=generator).argsort(dim=1)
    can = max(n, b - b // 3)
    radius = spread(1e-6, 10) * ~coin(0.1)
    return Problems(
        form=form,
        first=first,
        first_bias=first_bias,
        second=second,
        second_bias=second_bias,
        inputs=inputs,
        targets=targets,
        weights=torch.where(coin(0.5, 1), torch.full((count, b), 1 / b).double(), spread(0.02, 2, b) / b),
        poisonable=order < can,
        n=n,
        epsilon=spread(1e-3, 1, 1) * spread(0.5, 1, d) * (form.p is not None),
        nu=spread(1e-3, 2) * (form.labels is not None),
        radius=radius,
        rate=spread(1e-3, 10),
        decay=torch.where(coin(0.5), torch.zeros(count).double(), spread(1e-2, 2)),
        box=radius * spread(0.1, 1),
    )


def near_kinks(problems: Problems, within: float, generator: torch.Generator) -> Problems:
    """The same problems with every unit near zero for one of its samples.

    Args:
        problems: with a hidden layer.
        within: typical distance of its preactivation from zero.
        generator: of all random choices.
    """
    first = problems.first
    sample = torch.randint(0, problems.inputs.shape[1], first.shape[:2], generator=generator)
    nearest = problems.inputs.gather(1, sample[..., None].expand_as(first))
    away = within * torch.randn(first.shape[:2], dtype=torch.float64, generator=generator)
    return replace(problems, first_bias=away - (first * nearest).sum(dim=2))


def unstable_within(distance: Tensor, radius: float, possible: Tensor | None = None) -> UnstableUnits:
    """All pairs of a sample and a unit that ``radius`` can switch, from distances (b, h)."""
    near = distance <= radius
    pairs = Pairs.where(near if possible is None else near & possible)
    return UnstableUnits.sorted(pairs, pairs.of(distance))


def knapsack_bound(values: Tensor, costs: Tensor, budget: Tensor) -> Tensor:
    """The bound on every set of units, from dense (b, h)."""
    every = Pairs.where(torch.ones_like(values, dtype=torch.bool))
    return knapsack(every, every.of(values), every.of(costs), budget)
