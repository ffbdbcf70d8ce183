"""Exact convolutions of intervals, and their adjoints.

A convolution is a sum of products in which every image entry and every weight occurs at most once per result, so the
interval of each result is the sum of the products' intervals: no excess width. If one factor is a point or known to be
nonnegative, it is computed by native convolutions with sign splitting; if both may straddle zero, by the exact matrix
product of the image's patches.

Axis letters: ``b`` samples, ``c`` channels of the image, ``o`` channels of the result, ``t`` positions of the window,
``k`` = c/g · kernel entries of a patch, ``g`` groups.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from agt_lightning.arithmetic.order import require_uncrossed
from agt_lightning.arithmetic.products import product, split_product, splits
from agt_lightning.interval import Interval, LpBall

PATCH_BUDGET = 64 * 2**20
"""Bytes that unfolded patches may take at once; more samples are handled in chunks."""

_COPIES = 8
"""Tensors of the patches' size that are alive during an exact product: both bounds, each split by sign, stacked."""


@dataclass(frozen=True)
class Windows:
    """The positions of a window on an image; all tuples have one entry per spatial axis.

    Args:
        kernel: size of the window.
        stride: step from one position to the next.
        dilation: distance between neighboring entries.
        before: padding in front of the image; behind it, as much is added as the last position needs.
        image: size of the image.
        positions: number of positions.
        groups: number g of independent groups of channels.

    Example:
        >>> windows = Windows((2,), (1,), (1,), (0,), (3,), (2,))
        >>> windows.patches(torch.tensor([[[1.0, 2.0, 3.0]]]))
        tensor([[[1., 2.],
                 [2., 3.]]])
        >>> windows.fold(torch.ones(1, 2, 2))
        tensor([[[1., 2., 1.]]])
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    image: tuple[int, ...]
    positions: tuple[int, ...]
    groups: int = 1

    @property
    def spans(self) -> tuple[int, ...]:
        """The extent of the window on the image, ``d (k - 1) + 1``."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def canvas(self) -> tuple[int, ...]:
        """The size of the image with its padding, without entries that are in no window."""
        return tuple((t - 1) * s + w for t, s, w in zip(self.positions, self.stride, self.spans, strict=True))

    def _padding(self) -> list[int]:
        """The argument of `torch.nn.functional.pad`, last axis first; negative where entries are left out."""
        axes = zip(self.before, self.canvas, self.image, strict=True)
        pairs = [(before, canvas - image - before) for before, canvas, image in axes]
        return [side for pair in reversed(pairs) for side in pair]

    def pad(self, image: Tensor, fill: float = 0.0) -> Tensor:
        """Pad an image: (b, c, *image) to (b, c, *canvas)."""
        padding = self._padding()
        return F.pad(image, padding, value=fill) if any(padding) else image

    def crop(self, canvas: Tensor) -> Tensor:
        """Apply the adjoint of `pad`: (b, c, *canvas) to (b, c, *image)."""
        padding = [-side for side in self._padding()]
        return F.pad(canvas, padding) if any(padding) else canvas

    def patches(self, image: Tensor, fill: float = 0.0) -> Tensor:
        """Return the patches ``P[b, t, (c, j)] = image[b, c, s t + d j]``: (b, c, *image) to (b, t, c · kernel)."""
        rank = len(self.kernel)
        view = self.pad(image, fill)
        for axis, (span, stride) in enumerate(zip(self.spans, self.stride, strict=True)):
            view = view.unfold(2 + axis, span, stride)
        view = view[tuple([slice(None)] * (2 + rank) + [slice(None, None, dilation) for dilation in self.dilation])]
        positions, entries = range(2, 2 + rank), range(2 + rank, 2 + 2 * rank)
        return view.permute(0, *positions, 1, *entries).reshape(len(image), math.prod(self.positions), -1)

    def fold(self, columns: Tensor) -> Tensor:
        """Apply the adjoint of `patches`, summing copies of an image entry: (b, t, c · kernel) to (b, c, *image)."""
        rank = len(self.kernel)
        channels = columns.shape[2] // math.prod(self.kernel)
        spread = columns.reshape(len(columns), *self.positions, channels, -1).movedim(1 + rank, 1)
        canvas = columns.new_zeros(len(columns), channels, *self.canvas)
        for number, entry in enumerate(itertools.product(*map(range, self.kernel))):
            axes = zip(entry, self.dilation, self.positions, self.stride, strict=True)
            places = tuple(slice(e * d, e * d + (t - 1) * s + 1, s) for e, d, t, s in axes)
            canvas[(slice(None), slice(None), *places)] += spread[..., number]
        return self.crop(canvas)


def convolve(image: Interval, weight: Interval, windows: Windows) -> Interval:
    """Return bounds on ``y[b, o, t] = Σ_{c, j} W[o, c, j] image[b, c, s t + d j]``; exact.

    Args:
        image: (b, c, *image).
        weight: (o, c/g, *kernel), independent of the image.
        windows: positions of the kernel.

    Returns:
        Interval of shape (b, o, *positions).

    Example:
        >>> windows = Windows((2,), (1,), (1,), (0,), (2,), (1,))
        >>> box = Interval(-torch.ones(1, 1, 2), torch.ones(1, 1, 2))
        >>> convolve(box, Interval(-torch.ones(1, 1, 2), 2 * torch.ones(1, 1, 2)), windows).upper
        tensor([[[4.]]])
    """
    if splits(image, weight) and has_exact_kernels(image.lower):
        terms = weight.lower[0].numel()
        return split_product(
            lambda x, w: _native(windows.pad(x), w, windows, transposed=False), image, weight, terms=terms
        )
    parts = [_convolve_patches(image[chunk], weight, windows) for chunk in chunks(image, windows)]
    return require_uncrossed(Interval.cat(parts, dim=0))


def convolve_adjoint(values: Interval, weight: Interval, windows: Windows) -> Interval:
    """Return bounds on ``x[b, c, i] = Σ_{o, t, j: s t + d j = i} W[o, c, j] values[b, o, t]``; exact.

    This is the gradient of `convolve` with respect to its image, and the transposed convolution.

    Args:
        values: (b, o, *positions).
        weight: (o, c/g, *kernel), independent of the values.
        windows: positions of the kernel.

    Returns:
        Interval of shape (b, c, *image).

    Example:
        >>> windows = Windows((2,), (1,), (1,), (0,), (3,), (2,))
        >>> values = Interval(torch.ones(1, 1, 2), 3 * torch.ones(1, 1, 2))
        >>> convolve_adjoint(values, Interval.point(torch.tensor([[[1.0, -1.0]]])), windows).lower
        tensor([[[ 1.0000, -2.0000, -3.0000]]])
    """
    if splits(values, weight) and has_exact_kernels(values.lower):
        terms = weight.lower[:, 0].numel()
        return split_product(
            lambda d, w: windows.crop(_native(d, w, windows, transposed=True)), values, weight, terms=terms
        )
    entries = math.prod(windows.positions) * weight.lower[0].numel()
    size = entries * values.lower.element_size()
    parts = [_fold_products(values[chunk], weight, windows) for chunk in chunks_of(values.shape[0], size)]
    return require_uncrossed(Interval.cat(parts, dim=0))


def ball_convolve(ball: LpBall, weight: Interval, windows: Windows) -> Interval:
    """Return bounds on `convolve` of the images ``x + scale ∘ u`` with ``‖u‖_p <= 1`` by every kernel in ``weight``.

    They are the interval of the convolution of x, plus or minus ``‖scale_t ∘ max(|W_L|, |W_U|)‖_{p*}`` for the patch at
    each position t: an enclosure, exact for a point W.

    Args:
        ball: the images, with nominal (b, c, *image) and scale (c, *image).
        weight: (o, c/g, *kernel).
        windows: positions of the kernel.

    Returns:
        Interval of shape (b, o, *positions).

    Example:
        >>> windows = Windows((2,), (1,), (1,), (0,), (2,), (1,))
        >>> ball = LpBall(torch.zeros(1, 1, 2), torch.ones(1, 2), 2.0)
        >>> ball_convolve(ball, Interval.point(torch.tensor([[[3.0, -4.0]]])), windows).upper
        tensor([[[5.]]])
    """
    center = convolve(Interval.point(ball.nominal), weight, windows)
    radius = _dual_norms(ball.scale.unsqueeze(0), weight.magnitude, windows, ball.p)
    return center.widened(radius)


def _dual_norms(scale: Tensor, magnitude: Tensor, windows: Windows, p: float) -> Tensor:
    """``‖scale_t ∘ |W_o|‖_{p*}`` for each position and kernel, (1, o, *positions)."""
    if p == 1:
        rows = _kernel_matrices(Interval.point(magnitude), windows.groups)
        parts = []
        for group, kernels in enumerate(rows):
            patches = windows.patches(by_group(Interval.point(scale), windows.groups, group).lower)[0]
            parts += [(patches * kernel).amax(dim=1) for kernel in kernels.lower]
        return torch.stack(parts).reshape(1, -1, *windows.positions)
    largest_scale, largest_weight = _largest(scale), _largest(magnitude)
    unit, kernel = scale / largest_scale, magnitude / largest_weight  # so that no square overflows
    norms = _kernel_sums(unit, kernel, windows)
    if p == 2:
        squares, limits = _kernel_sums(unit.square(), kernel.square(), windows), torch.finfo(scale.dtype)
        lost = squares < 4 * magnitude[0].numel() * limits.tiny / limits.eps  # where squares can lose digits
        norms = torch.where(lost, norms, squares.sqrt())
    return norms * largest_scale * largest_weight


def _largest(numbers: Tensor) -> Tensor:
    """Return the largest number, or one if all are zero."""
    largest = numbers.amax()
    return torch.where(largest > 0, largest, 1.0)


def _kernel_sums(scale: Tensor, magnitude: Tensor, windows: Windows) -> Tensor:
    """Convolve numbers that are not negative."""
    return convolve(Interval.point(scale), Interval.point(magnitude), windows).lower.clamp(min=0)


def has_exact_kernels(tensor: Tensor) -> bool:
    """Return whether native convolutions keep the tensor's precision; cuDNN cuts float32 to 10 bits by default."""
    return tensor.dtype == torch.float64 or not tensor.is_cuda


def chunks(image: Interval, windows: Windows) -> Iterator[slice]:
    """Yield ranges of samples whose patches fit `PATCH_BUDGET`."""
    entries = math.prod(windows.positions) * math.prod(windows.kernel) * image.shape[1] // windows.groups
    return chunks_of(image.shape[0], entries * image.lower.element_size())


def chunks_of(samples: int, size: int) -> Iterator[slice]:
    """Yield ranges of samples that fit `PATCH_BUDGET`.

    Args:
        samples: number of samples.
        size: bytes of one sample's patches.

    Example:
        >>> list(chunks_of(3, 2**22))
        [slice(0, 2, None), slice(2, 3, None)]
    """
    count = max(1, PATCH_BUDGET // max(1, size * _COPIES))
    return (slice(start, min(start + count, samples)) for start in range(0, max(1, samples), count))


def by_group(value: Interval, groups: int, group: int) -> Interval:
    """Return the channels (axis 1) of one group."""
    size = value.shape[1] // groups
    return value[:, group * size : (group + 1) * size]


def _native(values: Tensor, weight: Tensor, windows: Windows, *, transposed: bool) -> Tensor:
    none = [0] * len(windows.kernel)
    stride, dilation = list(windows.stride), list(windows.dilation)
    return torch.convolution(values, weight, None, stride, none, dilation, transposed, none, windows.groups)


def _convolve_patches(image: Interval, weight: Interval, windows: Windows) -> Interval:
    """Patches (b t, k) times weights (o/g, k), group by group."""
    samples, parts = image.shape[0], []
    for group, rows in enumerate(_kernel_matrices(weight, windows.groups)):
        patches = by_group(image, windows.groups, group).rearranged(windows.patches)
        parts.append(product(patches.rearranged(lambda bound: bound.flatten(0, 1)), rows.mT))
    return Interval.cat(parts, dim=1).rearranged(
        lambda bound: bound.unflatten(0, (samples, *windows.positions)).movedim(-1, 1)
    )


def _fold_products(values: Interval, weight: Interval, windows: Windows) -> Interval:
    """Values (b t, o/g) times transposed weights (k, o/g), folded back, group by group."""
    samples, parts = values.shape[0], []

    def fold(bound: Tensor) -> Tensor:
        return windows.fold(bound.unflatten(0, (samples, -1)))

    for group, rows in enumerate(_kernel_matrices(weight, windows.groups)):
        columns = by_group(values, windows.groups, group).rearranged(lambda bound: bound.movedim(1, -1).flatten(0, -2))
        products = product(columns, rows)
        parts.append(products.mapped(fold, nonnegative=products.nonnegative))
    return Interval.cat(parts, dim=1)


def _kernel_matrices(weight: Interval, groups: int) -> list[Interval]:
    """The weight as one matrix (o/g, k) per group."""
    size = weight.shape[0] // groups
    flat = weight.rearranged(lambda bound: bound.flatten(1))
    return [flat[group * size : (group + 1) * size] for group in range(groups)]
