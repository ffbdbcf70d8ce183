"""The gains of poisoning, ``SEMax_n`` of Theorem 3.4: exact, computed by the cheapest method that applies.

The gain of sample i is the amount by which poisoning it moves the bounds of the sum outward,

    up_i = w_i (δ̃_U,i - δ_U,i),   down_i = w_i (δ_L,i - δ̃_L,i);

negative gains are never counted, since an adversary can leave a sample alone. If every poisonable sample can be
poisoned, matrix products give the sums (`sum_if_all_poisoned`); else kernels do, from factors where there are some
(`agt_lightning.aggregation.kernels`).
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from agt_lightning.aggregation.kernels import Factor, OuterGains, kernel_of
from agt_lightning.aggregation.kernels.factors import parts_of, ranges, units_at_once
from agt_lightning.aggregation.weighted_sums import COPIES, SampleSet, blocks, weighted_sum
from agt_lightning.arithmetic.threads import one_core_each
from agt_lightning.gradients import Elementwise, FactoredGradient, divisible_axis, slice_of
from agt_lightning.interval import Interval

Sums = Callable[[FactoredGradient, FactoredGradient], tuple[Tensor, Tensor]]
"""A function of clean and poisoned gradients that returns two tensors of the parameter's shape."""

_LEAST = 2**20
"""Number of gains above which starting threads pays: one core takes a few milliseconds for them."""

_COMPARED = 256
"""Samples whose factors are compared at once: patches of images are many times as large as the images."""


def top_n_gains(
    clean: FactoredGradient, poisoned: FactoredGradient, samples: SampleSet, n: int, budget: int
) -> tuple[Tensor, Tensor]:
    """Sum the n largest gains of both bounds, for each element of the parameter.

    Args:
        clean: bounds δ_i of all samples (equation 6).
        poisoned: bounds δ̃_i of the poisonable samples (equation 7).
        samples: weights and poisonable samples.
        n: number of samples the adversary can change.
        budget: memory for temporary tensors, in bytes.

    Returns:
        Increase of the upper bound and decrease of the lower bound, both >= 0, of the parameter's shape.
    """
    threads = torch.get_num_threads() if samples.weights.device.type == "cpu" else 1

    def sums(clean: FactoredGradient, poisoned: FactoredGradient) -> tuple[Tensor, Tensor]:
        up, down = _top_n_sums(clean, poisoned, samples, n, budget // threads)
        return up.reshape(clean.shape), down.reshape(clean.shape)

    return in_slices(sums, clean, poisoned, threads)


def sum_if_all_poisoned(
    clean: FactoredGradient, poisoned: FactoredGradient, samples: SampleSet, budget: int
) -> Interval | None:
    """Bound ``Σ w_i δ̃_i`` over the poisonable samples plus ``Σ w_i δ_i`` over all others.

    Returns None if the sum has no closed form, or if a gain could be negative (negative gains are never counted).

    Args:
        clean: bounds δ_i of all samples.
        poisoned: bounds δ̃_i of the poisonable samples.
        samples: weights and poisonable samples.
        budget: memory for temporary tensors, in bytes.

    Returns:
        Interval of the parameter's shape.
    """
    total = poisoned.total(samples.select(samples.weights)) if _contains_clean(clean, poisoned, samples) else None
    if total is None or samples.poisonable is None:
        return total
    others = samples.weights.index_fill(0, samples.poisonable, 0.0)
    return total + weighted_sum(clean, others, budget)


def _contains_clean(clean: FactoredGradient, poisoned: FactoredGradient, samples: SampleSet) -> bool:
    """Return whether the factors of each poisoned gradient contain those of the clean one; then its bounds do, too."""
    inner, outer = clean.factors(), poisoned.factors()
    if inner is None or outer is None:
        return False
    positions = torch.arange(poisoned.samples, device=samples.weights.device)
    poisonable = positions if samples.poisonable is None else samples.poisonable
    return all(
        _contains(outer.outputs[p], inner.outputs[c]) and _contains(outer.inputs(p), inner.inputs(c))
        for p, c in zip(positions.split(_COMPARED), poisonable.split(_COMPARED), strict=True)
    )


def _contains(wide: Interval, narrow: Interval) -> bool:
    return bool(((narrow.lower >= wide.lower) & (narrow.upper <= wide.upper)).all())


def _top_n_sums(
    clean: FactoredGradient, poisoned: FactoredGradient, samples: SampleSet, n: int, budget: int
) -> tuple[Tensor, Tensor]:
    """Compute ``SEMax_n`` of both gains: from factors if there is one position per sample, else block by block."""
    kernel = kernel_of(samples)
    factored = OuterGains.between(clean, poisoned, samples)
    if factored is not None:
        return kernel.outer_sums(factored, n)
    up, down = [], []
    for more, less in stored_gains(clean, poisoned, samples, budget):
        up.append(kernel.sums(more, n))
        down.append(kernel.sums(less, n))
    return torch.cat(up), torch.cat(down)


def stored_gains(
    clean: FactoredGradient, poisoned: FactoredGradient, samples: SampleSet, budget: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the weighted gains of both bounds for some elements after others, each (elements, m).

    Args:
        clean: bounds of all samples.
        poisoned: bounds of the poisonable samples.
        samples: weights and poisonable samples.
        budget: memory for temporary tensors, in bytes.
    """
    values, weights = (_values(clean), _values(poisoned)), samples.select(samples.weights)
    if values[0] is not None and values[1] is not None:
        for units in ranges(clean.elements, min(units_at_once(samples.poisonable_count), _elements(samples, budget))):
            factor = Factor.of(values[0], values[1], units, samples)
            up, down = factor.poisoned.upper - factor.clean.upper, factor.clean.lower - factor.poisoned.lower
            yield up.mul_(weights), down.mul_(weights)
        return
    for start, stop in blocks(clean, budget):
        inner, outer = clean.block(start, stop), poisoned.block(start, stop)
        up, down = outer.upper - samples.select(inner.upper), samples.select(inner.lower) - outer.lower
        yield up.mul_(weights), down.mul_(weights)


def _values(gradient: FactoredGradient) -> list[Interval] | None:
    """Return gradients that are stored as they are as (samples, 1, elements), part by part; None for others."""
    parts = list(parts_of(gradient))
    stored = [part.values for part in parts if isinstance(part, Elementwise)]
    if len(stored) < len(parts):
        return None
    return [value.rearranged(lambda bound: bound.reshape(len(bound), 1, -1)) for value in stored]


def _elements(samples: SampleSet, budget: int) -> int:
    """Return how many elements of the parameter fit in the budget."""
    return max(1, budget // (8 * COPIES * max(1, samples.poisonable_count)))


def in_slices(sums: Sums, clean: FactoredGradient, poisoned: FactoredGradient, threads: int) -> tuple[Tensor, Tensor]:
    """Compute sums for all elements, on slices of the parameter in parallel.

    Args:
        sums: a function that treats each element independently.
        clean: bounds of all samples.
        poisoned: bounds of the poisonable samples.
        threads: number of threads; each computes on one core.

    Example:
        >>> from agt_lightning.gradients import Elementwise
        >>> from agt_lightning.interval import Interval
        >>> gradient = Elementwise(Interval.point(torch.ones(2**10, 2**10)))
        >>> up, down = in_slices(lambda a, b: (torch.ones(a.shape), torch.zeros(b.shape)), gradient, gradient, 2)
        >>> up.shape, float(up.sum())
        (torch.Size([1024]), 1024.0)
    """
    axis = divisible_axis((clean, poisoned))
    if threads == 1 or axis is None or clean.elements * poisoned.samples < _LEAST:
        return sums(clean, poisoned)
    numbers = range(min(threads, clean.shape[axis]))

    def slice_sums(number: int) -> tuple[Tensor, Tensor]:
        part = slice_of((clean, poisoned), axis, number, len(numbers))
        assert part is not None
        assert part[1] is not None
        return sums(part[0], part[1])

    with one_core_each(), ThreadPoolExecutor(len(numbers)) as pool:
        results = list(pool.map(slice_sums, numbers))
    up, down = (torch.cat(slices, dim=axis) for slices in zip(*results, strict=True))
    return up, down
