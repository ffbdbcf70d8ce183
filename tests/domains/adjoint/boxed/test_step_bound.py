"""What one step adds along a direction is below its bound, wherever the parameters are in the box."""

import pytest
import torch

from tests.domains.adjoint.boxed.problems import BoxAttack, BoxedProblem
from tests.domains.adjoint.one_step import curved
from tests.domains.adjoint.problems import Form

INFINITY = float("inf")

FORMS = [
    Form("mse1"),
    Form("mse1", "box", samples=3),
    Form("mse1", None, INFINITY),
    Form("mse1", "box", INFINITY, some=True, own_widths=True),
    Form("mse1", None, 2.0, biases=(False, True)),
    Form("bce", "flip", samples=3),
    Form("bce", None, INFINITY, samples=4),
    Form("bce", "flip", INFINITY, biases=(True, False)),
    Form("bce", None, INFINITY, doubled=True, close=1e-3),
    Form("ce2", "flip"),
    Form("ce2", None, INFINITY, samples=3),
    Form("ce2", "flip", INFINITY, some=True),
    Form("ce2", samples=2, units=1),
]


def shares(boxed, count=8, steps=12):
    """How much of its bound each direction and side reaches."""
    directions = boxed.directions(2)
    bounds = boxed.step.bounds(directions)[0]
    for q in range(2):
        for side, sign in enumerate((1.0, -1.0)):
            reached = BoxAttack(boxed, boxed.whole(directions, q), sign, count).run(steps)
            yield reached / float(bounds[q, side])


@pytest.mark.thinned(8)
@pytest.mark.parametrize("width", [1e-3, 0.05, 0.4])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_attacks_stay_below_the_bound(form, width):
    assert max(shares(BoxedProblem(form, 0, width))) <= 1 + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 30))
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_many_attacks_stay_below_the_bound(form, seed):
    width = (1e-3, 0.01, 0.05, 0.2, 0.8)[seed % 5]
    turned = (0.5, 1.5, INFINITY)[seed % 3]
    boxed = BoxedProblem(form, seed, width, (0.05, 0.3)[seed // 5 % 2], turned)
    assert max(shares(boxed, 32, 24)) <= 1 + 1e-9


@pytest.mark.slow
def test_bounds_are_attained_where_nothing_is_lost():
    assert max(shares(BoxedProblem(Form("mse1", "box", samples=3), 0, 1e-6), 16, 16)) > 0.95


@pytest.mark.parametrize(
    "boxed",
    [
        BoxedProblem(Form("mse1", "box", INFINITY, n=1, samples=1, units=1, close=1.0), 0, 1e-6, 0.2),
        # A unit that features switch on, with a last weight of zero that moves.
        BoxedProblem(
            Form("mse1", None, INFINITY, n=1, samples=1, units=1, close=-0.002, second_scale=0.0),
            0,
            1e-4,
            0.02,
            INFINITY,
        ),
    ],
    ids=["labels and features", "movement of the last layer at a kink"],
)
def test_bounds_under_poisoned_features_are_attained(boxed):
    directions = boxed.directions(2)
    reached = BoxAttack(boxed, boxed.whole(directions, 0), 1.0, 16).run(16)
    bound = float(boxed.step.bounds(directions)[0][0, 0])
    assert 0.99 * bound < reached <= bound * (1 + 1e-9)


@pytest.mark.parametrize("loss", ["mse1", "bce", "ce2"])
def test_directions_move_back_by_the_hessian(loss):
    boxed = BoxedProblem(Form(loss), 3, 0.1)
    directions = boxed.directions(2)
    moved = boxed.step.bounds(directions)[1]
    for q in range(2):
        product = curved(boxed.problem, boxed.whole(directions, q))
        first, second = boxed.problem.split(product)
        torch.testing.assert_close(directions.first[q] - moved.first[q], first)
        torch.testing.assert_close(directions.second[q] - moved.second[q], second[-1])
