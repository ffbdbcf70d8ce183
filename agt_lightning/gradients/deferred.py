"""The fallback for gradients without factors: computed for a few samples at a time, whenever they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.gradients.base import FactoredGradient
from agt_lightning.gradients.elementwise import Elementwise
from agt_lightning.interval import Interval

BUDGET = 64 * 2**20
"""Bytes of expanded gradients that are alive at once."""

_BYTES_PER_ELEMENT = 64
"""Of one element of one sample: both bounds in double precision, and the products they are computed from."""


class Deferred(FactoredGradient):
    """Gradients that are expanded for a range of samples whenever they are used, and not kept.

    Memory stays within a budget whatever batch x parameters is, at the cost of one evaluation per block.

    Args:
        evaluate: maps a range of samples to bounds of shape ``(samples, *parameter shape)``.
        samples: number b of samples.
        shape: shape of the parameter.

    Example:
        >>> values = torch.arange(6.0).reshape(3, 2)
        >>> gradient = Deferred(lambda rows: Interval.point(values[rows]), samples=3, shape=(2,))
        >>> gradient.block(0, 1).upper, gradient.total(torch.ones(3)).upper
        (tensor([[0., 2., 4.]]), tensor([6., 9.]))
    """

    def __init__(self, evaluate: Callable[[slice], Interval], samples: int, shape: tuple[int, ...]) -> None:
        self.evaluate = evaluate
        self._samples = samples
        self._shape = shape

    @classmethod
    def where_large(
        cls, evaluate: Callable[[slice], Interval], samples: int, shape: tuple[int, ...]
    ) -> FactoredGradient:
        """Return deferred gradients if all samples together exceed the budget, otherwise the values themselves."""
        if samples * torch.Size(shape).numel() * _BYTES_PER_ELEMENT <= BUDGET:
            return Elementwise(evaluate(slice(0, samples)))
        return cls(evaluate, samples, shape)

    @property
    @override
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    @override
    def samples(self) -> int:
        return self._samples

    @override
    def dense(self, rows: slice) -> Interval:
        return self.evaluate(rows)

    @override
    def block(self, start: int, stop: int) -> Interval:
        """Return elements of the parameter, samples last."""
        return Interval.cat([part.block(start, stop) for _, part in self._parts()], dim=1)

    @override
    def total(self, weights: Tensor) -> Interval:
        """Return the weighted sums of both bounds."""
        total: Interval | None = None
        for rows, part in self._parts():
            term = part.total(weights[rows])
            total = term if total is None else total + term
        assert total is not None
        return total

    @override
    def scale(self, weights: Tensor) -> float:
        """Return ``Σ_i w_i max |δ_i|``."""
        return sum(part.scale(weights[rows]) for rows, part in self._parts())

    @override
    def rounded(self, arithmetic: Arithmetic, roundings: int) -> Deferred:
        return Deferred(lambda rows: arithmetic.outward(self.evaluate(rows), roundings), self._samples, self._shape)

    @override
    def nonzero(self) -> Tensor:
        """Return true for all elements: looking at them would compute them once more."""
        return torch.ones(self._shape, dtype=torch.bool)

    @override
    def square_sums(self) -> Interval:
        return Interval.cat([part.square_sums() for _, part in self._parts()])

    def _parts(self) -> Iterator[tuple[slice, Elementwise]]:
        rows = max(1, BUDGET // (_BYTES_PER_ELEMENT * max(1, self.elements)))
        for start in range(0, self.samples, rows):
            chunk = slice(start, min(start + rows, self.samples))
            yield chunk, Elementwise(self.evaluate(chunk))
