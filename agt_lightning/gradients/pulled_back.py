"""Gradients of parameters that are changed before they meet the data."""

from __future__ import annotations

from collections.abc import Callable

from typing_extensions import override

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.gradients.base import FactoredGradient
from agt_lightning.gradients.deferred import Deferred
from agt_lightning.interval import Interval


class PulledBack(Deferred):
    """The gradient of θ where a program computes with ``θ' = f(θ)``: that of θ', taken back through f.

    A run adds up the gradients of all samples with respect to θ' before it takes the sum back, so the roundings of
    that sum are relative to them, not to what f makes of them.

    Args:
        result: gradients with respect to θ'.
        back: takes bounds on gradients with respect to θ', (samples, *its shape), to those with respect to θ.
        shape: of θ.

    Example:
        >>> import torch
        >>> from agt_lightning.gradients import Elementwise
        >>> of_double = Elementwise(Interval.point(torch.ones(2, 3)))
        >>> PulledBack(of_double, lambda gradient: gradient.scaled(2.0), (3,)).total(torch.ones(2)).upper
        tensor([4., 4., 4.])
    """

    def __init__(self, result: FactoredGradient, back: Callable[[Interval], Interval], shape: tuple[int, ...]) -> None:
        super().__init__(lambda rows: back(result.dense(rows)), result.samples, shape)
        self.result = result
        self.back = back

    @override
    def rounded(self, arithmetic: Arithmetic, roundings: int) -> PulledBack:
        return PulledBack(self.result.rounded(arithmetic, roundings), self.back, self.shape)

    @property
    @override
    def positions(self) -> int:
        return self.result.positions
