"""Average and maximum over windows.

Averages are linear with nonnegative coefficients; the maximum is monotone. Pooling never mixes channels or samples, so
images without a channel axis are fine.

Axis letters: ``b`` samples, ``c`` channels, ``t`` positions, ``k`` entries of a window.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.arithmetic.convolution import Windows, chunks_of
from agt_lightning.capture.graph import ITEM
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Rule, Site, name_of
from agt_lightning.rules.convolution import sizes
from agt_lightning.rules.roundings import LinearMap, Roundings
from agt_lightning.rules.values import Value, as_interval

_aten = torch.ops.aten


@dataclass(frozen=True)
class AveragePool(Rule):
    """``avg_pool``: the mean over each window; exact.

    Args:
        rank: number of spatial axes.
    """

    rank: int

    def roundings(self, site: Site) -> Roundings:
        """The entries of a window; an entry is in at most as many windows."""
        window = math.prod(sizes(site, "kernel_size", self.rank))
        return LinearMap(window, window)

    def problem(self, site: Site) -> str | None:
        """Refuse a negative divisor."""
        divisor = site.call.arguments.get("divisor_override")
        if divisor is None or (isinstance(divisor, int) and divisor > 0):
            return None
        return f"`{name_of(site.call)}` at {site.call.source} has a negative divisor. Use a positive one."

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """Bounds average like values."""
        value = as_interval(inputs[0])
        pool = _aten.avg_pool3d if self.rank == 3 else _aten.avg_pool2d
        settings = self._settings(site)
        return value.mapped(
            lambda bound: _as_image(bound, self.rank, lambda x: pool(x, *settings)), nonnegative=value.nonnegative
        )

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """Each entry gets its share of the gradient of every window that contains it."""
        image = _unfold_rank(as_interval(inputs[0]).lower, self.rank)
        adjoint = _aten.avg_pool3d_backward if self.rank == 3 else _aten.avg_pool2d_backward
        settings = self._settings(site)
        return [
            grad.mapped(
                lambda bound: _as_image(bound, self.rank, lambda d: adjoint(d, image, *settings)),
                nonnegative=grad.nonnegative,
            )
        ]

    def _settings(self, site: Site) -> list[object]:
        """Kernel, stride, padding, rounding of sizes, whether padding counts, divisor."""
        kernel = sizes(site, "kernel_size", self.rank)
        stride, padding = sizes(site, "stride", self.rank) or kernel, sizes(site, "padding", self.rank)
        if self.rank == 1:
            kernel, stride, padding = (1, *kernel), (1, *stride), (0, *padding)
        arguments = site.call.arguments
        flags = [arguments["ceil_mode"], arguments["count_include_pad"], arguments.get("divisor_override")]
        return [list(kernel), list(stride), list(padding), *flags]


@dataclass(frozen=True)
class AdaptiveAveragePool(Rule):
    """``adaptive_avg_pool``: the mean over windows that share out the image; exact.

    Args:
        rank: number of spatial axes.
    """

    rank: int

    def roundings(self, site: Site) -> Roundings:
        """The entries of the largest window, and the windows that an entry can be in."""
        image, windows = (shape[len(shape) - self.rank :] for shape in (site.shapes[0], site.call.shape))
        pairs = list(zip(image, windows, strict=True))
        largest = math.prod(size // count + 2 for size, count in pairs)
        return LinearMap(largest, math.prod(count // size + 2 for size, count in pairs))

    def problem(self, site: Site) -> str | None:
        """Accept every call."""
        return None

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """Bounds average like values."""
        value = as_interval(inputs[0])
        size = list(site.call.shape[len(site.call.shape) - self.rank :])
        size = [1, *size] if self.rank == 1 else size
        pool = _aten._adaptive_avg_pool3d if self.rank == 3 else _aten._adaptive_avg_pool2d
        return value.mapped(
            lambda bound: _as_image(bound, self.rank, lambda x: pool(x, size)), nonnegative=value.nonnegative
        )

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """Each entry gets its share of the gradient of every window that contains it."""
        image = _unfold_rank(as_interval(inputs[0]).lower, self.rank)
        adjoint = _aten._adaptive_avg_pool3d_backward if self.rank == 3 else _aten._adaptive_avg_pool2d_backward
        return [
            grad.mapped(
                lambda bound: _as_image(bound, self.rank, lambda d: adjoint(d.contiguous(), image)),
                nonnegative=grad.nonnegative,
            )
        ]


@dataclass(frozen=True)
class MaxPool(Rule):
    """``max_pool``: the largest entry of each window.

    The value is monotone, so exact. In the backward pass an entry gets its window's gradient if it is the largest for
    every image in the box, nothing if it never is, and ``[min(0, g), max(0, g)]`` in between: exact for a window;
    where windows overlap, their contributions add as if they were independent. Equal entries: the first one counts.

    Args:
        rank: number of spatial axes.
    """

    rank: int

    def roundings(self, site: Site) -> Roundings:
        """The largest entry is a copy; the gradients of all windows that an entry is the largest of are added."""
        return LinearMap(0, math.prod(sizes(site, "kernel_size", self.rank)))

    def problem(self, site: Site) -> str | None:
        """Refuse the indices of the largest entries, which have no bounds."""
        if site.call.arguments.get(ITEM, 0) == 0:
            return None
        return (
            f"`{name_of(site.call)}` at {site.call.source} uses the indices of the largest entries, which have no "
            "bounds. Use `return_indices=False`."
        )

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``[max l, max u]``."""
        value = as_interval(inputs[0])
        settings = self._settings(site)
        pool = _aten.max_pool3d_with_indices if self.rank == 3 else _aten.max_pool2d_with_indices
        return value.mapped(
            lambda bound: _as_image(bound, self.rank, lambda x: pool(x, *settings)[0]), nonnegative=value.nonnegative
        )

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """Each window's gradient, to entries that are or may be its largest."""
        value = as_interval(inputs[0])
        if value.is_point:
            return [self._point_backward(site, grad, value.lower)]
        windows = self._windows(site)
        size = value.lower[:1].numel() * math.prod(windows.kernel) * value.lower.element_size()
        return [
            Interval.cat([_routed(grad[chunk], value[chunk], windows) for chunk in chunks_of(value.shape[0], size)])
        ]

    def _point_backward(self, site: Site, grad: Interval, value: Tensor) -> Interval:
        settings = self._settings(site)
        image = _unfold_rank(value, self.rank)
        pool = _aten.max_pool3d_with_indices if self.rank == 3 else _aten.max_pool2d_with_indices
        adjoint = _aten.max_pool3d_with_indices_backward if self.rank == 3 else _aten.max_pool2d_with_indices_backward
        indices = pool(image, *settings)[1]
        return grad.mapped(
            lambda bound: _as_image(bound, self.rank, lambda d: adjoint(d, image, *settings, indices)),
            nonnegative=grad.nonnegative,
        )

    def _settings(self, site: Site) -> list[object]:
        """Kernel, stride, padding, dilation, rounding of sizes."""
        kernel = sizes(site, "kernel_size", self.rank)
        stride, padding = sizes(site, "stride", self.rank) or kernel, sizes(site, "padding", self.rank)
        dilation = sizes(site, "dilation", self.rank)
        if self.rank == 1:
            kernel, stride, padding, dilation = (1, *kernel), (1, *stride), (0, *padding), (1, *dilation)
        return [list(kernel), list(stride), list(padding), list(dilation), site["ceil_mode"]]

    def _windows(self, site: Site) -> Windows:
        kernel = sizes(site, "kernel_size", self.rank)
        return Windows(
            kernel=kernel,
            stride=sizes(site, "stride", self.rank) or kernel,
            dilation=sizes(site, "dilation", self.rank),
            before=sizes(site, "padding", self.rank),
            image=site.shapes[0][len(site.shapes[0]) - self.rank :],
            positions=site.call.shape[len(site.call.shape) - self.rank :],
        )


def _routed(grad: Interval, value: Interval, windows: Windows) -> Interval:
    """Add the gradients of window maxima to the entries of the image that are or may be the largest."""
    rank = len(windows.kernel)

    def window_entries(bound: Tensor) -> Tensor:
        planes = bound.reshape(-1, 1, *bound.shape[bound.ndim - rank :])
        return windows.patches(planes, fill=-torch.inf)

    wins, may_win = _winners(window_entries(value.lower), window_entries(value.upper))

    def towards(bound: Tensor, possible: Tensor) -> Tensor:
        share = torch.where(wins, bound, torch.where(may_win, possible, 0.0))
        return windows.fold(share).reshape(value.shape)

    lower, upper = (bound.reshape(wins.shape[0], -1, 1) for bound in (grad.lower, grad.upper))
    bounds = towards(lower, lower.clamp(max=0)), towards(upper, upper.clamp(min=0))
    return Interval.trusted(*bounds, nonnegative=grad.nonnegative)


def _winners(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return which entries are always, and which can be, the first largest one along the last axis.

    Entry j always wins if ``l_j > u_k`` for all k before it and ``l_j >= u_k`` for all k behind it; it may win if
    ``u_j > l_k`` and ``u_j >= l_k``.
    """
    wins = (lower > _largest_before(upper)) & (lower >= _largest_behind(upper))
    may_win = (upper > _largest_before(lower)) & (upper >= _largest_behind(lower))
    return wins, may_win


def _largest_before(values: Tensor) -> Tensor:
    nothing = torch.full_like(values[..., :1], -torch.inf)
    return torch.cat([nothing, values[..., :-1].cummax(dim=-1).values], dim=-1)


def _largest_behind(values: Tensor) -> Tensor:
    return _largest_before(values.flip(-1)).flip(-1)


def _unfold_rank(image: Tensor, rank: int) -> Tensor:
    """Add an axis to images of one dimension, which have no kernels of their own."""
    return image.unsqueeze(-2) if rank == 1 else image


def _as_image(values: Tensor, rank: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function of images of two or three dimensions."""
    result = function(_unfold_rank(values, rank))
    return result.squeeze(-2) if rank == 1 else result
