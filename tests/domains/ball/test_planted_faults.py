"""The attacks have teeth: each term of the step that is left out lets one of them out of the ball.

Each fault has a tiny network on which its term decides. The same network is within its bound without the fault.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import tests.domains.ball.problems as tests_problems
from agt_lightning.aggregation import Choice
from agt_lightning.domains import losses
from agt_lightning.domains.ball import radius, value_bounds
from agt_lightning.domains.ball.one_hidden import OneHiddenAnalysis, poison, remainder
from agt_lightning.domains.ball.one_hidden.activation_scan import (
    ActivationScan,
    ActivationStats,
    UnstablePreactivations,
)
from agt_lightning.domains.ball.one_hidden.bounds import OneHiddenBounds
from agt_lightning.domains.ball.poison_bounds import PoisonBounds
from agt_lightning.domains.ball.remainder import Remainder
from agt_lightning.domains.ball.unstable import UnstableUnits
from tests.domains.ball.attacks import attack
from tests.domains.ball.problems import Form, Problems, random_problems
from tests.domains.ball.test_value_bounds import Head

DECISIVE = 1.01
"""How far outside an attack must come, relative to the faulty bound: far beyond any rounding."""

FAR = 5.0
"""Distance of a target at which the Huber loss pulls with constant force, δ."""


def network(
    form: Form,
    first: list[float],
    second: list[float],
    inputs: list[float],
    targets: list[float],
    *,
    ball: float,
    rate: float,
    n: int = 0,
    epsilon: float = 0.0,
    nu: float = 0.0,
) -> Problems:
    """One feature, one output, no weight decay, biases zero; a linear head has its only weight in ``second``."""

    def row(values: list[float]) -> Tensor:
        return torch.tensor([values], dtype=torch.float64)

    return Problems(
        form=form,
        first=row(first)[..., None],
        first_bias=torch.zeros(1, len(first)).double(),
        second=row(second)[:, None],
        second_bias=torch.zeros(1, 1).double(),
        inputs=row(inputs)[..., None],
        targets=row(targets)[..., None],
        weights=torch.ones(1, len(inputs)).double(),
        poisonable=torch.ones(1, len(inputs), dtype=torch.bool),
        n=n,
        epsilon=row([epsilon]),
        nu=row([nu])[0],
        radius=row([ball])[0],
        rate=row([rate])[0],
        decay=row([0.0])[0],
        box=row([ball])[0],
    )


def excess(problems: Problems, attacks: int = 40, steps: int = 30) -> float:
    """Largest share of the bound that an attack reaches; above one it is out."""
    reached = attack(problems, attacks, steps, torch.Generator().manual_seed(0)).norms.amax(dim=1)
    return float((reached / problems.certified().clamp(min=1e-12)).max())


def zero(*_: object) -> float:
    return 0.0


PLAIN = Form("huber", None, None, trains_first=False, trains_second=False)
SQUARED = replace(PLAIN, loss="squared")
MOVED = replace(PLAIN, p=2.0)


def no_switches(patch: pytest.MonkeyPatch) -> Problems:
    """An idle unit switches on against the pull that grows it."""
    patch.setattr(UnstableUnits, "largest_steps", zero)
    return network(PLAIN, [-0.1], [1.0], [1.0], [FAR], ball=0.2, rate=0.1)


def no_monotone_switches(patch: pytest.MonkeyPatch) -> Problems:
    """A unit at the edge switches on, and a long step throws it far back."""
    whole = OneHiddenAnalysis.remainders

    def idle(*arguments: object) -> tuple[Remainder, ...]:
        return tuple(replace(remainder, monotone=0.0) for remainder in whole(*arguments))

    patch.setattr(OneHiddenAnalysis, "remainders", idle)
    return network(PLAIN, [-1e-4], [1.0], [1.0], [-FAR], ball=1e-3, rate=1.0)


def no_slips(patch: pytest.MonkeyPatch) -> Problems:
    """A unit exactly at zero with a weight behind it just large enough to be monotone; its layers still couple."""
    patch.setattr(UnstableUnits, "largest_ramps", zero)
    return network(PLAIN, [0.0], [0.101], [1.0], [-FAR], ball=0.1, rate=0.2)


def no_coupling(patch: pytest.MonkeyPatch) -> Problems:
    """A saddle: constant pull on the product of two weights."""
    patch.setattr(remainder, "_coupling", lambda bounds, *_: torch.zeros_like(bounds.hidden[0]))
    return network(PLAIN, [1.0], [1.0], [1.0], [FAR], ball=0.1, rate=0.5)


def half_the_curvature(patch: pytest.MonkeyPatch) -> Problems:
    """Trace and norm, at rate · curvature = 4."""
    whole = radius.StepConstants.curvature
    patch.setattr(radius.StepConstants, "curvature", lambda self, rate: whole(self, rate) / 2)
    return network(replace(SQUARED, hidden=False), [0.0], [1.0], [1.0], [1.0], ball=0.1, rate=2.0)


def half_the_curvature_of_a_hidden_layer(patch: pytest.MonkeyPatch) -> Problems:
    whole = radius.StepConstants.curvature
    patch.setattr(radius.StepConstants, "curvature", lambda self, rate: whole(self, rate) / 2)
    return network(SQUARED, [1.0], [1.0], [1.0], [1.0], ball=1e-3, rate=2.0)


def no_units_that_switch_with_features(patch: pytest.MonkeyPatch) -> Problems:
    """Poisoned features switch on a unit that is just off, and its whole gradient appears."""
    whole = poison._first_layer_rows

    def stable(*arguments: object) -> poison.FirstLayerRows:
        rows = whole(*arguments)
        nothing = torch.zeros_like(rows.switched)
        return replace(rows, switched=nothing, any_switch=nothing.bool())

    patch.setattr(poison, "_first_layer_rows", stable)
    problems = network(replace(MOVED, trains_first=True), [1.0], [1.0], [-1e-3], [-FAR], ball=1e-4, rate=1.0, n=1)
    return replace(problems, epsilon=torch.tensor([[0.1]]).double())


def fewer(choice: Choice) -> Choice:
    return replace(choice, n=choice.n - 1)


def one_sample_less(patch: pytest.MonkeyPatch) -> Problems:
    whole = PoisonBounds.worst
    patch.setattr(PoisonBounds, "worst", lambda self, weights, n, *more: whole(self, weights, fewer(n), *more))
    form = replace(SQUARED, labels="box")
    return network(form, [1.0], [1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], ball=1e-3, rate=0.1, n=2, nu=0.3)


def constants_at_the_nominal_point(patch: pytest.MonkeyPatch) -> Problems:
    """Everything is zero there, and nothing is in the ball."""
    whole = Problems.constants
    patch.setattr(Problems, "constants", lambda self, g: whole(self.at_radius(torch.zeros_like(self.radius)), g))
    return network(SQUARED, [0.0], [0.0], [1.0], [0.0], ball=1.0, rate=10.0)


def an_eighth_of_the_energy(patch: pytest.MonkeyPatch) -> Problems:
    whole = losses.HeadLoss.energy
    patch.setattr(losses.HeadLoss, "energy", lambda *arguments: whole(*arguments) / 8)
    form = replace(SQUARED, hidden=False, labels="box")
    return network(form, [0.0], [1.0], [1.0], [1.0], ball=0.0, rate=0.25, n=1, nu=0.5)


def no_mean_jacobian_error(patch: pytest.MonkeyPatch) -> Problems:
    """The poison acts at the end of the chord, the curvature on its average; found among random networks."""
    nothing = property(lambda self: torch.zeros_like(self.jacobian_norm))
    patch.setattr(OneHiddenAnalysis, "mean_jacobian_error", nothing)
    generator = torch.Generator().manual_seed(10)
    form = Form("squared", "box", None, trains_second=False)
    return random_problems(form, 48, 1, 1, 1, 1, 1, generator)


def no_rest_of_moved_features(patch: pytest.MonkeyPatch) -> Problems:
    """The part of the poison that does not lie where the curvature contracts."""
    whole = OneHiddenAnalysis.poison_bounds

    def without(*arguments: object) -> PoisonBounds:
        bounds = whole(*arguments)
        return replace(bounds, rest=torch.zeros_like(bounds.rest))

    patch.setattr(OneHiddenAnalysis, "poison_bounds", without)
    form = replace(MOVED, loss="squared")
    return network(form, [1.0], [1.0], [1.0], [-FAR], ball=1e-3, rate=0.1, n=1, epsilon=0.1)


def no_half_slopes(patch: pytest.MonkeyPatch) -> Problems:
    """A unit at zero passes all of what features add, not the half that is counted without the spread."""
    whole = poison._with_half_slopes
    patch.setattr(
        poison,
        "_with_half_slopes",
        lambda bounds, unstable, of_pairs, change: whole(bounds, unstable, torch.zeros_like(of_pairs), change),
    )
    form = replace(MOVED, loss="squared", trains_first=True, trains_second=True)
    return network(form, [1.0], [1.0], [0.0], [0.0], ball=0.0, rate=1.0, n=1, epsilon=0.1)


def no_mean_slopes_of_unstable_units(patch: pytest.MonkeyPatch) -> Problems:
    """The same unit, with the spread around a slope of zero where it is around 1/2."""
    patch.setattr(ActivationScan, "mean_slopes", lambda self, unstable: self.masks())
    form = replace(MOVED, loss="squared", trains_first=True, trains_second=True)
    return network(form, [1.0], [1.0], [0.0], [0.0], ball=0.0, rate=1.0, n=1, epsilon=0.1)


def no_unstable_units(patch: pytest.MonkeyPatch) -> Problems:
    """The unit that is idle and switches on, left out where it is looked for."""
    whole = ActivationScan.stats

    def blind(self: ActivationScan, *arguments: object) -> ActivationStats:
        stats = whole(self, *arguments)
        return replace(stats, unstable=stats.unstable.among(stats.unstable.hidden.isnan()))

    patch.setattr(ActivationScan, "stats", blind)
    return network(PLAIN, [-0.1], [1.0], [1.0], [FAR], ball=0.2, rate=0.1)


def units_within_ball(bounds: OneHiddenBounds) -> UnstablePreactivations:
    units = bounds._stats.unstable
    return units.among(units.hidden.abs() <= units.by_sample(bounds._hidden_change(bounds.input_norm)))


def only_units_that_the_ball_switches(patch: pytest.MonkeyPatch) -> Problems:
    """The unit that is just off, farther than the ball alone can switch it."""
    patch.setattr(OneHiddenBounds, "unstable_under_poison", property(units_within_ball))
    problems = network(replace(MOVED, trains_first=True), [1.0], [1.0], [-1e-3], [-FAR], ball=1e-4, rate=1.0, n=1)
    return replace(problems, epsilon=torch.tensor([[0.1]]).double())


def decay_before_the_step(patch: pytest.MonkeyPatch) -> Problems:
    """Decay shrinks the ball first, and then curvature flips it over."""
    whole = tests_problems.next_radius

    def first(size: float, constants: radius.StepConstants, rate: float, decay: float) -> float:
        return abs(1 - rate * decay) * whole(size, constants, rate, 0.0)

    patch.setattr(tests_problems, "next_radius", first)
    problems = network(replace(SQUARED, hidden=False), [0.0], [1.0], [1.0], [1.0], ball=1.0, rate=1.25)
    return replace(problems, decay=torch.full((1,), 0.4).double())


def no_change_of_gradients(patch: pytest.MonkeyPatch) -> Problems:
    """At a fit the gradients are zero, but not in the ball; rates so small that curvature contracts."""
    patch.setattr(
        losses.SquaredError, "gradient_change", lambda self, outputs, target: torch.zeros_like(outputs.radius)
    )
    return network(SQUARED, [0.0], [0.0], [1.0], [0.0], ball=3.0, rate=2.0)


FAULTS = [
    no_switches,
    no_monotone_switches,
    no_slips,
    no_coupling,
    half_the_curvature,
    half_the_curvature_of_a_hidden_layer,
    no_units_that_switch_with_features,
    one_sample_less,
    constants_at_the_nominal_point,
    an_eighth_of_the_energy,
    no_mean_jacobian_error,
    decay_before_the_step,
    no_rest_of_moved_features,
    no_half_slopes,
    no_mean_slopes_of_unstable_units,
    no_unstable_units,
    only_units_that_the_ball_switches,
    no_change_of_gradients,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_an_attack_finds_the_fault(fault, monkeypatch):
    problems = fault(monkeypatch)
    assert excess(problems) > DECISIVE
    monkeypatch.undo()
    assert excess(problems) <= 1 + 1e-9


@pytest.mark.parametrize("hidden", [False, True])
def test_a_margin_whose_rows_move_as_one_is_left(hidden, monkeypatch):
    """Without √2 for two rows of the last weight."""
    head = Head(4, hidden, 1e-3, 0.0)
    target = torch.zeros(head.samples, dtype=torch.long)
    reached = head.attack(lambda results: results[-1][:, 0] - results[-1][:, 1])
    sound = value_bounds.margin_bounds(head.ball, head.inputs, target).upper[:, 1]
    whole = value_bounds._LayerInput.output_change
    single_row = lambda self, rows, changed_rows: whole(self, rows, changed_rows=1)  # noqa: E731
    monkeypatch.setattr(value_bounds._LayerInput, "output_change", single_row)
    faulty = value_bounds.margin_bounds(head.ball, head.inputs, target).upper[:, 1]
    assert bool((reached <= sound + 1e-12).all())
    assert float((reached - faulty).max()) > 1e-5
