"""Gains of weight matrices, computed from factors: only the difference of two bounds is expanded, neither of them.

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
"""Rows are prepared together until each part of their outputs is as large as this many tiles."""


@dataclass(frozen=True)
class Part:
    """The name of one bound a of a factor, or of its positive or negative part.

    Args:
        poisoned: whether the bound is that of the poisoned pass.
        upper: whether it is the upper bound.
        sign: +1 for ``a⁺``, -1 for ``a⁻``, 0 for ``a``.
    """

    poisoned: bool
    upper: bool
    sign: int

    def of(self, factors: Mapping[bool, Interval]) -> Tensor:
        """Return the part of a factor.

        Args:
            factors: bounds by pass, as in `BothPasses`.
        """
        bound = factors[self.poisoned].upper if self.upper else factors[self.poisoned].lower
        if self.sign == 0:
            return bound
        return bound.clamp(min=0) if self.sign > 0 else bound.clamp(max=0).neg_()


@dataclass(frozen=True)
class BothPasses:
    """One factor in both passes, with facts about all its entries.

    Args:
        bounds: bounds for the same samples by pass: False for the clean one, True for the poisoned one.
        same: whether both passes have the same bounds.
        nonnegative: by pass, whether no entry is below zero.
    """

    bounds: Mapping[bool, Interval]
    same: bool
    nonnegative: Mapping[bool, bool]

    @classmethod
    def of(cls, clean: Interval, poisoned: Interval) -> BothPasses:
        """Find the facts by reading all entries once."""
        bounds = {False: clean, True: poisoned}
        same = torch.equal(clean.lower, poisoned.lower) and torch.equal(clean.upper, poisoned.upper)
        nonnegative = {name: value.nonnegative or _is_nonnegative(value.lower) for name, value in bounds.items()}
        return cls(bounds, same, nonnegative)

    def part(self, poisoned: bool, upper: bool, sign: int) -> Part | None:
        """Return the name of a part, the same for parts that are equal; None if it is zero."""
        if sign < 0 and self.nonnegative[poisoned]:
            return None
        sign = 0 if self.nonnegative[poisoned] else sign
        return Part(poisoned and not self.same, upper or self.bounds[poisoned].is_point, sign)

    def splits(self, poisoned: bool) -> bool:
        """Return whether no entry straddles zero."""
        return self.nonnegative[poisoned] or self.bounds[poisoned].is_point


Product = tuple[Part, Part]
"""Parts of the outputs and of the inputs, multiplied with each other."""


@dataclass(frozen=True)
class Formula:
    """``Σ_j (Σ c a) ⊗ b_j + Σ ± max(a ⊗ b, a' ⊗ b')`` with parts a of outputs and b of inputs.

    Args:
        sums: for each part of the inputs, parts of the outputs with their coefficients.
        maxima: signs, and the two products whose maximum is taken.
    """

    sums: Mapping[Part, Mapping[Part, int]]
    maxima: tuple[tuple[int, Product, Product], ...]

    @classmethod
    def of(cls, outputs: BothPasses, inputs: BothPasses, *, up: bool) -> Formula:
        """Return the gain of one bound: the poisoned bound less the clean one.

        Args:
            outputs: the factor d.
            inputs: the factor z.
            up: whether the bound is the upper one; if not, it is minus the lower one.
        """
        sums: dict[Part, dict[Part, int]] = {}
        maxima: list[tuple[int, Product, Product]] = []
        for poisoned, sign in ((True, 1), (False, -1)):
            alternatives, others = _products(outputs, inputs, poisoned, up)
            if len(alternatives) == 2 and not outputs.splits(poisoned) and not inputs.splits(poisoned):
                maxima.append((sign, alternatives[0], alternatives[1]))
                alternatives = []
            signed = [*((product, sign) for product in alternatives), *((product, -sign) for product in others)]
            for (a, b), coefficient in signed:
                terms = sums.setdefault(b, {})
                terms[a] = terms.get(a, 0) + coefficient
        return cls({b: simple for b, terms in sums.items() if (simple := _simplified(terms))}, tuple(maxima))

    @property
    def inputs(self) -> set[Part]:
        """All parts of the inputs in the formula."""
        return {*self.sums, *(b for _, *products in self.maxima for _, b in products)}

    def over(self, outputs: Callable[[Part], Tensor]) -> Evaluator:
        """Return the formula for some rows, with everything computed that depends on outputs alone.

        Args:
            outputs: maps a part of the outputs to its value for these rows, (rows, m).
        """
        sums = [(*_combined(terms, outputs), part) for part, terms in self.sums.items()]
        maxima = [
            (sign, (outputs(first[0]), first[1]), (outputs(second[0]), second[1]))
            for sign, first, second in self.maxima
        ]
        return Evaluator(tuple(sorted(sums, key=lambda term: -term[0])), tuple(maxima))


@dataclass(frozen=True)
class Evaluator:
    """A formula whose outputs are given, for some rows.

    Args:
        sums: coefficient, factor (rows, m) and the part of the inputs that it is multiplied by; positive ones first.
        maxima: as in `Formula`, with values (rows, m) for parts of the outputs.
    """

    sums: tuple[tuple[int, Tensor, Part], ...]
    maxima: tuple[tuple[int, tuple[Tensor, Part], tuple[Tensor, Part]], ...]

    def __call__(self, rows: slice, inputs: Mapping[Part, Tensor], memory: Sequence[Tensor]) -> Tensor:
        """Return the gains of a tile, (rows, columns, m).

        Args:
            rows: which of the given rows.
            inputs: for the tile's columns, value of each part of the inputs, (columns, m).
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


def _products(outputs: BothPasses, inputs: BothPasses, poisoned: bool, up: bool) -> tuple[list[Product], list[Product]]:
    """Return the two products whose maximum is taken and the two that are subtracted, without those that are zero.

    The lower bound is minus the upper one of ``-d``, whose ``U⁺`` is ``dL⁻``, and so on.
    """
    sign = 1 if up else -1
    alternatives = [(up, sign, True, 1), (not up, -sign, False, -1)]
    subtracted = [(not up, sign, True, -1), (up, -sign, False, 1)]

    def present(products: list[tuple[bool, int, bool, int]]) -> list[Product]:
        pairs = [(outputs.part(poisoned, *product[:2]), inputs.part(poisoned, *product[2:])) for product in products]
        return [(a, b) for a, b in pairs if a is not None and b is not None]

    return present(alternatives), present(subtracted)


def _simplified(terms: Mapping[Part, int]) -> dict[Part, int]:
    """Combine ``c a⁺ - c a⁻`` to ``c a`` and drop zeros."""
    left = {part: coefficient for part, coefficient in terms.items() if coefficient}
    for part in [part for part in left if part.sign > 0]:
        negative = Part(part.poisoned, part.upper, -1)
        if left.get(negative) == -left[part]:
            left[Part(part.poisoned, part.upper, 0)] = left.pop(part)
            del left[negative]
    return left


def _combined(terms: Mapping[Part, int], outputs: Callable[[Part], Tensor]) -> tuple[int, Tensor]:
    """Return ``Σ c a`` as a coefficient and a tensor (rows, m)."""
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
        outputs: w_i d in both passes, (o, m).
        inputs: z in both passes, (m, k).
    """

    outputs: BothPasses
    inputs: BothPasses

    @classmethod
    def between(
        cls, clean: OuterProduct, poisoned: OuterProduct, weights: Tensor, poisonable: Tensor | None
    ) -> OuterDifferences:
        """Weight the outputs and put their samples last; arguments as those of `ExpandedDifferences`."""
        d, z = (_of_samples(factor, poisonable) for factor in (clean.outputs, clean.inputs))
        outputs = [_weighted(factor, weights) for factor in (d, _of_samples(poisoned.outputs, None))]
        return cls(BothPasses.of(*outputs), BothPasses.of(z, _of_samples(poisoned.inputs, None)))

    @property
    def shared_inputs(self) -> Tensor | None:
        """The inputs, (m, k); None unless they are the same points in both passes."""
        clean = self.inputs.bounds[False]
        return clean.lower if self.inputs.same and clean.is_point else None

    def output_gains(self) -> tuple[Tensor, Tensor]:
        """Return the gains of the outputs alone, ``w_i (d̃_U - d_U)`` and ``w_i (d_L - d̃_L)``, each (o, m)."""
        clean, poisoned = self.outputs.bounds[False], self.outputs.bounds[True]
        return poisoned.upper - clean.upper, clean.lower - poisoned.lower

    def tiles(self, entries: int) -> Iterator[Tile]:
        """Yield bands of rows, whose outputs are prepared together; within them columns, whose inputs are as well."""
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
            current: slice | None = None
            for block, section in tiling(len(outputs[False].lower), columns, entries // max(1, samples)):
                if section != current:
                    parts, current = self._parts(needed, section), section
                size = block.stop - block.start, section.stop - section.start, samples
                for up, evaluate in evaluators.items():
                    gains = evaluate(block, parts, [part[: math.prod(size)].view(size) for part in memory])
                    yield Tile(slice(top + block.start, top + block.stop), section, up, gains.flatten(0, 1))

    def _parts(self, names: set[Part], section: slice) -> dict[Part, Tensor]:
        columns = {name: _section(value, section) for name, value in self.inputs.bounds.items()}
        return {name: name.of(columns) for name in names}


def _of_samples(factor: Interval, poisonable: Tensor | None) -> Interval:
    """A factor (b, 1, units) of some samples as (m, units)."""
    single = factor[:, 0]
    return single if poisonable is None else single[poisonable]


def _weighted(factor: Interval, weights: Tensor) -> Interval:
    """``w_i`` times a factor (m, units), as (units, m)."""
    return factor.mapped(lambda bound: samples_last(bound * weights[:, None]), nonnegative=factor.nonnegative)


def _section(factor: Interval, section: slice) -> Interval:
    """Some units of a factor (m, units), as (units, m)."""
    return factor.rearranged(lambda bound: samples_last(bound[:, section]))


def _is_nonnegative(values: Tensor) -> bool:
    return not values.numel() or float(values.min()) >= 0  # NaN is not


def differences_between(
    clean: FactoredGradient, poisoned: FactoredGradient, weights: Tensor, poisonable: Tensor | None
) -> Differences:
    """Return what poisoning can add to weighted gradients, computed in the cheapest way for their type.

    Args:
        clean: bounds of all samples.
        poisoned: bounds of the poisonable samples.
        weights: w_i >= 0 of the poisonable samples, (m,).
        poisonable: indices of the poisonable samples, (m,); None if all are.

    Example:
        >>> import torch
        >>> from agt_lightning.interval import Interval
        >>> clean = Elementwise(Interval.point(torch.zeros(2, 1)))
        >>> poisoned = Elementwise(Interval(-torch.ones(2, 1), 2 * torch.ones(2, 1)))
        >>> next(differences_between(clean, poisoned, torch.ones(2), None).tiles(entries=100)).gains
        tensor([[2., 2.]])
    """
    if isinstance(clean, Elementwise) and isinstance(poisoned, Elementwise):
        return ElementwiseDifferences.between(clean, poisoned, weights, poisonable)
    if isinstance(clean, OuterProduct) and isinstance(poisoned, OuterProduct) and clean.outputs.shape[1] == 1:
        return OuterDifferences.between(clean, poisoned, weights, poisonable)
    return ExpandedDifferences(clean, poisoned, weights, poisonable)
