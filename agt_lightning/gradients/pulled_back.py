"""Gradients of parameters that are changed before they meet the data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from typing_extensions import override

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.gradients.base import FactoredGradient
from agt_lightning.gradients.deferred import Deferred
from agt_lightning.interval import Interval
from agt_lightning.rounding import unit_roundoff


class PulledBack(Deferred):
    """The gradient of θ where a program computes with ``θ' = f(θ)``: that of θ', taken back through f.

    A run adds up the gradients of all samples with respect to θ' before it takes the sum back, so the roundings of
    that sum are relative to them, not to what f makes of them, and in the type of θ'. What f adds up of copies of one
    element is another sum, whose roundings are part of `back`.

    Args:
        result: gradients with respect to θ'.
        back: takes bounds on gradients with respect to θ', ``(samples, *its shape)``, to those with respect to θ.
        shape: of θ.
        kind: floating point type in which a run has θ' and its gradients.

    Reference:
        docs/floats.md, section 5.

    Example:
        >>> import torch
        >>> from agt_lightning.gradients import Elementwise
        >>> of_double = Elementwise(Interval.point(torch.ones(2, 3)))
        >>> PulledBack(of_double, lambda gradient: gradient.scaled(2.0), (3,), torch.float32).total(torch.ones(2)).upper
        tensor([4., 4., 4.])
    """

    def __init__(
        self,
        result: FactoredGradient,
        back: Callable[[Interval], Interval],
        shape: tuple[int, ...],
        kind: torch.dtype,
    ) -> None:
        super().__init__(lambda rows: back(result.dense(rows)), result.samples, shape)
        self.result = result
        self.back = back
        self.kind = kind

    @override
    def rounded(self, arithmetic: Arithmetic, roundings: int) -> PulledBack:
        own = self._in_own_type(arithmetic)
        return PulledBack(self.result.rounded(own, roundings), self.back, self.shape, self.kind)

    def _in_own_type(self, arithmetic: Arithmetic) -> Arithmetic:
        """Return the roundings in the type of θ' if it is coarser than that of θ."""
        if arithmetic.run is None or unit_roundoff(self.kind) <= unit_roundoff(arithmetic.run):
            return arithmetic
        return Arithmetic(self.kind, arithmetic.own)

    @property
    @override
    def positions(self) -> int:
        return self.result.positions
