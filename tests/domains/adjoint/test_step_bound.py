"""One step: the compiled loops against plain ones, and against the strongest attack that ascent finds."""

import dataclasses

import pytest
import torch

from agt_lightning.domains.adjoint.one_hidden.roundings import step_roundings
from agt_lightning.domains.adjoint.one_hidden.step_bound import step_back
from tests.domains.adjoint.one_step import Attack
from tests.domains.adjoint.oracles import Oracle
from tests.domains.adjoint.problems import Form, Problem, flat

INFINITY = float("inf")

FORMS = [
    Form("mse"),
    Form("mse", "box"),
    Form("mse", "ball"),
    Form("mse", None, INFINITY),
    Form("mse", None, 2),
    Form("mse", None, 1),
    Form("mse", "box", INFINITY, some=True, own_widths=True),
    Form("mse", "box", INFINITY, biases=(False, False), doubled=True),
    Form("bce", "flip"),
    Form("bce", None, INFINITY),
    Form("bce", "flip", 1),
    Form("ce", "flip"),
    Form("ce", "flip", smoothing=0.4),
    Form("ce", None, 2),
    Form("ce", "flip", INFINITY, biases=(False, True)),
]

RADII = (0.003, 0.03, 0.1, 0.5)

ROUNDING = 1e-9
"""Float64 rounding of the attacks' own evaluation, relative."""


def name_of(form):
    return "-".join(str(part) for part in (form.loss, form.labels, form.p, form.doubled and "zero") if part)


def directions_of(problem, count=2):
    directions = problem.directions(count)
    return directions, [flat(directions.first[q], directions.second[q]) for q in range(count)]


@pytest.mark.thinned(3)
@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_curvature_is_that_of_automatic_differentiation(form):
    problem = Problem(form, 5, 0.05)
    directions, vectors = directions_of(problem)
    _, found = step_back(problem.geometry, directions)
    for q, vector in enumerate(vectors):
        torch.testing.assert_close(flat(found.first[q], found.second[q]), Oracle(problem, vector).curved)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("form", [form for form in FORMS if form.p is None], ids=name_of)
def test_loops_find_what_plain_loops_find(form, radius):
    problem = Problem(form, 11, radius)
    directions, vectors = directions_of(problem)
    bound, _ = step_back(problem.geometry, directions)
    for q, vector in enumerate(vectors):
        oracle = Oracle(problem, vector)
        for side, sign in enumerate((1.0, -1.0)):
            least = oracle.switches(sign)
            assert least <= bound.switches[q, side] * (1 + ROUNDING)
            assert (
                bound.switches[q, side] <= 2.5 * least + 1e-12 or bound.switches[q, side] < 0.2 * bound.total[q, side]
            )
            if form.labels:
                assert bound.poison[q, side] == pytest.approx(oracle.labels(sign), rel=1e-6)
        assert oracle.cross() <= bound.quadratic[q, 0] * (1 + ROUNDING)
        if form.loss == "mse":
            assert bound.quadratic[q, 0] <= 1.6 * (oracle.cross() + oracle.bilinear()) + 1e-12


def strongest(problem, count=12, steps=16):
    """The largest share of a bound that attacks reach; more than one is a violation."""
    directions, vectors = directions_of(problem)
    bound, _ = step_back(problem.geometry, directions)
    slack = step_roundings(problem.geometry, 0.0, 0.0).bound * float(directions.norms.max())
    shares = [
        Attack(problem, vector, sign, count).run(steps) / (bound.total[q, side] + slack + 1e-12)
        for q, vector in enumerate(vectors)
        for side, sign in enumerate((1.0, -1.0))
    ]
    return max(shares)


@pytest.mark.thinned(9)
@pytest.mark.parametrize("number", range(len(FORMS)), ids=[name_of(form) for form in FORMS])
def test_no_attack_exceeds_the_bound(number):
    problem = Problem(FORMS[number], 100 + number, RADII[number % 4], epsilon=(0.02, 0.1, 0.3)[number % 3])
    assert strongest(problem) <= 1 + ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_no_longer_attack_exceeds_the_bound(form, seed):
    form = dataclasses.replace(
        form, units=(1, 3, 5)[seed % 3], samples=(2, 6)[seed % 2], second_scale=(1.0, 0.1)[seed // 6]
    )
    problem = Problem(form, seed, RADII[seed % 4], epsilon=(0.02, 0.1, 0.3)[seed % 3])
    assert strongest(problem, count=30, steps=24) <= 1 + ROUNDING


def test_attacks_reach_a_bound_that_is_exact():
    """A single flip with hardly any ball is bounded exactly."""
    assert strongest(Problem(Form("bce", "flip", n=1, samples=3), 0, 1e-6), count=6, steps=6) > 0.98
