"""A head with one output, and a box around its parameters.

Axis letters: ``j`` hidden units (h), ``l`` inputs with a one at their end (d + 1), ``i`` samples (b).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.ball.layers import REAL, Layer
from agt_lightning.interval import Interval

Widths = tuple[Tensor | None, ...]
"""Half-widths of weight, bias, weight and bias of two layers; None where there is no bias."""

DIFFERENCE = 2.0**-50
"""Above the relative rounding of a difference of two weights, and of the halves of its width."""


@dataclass(frozen=True, eq=False)
class ScalarHead:
    """``f = v ẑ``, ``z = relu(h)``, ``h = W x̂``; for two classes f is the difference of their outputs.

    Cross entropy of two classes depends on ``f₁ - f₀`` alone, and its gradient is the same for both rows of the last
    layer but for the sign: their difference v is trained by the logistic loss at twice the rate.

    Args:
        first: W, its bias in the last column, zero without one, (h, d + 1).
        second: v, its bias last, (h + 1,).
        trained: whether each bias is trained.
        speed: rate of v over that of W, 2 for a difference.

    Reference:
        docs/theory.md, section 15.1.
    """

    first: Tensor
    second: Tensor
    trained: tuple[bool, bool]
    speed: float

    @classmethod
    def of(cls, layers: tuple[Layer, Layer]) -> ScalarHead:
        """Return the head of two layers, of which the last has one output or two."""
        first, second = layers
        rows = _with_bias(second.weight, second.bias)
        pair = len(rows) == 2
        return cls(
            _with_bias(first.weight, first.bias),
            rows[1] - rows[0] if pair else rows[0],
            (first.trains_bias, second.trains_bias),
            2.0 if pair else 1.0,
        )

    @property
    def rounded(self) -> float:
        """How far v can be from the exact difference, Euclidean; zero for one output."""
        return DIFFERENCE * float(euclidean_norm(self.second)) if self.speed != 1 else 0.0

    @cached_property
    def moving(self) -> tuple[Tensor, Tensor]:
        """Rates of the entries of W, (d + 1,), and of v, (h + 1,), relative to the learning rate."""
        first, second = torch.ones_like(self.first[0]), torch.full_like(self.second, self.speed)
        first[-1], second[-1] = float(self.trained[0]), self.speed * self.trained[1]
        return first, second


@dataclass(frozen=True, eq=False)
class HeadBox:
    """How far the parameters of a head can be from the nominal ones, entry by entry.

    Args:
        first: of W, (h, d + 1).
        second: of v, (h + 1,).
        basis: Q, columns that are orthonormal up to rounding, (d + 1, d + 1).
        rotated: of ``W Q``, (h, d + 1).
    """

    first: Tensor
    second: Tensor
    basis: Tensor
    rotated: Tensor

    @classmethod
    def of(cls, head: ScalarHead, widths: Sequence[Tensor | None], basis: Tensor) -> HeadBox:
        """Return the box around a head.

        Args:
            head: the head.
            widths: of both layers' weights and biases: weight, bias, weight, bias; None where there is no bias.
            basis: Q.
        """
        weight, bias, last, last_bias = widths
        assert weight is not None
        assert last is not None
        first, rows = _with_bias(weight, bias), _with_bias(last, last_bias)
        second = rows.sum(dim=0) + (DIFFERENCE * (head.second.abs() + rows.sum(dim=0)) if len(rows) == 2 else 0.0)
        return cls(first, second, basis, _outward(basis) * (first @ basis.abs()))

    def cut(self, rotated: Tensor, second: Tensor) -> HeadBox:
        """Return the intersection with other bounds on ``W Q`` and v."""
        rotated = torch.minimum(self.rotated, rotated)
        back = _outward(self.basis) * (rotated @ self.basis.abs().T + self._defect * self._norms[:, None])
        return HeadBox(torch.minimum(self.first, back), torch.minimum(self.second, second), self.basis, rotated)

    def moves(self, inputs: Tensor) -> Tensor:
        """V, upper bound on ``|δ₁ⱼ · x̂_i|``, (b, h).

        Args:
            inputs: x̂, (b, d + 1).
        """
        size: Tensor = euclidean_norm(inputs, dim=1)
        rounding = self._defect * size[:, None] * self._norms
        turned = (inputs @ self.basis).abs() @ self.rotated.T + rounding
        return _outward(self.basis) * torch.minimum(inputs.abs() @ self.first.T, turned)

    def along(self, rows: Tensor) -> Tensor:
        """Upper bound on ``|δ₁ⱼ · q_j|`` for a vector q_j of each unit, (Q, h).

        Args:
            rows: q, (Q, h, d + 1).
        """
        size: Tensor = euclidean_norm(rows, dim=2)
        turned = ((rows @ self.basis).abs() * self.rotated).sum(dim=2) + self._defect * size * self._norms
        return _outward(self.basis) * torch.minimum((rows.abs() * self.first).sum(dim=2), turned)

    @cached_property
    def _norms(self) -> Tensor:
        """Norms of both kinds of half-widths: one entry of zero can make those of W far smaller than those of W Q."""
        norms: Tensor = torch.hypot(euclidean_norm(self.first, dim=1), euclidean_norm(self.rotated, dim=1))
        return norms

    @cached_property
    def _defect(self) -> float:
        """Upper bound on ``‖Q Qᵀ - 1‖``, with room for the rounding of products with Q."""
        size = len(self.basis)
        off = self.basis @ self.basis.T - torch.eye(size, dtype=self.basis.dtype)
        return float(euclidean_norm(off.flatten())) + 4 * REAL.own_relative(size + 8) * size


def basis_of(inputs: Tensor) -> Tensor:
    """Return the principal axes of samples, in columns.

    Example:
        >>> basis_of(torch.tensor([[2.0, 0.0], [0.0, 1.0]])).abs()
        tensor([[0., 1.],
                [1., 0.]])
    """
    axes: Tensor = torch.linalg.eigh(inputs.T @ inputs).eigenvectors
    return axes


def widths_of(box: Mapping[str, Interval], names: Sequence[str | None], centers: Mapping[str, Tensor]) -> Widths:
    """Return the half-widths of a box around nominal parameters, rounded up.

    Args:
        box: interval of each parameter, by name.
        names: of the parameters; None where there is none.
        centers: nominal values by name.
    """

    def width(name: str) -> Tensor:
        interval, center = box[name].to(dtype=torch.float64), centers[name].detach().double()
        farthest = torch.maximum(interval.upper - center, center - interval.lower).clamp(min=0)
        return torch.where(farthest > 0, farthest * (1 + DIFFERENCE), 0.0).cpu()

    return tuple(None if name is None else width(name) for name in names)


def norm_of(widths: Widths) -> float:
    """Return an upper bound on the Euclidean norm of everything in a box with these half-widths.

    Example:
        >>> round(norm_of((torch.tensor([3.0]), None, torch.tensor([4.0]), None)), 9)
        5.0
    """
    values = torch.cat([each.flatten() for each in widths if each is not None])
    return float(euclidean_norm(values)) * (1 + REAL.own_relative(len(values) + 8))


def _with_bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.cat([weight, weight.new_zeros(len(weight), 1) if bias is None else bias[:, None]], dim=1)


def _outward(basis: Tensor) -> float:
    return 1 + REAL.own_relative(len(basis) + 16)
