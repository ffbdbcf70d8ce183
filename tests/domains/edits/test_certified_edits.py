"""Certificates against every insertion, deletion and replacement of small data sets."""

from functools import partial

import pytest
import torch

from agt_lightning.domains.edits import (
    InnerProduct,
    KernelSums,
    LeastSquaresSteps,
    RadiusVote,
    Shifted,
    certified_edits,
    certified_replacements,
)
from agt_lightning.domains.edits import kernel_sums as kernel_sums_file
from agt_lightning.domains.edits import least_squares as least_squares_file
from agt_lightning.domains.edits.certified_edits import largest
from agt_lightning.domains.edits.model import Damage
from tests.domains.edits import oracles

CLASSES = 3
KERNELS = {
    "votes": (RadiusVote(0.2), partial(oracles.votes, threshold=0.2)),
    "shifted votes": (Shifted(RadiusVote(0.2), 0.5), partial(oracles.votes, threshold=0.2, shift=0.5)),
    "class sums": (InnerProduct(), oracles.class_sums),
    "shifted class sums": (Shifted(InnerProduct(), 0.25), partial(oracles.class_sums, shift=0.25)),
}
WAYS = {
    "insertions and deletions": (certified_edits, oracles.insertions_and_deletions),
    "replacements": (certified_replacements, oracles.replacements),
}
kernels = pytest.mark.parametrize("kernel", KERNELS)
ways = pytest.mark.parametrize("way", WAYS)


def check(model, outputs, data, way, most, *, attained):
    """No n edits change what withstands n; some n + 1 do, or lead to a tie, if the bound is attained."""
    features, labels, grid = data
    certify, edits = WAYS[way]
    certified = certify(model, grid)
    predicted = model.outputs(grid).argmax(dim=1)
    for n in range(most + 1):
        now = torch.zeros(len(grid), dtype=torch.bool)
        for sets in edits(features, labels, grid, CLASSES, n):
            now |= oracles.changed(outputs(sets, grid, CLASSES), predicted)
        assert not bool((now & (certified >= n)).any()), f"changed by {n} of {certified.tolist()}"
        if attained:
            assert bool((now | (certified >= n)).all()), f"not changed by {n}, but {certified.tolist()}"
    return certified


@kernels
@ways
def test_kernel_sums_are_certified_exactly(kernel, way):
    own, outputs = KERNELS[kernel]
    found = set()
    for seed in range(4):
        data = oracles.problem(seed)
        model = KernelSums(own, data[0], data[1], CLASSES)
        found |= set(check(model, outputs, data, way, 2, attained=True).tolist())
    assert len(found) > 1


@ways
@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_steps_of_least_squares_are_certified(way, steps):
    for seed in range(3):
        features, labels, grid = oracles.problem(seed, samples=8, corners=4)
        model = LeastSquaresSteps(features, labels, CLASSES, rate=0.8, steps=steps)
        outputs = partial(oracles.trained, rate=0.8, steps=steps, scale=len(features))
        # One step has no terms of second order, and the worst sample is a copy of the query.
        check(model, outputs, (features, labels, grid), way, 2, attained=steps == 1)


def test_one_step_of_least_squares_has_the_edits_of_class_sums():
    features, labels, grid = oracles.problem(1, samples=40)
    sums, step = KernelSums(InnerProduct(), features, labels, 3), LeastSquaresSteps(features, labels, 3, 0.7, 1)
    for certify in (certified_edits, certified_replacements):
        assert torch.equal(certify(sums, grid), certify(step, grid))
        assert int(certify(sums, grid).max()) > 0


@pytest.mark.parametrize("way", WAYS)
def test_half_of_an_edits_damage_is_noticed(monkeypatch, way):
    """Planted mistake: a replaced or inserted sample takes half of what it can."""
    honest = kernel_sums_file.KernelValues.edits, kernel_sums_file.KernelValues.replacements
    for name, rule in zip(("edits", "replacements"), honest, strict=True):

        def halved(self, *arguments, rule=rule):
            damage = rule(self, *arguments)
            return damage._replace(each=damage.each / 2)

        monkeypatch.setattr(kernel_sums_file.KernelValues, name, halved)
    with pytest.raises(AssertionError, match="changed by"):
        test_kernel_sums_are_certified_exactly("class sums", way)


def test_replaced_samples_that_only_go_are_noticed(monkeypatch):
    """Planted mistake: what a replaced sample did for the margin is forgotten."""
    rule = kernel_sums_file.KernelValues.replacements
    monkeypatch.setattr(
        kernel_sums_file.KernelValues,
        "replacements",
        lambda self, *arguments: rule(self, *arguments)._replace(samples=torch.zeros(len(arguments[0]), 0).double()),
    )
    with pytest.raises(AssertionError, match="changed by"):
        test_kernel_sums_are_certified_exactly("votes", "replacements")


@pytest.mark.parametrize("name", ["edits", "replacements"])
def test_least_squares_without_what_comes_is_noticed(monkeypatch, name):
    """Planted mistake: inserted samples take nothing from the margin."""
    rule = getattr(least_squares_file.LeastSquaresQueries, name)

    def faulty(self, *arguments) -> Damage:
        damage = rule(self, *arguments)
        return damage._replace(each=0 * damage.each)

    monkeypatch.setattr(least_squares_file.LeastSquaresQueries, name, faulty)
    with pytest.raises(AssertionError, match="changed by"):
        test_steps_of_least_squares_are_certified({"edits": "insertions and deletions"}.get(name, name), 2)


def test_ties_are_not_certified():
    features = torch.eye(2).double()
    votes = KernelSums(RadiusVote(0.5), features, torch.tensor([0, 1]), classes=2)
    assert certified_edits(votes, torch.ones(1, 2)).tolist() == [-1]
    assert certified_replacements(votes, torch.ones(1, 2)).tolist() == [-1]


def test_queries_are_processed_in_chunks():
    features, labels, _ = oracles.problem(3, samples=50)
    queries = torch.randn(17, 2, generator=torch.Generator().manual_seed(0)).double()
    model = KernelSums(RadiusVote(0.2), features, labels, CLASSES)
    for certify in (certified_edits, certified_replacements):
        assert torch.equal(certify(model, queries, memory=1), certify(model, queries))
        assert certify(model, queries[:0]).shape == (0,)


def test_a_damage_that_is_all_of_a_margin_is_a_tie():
    nothing = torch.zeros(2, dtype=torch.float64)
    assert largest(Damage(nothing, nothing[:, None], nothing, most=9), torch.tensor([0.0, 1.0]).double()).tolist() == [
        -1,
        9,
    ]


def test_joint_damage_grows_by_the_square():
    nothing, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    assert largest(Damage(nothing, nothing[:, None], one, most=9), 16.5 * one).tolist() == [4]
