"""Aggregation by trying all subsets and corners, and the checks that fast aggregation must pass."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.aggregation import Clipping, NormClipping, SampleSet, ValueClipping
from agt_lightning.gradients import Elementwise, FactoredGradient, OuterProduct, Stacked
from agt_lightning.interval import Interval
from agt_lightning.rounding import unit_roundoff
from tests.gradients.oracles import box

ROUNDINGS = 64
"""Roundings of weighted sums over fewer than 16 samples."""

AMPLE = 2**24
TINY = 1
"""Budgets in bytes: everything at once, and one element at a time."""

KAPPA = 0.6

TopN = Callable[[Tensor, int], Tensor]


def subsets(members: list[int], n: int) -> Iterator[tuple[int, ...]]:
    """All subsets of at most n members."""
    for size in range(min(n, len(members)) + 1):
        yield from itertools.combinations(members, size)


def check_top_n(top_n: TopN) -> None:
    """The largest sum over all subsets of at most n entries, row by row."""
    generator = torch.Generator().manual_seed(1)
    for samples, n in itertools.product((1, 2, 5, 6), range(8)):
        gains = torch.randn(7, samples, generator=generator, dtype=torch.float64)
        gains[0] = -gains[0].abs()
        gains[1] = 0.5
        sums = [gains[:, list(subset)].sum(dim=1) for subset in subsets(list(range(samples)), n)]
        _require_close(f"top {n} of {samples}", top_n(gains.clone(), n), torch.stack(sums).amax(dim=0), 10.0)


@dataclass(frozen=True)
class Case:
    """One aggregation problem: factored bounds, weights, who can be poisoned, and how many."""

    name: str
    clean: FactoredGradient
    poisoned: FactoredGradient
    samples: SampleSet
    n: int

    def __str__(self) -> str:
        return self.name

    @property
    def poisonable(self) -> list[int]:
        rows = self.samples.poisonable
        return list(range(self.clean.samples)) if rows is None else rows.tolist()


def cases() -> list[Case]:
    """Outer products, plain values and stacks; equal and unequal weights; all, some and hardly any poisonable."""
    generator = torch.Generator().manual_seed(6)
    found = []
    for kind, n, rows in itertools.product(
        ("outer", "positions", "elementwise", "stacked"), (0, 1, 2, 5, 9), (None, 3, 1)
    ):
        poisonable = None if rows is None else torch.randperm(5, generator=generator)[:rows]
        weights = torch.rand(5, generator=generator, dtype=torch.float64)
        clean = _gradient(kind, 5, generator)
        # The poisoned boxes are independent of the clean ones: some gains are negative.
        poisoned = _gradient(kind, 5 if rows is None else rows, generator)
        found.append(Case(f"{kind}, n={n}, {rows or 5} of 5", clean, poisoned, SampleSet(weights, poisonable), n))
    return found


def _gradient(kind: str, samples: int, generator: torch.Generator) -> FactoredGradient:
    if kind == "elementwise":
        return Elementwise(box((samples, 2, 3), generator))
    if kind == "stacked":
        first = Elementwise(box((samples - samples // 2, 2, 3), generator))
        return first if samples == 1 else Stacked([first, Elementwise(box((samples // 2, 2, 3), generator))])
    positions = 2 if kind == "positions" else 1
    return OuterProduct(box((samples, positions, 2), generator), box((samples, positions, 3), generator, "nonnegative"))


def dense(gradient: FactoredGradient) -> Interval:
    """Per-sample bounds, (b, e)."""
    block = gradient.block(0, gradient.elements)
    return Interval(block.lower.T, block.upper.T)


BoundedDescent = Callable[[FactoredGradient, FactoredGradient | None, SampleSet, int, int], Interval]
UnboundedDescent = Callable[[FactoredGradient, SampleSet, int, Clipping, int], Interval]


def check_bounded_descent(descent: BoundedDescent, case: Case, budget: int = AMPLE) -> None:
    """Theorem 3.4 equals the extremes over all sets of poisoned samples, each at its own worst corner."""
    clean, poisoned, weights = dense(case.clean), dense(case.poisoned), case.samples.weights
    sums = []
    for subset in subsets(case.poisonable, case.n):
        lower, upper = clean.lower.clone(), clean.upper.clone()
        for sample in subset:
            row = case.poisonable.index(sample)
            lower[sample], upper[sample] = poisoned.lower[row], poisoned.upper[row]
        sums.append((weights @ lower, weights @ upper))
    got = descent(case.clean, case.poisoned, case.samples, case.n, budget)
    _require_extremes(f"Theorem 3.4, {case}", got, sums)


def check_unbounded_descent(descent: UnboundedDescent, case: Case, clipping: Clipping, budget: int = AMPLE) -> None:
    """Theorem D.1 equals the extremes over all sets of substituted samples, each at plus or minus κ."""
    block = clipping(case.clean.block(0, case.clean.elements))
    clean, weights = Interval(block.lower.T, block.upper.T), case.samples.weights
    sums = []
    for subset in subsets(case.poisonable, case.n):
        lower, upper = clean.lower.clone(), clean.upper.clone()
        lower[list(subset)], upper[list(subset)] = -clipping.kappa, clipping.kappa
        sums.append((weights @ lower, weights @ upper))
    got = descent(case.clean, case.samples, case.n, clipping, budget)
    _require_extremes(f"Theorem D.1, {case}", got, sums)


def clippings(gradient: FactoredGradient) -> list[Clipping]:
    """Both kinds of clipping."""
    return [ValueClipping(KAPPA), NormClipping.of(KAPPA, [gradient])]


def check_norm_clipping(clip: Callable[[float, Interval], Interval]) -> None:
    """Clipping a box equals the extremes over all corners, zeros included, of each sample's whole gradient.

    Args:
        clip: maps κ and a box of gradients, (b, e), to bounds of the clipped ones.
    """
    generator = torch.Generator().manual_seed(8)
    for scale in (0.05, 0.5, 3.0):
        ends = scale * torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
        ends[0, 0] = ends[1, 0]
        gradients = Interval(ends.amin(dim=0), ends.amax(dim=0))
        values = torch.stack([_clipped(point) for point in _corners_and_zeros(gradients)])
        got = clip(KAPPA, gradients)
        _require_just_above("clipped upper bound", got.upper, values.amax(dim=0))
        _require_just_above("clipped lower bound", -got.lower, -values.amin(dim=0))


def _clipped(gradients: Tensor) -> Tensor:
    return gradients * (KAPPA / gradients.norm(dim=1, keepdim=True)).clamp(max=1.0)


def _corners_and_zeros(value: Interval) -> Iterator[Tensor]:
    """Ends of every entry and its smallest magnitude: the extremes of a clipped entry are among them."""
    nearest = torch.zeros_like(value.lower).clamp(value.lower, value.upper)
    options = torch.stack([value.lower, value.upper, nearest])
    for picks in itertools.product(range(3), repeat=value.shape[1]):
        yield options.gather(0, torch.tensor(picks).expand(value.shape)[None])[0]


def clip_box(kappa: float, gradients: Interval) -> Interval:
    """The package's norm clipping of a box, (b, e)."""
    factored = Elementwise(gradients)
    block = NormClipping.of(kappa, [factored])(factored.block(0, factored.elements))
    return Interval(block.lower.T, block.upper.T)


def _require_extremes(what: str, got: Interval, sums: list[tuple[Tensor, Tensor]]) -> None:
    lower = torch.stack([low for low, _ in sums]).amin(dim=0).reshape(got.shape)
    upper = torch.stack([high for _, high in sums]).amax(dim=0).reshape(got.shape)
    _require_close(f"{what}: upper", got.upper, upper, 200.0)
    _require_close(f"{what}: lower", got.lower, lower, 200.0)


CANCELLATION = 1e-9
"""Outward only: the rest of a squared norm is a difference, whose rounding is that of the whole norm."""


def _require_just_above(what: str, got: Tensor, expected: Tensor) -> None:
    below, above = float((expected - got).max()), float((got - expected).max())
    assert below <= ROUNDINGS * unit_roundoff(torch.float64), f"{what} differs from brute force by {below:.3g}, inward"
    assert above <= CANCELLATION, f"{what} differs from brute force by {above:.3g}, outward"


def _require_close(what: str, got: Tensor, expected: Tensor, size: float) -> None:
    error = float((got - expected).abs().max())
    assert error <= ROUNDINGS * unit_roundoff(torch.float64) * size, f"{what} differs from brute force by {error:.3g}"
