"""Gradients of convolution weights: outer products of output gradients and patches, summed over positions."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import multiply, product, split_product, splits
from agt_lightning.arithmetic.convolution import (
    Windows,
    by_group,
    chunks,
    has_exact_kernels,
)
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.arithmetic.order import require_uncrossed
from agt_lightning.gradients.base import FactoredGradient, Factors, Leaf, is_nonzero, rounded_factors
from agt_lightning.interval import Interval


class PatchProduct(FactoredGradient):
    """``δ_i[o, c, j] = Σ_t d_i[o, t] z_i[c, s t + d j]``; the image is unfolded only while a block is expanded.

    Args:
        outputs: bounds on d, the gradient at the convolution's output, ``(b, o, *positions)``.
        image: bounds on z, its input, ``(b, c, *image)``.
        windows: positions of the kernel.

    Example:
        >>> windows = Windows((2,), (1,), (1,), (0,), (3,), (2,))
        >>> ones = Interval.point(torch.ones(4, 1, 2)), Interval.point(torch.ones(4, 1, 3))
        >>> PatchProduct(*ones, windows).total(torch.ones(4)).upper
        tensor([[[8., 8.]]])
    """

    def __init__(self, outputs: Interval, image: Interval, windows: Windows) -> None:
        self.outputs = require_uncrossed(outputs)
        self.image = require_uncrossed(image)
        self.windows = windows

    @property
    @override
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, ``(o, c/g, *kernel)``."""
        return (self.outputs.shape[1], self.image.shape[1] // self.windows.groups, *self.windows.kernel)

    @property
    @override
    def samples(self) -> int:
        return self.outputs.shape[0]

    @override
    def block(self, start: int, stop: int) -> Interval:
        """Return elements of the weight: exact products of intervals, summed over positions."""
        first, last = start // self.row, (stop - 1) // self.row + 1
        columns = slice(start - first * self.row, stop - (last - 1) * self.row)
        parts = [self._expanded(chunk, range(first, last), columns) for chunk in chunks(self.image, self.windows)]
        return Interval.cat(parts, dim=1)

    def _expanded(self, chunk: slice, rows: range, columns: slice) -> Interval:
        """Return rows of the weight for some samples, (rows · columns, b)."""
        outputs = self.outputs[chunk].rearranged(lambda bound: bound.flatten(2))
        size = self.shape[0] // self.windows.groups
        parts = []
        for group in range(rows.start // size, (rows.stop - 1) // size + 1):
            image = by_group(self.image[chunk], self.windows.groups, group)
            patches = image.rearranged(lambda bound: self.windows.patches(bound)[:, :, columns])
            units = slice(max(rows.start, group * size), min(rows.stop, (group + 1) * size))
            parts.append(product(outputs[:, units], patches).rearranged(_samples_last))
        return Interval.cat(parts)

    @override
    def total(self, weights: Tensor) -> Interval | None:
        """Return native weight gradients of split factors; None if some pair of factors may straddle zero twice."""
        if not splits(self.outputs, self.image) or not has_exact_kernels(self.outputs.lower):
            return None
        shares = weights.reshape(-1, *[1] * (len(self.outputs.shape) - 1)).to(self.outputs.dtype)
        weighted = multiply(self.outputs, Interval.point(shares, nonnegative=True))
        terms = len(weights) * self.positions
        return split_product(self._native_total, weighted, self.image.rearranged(self.windows.pad), terms=terms)

    def _native_total(self, outputs: Tensor, canvas: Tensor) -> Tensor:
        """Return ``Σ_i Σ_t d ⊗ z`` of tensors."""
        none = [0] * len(self.windows.kernel)
        stride, dilation, groups = list(self.windows.stride), list(self.windows.dilation), self.windows.groups
        weight = outputs.new_empty(self.shape)
        gradients: tuple[Tensor | None, Tensor, Tensor | None] = torch.ops.aten.convolution_backward(
            outputs, canvas, weight, None, stride, none, dilation, False, none, groups, [False, True, False]
        )
        return gradients[1]

    @override
    def rounded(self, arithmetic: Arithmetic, roundings: int) -> PatchProduct:
        outputs, image = rounded_factors(self.outputs, self.image, arithmetic, roundings)
        return PatchProduct(outputs, image, self.windows)

    @override
    def nonzero(self) -> Tensor:
        """Return whether output and input channel are used: an output channel at least."""
        used = is_nonzero(self.outputs).transpose(0, 1).flatten(1).any(dim=1)
        return used.reshape(-1, *[1] * (len(self.shape) - 1)).expand(self.shape)

    @property
    @override
    def positions(self) -> int:
        return math.prod(self.outputs.shape[2:])

    @override
    def factors(self) -> Factors | None:
        """Return d and the patches of z; None if the channels form several groups."""
        if self.windows.groups > 1:
            return None
        outputs = self.outputs.rearranged(lambda bound: bound.flatten(2).transpose(1, 2))
        return Factors(outputs, lambda rows: self.image[rows].rearranged(self.windows.patches))

    @override
    def scale(self, weights: Tensor) -> float:
        """Return ``Σ_i w_i Σ_t max_o |d_it| max |patch_it|``."""
        outputs = self.outputs.magnitude.amax(dim=1).flatten(1)
        patches = self.windows.patches(self.image.magnitude.amax(dim=1, keepdim=True)).amax(dim=2)
        return float((outputs * patches).sum(dim=1) @ weights.to(outputs.dtype))

    @property
    @override
    def structure(self) -> Hashable:
        return ("PatchProduct", self.windows)

    @property
    @override
    def leaves(self) -> tuple[Leaf, ...]:
        return (self.outputs, self.image)

    @override
    def with_leaves(self, leaves: Sequence[Leaf]) -> FactoredGradient:
        outputs, image = leaves
        assert isinstance(outputs, Interval)
        assert isinstance(image, Interval)
        return PatchProduct(outputs, image, self.windows)

    @override
    def narrow(self, axis: int, start: int, length: int) -> FactoredGradient | None:
        """Return the gradient of some channels, of the output or of the input; None if groups tie them together."""
        if axis > 1 or self.windows.groups > 1:
            return None
        part = (self.outputs, self.image)[axis].rearranged(lambda bound: bound.narrow(1, start, length))
        if axis == 0:
            return PatchProduct(part, self.image, self.windows)
        return PatchProduct(self.outputs, part, self.windows)


def _samples_last(block: Tensor) -> Tensor:
    """(b, r, k) as (r k, b)."""
    return block.flatten(1).T.contiguous()
