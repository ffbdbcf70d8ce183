"""Jumps of poisoned gradients, unit by unit: their parts at random points, their sum against every choice of samples.

The attacks of one step are made where jumps decide, with no other bound beside theirs.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agt_lightning.domains.ball.one_hidden import OneHiddenAnalysis
from agt_lightning.domains.ball.one_hidden.jumps import PoisonJumps
from agt_lightning.domains.ball.poison_bounds import PoisonBounds, WorstPoison
from agt_lightning.domains.ball.unit_sums import UnitSums
from agt_lightning.domains.ball.unstable import Pairs, UnstableBetween
from tests.domains.ball.attacks import OneStep, attack, slope
from tests.domains.ball.problems import Form, Problems, near_kinks, random_problems

ROUNDING = 1e-9
"""Relative; far above the rounding of these small sums, 1e-14."""

ABSOLUTE = 1e-12
"""The same beside gradients of a size of one."""

FORMS = [
    Form("squared", None, 2.0),
    Form("squared", "box", math.inf, trains_first=False),
    Form("huber", None, 1.0, trains_second=False, delta=5.0),
    Form("logistic", "flip", 2.0),
    Form("softmax", None, math.inf),
    Form("softmax", "flip", 2.0, boxed=True),
]

DECISIVE = 1.1
"""How far outside an attack must come, relative to the faulty bound: far beyond any rounding."""

NAMES = [f"{form.loss}-{form.labels}-{form.p}" for form in FORMS]


def drawn(form: Form, seed: int, count: int = 8) -> Problems:
    """Problems in which features switch units, and at every other of which the ball hardly does."""
    generator = torch.Generator().manual_seed(seed)
    b = (1, 2, 4, 8, 12)[seed % 5]
    k = 2 if form.loss == "softmax" else 1 + seed % 2
    problems = random_problems(form, count, 1 + seed % 3, (1, 2, 5)[seed % 3], k, b, max(1, b // 2), generator)
    problems = near_kinks(problems, (0.0, 1e-3, 1e-1)[seed % 3], generator)
    small = 10 ** (-1 - 5 * torch.rand(count, dtype=torch.float64, generator=generator))
    small[0] = 0.0
    return problems.at_radius(small)


# The parts.


class Jump:
    """Random movements and poison of one problem, and the jumps of all poisonable samples, (a, m, h, D)."""

    def __init__(self, problems: Problems, g: int, seed: int) -> None:
        step = OneStep(problems, 30, torch.Generator().manual_seed(seed))
        movement, poisoned = step.first_movements(), step.first_poison()
        first, bias, second, second_bias = (part[g] for part in step.moved(movement))
        rows = problems.poisonable[g].nonzero().squeeze(1)
        self.inputs, self.poisoned = problems.inputs[g, rows], poisoned.inputs[g][:, rows]
        targets, clean_targets = poisoned.targets[g][:, rows], step.targets[g][:, rows]
        one = torch.ones_like(self.poisoned[..., :1]) * problems.form.trains_first
        before = self._signals(problems, (first, bias, second, second_bias), self.inputs, clean_targets)
        after = self._signals(problems, (first, bias, second, second_bias), self.poisoned, targets)
        self.turned = (after[0] - before[0])[..., None]  # τ, (a, m, h, 1)
        clean = torch.cat([self.inputs.expand_as(self.poisoned), one], dim=2)[:, :, None]
        self.sizes = clean[0, :, 0].norm(dim=1)
        moved = torch.cat([self.poisoned, one], dim=2)[:, :, None]
        self.clean = clean
        self.values = torch.where(self.turned > 0, after[1][..., None] * moved, -before[1][..., None] * clean)
        self.columns = (second - problems.second[g]).norm(dim=1)  # ‖δ₂ e_j‖, (a, h)

    @staticmethod
    def _signals(problems: Problems, parameters: tuple[Tensor, ...], inputs: Tensor, targets: Tensor) -> tuple:
        """Masks, and ``W̃₂ⱼᵀ g̃``, (a, m, h) each."""
        first, bias, second, second_bias = parameters
        hidden = inputs @ first.mT + bias[:, None]
        outputs = hidden.clamp(min=0) @ second.mT + second_bias[:, None]
        return (hidden > 0).double(), slope(problems.form, outputs, targets) @ second


def jumps_of(problems: Problems, g: int) -> PoisonJumps:
    poison = problems.poison(g)
    samples = problems.samples(g)[poison.rows]
    analysis = OneHiddenAnalysis(problems.ball(g), samples, poison.features)
    gradient = analysis.output_gradient(problems.form.head_loss, poison.labels.clean)
    jumps = analysis.poison_bounds(poison, gradient).apart.jumps
    assert isinstance(jumps, PoisonJumps)
    return jumps


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_every_jump_is_its_nominal_part_and_a_bounded_rest(form, seed):
    problems = drawn(form, seed)
    switched = 0
    for g in range(len(problems)):
        jumps, jump = jumps_of(problems, g), Jump(problems, g, seed)
        sample, unit = jumps.sums.pairs.sample, jumps.sums.pairs.unit
        turned = jump.turned[:, sample, unit]
        here = turned[..., 0] != 0
        switched += int(here.sum())
        # No unit switches that is not a candidate, and all that switch are paid.
        assert int(here.sum()) == int((jump.turned != 0).sum())
        paid = torch.zeros(len(here), len(jump.inputs)).double()
        paid.index_add_(1, sample, here * jumps.switching.distance.square())
        assert bool((paid <= jumps.switching.budget * (1 + ROUNDING) + ABSOLUTE**2).all())
        # The sign is right wherever it is claimed, and the length is.
        direction = jump.clean[:, sample, 0] / jump.sizes[sample, None].clamp(min=1e-300)
        guess = jumps.first_order[:, None] * direction
        either = torch.stack([(jump.values[:, sample, unit] - sign * guess).norm(dim=2) for sign in (1, -1)])
        claimed = torch.where(jumps.sign > 0, either[0], either[1])
        away = torch.where(jumps.sign == 0, either.amin(dim=0), claimed)
        limit = jumps.rest + jump.columns[:, unit] * jumps.moved[sample]
        assert bool((away <= limit * (1 + ROUNDING) + ABSOLUTE)[here].all())
    assert switched > 20


# The sum.


class Choices:
    """Few samples and units, all of whose choices can be tried."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=torch.float64, generator=generator)

        self.samples, self.units, self.n = 2 + seed % 3, 1 + seed % 3, 1 + seed % 2
        inputs = noise(self.samples, 1 + seed // 2 % 3)
        if seed % 4 == 0:
            inputs = inputs[:1] + 0.2 * noise(*inputs.shape)  # all alike
        pairs = Pairs.where(torch.ones(self.units, self.samples, dtype=torch.bool))
        pairs = Pairs(pairs.unit, pairs.sample)  # by unit
        pull, norm = noise(len(pairs.unit)), inputs.norm(dim=1)
        unknown = noise(len(pull)).abs() < 0.4 * (seed % 2)
        self.vectors = (pull[:, None] * inputs[pairs.sample]).unflatten(0, (self.units, self.samples))
        self.unknown = unknown.unflatten(0, (self.units, self.samples))
        distance, budget = noise(len(pull)).abs(), noise(self.samples).abs() * self.units**0.5
        self.affordable = distance.square().unflatten(0, (self.units, self.samples)), budget
        self.jumps = PoisonJumps(
            switching=UnstableBetween(pairs, distance, budget),
            sums=UnitSums(pairs, inputs, norm, self.units),
            sign=pull.sign() * ~unknown,
            first_order=pull.abs() * norm[pairs.sample],
            rest=noise(len(pull)).abs() * (seed % 3 > 0),
            moved=noise(self.samples).abs() * (seed % 5 > 0),
            radius=float(noise().abs()),
        )

    def options(self, sample: int) -> list[Tensor]:
        """Factors of all units of one sample, 0 where they do not switch."""
        costs, budget = self.affordable[0][:, sample], self.affordable[1][sample]
        signs = [(0.0, 1.0, -1.0) if self.unknown[unit, sample] else (0.0, 1.0) for unit in range(self.units)]
        every = (torch.tensor(choice).double() for choice in itertools.product(*signs))
        return [choice for choice in every if float(choice.abs() @ costs) <= float(budget)]

    def largest(self) -> float:
        """With rests along the rows that they lengthen, and all of ``δ₂`` in one column."""
        rest = self.jumps.rest.unflatten(0, (self.units, self.samples))
        best = 0.0
        for chosen in itertools.combinations(range(self.samples), self.n):
            for factors in itertools.product(*map(self.options, chosen)):
                factor = torch.stack(factors, dim=1)  # (h, n)
                rows = (factor[..., None] * self.vectors[:, chosen]).sum(dim=1).norm(dim=1)
                rows = rows + (factor.abs() * rest[:, chosen]).sum(dim=1)
                moved = self.jumps.radius * factor.abs() @ self.jumps.moved[list(chosen)]
                best = max(best, *((rows + moved * one).norm().item() for one in torch.eye(self.units).double()))
        return best


@pytest.mark.parametrize("seed", range(30))
def test_no_choice_of_samples_and_units_jumps_farther(seed):
    choices = Choices(seed)
    assert choices.largest() <= choices.jumps.worst(torch.ones(choices.samples).double(), choices.n) * (1 + ROUNDING)


def test_weights_scale_jumps():
    jumps = Choices(3).jumps
    ones = torch.ones(len(jumps.moved)).double()
    assert jumps.worst(0.5 * ones, 2) == pytest.approx(0.5 * jumps.worst(ones, 2))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e-24, 1e15])
def test_jumps_whose_squares_leave_the_range_of_the_type_are_not_lost(size):
    pairs, ones = Pairs(torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1])), torch.ones(3)
    jumps = PoisonJumps(
        switching=UnstableBetween(pairs, torch.zeros(3), torch.zeros(2)),
        sums=UnitSums(pairs, torch.ones(2, 1), torch.ones(2), 2),
        sign=ones,
        first_order=size * ones,
        rest=0 * ones,
        moved=torch.zeros(2),
        radius=0.0,
    )
    assert 5**0.5 * size <= jumps.worst(torch.ones(2), 2) * (1 + 1e-6)  # single precision


@pytest.mark.parametrize("part", ["_paid", "_shared"])
@pytest.mark.parametrize("seed", range(10))
def test_each_bound_of_the_rows_holds_alone(part, seed, monkeypatch):
    other = {"_paid": "_shared", "_shared": "_paid"}[part]
    monkeypatch.setattr(PoisonJumps, other, lambda *_: math.inf)
    choices = Choices(seed)
    choices.jumps = replace(choices.jumps, rest=0 * choices.jumps.rest, moved=0 * choices.jumps.moved)
    monkeypatch.setattr(PoisonJumps, "_rest", lambda *_: 0.0)
    assert choices.largest() <= choices.jumps.worst(torch.ones(choices.samples).double(), choices.n) * (1 + ROUNDING)


# One step.


@pytest.fixture
def _jumps_alone(monkeypatch):
    """Take jumps unit by unit even where bounds sample by sample are smaller."""
    whole = PoisonBounds.worst

    def worst(self: PoisonBounds, *arguments: object) -> WorstPoison:
        if self.apart is None:
            return whole(self, *arguments)
        nothing = torch.full_like(self.whole, math.inf)
        return whole(replace(self, whole=nothing, rest=nothing), *arguments)

    monkeypatch.setattr(PoisonBounds, "worst", worst)


def excess(problems: Problems) -> float:
    """Largest share of the bound that an attack reaches; above one it is out."""
    reached = attack(problems, 20, 12, torch.Generator().manual_seed(0)).norms.amax(dim=1)
    return float(((reached - ABSOLUTE) / problems.certified().clamp(min=1e-300)).max())


@pytest.mark.usefixtures("_jumps_alone")
@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_no_attack_near_kinks_leaves_the_ball(form):
    for seed in range(2):
        assert excess(drawn(form, seed)) <= 1 + ROUNDING


@pytest.mark.slow
@pytest.mark.usefixtures("_jumps_alone")
@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize("seed", range(20))
def test_no_other_attack_near_kinks_leaves_the_ball(form, seed):
    assert excess(drawn(form, 100 + seed, count=24)) <= 1 + ROUNDING


# Planted faults.


def no_first_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PoisonJumps, "_first_order", lambda *_: 0.0)


def half_of_any_part(patch: pytest.MonkeyPatch) -> None:
    whole = UnitSums.of_any_part
    patch.setattr(UnitSums, "of_any_part", lambda *arguments: whole(*arguments) / 2)


def a_quarter_of_the_eigenvalues(patch: pytest.MonkeyPatch) -> None:
    whole = UnitSums.gram_norms
    patch.setattr(UnitSums, "gram_norms", lambda *arguments: whole(*arguments) / 4)


def one_sample_less(patch: pytest.MonkeyPatch) -> None:
    whole = UnitSums.largest
    patch.setattr(UnitSums, "largest", lambda self, values, n: whole(self, values, n - 1))


def no_unit_is_free(patch: pytest.MonkeyPatch) -> None:
    """Every unit is taken to cost more than there is."""
    patch.setattr(UnstableBetween, "largest_sum", lambda self, values: torch.zeros_like(self.budget))


SUM_FAULTS = [no_first_order, half_of_any_part, a_quarter_of_the_eigenvalues, one_sample_less, no_unit_is_free]


@pytest.mark.parametrize("fault", SUM_FAULTS, ids=lambda fault: fault.__name__)
def test_an_attack_finds_the_fault(fault, monkeypatch):
    """Beside the bounds sample by sample, as in a training."""
    problems = drawn(FORMS[2], 10)
    fault(monkeypatch)
    assert excess(problems) > DECISIVE
    monkeypatch.undo()
    assert excess(problems) <= 1 + ROUNDING


def no_rest(jumps: PoisonJumps) -> PoisonJumps:
    return replace(jumps, rest=0 * jumps.rest)


def no_movement_of_the_second_layer(jumps: PoisonJumps) -> PoisonJumps:
    return replace(jumps, moved=0 * jumps.moved)


def signs_that_the_ball_can_turn(jumps: PoisonJumps) -> PoisonJumps:
    return replace(jumps, sign=torch.where(jumps.sign == 0, 1.0, jumps.sign))


def a_tenth_of_the_budget(jumps: PoisonJumps) -> PoisonJumps:
    return replace(jumps, switching=replace(jumps.switching, budget=jumps.switching.budget / 10))


PART_FAULTS = [no_rest, no_movement_of_the_second_layer, signs_that_the_ball_can_turn, a_tenth_of_the_budget]


@pytest.mark.parametrize("fault", PART_FAULTS, ids=lambda fault: fault.__name__)
def test_a_jump_shows_the_fault(fault, monkeypatch):
    whole = jumps_of
    monkeypatch.setitem(globals(), "jumps_of", lambda *arguments: fault(whole(*arguments)))
    with pytest.raises(AssertionError):
        test_every_jump_is_its_nominal_part_and_a_bounded_rest(FORMS[3], 2)


@pytest.mark.parametrize("large", [1e155, 1e200])
def test_jumps_whose_squares_overflow_are_counted(large):
    pairs = Pairs(torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1]))
    ones = torch.ones(3, dtype=torch.float64)
    jumps = PoisonJumps(
        switching=UnstableBetween(pairs, 0 * ones, torch.ones(2, dtype=torch.float64)),
        sums=UnitSums(pairs, torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64), 2),
        sign=ones,
        first_order=torch.tensor([large, large, 1.0], dtype=torch.float64),
        rest=0 * ones,
        moved=torch.zeros(2, dtype=torch.float64),
        radius=0.0,
    )
    worst = jumps.worst(torch.ones(2, dtype=torch.float64), 2)
    assert not worst < math.sqrt(2) * large  # NaN and infinity end the ball
