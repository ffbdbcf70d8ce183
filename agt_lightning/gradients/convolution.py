"""Gradients of convolution weights: outer products of output gradients and patches, summed over positions."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from agt_lightning.arithmetic import multiply
from agt_lightning.arithmetic.convolution import (
    Windows,
    by_group,
    chunks,
    has_exact_kernels,
    mapped,
    split_product,
    splits,
)
from agt_lightning.arithmetic.order import require_uncrossed
from agt_lightning.gradients.base import FactoredGradient, Factors, Piece
from agt_lightning.gradients.outer_product import contract
from agt_lightning.interval import Interval


class PatchProduct(FactoredGradient):
    """``δ_i[o, c, j] = Σ_t d_i[o, t] z_i[c, s t + d j]``; the image is unfolded only while a block is expanded.

    Args:
        outputs: bounds on d, the gradient at the convolution's output, (b, o, *positions).
        image: bounds on z, its input, (b, c, *image).
        windows: how the kernel moves.

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
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, (o, c/g, *kernel)."""
        return (self.outputs.shape[1], self.image.shape[1] // self.windows.groups, *self.windows.kernel)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.outputs.shape[0]

    def block(self, start: int, stop: int) -> Interval:
        """Elements of the weight, expanded: exact products of intervals, summed over positions."""
        first, last = start // self.row, (stop - 1) // self.row + 1
        columns = slice(start - first * self.row, stop - (last - 1) * self.row)
        parts = [self._expanded(chunk, range(first, last), columns) for chunk in chunks(self.image, self.windows)]
        lower = torch.cat([part.lower for part in parts], dim=1)
        if parts[0].is_point:
            return Interval.point(lower)
        return Interval.trusted(lower, torch.cat([part.upper for part in parts], dim=1))

    def _expanded(self, chunk: slice, rows: range, columns: slice) -> Interval:
        """Rows of the weight for some samples, (rows · columns, b)."""
        outputs = mapped(self.outputs[chunk], lambda bound: bound.flatten(2))
        size = self.shape[0] // self.windows.groups
        parts = []
        for group in range(rows.start // size, (rows.stop - 1) // size + 1):
            image = by_group(self.image[chunk], self.windows.groups, group)
            patches = mapped(image, lambda bound: self.windows.patches(bound)[:, :, columns])
            units = slice(max(rows.start, group * size), min(rows.stop, (group + 1) * size))
            parts.append(contract(_units(outputs, units), patches))
        lower = torch.cat([_samples_last(part.lower) for part in parts])
        if parts[0].is_point:
            return Interval.point(lower)
        return Interval.trusted(lower, torch.cat([_samples_last(part.upper) for part in parts]))

    def total(self, weights: Tensor) -> Interval | None:
        """One native weight gradient per pair of split factors; only where no pair straddles zero twice."""
        if not splits(self.outputs, self.image) or not has_exact_kernels(self.outputs.lower):
            return None
        shares = weights.reshape(-1, *[1] * (len(self.outputs.shape) - 1)).to(self.outputs.dtype)
        weighted = multiply(self.outputs, Interval.point(shares, nonnegative=True))
        return split_product(self._native_total, weighted, mapped(self.image, self.windows.pad))

    def _native_total(self, outputs: Tensor, canvas: Tensor) -> Tensor:
        """``Σ_i Σ_t d ⊗ z`` of tensors."""
        none = [0] * len(self.windows.kernel)
        stride, dilation, groups = list(self.windows.stride), list(self.windows.dilation), self.windows.groups
        weight = outputs.new_empty(self.shape)
        gradients: tuple[Tensor | None, Tensor, Tensor | None] = torch.ops.aten.convolution_backward(
            outputs, canvas, weight, None, stride, none, dilation, False, none, groups, [False, True, False]
        )
        return gradients[1]

    def factors(self) -> Factors | None:
        """D and the patches of z, of a convolution whose channels form one group."""
        if self.windows.groups > 1:
            return None
        outputs = mapped(self.outputs, lambda bound: bound.flatten(2).transpose(1, 2))
        return Factors(outputs, lambda rows: mapped(self.image[rows], self.windows.patches))

    def scale(self, weights: Tensor) -> float:
        """``Σ_i w_i Σ_t max_o |d_it| max |patch_it|``."""
        outputs = self.outputs.magnitude.amax(dim=1).flatten(1)
        patches = self.windows.patches(self.image.magnitude.amax(dim=1, keepdim=True)).amax(dim=2)
        return float((outputs * patches).sum(dim=1) @ weights.to(outputs.dtype))

    @property
    def kind(self) -> Hashable:
        """How the kernel moves."""
        return ("PatchProduct", self.windows)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The gradients at the output, d, and the inputs, z."""
        return (self.outputs, self.image)

    def of(self, pieces: Sequence[Piece]) -> FactoredGradient:
        """Other d and z."""
        outputs, image = pieces
        assert isinstance(outputs, Interval)
        assert isinstance(image, Interval)
        return PatchProduct(outputs, image, self.windows)

    def narrow(self, axis: int, start: int, length: int) -> FactoredGradient | None:
        """Some channels, of the output or of the input; not with groups, which tie them to each other."""
        if axis > 1 or self.windows.groups > 1:
            return None
        part = mapped((self.outputs, self.image)[axis], lambda bound: bound.narrow(1, start, length))
        if axis == 0:
            return PatchProduct(part, self.image, self.windows)
        return PatchProduct(self.outputs, part, self.windows)


def _units(outputs: Interval, units: slice) -> Interval:
    return mapped(outputs, lambda bound: bound[:, units])


def _samples_last(block: Tensor) -> Tensor:
    """(b, r, k) as (r k, b)."""
    return block.flatten(1).T.contiguous()
