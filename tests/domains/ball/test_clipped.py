"""One step on clipped gradients of a linear head: no attack leaves the next ball, and some nearly reach it."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from agt_lightning.aggregation import BatchEdits, Choice
from agt_lightning.domains.ball.clipped import ClippedAnalysis, Edits, Replacements
from agt_lightning.domains.ball.remainder import Remainder
from tests.domains.ball.clipped_problems import F64, Problem

ROUNDING = 1e-9
"""Far above the float64 rounding of one step."""

DECISIVE = 1.01
"""How far outside an attack must come, relative to a faulty bound."""

KINDS = [
    ("squared", 1),
    ("squared", 3),
    ("huber", 1),
    ("logistic", 1),
    ("softmax", 2),
    ("softmax", 3),
    ("logistic", 2),
    ("huber", 3),
]


def random_problem(seed, kind, outputs):
    """Any sizes of κ, ball and rate; replacements in every fourth, sums in every fifth."""
    kappa, radius, rate, decay = torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()
    return Problem.random(
        seed,
        kind,
        outputs,
        kappa=0.1 * 30**kappa,
        radius=0.02 * 50**radius,
        rate=0.05 * 40**rate,
        decay=decay / 2,
        n=1 + seed % 2,
        edits=seed % 4 > 0,
        mean=seed % 5 > 0,
    )


def excess(problem, **settings):
    """Largest share of the certified radius that an attack reaches; above one it is out."""
    return problem.reached(**settings) / problem.certified()


@pytest.mark.parametrize(("kind", "outputs"), KINDS)
def test_no_attack_leaves_the_next_ball(kind, outputs):
    shares = [excess(random_problem(seed, kind, outputs), steps=25, starts=6) for seed in range(3)]
    assert max(shares) <= 1 + ROUNDING
    assert max(shares) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "outputs"), KINDS)
def test_no_attack_of_many_leaves_the_next_ball(kind, outputs):
    assert max(excess(random_problem(seed, kind, outputs), steps=40) for seed in range(3, 11)) <= 1 + ROUNDING


def largest_change(problem):
    """What changes of samples add to the weighted sum of clipped gradients at the nominal parameters, one by one."""
    gradients, b = problem.clipped(problem.weight), len(problem.inputs)
    before = problem.size_weight(b) * gradients.sum(dim=0)
    found = []
    for kept, came in problem.changes():
        weight = problem.size_weight(len(kept) + came)
        found.append(float((weight * gradients[kept].sum(dim=0) - before).norm()) + weight * came * problem.kappa)
    return max(found)


@pytest.mark.parametrize("edits", [True, False], ids=["edits", "replacements"])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_foreign_samples_move_a_step_by_at_most_their_bound(n, edits):
    for seed in range(6):
        problem = Problem.random(
            seed, "squared", 2, kappa=1.0, radius=0.0, rate=1.0, n=n, edits=edits, mean=seed % 2 == 0
        )
        samples = problem.analysis.nominal_samples(problem.sample_weights, 0.0)
        bound, exact = problem.foreign.largest(samples), largest_change(problem)
        assert exact <= bound + ROUNDING
        if n <= 1:  # one sample alone is bounded exactly
            assert bound == pytest.approx(exact, abs=1e-6)


def test_samples_that_cannot_be_poisoned_stay():
    problem = Problem.random(0, "squared", 1, kappa=1.0, radius=0.0, rate=1.0, n=2)
    samples = problem.analysis.nominal_samples(problem.sample_weights, 0.0)
    gradients, b, rows = problem.clipped(problem.weight), len(problem.inputs), [1, 3]
    for n in (1, 2):
        changes = BatchEdits.changes(n, len(rows))
        edits = Edits(BatchEdits(n, {k: problem.size_weight(b + k) for k in changes}), torch.tensor(rows))
        replaced = Replacements(Choice(n), torch.tensor(rows)).largest(samples)
        assert replaced <= Replacements(Choice(n), None).largest(samples)
        exact = []
        for gone in range(n + 1):
            for taken in combinations(rows, gone):
                kept = [row for row in range(b) if row not in taken]
                weight = 1 / (len(kept) + n - gone)
                moved = weight * gradients[kept].sum(dim=0) - gradients.mean(dim=0)
                exact.append(float(moved.norm()) + weight * (n - gone) * problem.kappa)
        assert max(exact) <= edits.largest(samples) + ROUNDING
        assert edits.largest(samples) <= replace(problem, n=n).foreign.largest(samples)


def test_computed_gradients_are_those_that_are_clipped_one_by_one():
    for kind, outputs in KINDS:
        problem = Problem.random(1, kind, outputs, kappa=0.8, radius=0.1, rate=0.1)
        gradients = problem.clipped(problem.weight)
        weights = torch.rand(len(problem.inputs), dtype=F64)
        total = torch.einsum("b,bkd->kd", weights, gradients)
        assert problem.analysis.total(weights).numpy() == pytest.approx(total.numpy(), abs=1e-12)


def turning():
    """One sample of two outputs, one of which pulls with constant force: clipped, its gradient turns."""
    row = torch.tensor
    return Problem(
        "huber", torch.zeros(2, 2, dtype=F64), row([[0.0]]).to(F64), row([[0.5, 9.0]]).to(F64), 0.8, 0.1, 1.0, n=0
    )


def steep():
    """One sample, and a step that overshoots by far."""
    return Problem(
        "squared", torch.zeros(1, 2, dtype=F64), torch.ones(1, 1, dtype=F64), torch.zeros(1, 1), 5.0, 0.1, 3.0, n=0
    )


def edited():
    return Problem.random(0, "squared", 1, kappa=0.5, radius=0.01, rate=0.5, n=1, b=4)


def replaced():
    return Problem.random(0, "squared", 1, kappa=0.5, radius=0.01, rate=0.5, n=1, b=4, edits=False)


def deleted():
    """All gradients but one cancel, and that one goes."""
    targets = torch.tensor([[3.0], [-1.0], [-1.0], [-1.0]], dtype=F64)
    return Problem("squared", torch.zeros(1, 2, dtype=F64), torch.zeros(4, 1, dtype=F64), targets, 3.1, 0.01, 0.5, n=1)


def inserted():
    """All gradients agree, and one of κ comes that points elsewhere."""
    targets = torch.full((4, 1), 9.0, dtype=F64)
    return Problem("squared", torch.zeros(1, 2, dtype=F64), torch.zeros(4, 1, dtype=F64), targets, 5.0, 0.01, 0.5, n=1)


def no_remainder(patch):
    patch.setattr(ClippedAnalysis, "remainder", lambda self, weights: Remainder())
    return turning()


def no_discord(patch):
    whole = ClippedAnalysis.remainder
    patch.setattr(ClippedAnalysis, "remainder", lambda *given: replace(whole(*given), discord=0.0, monotone=0.0))
    return turning()


def all_convex(patch):
    patch.setattr(ClippedAnalysis, "convex", property(lambda self: torch.ones_like(self.slopes)))
    return turning()


def all_flat(patch):
    patch.setattr(ClippedAnalysis, "slopes", property(lambda self: 0 * self.gradient.curvature))
    return steep()


def nothing_comes(patch):
    patch.setattr(ClippedAnalysis, "rounded_kappa", 0.0)
    return edited()


def same_weights(patch):
    whole = Edits.__init__

    def unchanged(self, edits, poisonable):
        whole(self, BatchEdits(edits.n, dict.fromkeys(edits.weights, edits.weights[0])), poisonable)

    patch.setattr(Edits, "__init__", unchanged)
    return deleted()


def no_mean(patch):
    """The gradients of those that stay are not weighted anew."""
    whole = Edits._gone
    patch.setattr(Edits, "_gone", lambda self, deviations, count, share: whole(self, deviations, count, 0.0))
    return inserted()


def nothing_goes(patch):
    whole = Edits._gone
    patch.setattr(Edits, "_gone", lambda self, deviations, count, share: whole(self, deviations, 0, share))
    return deleted()


def one_less(patch):
    patch.setattr(Choice, "largest", lambda self, values: values[:0].sum())
    return replaced()


def only_what_comes(patch):
    """A replaced sample's own gradient is forgotten."""
    whole = ClippedAnalysis.nominal_samples

    def forgetful(self, weights, relative):
        samples = whole(self, weights, relative)
        return replace(samples, norms=0 * samples.norms)

    patch.setattr(ClippedAnalysis, "nominal_samples", forgetful)
    return replaced()


FAULTS = [
    no_remainder,
    no_discord,
    all_convex,
    all_flat,
    nothing_comes,
    same_weights,
    no_mean,
    nothing_goes,
    one_less,
    only_what_comes,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_planted_mistakes_let_an_attack_out(monkeypatch, fault):
    with monkeypatch.context() as patch:
        problem = fault(patch)
        assert excess(problem, steps=30, starts=6) > DECISIVE
    assert excess(problem, steps=30, starts=6) <= 1 + ROUNDING


def test_entries_clipped_one_by_one_drive_two_clean_trainings_apart():
    """The reason why ``clip="value"`` is refused: a step on one sample, short enough for its loss, parts two runs."""
    x, target, rate = torch.tensor([1.0, 2.0], dtype=F64), -10.0, 0.1
    one, other = torch.zeros(2, dtype=F64), torch.tensor([-0.24, 0.44], dtype=F64)

    def distance(clip):
        moved = [weight - rate * clip((weight @ x - target) * x) for weight in (one, other)]
        return float((moved[0] - moved[1]).norm() / (one - other).norm())

    assert distance(lambda gradient: gradient.clamp(-15, 15)) > 1.05
    assert distance(lambda gradient: gradient * (15 / gradient.norm()).clamp(max=1)) <= 1
    assert distance(lambda gradient: gradient) <= 1
