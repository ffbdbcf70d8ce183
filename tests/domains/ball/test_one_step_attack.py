"""No poisoning of one step leaves the next ball: thousands of gradient ascents on small networks of all scales."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.domains.ball.attacks import OneStep, attack
from tests.domains.ball.problems import Form, Problems, random_problems

RELATIVE = 1e-9
"""Rounding of one step, relative to the bound: sums of at most a hundred terms, 1e-14."""

ABSOLUTE = 1e-12
"""The same where the bound is far smaller than the gradients whose difference it bounds."""

FORMS = [
    Form("squared", None, None),
    Form("squared", "box", None, trains_first=False),
    Form("squared", "ball", None, trains_second=False, scale=0.5),
    Form("squared", None, 2.0),
    Form("squared", "box", math.inf, boxed=True),
    Form("squared", "ball", 1.0, hidden=False),
    Form("huber", "box", None, delta=0.1),
    Form("huber", None, math.inf, trains_second=False, slope=3.0),
    Form("huber", "box", 2.0, delta=2.0, trains_first=False),
    Form("huber", "ball", 1.0, boxed=True),
    Form("huber", "box", 2.0, hidden=False, delta=0.1),
    Form("logistic", "flip", None),
    Form("logistic", "flip", math.inf, trains_second=False),
    Form("logistic", "box", 2.0),
    Form("logistic", "flip", None, boxed=True, trains_first=False),
    Form("logistic", "box", 1.0, hidden=False),
    Form("logistic", None, None, hidden=False, trains_second=False),
    Form("softmax", "flip", None),
    Form("softmax", None, 2.0, trains_first=False),
    Form("softmax", "flip", 1.0, trains_second=False),
    Form("softmax", "flip", math.inf, boxed=True),
    Form("softmax", "flip", None, hidden=False),
    Form("softmax", "flip", 2.0, hidden=False, boxed=True),
    Form("softmax", None, None, boxed=True, scale=2.0),
]


def name(form: Form) -> str:
    return f"{form.loss}-{form.labels}-{form.p}-{'hidden' if form.hidden else 'linear'}{'-boxed' * form.boxed}"


def shape(form: Form, seed: int) -> dict[str, int]:
    """Sizes of the problems; each form meets small and larger ones."""
    nobody = form.labels is None and form.p is None
    b = (1, 2, 5, 12, 30)[seed % 5]
    return {
        "d": 1 + seed % 5,
        "h": (1, 3, 8)[seed % 3],
        "k": (2, 3)[seed % 2] if form.loss == "softmax" else 1 + seed % 3,
        "b": b,
        "n": 0 if nobody else min(b, 1 + seed % 3),
    }


def shares(problems: Problems, seed: int, attacks: int, steps: int) -> Tensor:
    """Of the bound that the best attack reaches on each problem; checks that none reaches more."""
    bound = problems.certified()
    reached = attack(problems, attacks, steps, torch.Generator().manual_seed(seed)).norms.amax(dim=1)
    assert not violated(reached, bound), f"reached {reached / bound}"
    return reached / bound.clamp(min=1e-300)


def violated(reached: Tensor, bound: Tensor) -> bool:
    return bool((reached > bound * (1 + RELATIVE) + ABSOLUTE).any())


@pytest.mark.thinned(2)
@pytest.mark.parametrize("form", FORMS, ids=name)
def test_no_attack_leaves_the_ball(form):
    number = FORMS.index(form)
    reached = []
    for seed in (number, number + 7):
        generator = torch.Generator().manual_seed(seed)
        reached.append(shares(random_problems(form, 8, **shape(form, seed), generator=generator), seed, 20, 9))
    # The attacks are not idle, and the bounds not far off.
    assert float(torch.cat(reached).median()) > 0.2


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("loss", ["squared", "huber", "logistic", "softmax"])
def test_at_radius_zero_the_whole_poison_is_bounded(loss, hidden):
    """The nominal point itself, with ReLUs exactly at zero that have any slope."""
    labels = "flip" if loss in ("logistic", "softmax") else "box"
    for p, seed in ((None, 0), (2.0, 1), (math.inf, 2)):
        form = Form(loss, labels, p, hidden=hidden)
        problems = random_problems(form, 12, 2, 3, 2, 4, 2, torch.Generator().manual_seed(seed))
        shares(problems.at_radius(torch.zeros(12).double()), seed, 20, 9)


@pytest.mark.parametrize("decay", [0.0, 0.7, 3.0])
def test_rates_beyond_stability(decay):
    """αL far above 2, and decay that flips the sign of what is kept."""
    for loss in ("squared", "huber", "logistic", "softmax"):
        form = Form(loss, "flip" if loss in ("logistic", "softmax") else "box", None)
        problems = random_problems(form, 12, 2, 3, 2, 4, 1, torch.Generator().manual_seed(5))
        rates = torch.logspace(-0.5, 2, 12).double()
        problems = replace(problems, rate=rates, decay=torch.full((12,), decay).double())
        shares(problems, 6, 20, 9)


def test_the_movements_that_attain_the_bound_are_inside_the_ball():
    """The oracle's own attacks respect the adversary's limits."""
    for form in (Form("squared", "ball", 1.0), Form("logistic", "flip", 2.0, boxed=True)):
        generator = torch.Generator().manual_seed(0)
        problems = random_problems(form, 6, 3, 3, 2, 5, 2, generator)
        found = attack(problems, 20, 5, generator)
        assert float((found.movements.norm(dim=2) - problems.radius[:, None]).max()) <= ABSOLUTE
        step = OneStep(problems, 20, generator)
        poisoned = step.first_poison()
        moved = (poisoned.inputs - step.inputs) / problems.epsilon[:, None, None]
        assert float(moved.norm(p=form.p, dim=3).max()) <= 1 + RELATIVE
        change = (poisoned.targets - step.targets).norm(dim=3)
        assert form.labels == "flip" or float((change - problems.nu[:, None, None]).max()) <= RELATIVE


def test_the_gradient_of_the_oracle_is_that_of_autograd():
    for loss in ("squared", "huber", "logistic", "softmax"):
        generator = torch.Generator().manual_seed(1)
        problems = random_problems(Form(loss, None, None), 3, 3, 4, 2, 5, 0, generator)
        problems = replace(problems, first_bias=problems.first_bias + 1e-3)  # no unit exactly at zero
        step = OneStep(problems, 1, generator)
        for g in range(3):
            own = [part[g, 0].clone().requires_grad_() for part in step.nominal]
            hidden = (problems.inputs[g] @ own[0].T + own[1]).relu()
            total = (problems.weights[g] * torch_loss(loss, hidden @ own[2].T + own[3], problems.targets[g])).sum()
            expected = torch.cat([part.flatten() for part in torch.autograd.grad(total, own)])
            torch.testing.assert_close(step.start[g, 0], expected, atol=1e-12, rtol=1e-12)


def torch_loss(loss: str, outputs: Tensor, targets: Tensor) -> Tensor:
    functional = torch.nn.functional
    if loss == "softmax":
        return functional.cross_entropy(outputs, targets, reduction="none")
    if loss == "logistic":
        return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").sum(dim=1)
    if loss == "huber":
        return functional.huber_loss(outputs, targets, delta=0.5, reduction="none").sum(dim=1)
    return functional.mse_loss(outputs, targets, reduction="none").sum(dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("form", FORMS, ids=name)
def test_no_longer_attack_leaves_the_ball(form, seed):
    generator = torch.Generator().manual_seed(100 + seed)
    shares(random_problems(form, 24, **shape(form, seed), generator=generator), seed, 40, 40)


EVOLVING = ("first", "first_bias", "second", "second_bias", "inputs", "weights")
SELECTED = (*EVOLVING, "targets", "poisonable", "epsilon", "nu", "radius", "rate", "decay", "box")


def taken(problems: Problems, rows: Tensor) -> Problems:
    return replace(problems, **{field: getattr(problems, field)[rows] for field in SELECTED})


def mutated(problems: Problems, size: float, generator: torch.Generator) -> Problems:
    """Networks and data a little different; radius, rate and adversary stay, so that no trivial step is bred."""

    def other(value: Tensor) -> Tensor:
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64) * size
        return value * torch.exp(noise * (torch.rand(value.shape, generator=generator) < 0.5))

    return replace(problems, **{field: other(getattr(problems, field)) for field in EVOLVING})


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=name)
def test_no_bred_network_lets_an_attack_out(form):
    """Evolution of networks towards those where the share of what the bound allows beyond decay is largest."""
    generator = torch.Generator().manual_seed(7)
    sizes = {**shape(form, 1), "d": 2, "h": 3}
    problems = random_problems(form, 48, **sizes, generator=generator)
    for generation in range(10):
        bound = problems.certified()
        reached = attack(problems, 24, 20, generator).norms.amax(dim=1)
        assert not violated(reached, bound), f"reached {reached / bound}"
        kept = (1 - problems.rate * problems.decay).abs() * problems.radius
        share = (reached - kept) / (bound - kept).clamp(min=1e-6 * bound)
        best = share.topk(12).indices
        problems = mutated(taken(problems, best.repeat(4)), 0.5 * 0.8**generation, generator)
