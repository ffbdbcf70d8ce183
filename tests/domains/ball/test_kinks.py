"""Kinks along the movement: their bounds at random points of the ball, and attacks of one step near kinks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agt_lightning.domains.ball.one_hidden import OneHiddenAnalysis
from agt_lightning.domains.ball.one_hidden.kinks import Kinks
from agt_lightning.domains.ball.remainder import Remainder
from agt_lightning.domains.ball.unit_sums import UnitSums
from tests.domains.ball.attacks import OneStep, attack, slope
from tests.domains.ball.problems import Form, Problems, near_kinks, random_problems

ROUNDING = 1e-9
"""Relative; far above the rounding of these small sums, 1e-14."""

ABSOLUTE = 1e-12
"""The same beside gradients of a size of one."""

DECISIVE = 1.03
"""How far outside an attack must come, relative to the faulty bound: far beyond any rounding."""

FORMS = [
    Form("squared", None, None),
    Form("squared", None, None, trains_first=False),
    Form("huber", None, None, delta=5.0, trains_second=False),
    Form("logistic", None, None),
    Form("softmax", None, None, boxed=True),
]

NAMES = [f"{form.loss}-{'boxed' if form.boxed else form.trains_first}" for form in FORMS]


def drawn(form: Form, seed: int, count: int = 10) -> Problems:
    """Problems with units that the ball switches."""
    generator = torch.Generator().manual_seed(seed)
    b, k = (1, 2, 5, 10)[seed % 4], 2 if form.loss == "softmax" else 1 + seed % 2
    problems = random_problems(form, count, 1 + seed % 3, (1, 2, 4)[seed % 3], k, b, 0, generator)
    problems = near_kinks(problems, (0.0, 1e-3, 1e-1)[seed % 3], generator)
    radius = 10 ** (-3 * torch.rand(count, dtype=torch.float64, generator=generator))
    return replace(problems, box=radius * problems.box / problems.radius.clamp(min=1e-300)).at_radius(radius)


class Change:
    """The parts of E at some points of the ball around one problem, docs/theory.md, eq. (10.4)."""

    def __init__(self, problems: Problems, g: int, movement: Tensor, step: OneStep) -> None:
        form, weights = problems.form, problems.weights[g][:, None]
        self.first, self.first_bias, second, second_bias = (part[g] for part in step.moved(movement))
        inputs = problems.inputs[g]
        one = torch.ones_like(inputs[:, :1]) * form.trains_first
        inputs_one = torch.cat([inputs, one], dim=1)
        before = inputs @ problems.first[g].T + problems.first_bias[g]
        after = inputs @ self.first.mT + self.first_bias[:, None]
        mask, mask_after = (before > 0).double(), (after > 0).double()
        z, z_after = before.clamp(min=0), after.clamp(min=0)
        targets = problems.targets[g]
        gradient = slope(form, z @ problems.second[g].T + problems.second_bias[g], targets)
        gradient_after = slope(
            form, z_after @ second.mT + second_bias[:, None], targets.expand(len(second), *targets.shape)
        )
        middle, change = (gradient + gradient_after) / 2, gradient_after - gradient
        moved_second = second - problems.second[g]
        hidden_change = after - before
        secant = torch.where(hidden_change == 0, mask, (z_after - z) / hidden_change)
        coupled = mask * (middle @ moved_second)
        jump = mask_after * (gradient_after @ second) - mask * (gradient @ problems.second[g]) - coupled
        jump = jump - secant * (change @ (problems.second[g] + moved_second / 2))
        self.kinks = (jump * weights).mT @ inputs_one  # (a, h, D)
        smooth = (coupled * weights).mT @ inputs_one
        second_layer = (middle * weights).mT @ (z_after - z)
        self.rest = torch.hypot(smooth.flatten(1).norm(dim=1), second_layer.flatten(1).norm(dim=1))
        bias = (self.first_bias - problems.first_bias[g]) * form.trains_first
        own = torch.cat([self.first - problems.first[g], bias[..., None]], dim=2)
        self.along = (own * self.kinks).flatten(1).sum(dim=1)


def remainders_of(problems: Problems, g: int) -> tuple[Remainder, ...]:
    analysis = OneHiddenAnalysis(problems.ball(g), problems.samples(g))
    gradient = analysis.output_gradient(problems.form.head_loss, problems.target(g))
    return analysis.remainders(gradient, problems.weights[g])


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize("seed", range(4))
def test_kinks_are_bounded_anywhere_in_the_ball(form, seed):
    problems = drawn(form, seed)
    generator = torch.Generator().manual_seed(seed)
    step, found = OneStep(problems, 40, generator), attack(problems, 10, 8, generator)
    kinks = 0.0
    for g in range(len(problems)):
        by_sign, along = remainders_of(problems, g)
        for movement in (step.first_movements(), found.movements.repeat(1, 4, 1)):
            change = Change(problems, g, movement, step)
            size = change.kinks.flatten(1).norm(dim=1)
            scale, radius = 1 + along.rest + along.monotone, float(problems.radius[g])
            assert float(size.max()) <= along.monotone * (1 + ROUNDING) + ABSOLUTE * scale
            assert float(change.rest.max()) <= along.rest * (1 + ROUNDING) + ABSOLUTE * scale
            assert -float(change.along.min()) <= along.discord * (1 + ROUNDING) + ABSOLUTE * scale * radius
            assert float(torch.hypot(change.rest, size).max()) <= (by_sign.rest + by_sign.monotone) * (1 + ROUNDING)
            kinks = max(kinks, float(size.max()))
    assert kinks > 1e-3


def excess(problems: Problems) -> float:
    """Largest share of the bound that an attack reaches; above one it is out."""
    reached = attack(problems, 20, 15, torch.Generator().manual_seed(0)).norms.amax(dim=1)
    return float(((reached - ABSOLUTE) / problems.certified().clamp(min=1e-300)).max())


@pytest.fixture
def _along_alone(monkeypatch):
    """Count all kinks along the movement, even where splitting them by sign is better."""
    whole = OneHiddenAnalysis.remainders
    monkeypatch.setattr(OneHiddenAnalysis, "remainders", lambda *arguments: whole(*arguments)[1:])


@pytest.mark.usefixtures("_along_alone")
@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_no_attack_near_kinks_leaves_the_ball(form):
    for seed in range(2):
        assert excess(drawn(form, seed)) <= 1 + ROUNDING


@pytest.mark.slow
@pytest.mark.usefixtures("_along_alone")
@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize("seed", range(20))
def test_no_other_attack_near_kinks_leaves_the_ball(form, seed):
    assert excess(drawn(form, 100 + seed, count=24)) <= 1 + ROUNDING


def no_discord(patch: pytest.MonkeyPatch) -> None:
    whole = Kinks.along_the_movement
    patch.setattr(Kinks, "along_the_movement", lambda *arguments: replace(whole(*arguments), discord=0.0))


def no_size(patch: pytest.MonkeyPatch) -> None:
    whole = Kinks.along_the_movement
    patch.setattr(Kinks, "along_the_movement", lambda *arguments: replace(whole(*arguments), monotone=0.0))


def half_of_any_part(patch: pytest.MonkeyPatch) -> None:
    whole = UnitSums.of_any_part
    patch.setattr(UnitSums, "of_any_part", lambda *arguments: whole(*arguments) / 2)


@pytest.mark.parametrize("fault", [no_discord, no_size, half_of_any_part], ids=lambda fault: fault.__name__)
def test_an_attack_finds_the_fault(fault, monkeypatch):
    """Beside the other splitting, as in a training."""
    problems = drawn(FORMS[3], 0)
    fault(monkeypatch)
    assert excess(problems) > DECISIVE
    monkeypatch.undo()
    assert excess(problems) <= 1 + ROUNDING
