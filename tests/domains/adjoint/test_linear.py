"""One linear layer: the influence of labels as a special case, attacks on single steps, and poisoned trainings."""

import dataclasses

import pytest
import torch

from agt_lightning import BoundedAdversary, CertifiedModel
from agt_lightning.domains.adjoint import linear
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from tests.domains.adjoint.linear_problems import LinearAttack, LinearProblem
from tests.domains.adjoint.one_step import curved
from tests.domains.adjoint.problems import Form
from tests.domains.adjoint.trainings import Case, attack, trained

F64, INFINITY = torch.float64, float("inf")

ROUNDING = 1 + 1e-9
"""Float64 rounding of the attacks' own trainings, relative to bounds that are far above it."""

FORMS = [
    Form("mse"),
    Form("mse", "box"),
    Form("mse", "ball"),
    Form("mse", None, INFINITY),
    Form("mse", "box", 2),
    Form("mse", "box", 1, biases=(False, True)),
    Form("mse", "box", INFINITY, some=True, own_widths=True),
    Form("bce"),
    Form("bce", "flip"),
    Form("bce", None, INFINITY),
    Form("bce", "flip", 1),
    Form("ce"),
    Form("ce", "flip"),
    Form("ce", "flip", smoothing=0.4),
    Form("ce", None, 2),
    Form("ce", "flip", INFINITY, own_widths=True),
]

RADII = (0.003, 0.03, 0.3, 1.0)


def name_of(form):
    return "-".join(str(part) for part in (form.loss, form.labels, form.p) if part)


# --- the influence of labels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "adversary", [BoundedAdversary(n=2, nu=0.1), BoundedAdversary(n=1, nu=0.3, q=2)], ids=["box", "ball"]
)
def test_it_is_the_influence_of_labels_for_squared_error(adversary):
    """Both are exact, by two computations: outputs as sums of labels, and the adjoint of the recorded steps."""
    case = Case("mse", adversary, hidden=0, rate=0.2, decay=0.1, falling=0.1, domains=("ball", "adjoint", "influence"))
    engine = trained(case)[0]
    sets = engine.parameter_sets
    x = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    head = sets["influence"].head_of(engine.module)
    exact = sets["influence"].outputs(head, x)
    rows, wide = torch.eye(3, dtype=F64).repeat(5, 1), Interval.point(x.repeat_interleave(3, dim=0))
    found = sets["adjoint"].combinations(wide, rows).rearranged(lambda bound: bound.reshape(5, 3))
    torch.testing.assert_close(found.lower, exact.lower, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.upper, exact.upper, rtol=0, atol=1e-9)
    assert float(exact.width.min()) > 1e-3

    target = torch.arange(5) % 3
    margins = [
        CertifiedModel(engine.module, engine.bounds, sets={name: sets[name]}).margins(x, target)
        for name in ("adjoint", "influence")
    ]
    torch.testing.assert_close(margins[0].lower, margins[1].lower, rtol=0, atol=1e-9)


# --- single steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [form for form in FORMS if form.p is None], ids=name_of)
def test_curvature_is_that_of_automatic_differentiation(form):
    problem = LinearProblem(form, 5, 0.05)
    directions = problem.directions(2)
    _, found = problem.geometry.back(directions)
    for vector, product in zip(directions.first.flatten(1), found.first.flatten(1), strict=True):
        torch.testing.assert_close(product, curved(problem, vector))


def strongest(problem, count=12, steps=16):
    """The largest share of a bound that attacks reach; more than one is a violation."""
    directions = problem.directions(2)
    bound, _ = problem.geometry.back(directions)
    slack = problem.geometry.roundings(0.0, 0.0).bound * float(directions.norms.max())
    return max(
        LinearAttack(problem, vector, sign, count).run(steps) / (bound.total[q, side] + slack + 1e-12)
        for q, vector in enumerate(directions.first.flatten(1))
        for side, sign in enumerate((1.0, -1.0))
    )


@pytest.mark.thinned(6)
@pytest.mark.parametrize("number", range(len(FORMS)), ids=[name_of(form) for form in FORMS])
def test_no_attack_exceeds_the_bound(number):
    problem = LinearProblem(FORMS[number], 100 + number, RADII[number % 4], epsilon=(0.02, 0.1, 0.3)[number % 3])
    assert strongest(problem) <= ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_no_longer_attack_exceeds_the_bound(form, seed):
    form = dataclasses.replace(form, samples=(2, 6)[seed % 2], features=(1, 3)[seed // 2 % 2])
    problem = LinearProblem(form, seed, RADII[seed % 4], epsilon=(0.02, 0.1, 0.3)[seed % 3])
    assert strongest(problem, count=30, steps=24) <= ROUNDING


def test_tiles_of_samples_add_up(monkeypatch):
    problem = LinearProblem(Form("ce", "flip", INFINITY, own_widths=True), 3, 0.1)
    directions = problem.directions(3)
    whole, curve = problem.geometry.back(directions)
    monkeypatch.setattr(linear, "_TILE", 4)
    parts, again = problem.geometry.back(directions)
    torch.testing.assert_close(torch.from_numpy(whole.total), torch.from_numpy(parts.total))
    torch.testing.assert_close(curve.first, again.first)


# --- whole trainings -------------------------------------------------------------------------------------------------

ADVERSARIES = [
    pytest.param("mse", BoundedAdversary(n=2, nu=0.1), id="mse-labels"),
    pytest.param("mse", BoundedAdversary(n=2, epsilon=0.05, nu=0.05), id="mse-both"),
    pytest.param("mse", BoundedAdversary(n=1, epsilon=0.1, p=2), id="mse-features-2"),
    pytest.param("bce", BoundedAdversary(n=1, nu=1, q=0), id="bce-flips"),
    pytest.param("bce", BoundedAdversary(n=2, epsilon=0.1, p=1, nu=1, q=0), id="bce-both"),
    pytest.param("ce", BoundedAdversary(n=1, nu=1, q=0), id="ce-flips"),
    pytest.param("ce", BoundedAdversary(n=2, epsilon=0.1), id="ce-features"),
    pytest.param("ce", BoundedAdversary(n=1, epsilon=0.05, nu=1, q=0), id="ce-both"),
]


@pytest.mark.thinned(4)
@pytest.mark.parametrize(("kind", "adversary"), ADVERSARIES)
def test_poisoned_trainings_stay_inside(kind, adversary):
    outcome = attack(Case(kind, adversary, hidden=0, rate=0.1, decay=0.05, falling=0.1), runs=16)
    assert max(outcome.outputs, outcome.along, outcome.distance) <= ROUNDING
    assert outcome.along > 0.3  # the attacks come near


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("kind", "adversary"), ADVERSARIES)
def test_many_poisoned_trainings_stay_inside(kind, adversary, seed):
    case = Case(
        kind,
        adversary,
        hidden=0,
        rate=(0.05, 0.3, 1.0)[seed % 3],
        decay=(0.0, 0.1)[seed % 2],
        falling=(0.0, 0.2)[seed // 3 % 2],
        epochs=(1, 3)[seed // 4],
        seed=seed,
        scale=(1.0, 3.0)[seed // 2 % 2],
    )
    try:
        outcome = attack(case)
    except UncertifiableError as error:  # no claim, nothing to check
        assert "the bounds diverged" in str(error)  # noqa: PT017
        return
    assert max(outcome.outputs, outcome.along, outcome.distance) <= ROUNDING


def test_an_adversary_stronger_than_certified_leaves_the_bounds():
    case = Case("ce", BoundedAdversary(n=1, nu=1, q=0), hidden=0, rate=0.1, epochs=1)
    assert attack(case, runs=16, stronger=BoundedAdversary(n=2, nu=1, q=0)).along > 1.2
