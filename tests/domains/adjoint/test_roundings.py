"""What float64 makes of a direction is within the rounding that a step allots, also where parts cancel."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from agt_lightning.domains.adjoint.curvature import hessian_parts
from agt_lightning.domains.adjoint.one_hidden.roundings import own_errors, step_roundings
from agt_lightning.domains.adjoint.one_hidden.step_bound import step_back
from agt_lightning.domains.ball.layers import Layer
from tests.domains.adjoint.problems import Form, Problem, flat


def with_layers(problem, change):
    """The problem with changed weights, before anything is made of them."""
    problem.__dict__["layers"] = tuple(Layer(change(k, each.weight), each.bias, each.trains_bias)
                                       for k, each in enumerate(problem.layers))  # fmt: skip
    return problem


def test_curvature_of_a_class_beyond_doubt_is_off_by_the_rounding_of_what_cancels():
    """``p - p²`` for a probability near one: its rounding is that of p, however small it is."""
    problem = with_layers(Problem(Form("ce2", samples=40), 1, 1e-9), lambda k, weight: (20 if k else 1) * weight)
    step = problem.geometry
    curve, rank = hessian_parts(step.loss, step.samples.outputs)
    gap = step.samples.outputs.diff(dim=1)[:, 0].abs()
    right = torch.sigmoid(gap) * torch.sigmoid(-gap)
    error = (curve - rank.square() - right[:, None]).abs().amax(dim=1)
    _, allotted, _ = own_errors(step, 2.0**-46)
    doubtless = (gap > 15) & (gap < 35)
    assert float(error[doubtless].max()) > 2.0**-60
    assert (error <= allotted)[doubtless].all()


def exact(values):
    """An array of fractions, of what float64 holds."""
    return np.vectorize(Fraction, otypes=[object])(values.numpy())


def exact_curved(problem, first, second):
    """``Hc`` for squared error in rational arithmetic, as one list."""
    one, two = problem.layers
    x, w, y = exact(problem.inputs), exact(problem.weights), exact(problem.targets)
    h = x @ exact(one.weight).T + exact(one.bias)
    m = np.where(h > 0, Fraction(1), Fraction(0))
    x, z = (np.concatenate([each, np.full((len(x), 1), Fraction(1))], axis=1) for each in (x, m * h))
    g = (m * h) @ exact(two.weight).T + exact(two.bias) - y
    u = x @ exact(first).T
    phi = (m * u) @ exact(two.weight).T + z @ exact(second).T
    g, phi = w[:, None] * g, w[:, None] * phi
    rows = (m * (phi @ exact(two.weight) + g @ exact(second[:, :-1]))).T @ x
    last = phi.T @ z
    last[:, :-1] += g.T @ (m * u)
    return [*rows.ravel(), *last.ravel()]


@pytest.mark.parametrize("scale", [1e-8, 1.0])
def test_directions_are_off_by_no_more_than_is_allotted(scale):
    """Also where inputs are large and layers are so small that hardly anything but the pull of both is left."""
    problem = Problem(Form("mse"), 5, 1e-9)
    problem.__dict__["inputs"] = problem.inputs / scale
    problem = with_layers(problem, lambda k, weight: scale * weight)
    directions, step = problem.directions(2), problem.geometry
    found = step_back(step, directions)[1]
    allotted = (step_roundings(step, 1.0, 0.0).direction - step_roundings(step, 0.0, 0.0).direction) * directions.norms
    for q in range(2):
        right = exact_curved(problem, directions.first[q], directions.second[q])
        values = exact(flat(found.first[q], found.second[q]))
        error = math.sqrt(sum((a - b) ** 2 for a, b in zip(values, right, strict=True)))
        assert 0 < error <= float(allotted[q])
