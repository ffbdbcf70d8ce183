"""No poisoning of one step of a deep head leaves the next ball, and faults that are planted let attacks out.

Axis letters: ``a`` attacks, ``b`` samples, ``o`` and ``i`` outputs and inputs of a layer; the last input is the one of
its bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from agt_lightning.aggregation import Choice
from agt_lightning.domains.ball.deep import DeepAnalysis, bounds, gradient_jumps, remainder
from agt_lightning.domains.ball.layers import Layer, LayerBall
from agt_lightning.domains.ball.one_hidden import OneHiddenAnalysis
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.poison_bounds import PoisonBounds
from agt_lightning.domains.ball.radius import StepConstants, next_radius
from agt_lightning.domains.ball.remainder import Remainder
from agt_lightning.domains.ball.step_data import Poison, Samples, StepData
from agt_lightning.domains.ball.value_bounds import layer_bounds, margin_bounds
from agt_lightning.domains.losses import HeadLoss, LabelPerturbation, Target
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from tests.domains.ball.attacks import slope
from tests.domains.ball.problems import Form, _product
from tests.domains.ball.test_poisoned_trainings import ADVERSARIES, SCHEDULES, Training
from tests.domains.ball.test_value_bounds import Head

RELATIVE, ABSOLUTE = 1e-9, 1e-12
"""Rounding of one step of a few units."""

DECISIVE = 1.01
"""How far outside an attack must come, relative to a faulty bound."""


@dataclass(frozen=True)
class Problem:
    """A nominal point, data, adversary and settings.

    Args:
        form: loss and adversary; ``boxed`` passes on bounds over a box of parameters.
        weights: of each layer, (o, i + 1).
        trains: whether each layer's bias is trained.
        inputs: (b, d).
        targets: (b, k), or classes (b,).
        shares: weight of each sample, (b,).
        n: number of poisoned samples.
        epsilon: of features.
        nu: of labels.
        radius: R.
        rate: of learning.
        decay: of weights.
    """

    form: Form
    weights: tuple[Tensor, ...]
    trains: tuple[bool, ...]
    inputs: Tensor
    targets: Tensor
    shares: Tensor
    n: int
    epsilon: float
    nu: float
    radius: float
    rate: float
    decay: float

    @property
    def layers(self) -> tuple[Layer, ...]:
        pairs = zip(self.weights, self.trains, strict=True)
        return tuple(Layer(weight[:, :-1], weight[:, -1], trains) for weight, trains in pairs)

    def results(self) -> tuple[Tensor, ...]:
        values, results = self.inputs, []
        for layer in self.layers:
            results.append(values @ layer.weight.T + layer.bias)
            values = results[-1].clamp(min=0)
        return tuple(results)

    def boxes(self, moved: bool) -> tuple[Interval, ...] | None:
        if not self.form.boxed:
            return None
        away = self.epsilon * moved
        values, boxes, rho = Interval(self.inputs - away, self.inputs + away), [], self.rho
        for layer in self.layers:
            bounds = values.lower, values.upper, layer.weight, rho, layer.bias, rho * layer.trains_bias
            boxes.append(_product(*bounds))
            values = Interval(boxes[-1].lower.clamp(min=0), boxes[-1].upper.clamp(min=0))
        return tuple(boxes)

    @property
    def rho(self) -> float:
        return 0.3 * self.radius

    @property
    def target(self) -> Target:
        return ClassLabels(self.targets) if self.form.loss == "softmax" else Interval.point(self.targets)

    def poison(self) -> Poison | None:
        if self.n == 0:
            return None
        clean, kind = self.target, self.form.labels
        if isinstance(clean, ClassLabels):
            labels = LabelPerturbation(clean, ClassLabels(clean.index, flippable=kind is not None))
        elif kind == "flip":
            labels = LabelPerturbation(clean, Interval(torch.zeros_like(clean.lower), torch.ones_like(clean.lower)))
        else:
            nu = self.nu if kind else 0.0
            labels = LabelPerturbation(clean, Interval(clean.lower - nu, clean.upper + nu))
        moves = None
        if self.form.p is not None:
            widths = torch.full_like(self.inputs, self.epsilon)
            moves = Perturbation(widths) if math.isinf(self.form.p) else Perturbation(widths, widths[0], self.form.p)
        return Poison(torch.arange(len(self.inputs)), self.n, labels, moves, self.boxes(moved=True))

    def arguments(self) -> tuple[StepData, Tensor, HeadLoss]:
        samples = Samples(self.inputs, self.results(), self.boxes(moved=False))
        return StepData(samples, self.target, self.poison()), self.shares, self.form.head_loss

    def constants(self) -> StepConstants:
        return DeepAnalysis.step_constants(LayerBall(self.layers, self.radius), *self.arguments())

    def certified(self) -> float:
        return next_radius(self.radius, self.constants(), self.rate, self.decay)


def random_problem(form: Form, sizes: tuple[int, ...], b: int, n: int, generator: torch.Generator) -> Problem:
    """On all scales; some units exactly at zero, some targets at a fit."""

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    def spread(low: float, high: float) -> float:
        return low * (high / low) ** float(torch.rand((), generator=generator))

    inputs = noise(b, sizes[0]) * spread(0.3, 2)
    values, weights = inputs, []
    for i, o in zip(sizes, sizes[1:], strict=False):
        weight = noise(o, i + 1) * spread(0.2, 1.5)
        through = values[0] @ weight[:, :-1].T
        at_zero = torch.rand(o, generator=generator) < 0.3
        near = 1e-2 * noise(o) * (torch.rand(o, generator=generator) < 0.7)
        weight[:, -1] = torch.where(at_zero, near - through, weight[:, -1])
        weights.append(weight)
        outputs = values @ weight[:, :-1].T + weight[:, -1]
        values = outputs.clamp(min=0)
    k = sizes[-1]
    targets = outputs + noise(b, k) * spread(1e-3, 3)
    if form.loss == "softmax":
        targets = torch.randint(0, k, (b,), generator=generator)
    elif form.loss == "logistic":
        targets = torch.randint(0, 2, (b, k), generator=generator).double()
    trains = tuple(bool(torch.rand((), generator=generator) < 0.7) for _ in weights)
    epsilon = spread(1e-3, 0.5) * (form.p is not None)
    rates = spread(1e-3, 3), spread(1e-2, 1) * bool(torch.rand((), generator=generator) < 0.3)
    radius = spread(1e-5, 1) * bool(torch.rand((), generator=generator) < 0.9)
    shares = torch.full((b,), 1 / b).double()
    return Problem(form, tuple(weights), trains, inputs, targets, shares, n, epsilon, spread(1e-3, 1), radius, *rates)


class Attack:
    """Gradient ascent on the movement and on poisoned data at once, from many starts."""

    def __init__(self, problem: Problem, count: int, generator: torch.Generator) -> None:
        self.problem, self.count, self.generator = problem, count, generator
        self.trained = [torch.ones_like(weight) for weight in problem.weights]
        for trained, trains in zip(self.trained, problem.trains, strict=True):
            trained[:, -1] = float(trains)
        p = problem
        self.inputs = p.inputs.expand(count, *p.inputs.shape)
        self.targets = p.targets.expand(count, *p.targets.shape)
        # relu'(0) is any value in [0, 1], another one before and after.
        self.zero = [
            [torch.randint(0, 3, (count, len(p.inputs), len(w)), generator=generator) / 2 for w in p.weights]
            for _ in range(2)
        ]
        soft = 10 ** (-3 * torch.rand(count, 1, 1, generator=generator).double())
        self.temperature = soft * (p.radius + p.epsilon + 1e-12) * 3
        self.start = self.sums(self.factors(list(p.weights), self.inputs, self.targets, 0))

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self.generator)

    def factors(self, weights: list[Tensor], inputs: Tensor, targets: Tensor, zero: int) -> list[tuple[Tensor, Tensor]]:
        """Signal (a, b, o) and values (a, b, i + 1) whose product is a sample's gradient in each layer."""
        values, entering, slopes = inputs, [], []
        for number, weight in enumerate(weights):
            entering.append(torch.cat([values, torch.ones_like(values[..., :1])], dim=2))
            hidden = entering[-1] @ weight.mT
            hard = (hidden > 0).double() + (hidden == 0) * self.zero[zero][number]
            soft = torch.sigmoid(hidden / self.temperature)
            slopes.append(hard + soft - soft.detach())
            values = hidden.clamp(min=0)
        signals = [slope(self.problem.form, hidden, targets)]
        for weight, on in zip(weights[:0:-1], slopes[-2::-1], strict=True):
            signals.append((signals[-1] @ weight[..., :-1]) * on)
        return list(zip(signals[::-1], entering, strict=True))

    def sums(self, factors: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        shares = self.problem.shares[:, None]
        return [(s * shares).mT @ v * trained for (s, v), trained in zip(factors, self.trained, strict=True)]

    def along(self, direction: list[Tensor], factors: list[tuple[Tensor, Tensor]]) -> Tensor:
        """How far each sample's gradient goes along a direction, (a, b)."""
        pairs = zip(direction, factors, strict=True)
        return self.problem.shares * sum((s * (v @ d.mT)).sum(dim=2) for d, (s, v) in pairs)

    def inside(self, movement: list[Tensor]) -> list[Tensor]:
        p = self.problem
        movement = [m * trained for m, trained in zip(movement, self.trained, strict=True)]
        if p.form.boxed:
            movement = [m.clamp(-p.rho, p.rho) for m in movement]
        factor = (p.radius / size(movement).clamp(min=1e-300)).clamp(max=1)
        return [m * factor for m in movement]

    def features(self, moves: Tensor) -> Tensor:
        p, epsilon = self.problem.form.p, self.problem.epsilon
        if p is None:
            return torch.zeros_like(moves)
        if math.isinf(p):
            return moves.clamp(-epsilon, epsilon)
        return moves * (epsilon / moves.norm(p=p, dim=2, keepdim=True).clamp(min=1e-300)).clamp(max=1)

    def labels(self, targets: Tensor) -> Tensor:
        kind, nu = self.problem.form.labels, self.problem.nu
        if kind is None:
            return self.targets
        if kind == "flip":
            return targets.clamp(0, 1)
        return self.targets + (targets - self.targets).clamp(-nu, nu)

    def first(self) -> list[Tensor]:
        """Random; along and against the gradient; one layer alone; and a little of each."""
        start = [self.noise(self.count, *weight.shape) for weight in self.problem.weights]
        kinds = torch.arange(self.count) % (4 + len(start))
        for number, (part, gradient) in enumerate(zip(start, self.start, strict=True)):
            part[kinds == 0] = gradient[kinds == 0]
            part[kinds == 1] = -gradient[kinds == 1]
            for alone in range(len(start)):
                if alone != number:
                    part[kinds == 4 + alone] = 0
        scale = torch.where(kinds == 2, torch.rand(self.count, generator=self.generator).double(), 1.0)
        norm = size(start).clamp(min=1e-300)
        return self.inside([part * (scale[:, None, None] * self.problem.radius / norm) for part in start])

    def run(self, steps: int) -> float:
        """The largest ``‖δ⁺‖`` found."""
        p, movement = self.problem, self.first()
        inputs = self.inputs + self.features(2 * p.epsilon * self.noise(*self.inputs.shape))
        targets = self.targets
        if targets.is_floating_point():
            targets = self.labels(targets + 2 * max(p.nu, 1) * self.noise(*targets.shape))
        value = torch.rand(self.count, len(p.inputs), generator=self.generator)
        chosen, best = self.largest(value), 0.0
        length = 10 ** (-2 * torch.rand(self.count, 1, 1, generator=self.generator).double())
        for number in range(steps):
            variables = [*(m.detach().requires_grad_() for m in movement), inputs.detach().requires_grad_()]
            weights = [w + m for w, m in zip(p.weights, variables, strict=False)]
            bad = self.factors(weights, variables[-1], targets, 1)
            clean = self.factors(weights, self.inputs, self.targets, 1)
            pick = chosen[..., None]
            mixed = [
                (torch.where(pick, bs, cs), torch.where(pick, bv, cv))
                for (bs, bv), (cs, cv) in zip(bad, clean, strict=True)
            ]
            kept = 1 - p.rate * p.decay
            after = [
                kept * m - p.rate * (now - before)
                for m, now, before in zip(variables, self.sums(mixed), self.start, strict=False)
            ]
            norm = size(after)
            best = max(best, float(norm.detach().max()))
            direction = [
                (part / norm.clamp(min=1e-300)).detach() * t for part, t in zip(after, self.trained, strict=True)
            ]
            pull = -self.along(direction, bad)
            goal = norm.sum() + 1e-9 * pull.sum()
            slopes = torch.autograd.grad(goal, variables)
            share = length * (1 - number / steps)
            with torch.no_grad():
                targets = self.relabelled(direction, weights, variables[-1], targets, pull)
                gain = -self.along(direction, self.factors(weights, inputs, targets, 1)) + self.along(direction, clean)
                noisy = gain * (1 + 0.1 * self.noise(*gain.shape))
                chosen = torch.where(
                    torch.rand(self.count, 1, generator=self.generator) < 0.7, self.largest(noisy), chosen
                )
                up = slopes[-1]
                ascent = up.sign() if p.form.p != 2 else up / up.norm(dim=2, keepdim=True).clamp(min=1e-300)
                inputs = self.inputs + self.features(inputs + 2 * share * p.epsilon * ascent - self.inputs)
                ups = slopes[:-1]
                factor = share * p.radius / size(ups).clamp(min=1e-300)
                movement = self.inside([m.detach() + factor * u for m, u in zip(movement, ups, strict=True)])
        return best

    def relabelled(
        self, direction: list[Tensor], weights: list[Tensor], inputs: Tensor, targets: Tensor, pull: Tensor
    ) -> Tensor:
        """The best of a few labels for each sample."""
        p, best = self.problem, pull
        if p.form.labels is None:
            return targets
        if p.form.loss == "softmax":
            attempts = [torch.full_like(targets, label) for label in range(len(p.weights[-1]))]
        else:
            far = 10 + p.nu
            attempts = [self.labels(targets + sign * far * self.noise(*targets.shape).sign()) for sign in (1, -1)]
            attempts += [self.labels(targets + far), self.labels(targets - far)]
        for attempt in attempts:
            gain = -self.along(direction, self.factors(weights, inputs, attempt, 1))
            better = gain > best
            targets = torch.where(better if targets.ndim == 2 else better[..., None], attempt, targets)
            best = torch.maximum(gain, best)
        return targets

    def largest(self, value: Tensor) -> Tensor:
        chosen = torch.zeros_like(value, dtype=torch.bool)
        if self.problem.n:
            chosen.scatter_(1, value.topk(min(self.problem.n, value.shape[1]), dim=1).indices, value=True)
        return chosen


def size(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Norm of all layers together, (a, 1, 1)."""
    return torch.cat([part.flatten(1) for part in parts], dim=1).norm(dim=1)[:, None, None]


def share(problem: Problem, seed: int, count: int = 30, steps: int = 15) -> float:
    """Of the bound that the best attack reaches."""
    reached = Attack(problem, count, torch.Generator().manual_seed(seed)).run(steps)
    return reached / (problem.certified() * (1 + RELATIVE) + ABSOLUTE)


FORMS = [
    Form("squared", None, None),
    Form("squared", "box", None),
    Form("squared", "box", math.inf, boxed=True),
    Form("squared", None, 2.0),
    Form("huber", "box", None, delta=0.1),
    Form("huber", "box", 2.0, slope=2.0, boxed=True),
    Form("logistic", "flip", None),
    Form("logistic", "flip", math.inf),
    Form("softmax", "flip", None),
    Form("softmax", "flip", math.inf, boxed=True),
    Form("softmax", None, 2.0),
]

SIZES = [(2, 3), (1, 1, 1, 1), (2, 3, 4), (3, 5, 3), (2, 2, 2, 2)]
"""Features and hidden units; the first has one hidden layer only."""


def name(form: Form) -> str:
    return f"{form.loss}-{form.labels}-{form.p}{'-boxed' * form.boxed}"


def problems(form: Form, seeds: range) -> list[Problem]:
    drawn = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        outputs = 2 + seed % 2 if form.loss == "softmax" else 1 + seed % 2
        b = (1, 2, 4, 10)[seed % 4]
        n = 0 if form.labels is None and form.p is None else min(b, 1 + seed % 2)
        drawn.append(random_problem(form, (*SIZES[seed % len(SIZES)], outputs), b, n, generator))
    return drawn


@pytest.mark.thinned(5)
@pytest.mark.parametrize("form", FORMS, ids=name)
def test_no_attack_leaves_the_ball(form):
    shares = [share(problem, 0) for problem in problems(form, range(20))]
    assert max(shares) <= 1
    assert sorted(shares)[10] > 0.02  # the attacks are not idle


@pytest.mark.slow
@pytest.mark.parametrize("block", range(4))
@pytest.mark.parametrize("form", FORMS, ids=name)
def test_no_longer_attack_leaves_the_ball(form, block):
    assert max(share(problem, 1, 60, 40) for problem in problems(form, range(100 * block, 100 * block + 100))) <= 1


@pytest.mark.parametrize("form", FORMS, ids=name)
def test_one_hidden_layer_is_a_special_case(form):
    """What both bound by the same argument is never smaller by norms alone; the others are different bounds."""
    for problem in problems(form, range(0, 40, 5)):
        assert len(problem.layers) == 2
        ball = LayerBall(problem.layers, problem.radius)
        hidden = OneHiddenAnalysis.step_constants(ball, *problem.arguments())
        deep = problem.constants()
        for ours, theirs in ((deep.trace, hidden.trace), (deep.energy, hidden.energy), (deep.rest, hidden.rest)):
            assert theirs <= ours * (1 + RELATIVE) + ABSOLUTE


def drawn(form: Form, seed: int) -> Problem:
    """A random problem on which a fault was found to show."""
    return problems(form, range(seed, seed + 1))[0]


def chain(offset: float, radius: float, rate: float) -> Problem:
    """Three layers of one unit, all weights one, under a constant pull to more; the second unit is at ``-offset``."""
    second = torch.tensor([[1.0, -1.0 - offset if offset else 0.0]]).double()
    plain = torch.tensor([[1.0, 0.0]]).double()
    one = torch.ones(1, 1).double()
    settings = one[0], 0, 0.0, 0.0, radius, rate, 0.0
    return Problem(Form("huber", None, None), (plain, second, plain), (False,) * 3, one, 50 * one, *settings)


SQUARED = Form("squared", None, None)


def no_switches(patch: pytest.MonkeyPatch) -> Problem:
    """Units that may switch are forgotten."""
    whole = bounds._unstable

    def fixed(*arguments: object) -> object:
        unstable = whole(*arguments)
        nobody = torch.zeros_like(unstable.pairs.sample, dtype=torch.bool)
        return replace(unstable, pairs=unstable.pairs.among(nobody), distance=unstable.distance[nobody])

    patch.setattr(bounds, "_unstable", fixed)
    return drawn(SQUARED, 2)


def no_jumps(patch: pytest.MonkeyPatch) -> Problem:
    patch.setattr(remainder, "gradient_jumps", lambda *_: Remainder())
    return drawn(SQUARED, 2)


def no_jumps_behind_the_first_layer(patch: pytest.MonkeyPatch) -> Problem:
    """The second unit switches on under the pull that grows it."""
    whole = gradient_jumps._size
    patch.setattr(gradient_jumps, "_size", lambda b, number, *others: 0.0 if number else whole(b, number, *others))
    return chain(offset=1e-4, radius=1e-3, rate=0.1)


def no_coupling(patch: pytest.MonkeyPatch) -> Problem:
    """A saddle: constant pull on the product of three weights."""
    patch.setattr(remainder, "coupling", lambda *_: 0.0)
    return chain(offset=0.0, radius=1e-2, rate=0.5)


def no_change_of_derivatives(patch: pytest.MonkeyPatch) -> Problem:
    """All that the derivative of the outputs changes by."""
    patch.setattr(DeepAnalysis, "remainders", lambda *_: (Remainder(),))
    return drawn(SQUARED, 5)


def no_turn_of_moved_features(patch: pytest.MonkeyPatch) -> Problem:
    whole = DeepAnalysis.feature_effect
    still = lambda *a: replace(effect := whole(*a), jacobian=torch.zeros_like(effect.jacobian))  # noqa: E731
    patch.setattr(DeepAnalysis, "feature_effect", still)
    return drawn(Form("softmax", None, 2.0), 7)


def fewer(choice: Choice) -> Choice:
    return replace(choice, n=choice.n - 1)


def one_sample_less(patch: pytest.MonkeyPatch) -> Problem:
    whole = PoisonBounds.worst
    patch.setattr(PoisonBounds, "worst", lambda self, weights, n, *more: whole(self, weights, fewer(n), *more))
    return drawn(Form("softmax", "flip", math.inf, boxed=True), 2)


def constants_at_the_nominal_point(patch: pytest.MonkeyPatch) -> Problem:
    whole = Problem.constants
    patch.setattr(Problem, "constants", lambda self: whole(replace(self, radius=0.0)))
    return drawn(SQUARED, 3)


FAULTS = [
    no_switches,
    no_jumps,
    no_jumps_behind_the_first_layer,
    no_coupling,
    no_change_of_derivatives,
    no_turn_of_moved_features,
    one_sample_less,
    constants_at_the_nominal_point,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_an_attack_finds_the_fault(fault, monkeypatch):
    problem = fault(monkeypatch)
    assert share(problem, 0) > DECISIVE
    monkeypatch.undo()
    assert share(problem, 0) <= 1


def test_rows_of_a_dead_layer_have_no_direction():
    rows, share = torch.tensor([[0.0, 0.0], [3.0, 4.0]]).double(), torch.tensor([1e300, 2.0]).double()
    assert gradient_jumps._averaged(rows, share) == pytest.approx(10.0)
    assert gradient_jumps._averaged(rows[:1], share[:1]) == 0.0


class DeepHeadOfRows(Head):
    """Three or four layers for the attacks on bounds of values."""

    def __init__(self, seed: int, depth: int, radius: float, width: float) -> None:
        super().__init__(seed, True, radius, width)
        between = [
            Layer(self.noise(h, h), self.noise(h), trains_bias=bool((seed + number) % 2))
            for number in range(depth - 2)
            for h in (len(self.layers[0].weight),)
        ]
        self.layers = [self.layers[0], *between, self.layers[1]]


CASES = [(0, 3, 0.01, 0.0), (1, 3, 0.2, 0.3), (3, 3, 1.0, 0.0), (2, 4, 0.1, 0.1), (4, 4, 0.5, 1.0), (5, 3, 0.0, 0.5)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer_bounds_and_margins_contain_every_value(case):
    seed, depth, radius, width = case
    head = DeepHeadOfRows(seed, depth, radius, width)
    for number, box in enumerate(layer_bounds(head.ball, head.inputs)):
        slack = RELATIVE * (1 + float(box.magnitude.max()))
        for output in range(box.shape[1]):
            highest = head.attack(lambda results, n=number, o=output: results[n][:, o])
            lowest = -head.attack(lambda results, n=number, o=output: -results[n][:, o])
            assert float((highest - box.upper[:, output]).max()) <= slack
            assert float((box.lower[:, output] - lowest).max()) <= slack
    target = torch.zeros(head.samples, dtype=torch.long)
    margins = margin_bounds(head.ball, head.inputs, target)
    slack = RELATIVE * (1 + float(margins.magnitude.max()))
    for output in range(1, head.k):
        highest = head.attack(lambda results, o=output: results[-1][:, 0] - results[-1][:, o])
        lowest = -head.attack(lambda results, o=output: results[-1][:, o] - results[-1][:, 0])
        assert float((highest - margins.upper[:, output]).max()) <= slack
        assert float((margins.lower[:, output] - lowest).max()) <= slack


@pytest.mark.thinned(5)
@pytest.mark.parametrize("domains", [("ball",), ("box", "ball")], ids="-".join)
@pytest.mark.parametrize("hidden", [(4, 3), (3, 2, 3)], ids=str)
@pytest.mark.parametrize(("kind", "adversary"), ADVERSARIES)
def test_poisoned_trainings_stay_in_the_ball(kind, adversary, hidden, domains):
    number = [parameter.values[1] for parameter in ADVERSARIES].index(adversary)
    schedule = SCHEDULES[(number + len(hidden)) % 2]
    assert Training(kind, adversary, hidden, schedule, domains, number).run(epochs=1) > 0
