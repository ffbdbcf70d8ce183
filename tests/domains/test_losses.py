"""Every supremum of every loss bounds what dense sampling of its reach finds, by an independent derivative."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from agt_lightning.domains.ball.layers import Layer, LayerBall
from agt_lightning.domains.ball.linear import LinearAnalysis
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.radius import next_radius
from agt_lightning.domains.ball.step_data import Poison, Samples, StepData
from agt_lightning.domains.losses import (
    HeadLoss,
    HuberError,
    LabelPerturbation,
    LogisticLoss,
    OutputBounds,
    SoftmaxLoss,
    SquaredError,
    Target,
)
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels

ROUNDING = 1e-10
"""Far above float64 rounding of one gradient (1e-15), relative to values near 1."""

POINTS = 400
BATCH = 16

NUMERIC: list[tuple[HeadLoss, str]] = [
    (SquaredError(1.0), "mse"),
    (SquaredError(0.25), "mse"),
    (HuberError(0.5, 0.3), "huber"),
    (HuberError(1.0, 0.3, 1 / 0.3), "smooth"),
    (LogisticLoss(0.5), "bce"),
]
LOSSES = [*NUMERIC, (SoftmaxLoss(0.5), "ce"), (SoftmaxLoss(0.5, smoothing=0.3), "ce")]


def value(loss: HeadLoss, kind: str, outputs: Tensor, target: Tensor) -> Tensor:
    """Of torch's own loss, per sample; outputs (..., k)."""
    if kind == "ce":
        assert isinstance(loss, SoftmaxLoss)
        flat = torch.nn.functional.cross_entropy(
            outputs.flatten(0, -2), target.flatten(), reduction="none", label_smoothing=loss.smoothing
        )
        return loss.scale * flat.reshape(target.shape)
    if kind == "bce":
        each = torch.nn.functional.binary_cross_entropy_with_logits(outputs, target, reduction="none")
    elif kind == "huber":
        each = torch.nn.functional.huber_loss(outputs, target, reduction="none", delta=0.3)
    elif kind == "smooth":
        each = torch.nn.functional.smooth_l1_loss(outputs, target, reduction="none", beta=0.3)
    else:
        each = torch.nn.functional.mse_loss(outputs, target, reduction="none")
    return loss.scale * each.sum(dim=-1)


def derivative(loss: HeadLoss, kind: str, outputs: Tensor, target: Tensor) -> Tensor:
    outputs = outputs.clone().requires_grad_()
    return torch.autograd.grad(value(loss, kind, outputs, target).sum(), outputs)[0]


def hessian(loss: HeadLoss, kind: str, outputs: Tensor, target: Tensor) -> Tensor:
    """By closed form for the softmax and the logistic loss, elsewhere by automatic differentiation; (..., k, k)."""
    if kind == "ce":
        p = outputs.softmax(dim=-1)
        return loss.scale * (torch.diag_embed(p) - p[..., :, None] * p[..., None, :])
    outputs = outputs.clone().requires_grad_()
    first = torch.autograd.grad(value(loss, kind, outputs, target).sum(), outputs, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), outputs)[0]
    return torch.diag_embed(second)


class Case:
    """Nominal outputs, targets, a reach with or without a box, and points all over it."""

    def __init__(self, kind: str, k: int, boxed: bool, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.k, self.generator = k, generator
        self.center = 2 * self.noise(BATCH, k)
        if kind == "ce":
            self.center = self.center.clamp(-4, 4)
            self.index = torch.randint(0, k, (BATCH,), generator=generator)
            self.target: Target = ClassLabels(self.index)
            self.values = self.index
        else:
            self.values = torch.randint(0, 2, (BATCH, k), generator=generator).double()
            if kind != "bce":
                self.values = self.center + self.noise(BATCH, k) * 0.5
            self.target = Interval.point(self.values)
        radius = torch.exp(3 * torch.rand(BATCH, generator=generator).double() - 2.5)
        radius[0] = 0.0
        box = None
        if boxed:
            sides = torch.rand(2, BATCH, k, generator=generator).double() * radius[:, None]
            box = Interval(self.center - sides[0], self.center + sides[1])
        self.reach = OutputBounds.around(self.center, radius, box)
        directions = self.noise(POINTS, BATCH, k)
        directions[: POINTS // 4] = directions[: POINTS // 4].sign()  # corners
        axes = torch.eye(k).double().repeat(POINTS // (4 * k), 1)[:, None]
        directions[POINTS // 4 : POINTS // 4 + len(axes)] = axes * directions[POINTS // 4 : POINTS // 4 + len(axes)]
        length = torch.rand(POINTS, BATCH, 1, generator=generator).double() ** (1 / k)
        length[::2] = 1
        points = self.center + radius[:, None] * length * directions / directions.norm(dim=2, keepdim=True)
        if box is not None:
            points = torch.minimum(torch.maximum(points, box.lower), box.upper)
        self.points = points

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    @property
    def spread(self) -> Tensor:
        """Targets once for each point."""
        return self.values.expand(POINTS, *self.values.shape)

    def labels(self, kind: str) -> tuple[LabelPerturbation, Tensor]:
        """A reach of labels, and targets all over it, (points, b, ...)."""
        if kind == "ce":
            poisoned = ClassLabels(self.index, flippable=True, sources=(0, 1))
            choices = torch.randint(0, self.k, (POINTS, BATCH), generator=self.generator)
            allowed = poisoned.reachable(self.k).expand(POINTS, -1, -1).gather(2, choices[..., None]).squeeze(2)
            return LabelPerturbation(self.target, poisoned), torch.where(allowed, choices, self.index)
        nu = 0.4
        directions = self.noise(POINTS, BATCH, self.k)
        ball = self.values + nu * directions / directions.norm(dim=2, keepdim=True)
        return LabelPerturbation(self.target, Interval(self.values - nu, self.values + nu), nu), ball


def name(loss: HeadLoss, kind: str) -> str:
    return f"{kind}-smoothed" if getattr(loss, "smoothing", 0.0) else kind


CASES = [
    pytest.param(loss, kind, k, boxed, id=f"{name(loss, kind)}-{loss.scale}-{k}-{'box' if boxed else 'ball'}")
    for loss, kind in LOSSES
    for k in (1, 2, 3)
    for boxed in (False, True)
]


@pytest.mark.parametrize(("loss", "kind", "k", "boxed"), CASES)
class TestSuprema:
    def test_gradient_is_the_derivative(self, loss, kind, k, boxed):
        case = Case(kind, k, boxed, 0)
        own = loss.gradient(case.center, case.target)
        torch.testing.assert_close(own, derivative(loss, kind, case.center, case.values), atol=ROUNDING, rtol=ROUNDING)

    def test_value_is_that_of_torch(self, loss, kind, k, boxed):
        case = Case(kind, k, boxed, 0)
        own = loss.value(case.center, case.values)
        torch.testing.assert_close(own, value(loss, kind, case.center, case.values), atol=ROUNDING, rtol=ROUNDING)

    def test_reach_contains_its_points(self, loss, kind, k, boxed):
        case = Case(kind, k, boxed, 1)
        assert case.reach.box.contains(case.points, ROUNDING)
        assert float(((case.points - case.center).norm(dim=2) - case.reach.radius).max()) <= ROUNDING

    def test_curvature(self, loss, kind, k, boxed):
        case = Case(kind, k, boxed, 2)
        low, high = loss.curvature(case.reach, case.target)
        values = torch.linalg.eigvalsh(hessian(loss, kind, case.points, case.spread))
        assert float((values[..., -1] - high).max()) <= ROUNDING
        # Squared residuals beyond the corner of the Huber loss have no curvature, wherever torch puts the corner.
        assert float((low - values[..., 0]).max()) <= ROUNDING

    def test_chord_curvature_bounds_the_change_between_any_two_points(self, loss, kind, k, boxed):
        case = Case(kind, k, boxed, 3)
        low, high = loss.curvature(case.reach, case.target)
        others = case.points[torch.randperm(POINTS, generator=case.generator)]
        step = others - case.points
        change = derivative(loss, kind, others, case.spread) - derivative(loss, kind, case.points, case.spread)
        inner = (step * change).sum(dim=2)
        assert float((change.norm(dim=2) - high * step.norm(dim=2)).max()) <= ROUNDING
        assert float((low * step.square().sum(dim=2) - inner).max()) <= ROUNDING

    def test_gradient_change(self, loss, kind, k, boxed):
        case = Case(kind, k, boxed, 4)
        moved = derivative(loss, kind, case.points, case.spread) - derivative(loss, kind, case.center, case.values)
        assert float((moved.norm(dim=2) - loss.gradient_change(case.reach, case.target)).max()) <= ROUNDING

    def test_label_change_and_largest_gradient(self, loss, kind, k, boxed):
        case = Case(kind, k, boxed, 5)
        labels, targets = case.labels(kind)
        anywhere = 6 * case.noise(*case.points.shape)
        after = derivative(loss, kind, anywhere, targets)
        change = after - derivative(loss, kind, anywhere, case.spread)
        assert float((change.norm(dim=2) - loss.label_change(labels, k)).max()) <= ROUNDING
        assert float(after.norm(dim=2).max()) <= loss.largest_gradient(labels, k) + ROUNDING

    def test_energy(self, loss, kind, k, boxed):
        """Of a change by labels and a change by features, at every average of curvatures along a chord."""
        case = Case(kind, k, boxed, 6)
        labels, targets = case.labels(kind)
        start = derivative(loss, kind, case.points, case.spread)
        change = derivative(loss, kind, case.points, targets) - start
        average = torch.stack(
            [hessian(loss, kind, case.center + s * (case.points - case.center), case.spread) for s in (0.1, 0.5, 0.9)]
        ).mean(dim=0)
        for extra in (0.0, 0.3):
            along = case.noise(*change.shape)
            q = change + extra * along / along.norm(dim=2, keepdim=True)
            bound = loss.energy(torch.full((BATCH,), extra).double(), case.reach, labels)
            energy = quadratic(average, q)
            finite = bound.isfinite().expand_as(energy)
            assert not bool((finite & ~energy.isfinite()).any())
            assert largest((energy / bound)[finite & (bound > 0)]) <= 1 + 1e-8
            assert largest(energy[finite & (bound == 0)]) <= ROUNDING


def largest(values: Tensor) -> float:
    """Zero if there are none."""
    return float(values.max()) if values.numel() else 0.0


def quadratic(matrices: Tensor, vectors: Tensor) -> Tensor:
    """``qᵀ H⁺ q``; infinite where q is not in the range of H."""
    values, basis = torch.linalg.eigh(matrices)
    parts = (basis.mT @ vectors[..., None]).squeeze(-1).square()
    null = values <= 1e-13 * values.amax(dim=-1, keepdim=True).clamp(min=1e-3)
    outside = (parts * null).sum(dim=-1) > 1e-12
    energy = torch.where(null, torch.zeros_like(parts), parts / values).sum(dim=-1)
    return torch.where(outside, torch.full_like(energy, math.inf), energy)


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize(("loss", "kind"), NUMERIC)
def test_a_wider_reach_is_never_tighter(loss, kind, boxed):
    case = Case(kind, 2, boxed, 7)
    wide = case.reach.grown(torch.full((BATCH,), 0.1).double())
    (low, high), (lower, higher) = loss.curvature(case.reach, case.target), loss.curvature(wide, case.target)
    assert bool((lower <= low).all())
    assert bool((higher >= high).all())
    assert bool((loss.gradient_change(wide, case.target) >= loss.gradient_change(case.reach, case.target)).all())


def test_label_distance_is_attained_in_box_and_ball():
    clean = Interval.point(torch.tensor([[0.2, 0.7], [1.0, 0.0]]).double())
    poisoned = Interval(torch.zeros(2, 2).double(), torch.ones(2, 2).double())
    corners = torch.tensor([[i, j] for i in (0.0, 1.0) for j in (0.0, 1.0)]).double()
    farthest = (corners[:, None] - clean.lower).norm(dim=2).amax(dim=0)
    torch.testing.assert_close(LabelPerturbation(clean, poisoned).distance(), farthest)
    torch.testing.assert_close(LabelPerturbation(clean, poisoned, 0.5).distance(), torch.full((2,), 0.5).double())


def test_labels_beyond_zero_and_one_pull_without_limit():
    """A logistic loss with labels in a ball that leaves [0, 1]: ‖g̃'‖ is not bounded by one."""
    weight, nu, epsilon = torch.tensor([[40.0]]).double(), 0.3, 0.5
    inputs, target = torch.ones(1, 1).double(), Interval.point(torch.zeros(1, 1).double())
    labels = LabelPerturbation(target, Interval(target.lower - nu, target.upper + nu))
    poison = Poison(torch.arange(1), 1, labels, Perturbation(torch.full((1, 1), epsilon).double()))
    ball = LayerBall((Layer(weight, None, trains_bias=False),), 0.0)
    data = StepData(Samples(inputs, (inputs @ weight.T,)), target, poison)
    constants = LinearAnalysis.step_constants(ball, data, torch.ones(1).double(), LogisticLoss(1.0))
    moved = inputs + epsilon
    clean, poisoned = torch.sigmoid(40 * inputs) * inputs, (torch.sigmoid(40 * moved) + nu) * moved
    attained = float(poisoned - clean)
    assert attained == pytest.approx(0.95, abs=1e-6)
    assert attained <= next_radius(0.0, constants, rate=1.0, decay=0.0) + ROUNDING
