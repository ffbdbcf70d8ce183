"""The rectifier with a trained slope."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agt_lightning.arithmetic import multiply
from agt_lightning.interval import Interval
from agt_lightning.rules.arithmetic import Scaled
from agt_lightning.rules.base import Rule, Site, name_of, reduce_to
from agt_lightning.rules.roundings import Roundings
from agt_lightning.rules.values import Value, as_interval


class ParametricReLU(Rule):
    """``prelu``: ``x`` above zero, ``a x`` elsewhere, with one slope a or one for each channel; exact.

    Its derivative is a at zero, as autograd has it.
    """

    def roundings(self, site: Site) -> Roundings:
        """One product, and a sum over the positions that share a slope."""
        return Scaled(0, 2, int(torch.Size(site.call.shape[1:]).numel()))

    def problem(self, site: Site) -> str | None:
        """Refuse slopes that come from the samples, and inputs that do not."""
        if site.samples == (True, False):
            return None
        return f"`{name_of(site.call)}` at {site.call.source} takes its slopes from the batch. Make them parameters."

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """The hull of both branches, where they are reached."""
        x, slope = as_interval(inputs[0]), _along_channels(as_interval(inputs[1]), as_interval(inputs[0]))
        below = multiply(slope, _negative_part(x))
        if x.is_point and slope.is_point:
            return Interval.point(torch.where(x.lower > 0, x.lower, below.lower))
        lower = torch.where(x.lower > 0, x.lower, below.lower)
        upper = torch.where(x.lower > 0, x.upper, torch.where(x.upper > 0, below.upper.maximum(x.upper), below.upper))
        return Interval.trusted(lower, upper)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``g`` or ``a g`` for x, ``g min(x, 0)`` for a."""
        x, slopes = as_interval(inputs[0]), as_interval(inputs[1])
        slope = _along_channels(slopes, x)
        lower = torch.where(x.lower > 0, 1.0, torch.where(x.upper > 0, slope.lower.clamp(max=1), slope.lower))
        upper = torch.where(x.lower > 0, 1.0, torch.where(x.upper > 0, slope.upper.clamp(min=1), slope.upper))
        factor = Interval.point(lower) if x.is_point and slope.is_point else Interval.trusted(lower, upper)
        towards = multiply(grad, _negative_part(x))
        channels = reduce_to(towards, torch.Size(_channel_shape(slopes.lower, x.lower)), samples=False)
        return [multiply(grad, factor), channels.rearranged(lambda bound: bound.reshape(bound.shape[0], -1))]


def _negative_part(x: Interval) -> Interval:
    """``min(x, 0)``."""
    return x.mapped(lambda bound: bound.clamp(max=0))


def _channel_shape(slopes: Tensor, x: Tensor) -> list[int]:
    """Return the shape in which slopes meet x, whose axis 1 has the channels."""
    return [1, slopes.numel(), *[1] * (x.ndim - 2)] if x.ndim > 1 else [1]


def _along_channels(slopes: Interval, x: Interval) -> Interval:
    return slopes.rearranged(lambda bound: bound.reshape(_channel_shape(bound, x.lower)).expand_as(x.lower))
