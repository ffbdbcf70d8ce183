"""Gains of weight matrices, from factors: no bound is expanded, only the difference of two.

With ``a⁺ = max(a, 0)`` and ``a⁻ = max(-a, 0)``, the bounds ``[L, U]`` of a product of intervals d and z are

     U = max(dU⁺ zU⁺, dL⁻ zL⁻) - dL⁺ zU⁻ - dU⁻ zL⁺,
    -L = max(dL⁻ zU⁺, dU⁺ zL⁻) - dU⁻ zU⁻ - dL⁺ zL⁺,

and the maximum is a sum where a factor is a point or nonnegative. So a gain is a sum of few products, of one number per
output and one per input, and products with the same second factor are one: where inputs are points and the same in
both passes, as under attacks on labels, ``(d̃U - dU) z⁺ + (dL - d̃L) z⁻`` is all that remains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from agt_lightning.gradients.base import FactoredGradient
from agt_lightning.gradients.differences import (
    Differences,
    ElementwiseDifferences,
    ExpandedDifferences,
    Tile,
    samples_last,
    tiling,
)
from agt_lightning.gradients.elementwise import Elementwise
from agt_lightning.gradients.outer_product import OuterProduct
from agt_lightning.interval import Interval

_BAND = 16
"""Tiles of memory that each part of the outputs takes: as many rows are prepared together."""


@dataclass(frozen=True)
class Part:
    """What is read of a factor: one bound of one pass, its positive or negative part, or all of it.

    Args:
        worst: whether of the poisoned pass.
        upper: whether the upper bound.
        sign: +1 for ``a⁺``, -1 for ``a⁻``, 0 for ``a``.
    """

    worst: bool
    upper: bool
    sign: int

    def of(self, factors: Mapping[bool, Interval]) -> Tensor:
        """The part of a factor, given for both passes."""
        bound = factors[self.worst].upper if self.upper else factors[self.worst].lower
        if self.sign == 0:
            return bound
        return bound.clamp(min=0) if self.sign > 0 else bound.clamp(max=0).neg_()


@dataclass(frozen=True)
class BothPasses:
    """One factor of both passes, and what is known of all its entries.

    Args:
        bounds: by pass: False for the clean one, True for the poisoned one; for the same samples.
        same: whether both passes have the same bounds.
        nonnegative: by pass, whether no entry is below zero.
    """

    bounds: Mapping[bool, Interval]
    same: bool
    nonnegative: Mapping[bool, bool]

    @classmethod
    def of(cls, clean: Interval, worst: Interval) -> BothPasses:
        """Look at all entries once."""
        bounds = {False: clean, True: worst}
        same = torch.equal(clean.lower, worst.lower) and torch.equal(clean.upper, worst.upper)
        nonnegative = {name: value.nonnegative or _is_nonnegative(value.lower) for name, value in bounds.items()}
        return cls(bounds, same, nonnegative)

    def part(self, worst: bool, upper: bool, sign: int) -> Part | None:
        """The name of a part, the same one for equal parts; None if it is zero."""
        if sign < 0 and self.nonnegative[worst]:
            return None
        sign = 0 if self.nonnegative[worst] else sign
        return Part(worst and not self.same, upper or self.bounds[worst].is_point, sign)

    def splits(self, worst: bool) -> bool:
        """Whether no entry straddles zero."""
        return self.nonnegative[worst] or self.bounds[worst].is_point


Product = tuple[Part, Part]
"""Parts of both factors."""


@dataclass(frozen=True)
class Formula:
    """``Σ_j (Σ c a) ⊗ b_j + Σ ± max(a ⊗ b, a' ⊗ b')`` with parts a of outputs and b of inputs.

    Args:
        sums: for each part of inputs, parts of outputs with their coefficients.
        maxima: pairs of products, with their signs.
    """

    sums: Mapping[Part, Mapping[Part, int]]
    maxima: tuple[tuple[int, Product, Product], ...]

    @classmethod
    def of(cls, outputs: BothPasses, inputs: BothPasses, *, up: bool) -> Formula:
        """The gain of the upper bound, or of the lower one: the poisoned bound less the clean one."""
        sums: dict[Part, dict[Part, int]] = {}
        maxima: list[tuple[int, Product, Product]] = []
        for worst, sign in ((True, 1), (False, -1)):
            alternatives, others = _products(outputs, inputs, worst, up)
            if len(alternatives) == 2 and not outputs.splits(worst) and not inputs.splits(worst):
                maxima.append((sign, alternatives[0], alternatives[1]))
                alternatives = []
            signed = [*((product, sign) for product in alternatives), *((product, -sign) for product in others)]
            for (a, b), coefficient in signed:
                terms = sums.setdefault(b, {})
                terms[a] = terms.get(a, 0) + coefficient
        return cls({b: simple for b, terms in sums.items() if (simple := _simplified(terms))}, tuple(maxima))

    @property
    def inputs(self) -> set[Part]:
        """All parts of inputs that are read."""
        return {*self.sums, *(b for _, *products in self.maxima for _, b in products)}

    def over(self, outputs: Callable[[Part], Tensor]) -> Evaluator:
        """With everything computed that outputs alone decide.

        Args:
            outputs: the value of each part of the outputs for some rows, (rows, m).
        """
        sums = [(*_combined(terms, outputs), part) for part, terms in self.sums.items()]
        maxima = [
            (sign, (outputs(first[0]), first[1]), (outputs(second[0]), second[1]))
            for sign, first, second in self.maxima
        ]
        return Evaluator(tuple(sorted(sums, key=lambda term: -term[0])), tuple(maxima))


@dataclass(frozen=True)
class Evaluator:
    """A formula for some rows.

    Args:
        sums: coefficient, factor (rows, m) and the part of inputs that it is multiplied by; positive ones first.
        maxima: as the formula's, with values (rows, m) for parts of outputs.
    """

    sums: tuple[tuple[int, Tensor, Part], ...]
    maxima: tuple[tuple[int, tuple[Tensor, Part], tuple[Tensor, Part]], ...]

    def __call__(self, rows: slice, inputs: Mapping[Part, Tensor], memory: Sequence[Tensor]) -> Tensor:
        """The gains of a tile.

        Args:
            rows: of those at hand.
            inputs: parts of the tile's columns of the inputs, (columns, m).
            memory: three tensors (rows, columns, m), which are overwritten; the result is the first.
        """
        total, *pair = memory
        for number, (coefficient, left, part) in enumerate(self.sums):
            factors = left[rows, None], inputs[part][None]
            if number:
                total.addcmul_(*factors, value=coefficient)
            else:
                torch.mul(factors[0] if coefficient > 0 else -factors[0], factors[1], out=total)
        if not self.sums:
            total.zero_()
        for sign, *products in self.maxima:
            for (left, part), result in zip(products, pair, strict=True):
                torch.mul(left[rows, None], inputs[part][None], out=result)
            total.add_(torch.maximum(*pair, out=pair[0]), alpha=sign)
        return total


def _products(outputs: BothPasses, inputs: BothPasses, worst: bool, up: bool) -> tuple[list[Product], list[Product]]:
    """The two products that the maximum is taken of, and the two that are subtracted, without those that are zero.

    The lower bound is minus the upper one of ``-d``, whose ``U⁺`` is ``dL⁻``, and so on.
    """
    sign = 1 if up else -1
    alternatives = [(up, sign, True, 1), (not up, -sign, False, -1)]
    subtracted = [(not up, sign, True, -1), (up, -sign, False, 1)]

    def present(products: list[tuple[bool, int, bool, int]]) -> list[Product]:
        pairs = [(outputs.part(worst, *product[:2]), inputs.part(worst, *product[2:])) for product in products]
        return [(a, b) for a, b in pairs if a is not None and b is not None]

    return present(alternatives), present(subtracted)


def _simplified(terms: Mapping[Part, int]) -> dict[Part, int]:
    """``c a⁺ - c a⁻ = c a``, without zeros."""
    left = {part: coefficient for part, coefficient in terms.items() if coefficient}
    for part in [part for part in left if part.sign > 0]:
        twin = Part(part.worst, part.upper, -1)
        if left.get(twin) == -left[part]:
            left[Part(part.worst, part.upper, 0)] = left.pop(part)
            del left[twin]
    return left


def _combined(terms: Mapping[Part, int], outputs: Callable[[Part], Tensor]) -> tuple[int, Tensor]:
    """``Σ c a`` as a coefficient and a tensor (rows, m)."""
    (first, coefficient), *rest = sorted(terms.items(), key=lambda term: -term[1])
    value = outputs(first)
    if not rest:
        return coefficient, value
    total = coefficient * value
    for part, factor in rest:
        total.add_(outputs(part), alpha=factor)
    return 1, total


@dataclass(frozen=True)
class OuterDifferences(Differences):
    """Gains of a weight matrix with one position per sample.

    Args:
        outputs: w_i d of both passes, (o, m).
        inputs: z of both passes, (m, k).
    """

    outputs: BothPasses
    inputs: BothPasses

    @classmethod
    def between(
        cls, clean: OuterProduct, poisoned: OuterProduct, weights: Tensor, positions: Tensor | None
    ) -> OuterDifferences:
        """Weighted outputs with the samples last; arguments as those of `ExpandedDifferences`."""
        own_d, own_z = (_only(factor, positions) for factor in (clean.outputs, clean.inputs))
        outputs = [_weighted(d, weights) for d in (own_d, _only(poisoned.outputs, None))]
        return cls(BothPasses.of(*outputs), BothPasses.of(own_z, _only(poisoned.inputs, None)))

    @property
    def shared_points(self) -> Tensor | None:
        """The inputs, (m, k), if they are the same points in both passes."""
        clean = self.inputs.bounds[False]
        return clean.lower if self.inputs.same and clean.is_point else None

    def moves(self) -> tuple[Tensor, Tensor]:
        """How far w_i d moves up at its upper end and down at its lower one, (o, m)."""
        clean, worst = self.outputs.bounds[False], self.outputs.bounds[True]
        return worst.upper - clean.upper, clean.lower - worst.lower

    def tiles(self, entries: int) -> Iterator[Tile]:
        """Bands of rows, whose outputs are prepared together; in each, columns, whose inputs are as well."""
        formulas = {up: Formula.of(self.outputs, self.inputs, up=up) for up in (True, False)}
        needed = formulas[True].inputs | formulas[False].inputs
        (rows, samples), columns = self.outputs.bounds[False].shape, self.inputs.bounds[False].shape[1]
        height = max(1, _BAND * entries // max(1, samples))
        # The same memory for all tiles stays in the cache.
        memory = self.outputs.bounds[False].lower.new_empty(3, max(entries, samples))
        for top in range(0, rows, height):
            outputs = {name: value[top : top + height] for name, value in self.outputs.bounds.items()}
            value = cache(partial(Part.of, factors=outputs))
            evaluators = {up: formula.over(value) for up, formula in formulas.items()}
            held: slice | None = None
            for block, section in tiling(len(outputs[False].lower), columns, entries // max(1, samples)):
                if section != held:
                    parts, held = self._parts(needed, section), section
                size = block.stop - block.start, section.stop - section.start, samples
                for up, evaluate in evaluators.items():
                    gains = evaluate(block, parts, [part[: math.prod(size)].view(size) for part in memory])
                    yield Tile(slice(top + block.start, top + block.stop), section, up, gains.flatten(0, 1))

    def _parts(self, names: set[Part], section: slice) -> dict[Part, Tensor]:
        columns = {name: _columns(value, section) for name, value in self.inputs.bounds.items()}
        return {name: name.of(columns) for name in names}


def _only(factor: Interval, positions: Tensor | None) -> Interval:
    """(b, 1, units) as (m, units)."""
    single = _mapped(factor, lambda bound: bound[:, 0])
    return single if positions is None else single[positions]


def _weighted(factor: Interval, weights: Tensor) -> Interval:
    """w_i times a factor (m, units), as (units, m)."""
    return _mapped(factor, lambda bound: samples_last(bound * weights[:, None]))


def _columns(factor: Interval, section: slice) -> Interval:
    """Units of a factor (m, units), as (units, m)."""
    return _mapped(factor, lambda bound: samples_last(bound[:, section]))


def _mapped(factor: Interval, function: Callable[[Tensor], Tensor]) -> Interval:
    """A change that keeps order and sign of both bounds."""
    lower = function(factor.lower)
    return Interval.trusted(lower, lower if factor.is_point else function(factor.upper), nonnegative=factor.nonnegative)


def _is_nonnegative(values: Tensor) -> bool:
    return not values.numel() or float(values.min()) >= 0  # NaN is not


def differences_between(
    clean: FactoredGradient, poisoned: FactoredGradient, weights: Tensor, positions: Tensor | None
) -> Differences:
    """What poisoning can add to weighted gradients.

    Args:
        clean: bounds of all samples.
        poisoned: bounds of the poisonable samples.
        weights: w_i >= 0 of the poisonable samples, (m,).
        positions: which samples these are; None means all.

    Example:
        >>> import torch
        >>> from agt_lightning.interval import Interval
        >>> clean = Elementwise(Interval.point(torch.zeros(2, 1)))
        >>> poisoned = Elementwise(Interval(-torch.ones(2, 1), 2 * torch.ones(2, 1)))
        >>> next(differences_between(clean, poisoned, torch.ones(2), None).tiles(entries=100)).gains
        tensor([[2., 2.]])
    """
    if isinstance(clean, Elementwise) and isinstance(poisoned, Elementwise):
        return ElementwiseDifferences.between(clean, poisoned, weights, positions)
    if isinstance(clean, OuterProduct) and isinstance(poisoned, OuterProduct) and clean.outputs.shape[1] == 1:
        return OuterDifferences.between(clean, poisoned, weights, positions)
    return ExpandedDifferences(clean, poisoned, weights, positions)
