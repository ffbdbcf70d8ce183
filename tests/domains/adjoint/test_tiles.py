"""Tiles of samples, and directions that pass through them together: what a step finds depends on neither."""

import dataclasses

import pytest
import torch

from agt_lightning.domains.adjoint.one_hidden.step_bound import step_back
from tests.domains.adjoint.problems import Form, Problem

INFINITY = float("inf")

FORMS = {
    "numbers, features of their own": Form("mse", "box", INFINITY, n=9, some=True, own_widths=True),
    "numbers in a ball": Form("mse", "ball", n=9),
    "one logit, features in a ball": Form("bce", "flip", 2, n=9),
    "classes": Form("ce", "flip", 1, n=9, smoothing=0.4),
}


def results(bound, curved):
    """All that a step adds, and the directions before it."""
    return [*map(torch.from_numpy, (bound.poison, bound.switches, bound.quadratic)), curved.first, curved.second]


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", FORMS)
def test_bounds_do_not_depend_on_tiles(name):
    problem, other = (Problem(dataclasses.replace(FORMS[name], samples=11), 3, 0.1) for _ in range(2))
    directions = problem.directions(3)
    assert problem.geometry.tile == 11
    other.geometry.__dict__["tile"] = 4  # three tiles, of which the last is filled up with one sample of no weight
    assert_same(results(*step_back(other.geometry, directions)), results(*step_back(problem.geometry, directions)))


@pytest.mark.parametrize("name", FORMS)
def test_directions_pass_as_if_each_were_alone(name):
    problem = Problem(FORMS[name], 3, 0.1)
    directions = problem.directions(3)
    alone = [results(*step_back(problem.geometry, directions[q : q + 1])) for q in range(3)]
    assert_same(
        results(*step_back(problem.geometry, directions)), [torch.cat(each) for each in zip(*alone, strict=True)]
    )


def test_a_batch_of_many_tiles_adds_what_its_samples_add():
    """Without a ball or poison a step only applies H: that of all samples is the sum over the samples."""
    problem = Problem(Form("ce", samples=600, units=5), 7, 0.0)
    step, directions = problem.geometry, problem.directions(2)
    assert 1 < len(step.sample_arrays.inputs) < 600 / step.tile + 1
    halves = [
        dataclasses.replace(step, weights=step.weights * chosen)
        for chosen in (torch.arange(600) % 2 == side for side in (0, 1))
    ]
    parts = [step_back(each, directions)[1] for each in halves]
    total = step_back(step, directions)[1]
    assert_same([total.first, total.second], [sum(p.first for p in parts), sum(p.second for p in parts)])
