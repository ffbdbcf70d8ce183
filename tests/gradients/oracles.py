"""Per-sample gradients written out in full, and the checks that factored ones must pass."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.arithmetic.convolution import Windows
from agt_lightning.gradients import Elementwise, FactoredGradient, OuterProduct, PatchProduct, Stacked, Summed
from agt_lightning.interval import Interval
from agt_lightning.rounding import unit_roundoff
from tests.arithmetic.oracles import corner_products

ROUNDINGS = 64
"""Roundings of a weighted sum of fewer than 32 products."""


@dataclass(frozen=True)
class Case:
    """A factored gradient and, in full, the bounds it stands for: (b, *parameter shape)."""

    name: str
    gradient: FactoredGradient
    dense: Interval

    def __str__(self) -> str:
        return self.name


def box(shape: tuple[int, ...], generator: torch.Generator, kind: str = "signed") -> Interval:
    """A random box: ``signed``, ``nonnegative``, ``point`` or ``nonnegative point``."""
    ends = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    if "nonnegative" in kind:
        ends = ends.abs() * (torch.rand(ends.shape, generator=generator) < 0.8)
    if "point" in kind:
        return Interval.point(ends[0], nonnegative="nonnegative" in kind)
    return Interval(ends.amin(dim=0), ends.amax(dim=0), nonnegative="nonnegative" in kind)


def outer_product(samples: int, positions: int, kinds: tuple[str, str], generator: torch.Generator) -> Case:
    """``Σ_t d_t ⊗ z_t`` for o = 3 and k = 4."""
    outputs = box((samples, positions, 3), generator, kinds[0])
    inputs = box((samples, positions, 4), generator, kinds[1])
    terms = corner_products(_unsqueezed(outputs, 3), _unsqueezed(inputs, 2))
    dense = Interval(terms.lower.sum(dim=1), terms.upper.sum(dim=1))
    return Case(f"{kinds[0]} x {kinds[1]}, {positions} positions", OuterProduct(outputs, inputs), dense)


WINDOWS = {
    "one axis": (Windows((2,), (2,), (1,), (1,), (5,), (3,)), 2),
    "two axes": (Windows((2, 2), (1, 2), (2, 1), (1, 0), (2, 5), (2, 2)), 1),
    "two groups": (Windows((2,), (1,), (1,), (0,), (3,), (2,), groups=2), 4),
}
"""Windows, and the channels of their image."""


def patch_product(samples: int, windows: str, kinds: tuple[str, str], generator: torch.Generator) -> Case:
    """``Σ_t d_t ⊗ patch_t`` for two output channels, entry by entry."""
    shape, channels = WINDOWS[windows]
    outputs = box((samples, 2, *shape.positions), generator, kinds[0])
    image = box((samples, channels, *shape.image), generator, kinds[1])
    share = channels // shape.groups
    dense: list[Interval] = []
    for unit in range(2):
        first = unit * shape.groups // 2 * share
        lower, upper = (shape.patches(bound[:, first : first + share]) for bound in (image.lower, image.upper))
        d = Interval(outputs.lower[:, unit].flatten(1)[..., None], outputs.upper[:, unit].flatten(1)[..., None])
        terms = corner_products(d, Interval(lower, upper))
        dense.append(Interval(terms.lower.sum(dim=1), terms.upper.sum(dim=1)))
    lower, upper = (torch.stack([getattr(row, end) for row in dense], dim=1) for end in ("lower", "upper"))
    full = (samples, 2, share, *shape.kernel)
    name = f"patches, {windows}, {kinds[0]} x {kinds[1]}"
    return Case(name, PatchProduct(outputs, image, shape), Interval(lower.reshape(full), upper.reshape(full)))


def elementwise(samples: int, shape: tuple[int, ...], kind: str, generator: torch.Generator) -> Case:
    """Values kept as they are."""
    values = box((samples, *shape), generator, kind)
    return Case(f"elementwise {shape} {kind}", Elementwise(values), values)


def cases() -> list[Case]:
    """All kinds of factors, and sums and stacks of them."""
    generator = torch.Generator().manual_seed(4)
    kinds = ["signed", "nonnegative", "point", "nonnegative point"]
    products = [
        outer_product(5, positions, (first, second), generator)
        for positions in (1, 3)
        for first in kinds
        for second in kinds
    ]
    plain = [
        elementwise(5, shape, kind, generator) for shape in ((3, 4), (6,), (2, 2, 3)) for kind in ("signed", "point")
    ]
    matrix = elementwise(5, (3, 4), "signed", generator)
    patches = [
        patch_product(5, windows, (first, second), generator)
        for windows in WINDOWS
        for first, second in (("signed", "signed"), ("signed", "nonnegative"), ("point", "signed"), ("point", "point"))
    ]
    return [
        *products,
        *plain,
        *patches,
        summed(patches[0], patches[1]),
        stacked(patches[4], patches[7]),
        summed(products[0], products[5]),
        summed(products[4], matrix, products[20]),
        summed(products[10], products[10]),
        stacked(outer_product(2, 1, ("signed", "signed"), generator), products[0], matrix),
        stacked(outer_product(2, 1, ("point", "nonnegative"), generator), products[9]),
        stacked(products[10], products[15]),
    ]


def summed(*uses: Case) -> Case:
    """A parameter used at several places."""
    lower, upper = (sum(getattr(use.dense, end) for use in uses) for end in ("lower", "upper"))
    return Case(
        "sum of " + " and ".join(map(str, uses)), Summed([use.gradient for use in uses]), Interval(lower, upper)
    )


def stacked(*parts: Case) -> Case:
    """Micro-batches one after another."""
    lower, upper = (torch.cat([getattr(part.dense, end) for part in parts]) for end in ("lower", "upper"))
    name = "stack of " + " and ".join(map(str, parts))
    return Case(name, Stacked([part.gradient for part in parts]), Interval(lower, upper))


def _unsqueezed(value: Interval, dim: int) -> Interval:
    return Interval(value.lower.unsqueeze(dim), value.upper.unsqueeze(dim))


def aligned_ranges(gradient: FactoredGradient) -> Iterator[tuple[int, int]]:
    """Every range of elements that holds whole rows or lies in one."""
    row = gradient.row
    for start in range(0, gradient.elements, row):
        for stop in range(start + row, gradient.elements + 1, row):
            yield start, stop
        for first in range(start, start + row):
            for last in range(first + 1, start + row + 1):
                yield first, last


def require_equal(what: str, got: Interval, lower: Tensor, upper: Tensor, size: float) -> None:
    """Raise unless both bounds agree up to rounding, relative to ``size``."""
    tolerance = ROUNDINGS * unit_roundoff(torch.float64) * size
    assert got.shape == lower.shape, f"{what}: shape {got.shape}, expected {lower.shape}"
    for name, bound, oracle in (("lower", got.lower, lower), ("upper", got.upper, upper)):
        error = float((bound - oracle).abs().max())
        assert error <= tolerance, f"{what}: {name} differs from the dense oracle by {error:.3g}"


def check_blocks(case: Case, block: Callable[[FactoredGradient, int, int], Interval]) -> None:
    """Each block equals the dense bounds of its elements, samples last."""
    lower, upper = (bound.flatten(1).T for bound in (case.dense.lower, case.dense.upper))
    size = 1.0 + float(case.dense.magnitude.max())
    for start, stop in aligned_ranges(case.gradient):
        require_equal(
            f"{case} [{start}:{stop}]", block(case.gradient, start, stop), lower[start:stop], upper[start:stop], size
        )


def check_total(case: Case, total: Callable[[FactoredGradient, Tensor], Interval | None], weights: Tensor) -> bool:
    """The total equals the weighted sum of the dense bounds; False if the gradient has none."""
    got = total(case.gradient, weights)
    if got is None:
        return False
    lower, upper = (torch.tensordot(weights, bound, dims=1) for bound in (case.dense.lower, case.dense.upper))
    require_equal(f"total of {case}", got, lower, upper, 1.0 + float(case.dense.magnitude.max()) * float(weights.sum()))
    return True


def check_square_sums(case: Case, square_sums: Callable[[FactoredGradient], Interval]) -> None:
    """Squared norms of each sample's gradient over the dense box: entries at least, and at most, in magnitude."""
    lower, upper = (m.square().flatten(1).sum(dim=1) for m in (case.dense.mignitude, case.dense.magnitude))
    require_equal(f"square sums of {case}", square_sums(case.gradient), lower, upper, 1.0 + float(upper.max()))
