"""Runs of torch's own optimizers inside a box of parameters and a box of gradients."""

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from agt_lightning.interval import Interval
from agt_lightning.rounding import unit_roundoff

ROUNDINGS = 16
"""Roundings of one update on either side, relative to values of size four."""

Update = Callable[[Mapping[str, object], Interval, Interval], Interval]

SETTINGS = (
    {"lr": 0.3},
    {"lr": 0.3, "weight_decay": 0.5},
    {"lr": 1.0, "weight_decay": 1.0},
    {"lr": 2.0, "weight_decay": 0.9},
)
"""With and without decay, 1 - αλ zero and negative."""


def torch_step(value: Tensor, gradient: Tensor, settings: Mapping[str, float]) -> Tensor:
    """One step of `torch.optim.SGD`."""
    parameter = torch.nn.Parameter(value.clone())
    parameter.grad = gradient.clone()
    torch.optim.SGD([parameter], **settings).step()
    return parameter.detach()


def check_sgd(update: Update) -> None:
    """The updated box is the smallest that contains torch's update of every corner."""
    generator = torch.Generator().manual_seed(0)
    for settings in SETTINGS:
        ends = torch.randn(4, 6, generator=generator, dtype=torch.float64)
        box, gradient = (Interval(pair.amin(dim=0), pair.amax(dim=0)) for pair in (ends[:2], ends[2:]))
        group = torch.optim.SGD([torch.nn.Parameter(ends[0])], **settings).param_groups[0]
        got = update(group, box, gradient)
        corners = itertools.product((box.lower, box.upper), (gradient.lower, gradient.upper))
        values = torch.stack([torch_step(value, slope, settings) for value, slope in corners])
        tolerance = ROUNDINGS * unit_roundoff(torch.float64) * 4
        for name, bound, exact in (("lower", got.lower, values.amin(dim=0)), ("upper", got.upper, values.amax(dim=0))):
            error = float((bound - exact).abs().max())
            assert error <= tolerance, f"SGD with {settings}: {name} differs from torch by {error:.3g}"
