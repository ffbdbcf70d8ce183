"""Trained linear layers at their nominal parameters, and the ball around all of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm, product
from agt_lightning.arithmetic.floating_point import Arithmetic, unless
from agt_lightning.domains.ball.norms import spectral_norm
from agt_lightning.interval import Interval
from agt_lightning.rounding import accumulated_roundoff

REAL = Arithmetic(None, torch.float64)
"""Runs in real arithmetic, bounded in float64."""


@dataclass(frozen=True)
class Layer:
    """A linear layer at the nominal parameters.

    Args:
        weight: W, (o, k).
        bias: β, (o,); None without one.
        trains_bias: whether there is a bias and it is trained: its input is then ``ẑ = (z, 1)``, else ``ẑ = z``.
    """

    weight: Tensor
    bias: Tensor | None
    trains_bias: bool

    @cached_property
    def norm(self) -> float:
        """Upper bound on ``‖W‖``."""
        return spectral_norm(self.weight)

    @cached_property
    def row_norms(self) -> Tensor:
        """Upper bound on the norm of each row, (o,)."""
        norms: Tensor = euclidean_norm(self.weight, dim=1)
        return norms * (1 + accumulated_roundoff(self.weight.shape[1] + 2, self.weight.dtype))

    @cached_property
    def frobenius(self) -> float:
        """Upper bound on ``‖W‖_F``."""
        upward = 1 + accumulated_roundoff(len(self.weight) + 2, self.weight.dtype)
        return float(euclidean_norm(self.row_norms)) * upward

    @cached_property
    def offsets(self) -> Tensor:
        """``|β|``, (o,); zero without a bias."""
        return torch.zeros_like(self.weight[:, 0]) if self.bias is None else self.bias.abs()

    @cached_property
    def column_norms(self) -> Tensor:
        """``‖W e_j‖`` for each input j, (k,)."""
        norms: Tensor = euclidean_norm(self.weight, dim=0)
        return norms

    @cached_property
    def squared_columns(self) -> Tensor:
        """Upper bound on ``‖W e_j‖²`` for each input j, (k,), up to its rounding: underflow is added."""
        norms = self.column_norms
        return norms.square() + unless(norms == 0, 2 * torch.finfo(norms.dtype).tiny, norms)

    def nominal(self, inputs: Interval) -> Interval:
        """Bound ``W z + β`` over a box of inputs (b, k), widened by the rounding of this computation."""
        weight = Interval.point(self.weight)
        result = product(inputs, weight.mT)
        offset = torch.zeros_like(self.weight[:, 0]) if self.bias is None else self.bias
        size = inputs.magnitude @ self.weight.abs().T + offset.abs()
        slack = accumulated_roundoff(4 * self.weight.shape[1] + 16, self.weight.dtype) * size
        return Interval.trusted(result.lower + offset - slack, result.upper + offset + slack)


@dataclass(frozen=True)
class LayerBall:
    """All parameters of a few layers within a Euclidean distance of the nominal ones.

    Args:
        layers: linear layers with a ReLU between, first to last.
        radius: R, over all trained parameters of all layers together.
        arithmetic: roundings of the runs whose parameters are in the ball, and of the computation of bounds.
    """

    layers: tuple[Layer, ...]
    radius: float
    arithmetic: Arithmetic = REAL
