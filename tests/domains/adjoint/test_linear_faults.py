"""Without any one of its terms the bound of a step of one layer is broken by an attack, where that term matters."""

import pytest
import torch

from agt_lightning.domains.adjoint.label_moves import LabelMoves
from agt_lightning.domains.adjoint.linear import LinearStep
from agt_lightning.domains.ball.perturbation import Perturbation
from tests.domains.adjoint.linear_problems import LinearAttack, LinearProblem
from tests.domains.adjoint.problems import Form

INFINITY = float("inf")


def nothing(name):
    """Make a number of each sample zero."""
    return lambda patch: patch.setattr(LinearStep, name, property(lambda step: torch.zeros_like(step.weights)))


def no_remainder(patch):
    patch.setattr(LinearStep, "_remainder", lambda step, directions, cubic, farthest: torch.zeros_like(cubic))


def small_curvature(patch):
    patch.setattr(LinearStep, "curvature_norm", 0.01)


def no_labels(patch):
    patch.setattr(LabelMoves, "of", lambda *given: None)
    patch.setattr(LinearStep, "label_change", property(lambda step: torch.zeros_like(step.weights)))


def no_gradient_of_the_clean_loss(patch):
    patch.setattr(LinearStep, "gradient", property(lambda step: torch.zeros_like(step.samples.outputs)))


def no_first_order_of_features(patch):
    patch.setattr(Perturbation, "sample_support", lambda given, rows: torch.zeros_like(rows[:, 0]))


FEATURES = Form("mse", None, INFINITY, n=2, samples=1, features=1)

FAULTS = {
    "third derivative": (no_remainder, LinearProblem(Form("ce", samples=1, features=1), 0, 1.0), 0, 1),
    "third derivative of all together": (
        small_curvature,
        LinearProblem(Form("bce", samples=1, features=1), 0, 1.0),
        1,
        1,
    ),
    "labels": (no_labels, LinearProblem(Form("ce", "flip", samples=1, features=1), 0, 1e-3), 0, 0),
    "first order of features": (no_first_order_of_features, LinearProblem(FEATURES, 0, 1e-3, epsilon=0.1), 1, 1),
    "gradient under features": (no_gradient_of_the_clean_loss, LinearProblem(FEATURES, 0, 1e-3, epsilon=0.1), 1, 1),
    "movement of the weights under features": (nothing("moved"), LinearProblem(FEATURES, 1, 1.0, epsilon=0.3), 0, 1),
    "change of the gradient under features": (
        nothing("gradient_change"),
        LinearProblem(FEATURES, 0, 1.0, epsilon=0.3),
        1,
        1,
    ),
    "change of the loss by features": (nothing("poisoned_slope"), LinearProblem(FEATURES, 0, 1e-3, epsilon=1.0), 0, 1),
    "third derivative under features": (
        nothing("poisoned_bend"),
        LinearProblem(Form("bce", None, INFINITY, n=2, samples=2, features=1), 5, 1e-3, epsilon=1.0),
        0,
        1,
    ),
    "labels under features": (
        nothing("label_change"),
        LinearProblem(Form("mse", "box", INFINITY, n=2, samples=1, features=1), 1, 1e-3, epsilon=1.0, nu=1.0),
        1,
        1,
    ),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", FAULTS)
def test_a_bound_without_one_of_its_terms_is_broken(name, monkeypatch):
    fault, problem, q, side = FAULTS[name]
    directions = problem.directions(2)
    vector = directions.first.flatten(1)[q]
    reached = LinearAttack(problem, vector, (1.0, -1.0)[side], count=12).run(16)
    sound = problem.geometry.back(directions)[0].total[q, side]
    fault(monkeypatch)
    again = LinearStep(problem.geometry.ball, problem.step_data, problem.weights, problem.loss)
    assert max(1.05 * again.back(directions)[0].total[q, side], 1e-6) < reached <= sound * (1 + 1e-9)
