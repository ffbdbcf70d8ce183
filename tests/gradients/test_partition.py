"""Parts of a gradient: by samples, for other processes, and by elements, for shares of the work."""

import pytest
import torch

from agt_lightning.distributed import TorchProcessGroup
from agt_lightning.gradients import Deferred, Elementwise, RowGradient, all_gathered, partitioned, stack
from agt_lightning.interval import Interval
from tests.gradients.oracles import Case, cases

CLOSE = 1e-12
"""float64, sums of a few terms."""


def embedding():
    generator = torch.Generator().manual_seed(2)
    lower = torch.randn(4, 3, 2, dtype=torch.float64, generator=generator)
    rows = torch.randint(0, 5, (4, 3), generator=generator)
    return Case("rows of a table", RowGradient(rows, Interval(lower, lower + 1), 5), Interval.point(lower))


CASES = [*cases(), embedding()]


def whole(gradient):
    """All elements, samples last, by the parameter's shape."""
    rows = [gradient.block(start, start + 1) for start in range(gradient.elements)]
    bounds = [torch.cat([getattr(row, side) for row in rows]) for side in ("lower", "upper")]
    return [bound.reshape(*gradient.shape, gradient.samples) for bound in bounds]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_factors_make_the_gradient_again(case):
    gradient = case.gradient
    if gradient.structure is None:
        pytest.skip("has no factors")
    assert all(len(leaf.lower if isinstance(leaf, Interval) else leaf) for leaf in gradient.leaves)
    assert_same(whole(gradient.with_leaves(gradient.leaves)), whole(gradient))
    assert gradient.with_leaves(gradient.leaves).structure == gradient.structure


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_stacked_gradients_are_side_by_side(case):
    gradient = case.gradient
    twice = [torch.cat([bound, bound], dim=-1) for bound in whole(gradient)]
    assert_same(whole(stack([gradient, gradient])), twice)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_narrow_gradient_is_part_of_the_whole(case):
    gradient = case.gradient
    for axis, size in enumerate(gradient.shape):
        start, length = size // 3, size - size // 3
        part = gradient.narrow(axis, start, length)
        if part is not None:
            assert tuple(part.shape) == tuple(torch.empty(gradient.shape).narrow(axis, start, length).shape)
            assert_same(whole(part), [bound.narrow(axis, start, length) for bound in whole(gradient)])


def _gradients(samples: slice, *, deferred: bool):
    generator = torch.Generator().manual_seed(1)
    lower = torch.randn(7, 3, 2, dtype=torch.float64, generator=generator)
    values = Interval(lower, lower + torch.rand(lower.shape, dtype=torch.float64, generator=generator))[samples]
    if deferred:
        return {"w": Deferred(lambda rows: values[rows], len(values.lower), (3, 2))}
    return {"w": Elementwise(values)}


def _across(kind):
    processes = TorchProcessGroup(torch.device("cpu"))
    rows = [slice(0, 4), slice(4, 4), slice(4, 7)][processes.rank]
    deferred = {"deferred": True, "mixed": processes.rank == 2, "factors": False}[kind]
    own = _gradients(rows, deferred=deferred) if rows.start < rows.stop else {}
    (everywhere,) = all_gathered(processes, own)
    weights = torch.arange(1.0, 8.0, dtype=torch.float64)
    sums = partitioned(processes, everywhere, {}, lambda gradient, _: gradient.total(weights))
    return type(everywhere["w"]).__name__, whole(everywhere["w"]), sums["w"].lower, everywhere["w"].scale(weights)


@pytest.mark.parametrize("kind", ["factors", "deferred", "mixed"])
def test_gradients_of_all_processes(kind, pool):
    """One process has no samples; gradients without factors are expanded block by block."""
    expected = _gradients(slice(0, 7), deferred=False)["w"]
    weights = torch.arange(1.0, 8.0, dtype=torch.float64)
    for _, expanded, total, scale in pool.run(3, _across, kind):
        assert_same(expanded, whole(expected))
        assert torch.allclose(total, expected.total(weights).lower, rtol=0, atol=CLOSE)
        assert scale == pytest.approx(expected.scale(weights))
