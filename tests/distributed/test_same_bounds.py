"""One, two and three processes keep the same bounds for the same global batches."""

import pytest
import torch

from agt_lightning import BoundedAdversary, UnboundedAdversary
from tests.distributed.cases import Case, train

EQUAL = 1e-10
"""Sums in another order, float64, parameters of size one."""

FEATURES = BoundedAdversary(n=2, epsilon=0.05, nu=0.1)
FLIPS = BoundedAdversary(n=1, epsilon=0.02, nu=1, q=0)
VALUE, NORM = UnboundedAdversary(n=2, kappa=0.3), UnboundedAdversary(n=2, kappa=0.3, clip="norm")

CASES = {
    "mse": Case("mse", FEATURES),
    "bce flips": Case("bce", FLIPS, outputs=1),
    "ce flips": Case("ce", FLIPS),
    "mse momentum": Case("mse", FEATURES, optimizer="momentum"),
    "ce adam": Case("ce", BoundedAdversary(n=1, epsilon=0.02), optimizer="adam"),
    "unbounded value": Case("mse", VALUE),
    "unbounded norm momentum": Case("ce", NORM, optimizer="momentum"),
    "micro-batches": Case("mse", FEATURES, micro=2),
    "some poisonable": Case("mse", FEATURES, options={"poisonable": "poisonable"}, micro=2),
    "ball": Case("ce", FLIPS, hidden=(), options={"domains": ("ball",)}),
    "ball features": Case("mse", FEATURES, hidden=(), options={"domains": ("ball",), "poisonable": "poisonable"}),
    "ball and box, hidden": Case("bce", FEATURES, options={"domains": ("box", "ball")}, micro=2),
    "ball deep": Case("mse", FEATURES, hidden=(4, 4), options={"domains": ("box", "ball")}),
    "adjoint": Case("mse", FEATURES, options={"domains": ("ball", "adjoint"), "poisonable": "poisonable"}, micro=2),
    "influence": Case("mse", BoundedAdversary(n=2, nu=0.3), hidden=(), options={"domains": ("influence",)}),
    "influence ids momentum": Case(
        "mse",
        BoundedAdversary(n=2, nu=0.3),
        frozen=1,
        optimizer="momentum",
        options={"domains": ("influence",), "sample_ids": "ids", "poisonable": "poisonable"},
    ),
}


def assert_close(ours, theirs):
    for side in ("lower", "upper", "parameters"):
        for name, value in ours[side].items():
            assert torch.allclose(value, theirs[side][name], rtol=0, atol=EQUAL), (side, name)
    if ours["radius"] is not None:
        assert ours["radius"] == pytest.approx(theirs["radius"], abs=EQUAL)


def assert_same_bits(results):
    for side in ("lower", "upper", "parameters"):
        for name, value in results[0][side].items():
            assert all(torch.equal(value, other[side][name]) for other in results[1:]), (side, name)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bounds_do_not_depend_on_the_number_of_processes(case, pool):
    alone = train(case)
    assert any((alone["upper"][name] > alone["lower"][name]).any() for name in alone["lower"])
    for world in (2, 3):
        results = pool.run(world, train, case)
        assert_same_bits(results)
        assert_close(results[0], alone)


def test_a_group_of_one_process_is_one_process(pool):
    (result,) = pool.run(1, train, CASES["mse"])
    assert_same_bits([result, train(CASES["mse"])])


def test_uneven_parts_are_bounded_as_the_mean_of_means(pool):
    """Three processes with 1, 1 and 4 samples; training itself is checked against the captured gradient each step."""
    case = Case("mse", FEATURES, uneven=True, micro=2)
    results = pool.run(3, train, case)
    assert_same_bits(results)
    with pytest.raises(AssertionError):
        assert_close(results[0], train(case))


def test_bounds_for_each_of_several_adversaries_are_those_of_its_own_training(pool):
    weaker = BoundedAdversary(n=1, epsilon=0.05, nu=0.1)
    together = pool.run(2, train, Case("mse", (weaker, FEATURES), micro=2))
    alone = pool.run(2, train, Case("mse", FEATURES, micro=2))
    assert_same_bits(together)
    for both, single in zip(together, alone, strict=True):
        box = both["state"]["domains_of_others"][0]["box"]
        for side in ("lower", "upper"):
            assert all(
                torch.equal(box[side][name], value) for name, value in single["state"]["domains"]["box"][side].items()
            )
