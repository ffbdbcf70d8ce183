"""Slices in threads give what one thread gives."""

import pytest
import torch

from agt_lightning.aggregation import SampleSet, bounded_descent, gains
from agt_lightning.gradients import Deferred, Elementwise, OuterProduct
from agt_lightning.interval import Interval

SAMPLES = 30
BUDGET = 2**20


def box(*shape, width, seed):
    generator = torch.Generator().manual_seed(seed)
    center = torch.randn(SAMPLES, *shape, generator=generator, dtype=torch.float64)
    radius = width * torch.rand(SAMPLES, *shape, generator=generator, dtype=torch.float64)
    return Interval(center - radius, center + radius)


def wider(interval):
    return Interval(interval.lower - 0.1, interval.upper + 0.2)


def outer(rows, columns):
    d, z = box(1, rows, width=0.1, seed=0), box(1, columns, width=0.1, seed=1)
    return OuterProduct(d, z), OuterProduct(wider(d), wider(z))


def values(*shape):
    gradient = box(*shape, width=0.1, seed=2)
    return Elementwise(gradient), Elementwise(wider(gradient))


def deferred():
    gradient = box(4, width=0.1, seed=3)
    return tuple(Deferred(lambda rows, own=own: own[rows], SAMPLES, (4,)) for own in (gradient, wider(gradient)))


PAIRS = {
    "many rows": outer(7, 3),
    "many columns": outer(1, 9),
    "one element": outer(1, 1),
    "values": values(5),
    "three axes": values(2, 5, 3),
    "a scalar": values(),
    "nothing to divide": deferred(),
}


@pytest.fixture
def always(monkeypatch):
    """However small the work is."""
    monkeypatch.setattr(gains, "_LEAST", 0)


@pytest.fixture
def threads():
    """Torch's own number of threads, set back in the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("kind", PAIRS)
def test_bounds_do_not_depend_on_the_number_of_threads(threads, kind, count):
    samples = SampleSet(torch.full((SAMPLES,), 1 / SAMPLES, dtype=torch.float64))
    threads(1)
    expected = bounded_descent(*PAIRS[kind], samples, 4, BUDGET)
    threads(count)
    found = bounded_descent(*PAIRS[kind], samples, 4, BUDGET)
    assert torch.equal(found.lower, expected.lower)
    assert torch.equal(found.upper, expected.upper)
    assert torch.get_num_threads() == count


@pytest.mark.usefixtures("always")
def test_slices_go_to_several_threads(threads):
    """Otherwise nothing above would be tested."""
    seen = []

    def sums(clean, poisoned):
        seen.append((clean.shape, torch.get_num_threads()))
        return torch.zeros(clean.shape), torch.zeros(poisoned.shape)

    threads(2)
    gains.in_slices(sums, *PAIRS["three axes"], 2)
    assert sorted(seen) == [((2, 2, 3), 1), ((2, 3, 3), 1)]


@pytest.mark.usefixtures("always")
def test_an_error_in_a_thread_arrives_and_threads_are_set_back(threads):
    def sums(clean, poisoned):
        raise MemoryError("as many samples as that")

    threads(2)
    with pytest.raises(MemoryError, match="as many samples"):
        gains.in_slices(sums, *PAIRS["many rows"], 2)
    assert torch.get_num_threads() == 2
