"""Sums over samples of vectors ``τ_ij a_ij x̂_i``, one sum for each unit, of which somebody else chooses the summands.

A unit that features or parameters switch adds to the gradient of its weights one vector along the sample's input. Which
samples switch is not known, but signs and directions of the vectors are: samples that pull a sum apart do not lengthen
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.ball.norms import norms_by_squaring
from agt_lightning.domains.ball.unit_kernels import UnitKernel, kernel_for
from agt_lightning.domains.ball.unstable import Pairs
from agt_lightning.rounding import accumulated_roundoff

_LARGEST = 32
"""Inputs of a unit whose directions are told apart; with more, matrices of this size squared cost more than a step."""


@dataclass(frozen=True)
class UnitSums:
    """Upper bounds on sums of vectors along the inputs of some pairs' samples, for every unit, (h,).

    Args:
        pairs: a sample and a unit each, sorted by unit.
        inputs: x̂, (b, D).
        norm: ``‖x̂‖``, (b,).
        units: their number, h.

    Reference:
        docs/theory.md, eq. (10.34).

    Example:
        >>> inputs = torch.tensor([[3.0, 4.0], [-3.0, 4.0]], dtype=torch.float64)
        >>> sums = UnitSums(Pairs(torch.tensor([0, 1]), torch.tensor([0, 0])), inputs, inputs.norm(dim=1), 1)
        >>> sums.largest(torch.tensor([5.0, 7.0], dtype=torch.float64), n=1).round(decimals=2)
        tensor([7.], dtype=torch.float64)
        >>> sums.of_any_part(*torch.ones(2, 2, dtype=torch.float64)).round(decimals=2)
        tensor([1.6000], dtype=torch.float64)
    """

    pairs: Pairs
    inputs: Tensor
    norm: Tensor
    units: int

    @cached_property
    def _kernel(self) -> UnitKernel:
        return kernel_for(self.pairs, self.units, self.inputs)

    @cached_property
    def _directions(self) -> Tensor:
        """``x̂ / ‖x̂‖``, and zero where the input is, (b, D)."""
        directions = self.inputs / self.norm.clamp(min=torch.finfo(self.inputs.dtype).tiny)[:, None]
        return directions.contiguous()

    def _upward(self, like: Tensor) -> float:
        """Return a factor above the rounding of sums over pairs."""
        return 1 + accumulated_roundoff(len(self.pairs.unit) + 16, like.dtype)

    def sums(self, values: Tensor) -> Tensor:
        """Sum of ``values``, (m,), nonnegative, over the pairs of each unit, (h,)."""
        return values.new_zeros(self.units).index_add_(0, self.pairs.unit, values) * self._upward(values)

    def largest(self, values: Tensor, n: int) -> Tensor:
        """Sum of the n largest ``values``, (m,), nonnegative, of each unit, (h,)."""
        totals = self._kernel.largest(values, n)
        return totals * self._upward(totals)

    def of_any_part(self, lengths: Tensor, sign: Tensor) -> Tensor:
        """Upper bound on ``‖Σ_{i in part} τ_ij a_ij x̂_i‖`` for any part of each unit's pairs, (h,).

        In a direction u a part adds at most ``Σ (τ a x̂ · u)⁺``, half of ``Σ τ a x̂ · u + Σ a |x̂ · u|`` over all pairs:
        those that point away from u are left out. Pairs of unknown sign count ``a |x̂ · u|`` instead.

        Args:
            lengths: ``a_ij ‖x̂_i‖``, (m,).
            sign: ``τ_ij``, 1 or -1, and 0 where it is unknown, (m,).

        Reference:
            docs/theory.md, eq. (10.34).
        """
        shares = (2 - sign.abs()) * lengths
        total = self.sums(shares)
        signed: Tensor = euclidean_norm(self._kernel.vectors(self._directions, sign * lengths), dim=1)
        signed = signed + accumulated_roundoff(len(lengths) + 16, total.dtype) * total
        apart = total.sqrt() * self.gram_norms(shares).sqrt()
        return torch.minimum((signed + apart) / 2 * self._upward(total), total)

    def gram_norms(self, shares: Tensor) -> Tensor:
        """Upper bound on the largest eigenvalue of ``Σ_i share_ij x̂_i x̂_iᵀ / ‖x̂_i‖²``, (h,); the trace if D is large.

        Args:
            shares: (m,), nonnegative.
        """
        trace = self.sums(shares)
        size = self.inputs.shape[1]
        if size > _LARGEST:
            return trace
        grams = self._kernel.outer_products(self._directions, shares)
        error = accumulated_roundoff(len(shares) + 32, shares.dtype) * trace  # of the products
        lost = 4 * len(shares) * size * torch.finfo(shares.dtype).tiny  # by underflow
        return torch.minimum(norms_by_squaring(grams) + error + lost, trace)
