"""Sums over samples in floating point: in any order, over micro-batches and processes (docs/floats.md, section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from agt_lightning.arithmetic.floating_point import Arithmetic, SharingArithmetic, unless
from agt_lightning.gradients import FactoredGradient
from agt_lightning.interval import Interval

CLIPPED_ROUNDINGS = 16
"""Roundings of one sample's gradient on its way into a sum: its product, factors of the loss, division, a cast."""


@dataclass(frozen=True)
class StepSums:
    """How the gradients of one step are summed.

    A run multiplies the gradient of a sample by the weight of the loss, adds products over samples and positions,
    adds up micro-batches, and averages over processes: each term passes through at most ``roundings`` roundings.

    Args:
        types: floating point types in which the sums are taken, by parameter name; None for real arithmetic.
        own: floating point type of the bounds.
        roundings: number of all samples, micro-batches and processes, and of factors in front of the loss.
    """

    types: Mapping[str, torch.dtype] | None
    own: torch.dtype
    roundings: int

    def arithmetic(self, name: str) -> Arithmetic:
        """Return the roundings of one parameter's gradient."""
        return Arithmetic(None if self.types is None else self.types[name], self.own)

    def widened(self, gradients: Mapping[str, FactoredGradient]) -> dict[str, FactoredGradient]:
        """Return gradients whose sums cover rounding, by parameter name."""
        kinds = {name: self.arithmetic(name).run for name in gradients}
        arithmetics = {run: SharingArithmetic(run, self.own) for run in kinds.values()}
        return {
            name: gradient.rounded(arithmetics[kinds[name]], self.roundings + CLIPPED_ROUNDINGS)
            for name, gradient in gradients.items()
        }

    def clear_of_underflow(
        self, name: str, bounds: Interval, clean: FactoredGradient, poisoned: FactoredGradient | None
    ) -> Interval:
        """Widen bounds on a sum by what underflow can change; elements that no sample can move stay zero.

        Args:
            name: the parameter's.
            bounds: on the sum.
            clean: the gradients that were summed.
            poisoned: those of poisoned samples; None if there are none.
        """
        slack = self.arithmetic(name).absolute(self.roundings + CLIPPED_ROUNDINGS)
        still = (bounds.lower == 0) & (bounds.upper == 0)
        if not bool(still.any()):
            return bounds.widened(slack)
        moves = clean.nonzero() if poisoned is None else clean.nonzero() | poisoned.nonzero()
        return bounds.widened(unless(~moves.to(still.device), slack, bounds.lower))
