"""Without any one of its terms the bound of a step is broken by an attack, on a problem where that term matters."""

import pytest

from tests.domains.adjoint.boxed.faults import FAULTS
from tests.domains.adjoint.boxed.problems import BoxAttack, BoxedProblem
from tests.domains.adjoint.problems import Form

INFINITY = float("inf")
FEW = Form("mse1", None, INFINITY, samples=3, units=1, close=0.005)
ONE = Form("mse1", None, INFINITY, n=1, samples=1, units=1, close=3.0, second_scale=0.0)
STILL = Form("mse1", samples=2, units=1, second_scale=0.0)

CASES = {
    "jumps and slips": (BoxedProblem(FEW, 0, 0.2, 0.02, INFINITY), 0, 0),
    "jumps the other way": (
        BoxedProblem(Form("mse1", samples=2, units=1, close=1e-3), 0, 0.03, 0.05, INFINITY),
        0,
        1,
    ),
    "slips": (BoxedProblem(FEW, 0, 0.2, 0.02, INFINITY), 1, 0),
    "movement of the last layer": (
        BoxedProblem(
            Form("mse1", "box", INFINITY, samples=2, units=1, close=0.005, inner=True, second_scale=0.0), 13, 0.2, 0.4
        ),
        0,
        0,
    ),
    "movement of units": (BoxedProblem(STILL, 11, 0.01, 0.02), 0, 1),
    "coupling of both layers": (BoxedProblem(FEW, 0, 0.2, 0.02, INFINITY), 1, 1),
    "change of the gradient": (BoxedProblem(STILL, 11, 0.01, 0.02), 0, 0),
    "curvature of the loss": (BoxedProblem(Form("bce", samples=1, units=1), 0, 0.8, 0.05, INFINITY), 0, 0),
    "labels": (
        BoxedProblem(Form("mse1", "box", samples=2, units=1, close=1e-3, inner=True), 12, 0.001, 0.02, INFINITY),
        0,
        0,
    ),
    "curvature in the features": (
        BoxedProblem(Form("mse1", None, INFINITY, samples=1, units=2, close=1e-3, second_scale=0.0), 15, 0.05, 0.02),
        1,
        0,
    ),
    "change of the gradient by features": (
        BoxedProblem(Form("mse1", None, INFINITY, n=1, samples=2, units=1), 0, 1e-4, 0.3, INFINITY),
        0,
        1,
    ),
    "curvature of the loss by features": (
        BoxedProblem(Form("bce", None, INFINITY, n=1, samples=2, units=1), 4, 1e-4, 0.5, INFINITY),
        1,
        1,
    ),
    "kinks by features": (
        BoxedProblem(Form("mse1", None, INFINITY, n=1, samples=2, close=2e-3), 0, 1e-4, 0.02, INFINITY),
        0,
        0,
    ),
    "movement of the first layer under features": (BoxedProblem(ONE, 1, 0.1, 0.3, INFINITY, 0.0), 0, 0),
    "features past a kink": (
        BoxedProblem(
            Form("mse1", None, INFINITY, n=1, samples=1, units=1, close=-0.002, second_scale=0.0),
            0,
            1e-4,
            0.1,
            INFINITY,
        ),
        0,
        0,
    ),
}


@pytest.mark.thinned(5)
@pytest.mark.parametrize("name", FAULTS)
def test_a_bound_without_one_of_its_terms_is_broken(name):
    boxed, q, side = CASES[name]
    directions = boxed.directions(2)
    reached = BoxAttack(boxed, boxed.whole(directions, q), (1.0, -1.0)[side], count=16).run(16)
    sound = float(boxed.step.bounds(directions)[0][q, side])
    assert max(1.03 * float(FAULTS[name](boxed.step).bounds(directions)[0][q, side]), 1e-6) < reached
    assert reached <= sound * (1 + 1e-9)
