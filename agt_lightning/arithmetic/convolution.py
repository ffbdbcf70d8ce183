"""Exact convolutions of intervals, and their adjoints.

A convolution is a sum of products in which every image entry and every weight occurs at most once per result, so the
interval of each result is the sum of the products' intervals: no excess width. Where one factor is a point or known to
be nonnegative, sign splitting gives it by native convolutions; where both may straddle zero, by the exact matrix
product of the image's patches.

Axis letters: ``b`` samples, ``c`` channels of the image, ``o`` channels of the result, ``t`` positions of the window,
``k`` = c/g · kernel entries of a patch, ``g`` groups.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from agt_lightning.arithmetic.order import require_uncrossed, uncrossed
from agt_lightning.arithmetic.products import matmul
from agt_lightning.interval import Interval, LpBall

PATCH_BUDGET = 64 * 2**20
"""Bytes that unfolded patches may take at once; more samples than that are handled in turn."""

_COPIES = 8
"""Tensors of the patches' size that are alive during an exact product: both bounds, each split by sign, stacked."""


@dataclass(frozen=True)
class Windows:
    """How a window moves over an image; all tuples have one entry per spatial axis.

    Args:
        kernel: entries of the window.
        stride: step from one position to the next.
        dilation: distance between neighboring entries.
        before: padding in front of the image; behind it, as much as the last position needs.
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
        """Extent of the window on the image, ``d (k - 1) + 1``."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def canvas(self) -> tuple[int, ...]:
        """Size of the image with its padding, without entries that no window meets."""
        return tuple((t - 1) * s + w for t, s, w in zip(self.positions, self.stride, self.spans, strict=True))

    def _padding(self) -> list[int]:
        """As `torch.nn.functional.pad` wants it, last axis first; negative where entries are left out."""
        axes = zip(self.before, self.canvas, self.image, strict=True)
        pairs = [(before, canvas - image - before) for before, canvas, image in axes]
        return [side for pair in reversed(pairs) for side in pair]

    def pad(self, image: Tensor, fill: float = 0.0) -> Tensor:
        """(b, c, *image) to (b, c, *canvas)."""
        padding = self._padding()
        return F.pad(image, padding, value=fill) if any(padding) else image

    def crop(self, canvas: Tensor) -> Tensor:
        """The adjoint of `pad`: (b, c, *canvas) to (b, c, *image)."""
        padding = [-side for side in self._padding()]
        return F.pad(canvas, padding) if any(padding) else canvas

    def patches(self, image: Tensor, fill: float = 0.0) -> Tensor:
        """``P[b, t, (c, j)] = image[b, c, s t + d j]``: (b, c, *image) to (b, t, c · kernel)."""
        rank = len(self.kernel)
        view = self.pad(image, fill)
        for axis, (span, stride) in enumerate(zip(self.spans, self.stride, strict=True)):
            view = view.unfold(2 + axis, span, stride)
        view = view[tuple([slice(None)] * (2 + rank) + [slice(None, None, dilation) for dilation in self.dilation])]
        positions, entries = range(2, 2 + rank), range(2 + rank, 2 + 2 * rank)
        return view.permute(0, *positions, 1, *entries).reshape(len(image), math.prod(self.positions), -1)

    def fold(self, columns: Tensor) -> Tensor:
        """The adjoint of `patches`: each image entry sums its copies; (b, t, c · kernel) to (b, c, *image)."""
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
    """``y[b, o, t] = Σ_{c, j} W[o, c, j] image[b, c, s t + d j]``; exact.

    Args:
        image: (b, c, *image).
        weight: (o, c/g, *kernel), independent of the image.
        windows: how the kernel moves.

    Returns:
        Interval of shape (b, o, *positions).

    Example:
        >>> windows = Windows((2,), (1,), (1,), (0,), (2,), (1,))
        >>> box = Interval(-torch.ones(1, 1, 2), torch.ones(1, 1, 2))
        >>> convolve(box, Interval(-torch.ones(1, 1, 2), 2 * torch.ones(1, 1, 2)), windows).upper
        tensor([[[4.]]])
    """
    if splits(image, weight) and has_exact_kernels(image.lower):
        return split_product(lambda x, w: _native(windows.pad(x), w, windows, transposed=False), image, weight)
    parts = [_convolve_patches(image[chunk], weight, windows) for chunk in chunks(image, windows)]
    return require_uncrossed(_concatenated(parts, dim=0))


def convolve_adjoint(values: Interval, weight: Interval, windows: Windows) -> Interval:
    """``x[b, c, i] = Σ_{o, t, j: s t + d j = i} W[o, c, j] values[b, o, t]``; exact.

    The gradient of `convolve` with respect to its image, and the transposed convolution.

    Args:
        values: (b, o, *positions).
        weight: (o, c/g, *kernel), independent of the values.
        windows: how the kernel moves.

    Returns:
        Interval of shape (b, c, *image).

    Example:
        >>> windows = Windows((2,), (1,), (1,), (0,), (3,), (2,))
        >>> values = Interval(torch.zeros(1, 1, 2), torch.ones(1, 1, 2))
        >>> convolve_adjoint(values, Interval.point(torch.tensor([[[1.0, -1.0]]])), windows).lower
        tensor([[[ 0., -1., -1.]]])
    """
    if splits(values, weight) and has_exact_kernels(values.lower):
        return split_product(lambda d, w: windows.crop(_native(d, w, windows, transposed=True)), values, weight)
    entries = math.prod(windows.positions) * weight.lower[0].numel()
    size = entries * values.lower.element_size()
    parts = [_fold_products(values[chunk], weight, windows) for chunk in chunks_of(values.shape[0], size)]
    return require_uncrossed(_concatenated(parts, dim=0))


def ball_convolve(ball: LpBall, weight: Interval, windows: Windows) -> Interval:
    """Bounds on `convolve` of the images ``x + scale ∘ u`` with ``‖u‖_p <= 1`` by every kernel in ``weight``.

    The interval of the convolution of x, plus or minus ``‖scale_t ∘ max(|W_L|, |W_U|)‖_{p*}`` for the patch at each
    position t. An enclosure, exact for a point W.

    Args:
        ball: images, nominal of shape (b, c, *image) and scale of shape (c, *image).
        weight: (o, c/g, *kernel).
        windows: how the kernel moves.

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
    return Interval.trusted(center.lower - radius, center.upper + radius)


def _dual_norms(scale: Tensor, magnitude: Tensor, windows: Windows, p: float) -> Tensor:
    """``‖scale_t ∘ |W_o|‖_{p*}`` for each position and kernel, (1, o, *positions)."""
    if p == 1:
        rows = _rows(Interval.point(magnitude), windows.groups)
        parts = []
        for group, kernels in enumerate(rows):
            patches = windows.patches(by_group(Interval.point(scale), windows.groups, group).lower)[0]
            parts += [(patches * kernel).amax(dim=1) for kernel in kernels.lower]
        return torch.stack(parts).reshape(1, -1, *windows.positions)
    power = 2 if p == 2 else 1
    sums = convolve(Interval.point(scale**power), Interval.point(magnitude**power), windows).lower
    return sums.clamp(min=0) ** (1 / power)


def splits(a: Interval, b: Interval) -> bool:
    """Whether no pair of factors can straddle zero twice, so that sign splitting is exact."""
    return a.is_point or b.is_point or a.nonnegative or b.nonnegative


def has_exact_kernels(tensor: Tensor) -> bool:
    """Whether native convolutions compute in the tensor's own precision; cuDNN cuts float32 to 10 bits by default."""
    return tensor.dtype == torch.float64 or not tensor.is_cuda


def split_product(product: Callable[[Tensor, Tensor], Tensor], a: Interval, b: Interval) -> Interval:
    """Any bilinear map with nonnegative coefficients, of factors that `splits` accepts; exact.

    For a point a: center ``a·b_c`` and radius ``|a|·b_r``. For a ≥ 0: upper ``au·bu⁺ - al·bu⁻``, lower
    ``al·bl⁺ - au·bl⁻``.

    Example:
        >>> half = Interval(torch.zeros(1, 1), torch.ones(1, 1), nonnegative=True)
        >>> split_product(torch.mm, half, Interval.point(torch.tensor([[-2.0]])))
        Interval(lower=tensor([[-2.]]), upper=tensor([[0.]]))
    """
    if a.is_point and b.is_point:
        return Interval.point(product(a.lower, b.lower), nonnegative=a.nonnegative and b.nonnegative)
    if not (a.is_point or (a.nonnegative and not b.is_point)):
        return split_product(lambda first, second: product(second, first), b, a)
    if a.is_point and not a.nonnegative:
        center, radius = product(a.lower, b.center), product(a.lower.abs(), b.radius)
        return Interval.trusted(center - radius, center + radius)
    if a.is_point or b.nonnegative:
        return Interval.trusted(product(a.lower, b.lower), product(a.upper, b.upper), nonnegative=b.nonnegative)
    upper = product(a.upper, b.upper.clamp(min=0)) + product(a.lower, b.upper.clamp(max=0))
    lower = product(a.lower, b.lower.clamp(min=0)) + product(a.upper, b.lower.clamp(max=0))
    return uncrossed(lower, upper)


def chunks(image: Interval, windows: Windows) -> Iterator[slice]:
    """Ranges of samples whose patches fit `PATCH_BUDGET`."""
    entries = math.prod(windows.positions) * math.prod(windows.kernel) * image.shape[1] // windows.groups
    return chunks_of(image.shape[0], entries * image.lower.element_size())


def chunks_of(samples: int, size: int) -> Iterator[slice]:
    """Ranges of samples, each of which takes ``size`` bytes per copy, that fit `PATCH_BUDGET`.

    Example:
        >>> list(chunks_of(3, 2**22))
        [slice(0, 2, None), slice(2, 3, None)]
    """
    count = max(1, PATCH_BUDGET // max(1, size * _COPIES))
    return (slice(start, min(start + count, samples)) for start in range(0, max(1, samples), count))


def by_group(value: Interval, groups: int, group: int) -> Interval:
    """Channels (axis 1) of one group."""
    size = value.shape[1] // groups
    return mapped(value, lambda bound: bound[:, group * size : (group + 1) * size])


def mapped(value: Interval, function: Callable[[Tensor], Tensor]) -> Interval:
    """Move elements about, the same way for both bounds."""
    lower = function(value.lower)
    return Interval.trusted(lower, lower if value.is_point else function(value.upper), nonnegative=value.nonnegative)


def _native(values: Tensor, weight: Tensor, windows: Windows, *, transposed: bool) -> Tensor:
    none = [0] * len(windows.kernel)
    stride, dilation = list(windows.stride), list(windows.dilation)
    return torch.convolution(values, weight, None, stride, none, dilation, transposed, none, windows.groups)


def _convolve_patches(image: Interval, weight: Interval, windows: Windows) -> Interval:
    """Patches (b t, k) times weights (o/g, k), group by group."""
    samples, parts = image.shape[0], []
    for group, rows in enumerate(_rows(weight, windows.groups)):
        patches = mapped(by_group(image, windows.groups, group), windows.patches)
        parts.append(matmul(mapped(patches, lambda bound: bound.flatten(0, 1)), rows))
    product = _concatenated(parts, dim=1)
    return mapped(product, lambda bound: bound.unflatten(0, (samples, *windows.positions)).movedim(-1, 1))


def _fold_products(values: Interval, weight: Interval, windows: Windows) -> Interval:
    """Values (b t, o/g) times transposed weights (k, o/g), folded back, group by group."""
    samples, parts = values.shape[0], []
    for group, rows in enumerate(_rows(weight, windows.groups)):
        columns = mapped(by_group(values, windows.groups, group), lambda bound: bound.movedim(1, -1).flatten(0, -2))
        products = matmul(columns, mapped(rows, lambda bound: bound.T))
        parts.append(mapped(products, lambda bound: windows.fold(bound.unflatten(0, (samples, -1)))))
    return _concatenated(parts, dim=1)


def _rows(weight: Interval, groups: int) -> list[Interval]:
    """The weight as one matrix (o/g, k) per group."""
    size = weight.shape[0] // groups
    flat = mapped(weight, lambda bound: bound.flatten(1))
    return [flat[group * size : (group + 1) * size] for group in range(groups)]


def _concatenated(parts: list[Interval], dim: int) -> Interval:
    if len(parts) == 1:
        return parts[0]
    lower = torch.cat([part.lower for part in parts], dim)
    if all(part.is_point for part in parts):
        return Interval.point(lower, nonnegative=all(part.nonnegative for part in parts))
    upper = torch.cat([part.upper for part in parts], dim)
    return Interval.trusted(lower, upper, nonnegative=all(part.nonnegative for part in parts))
