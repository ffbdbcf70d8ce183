"""What rules take from torch's own conventions: derivatives at kinks, limits and ties, which versions may change.

The derivatives of the installed torch are computed when this file is imported. If another version has others, the first
test fails and names the operation: then look at the rule, which the second test holds to what torch computes.
"""

import pytest
import torch
from torch.nn import functional as F

from tests.rules.laws import Box, Setting
from tests.rules.test_float_laws import contained

aten = torch.ops.aten

AT = {
    "relu": (aten.relu.default, torch.relu, {0.0: 0.0}),
    "abs": (aten.abs.default, torch.abs, {0.0: 0.0}),
    "leaky_relu": (aten.leaky_relu.default, lambda x: F.leaky_relu(x, 0.25), {0.0: 0.25}),
    "relu6": (aten.relu6.default, F.relu6, {0.0: 0.0, 6.0: 0.0}),
    "hardtanh": (aten.hardtanh.default, F.hardtanh, {-1.0: 0.0, 1.0: 0.0}),
    "hardsigmoid": (aten.hardsigmoid.default, F.hardsigmoid, {-3.0: 0.0, 3.0: 0.0}),
    "hardswish": (aten.hardswish.default, F.hardswish, {-3.0: 0.0, 3.0: 1.0}),
    "elu": (aten.elu.default, lambda x: F.elu(x, 0.5), {0.0: 0.5}),
    "celu": (aten.celu.default, lambda x: F.celu(x, 0.5), {0.0: 1.0}),
    "selu": (aten.selu.default, F.selu, {0.0: 1.7580993408473766}),
    "clamp_min": (aten.clamp_min.default, lambda x: x.clamp_min(0.5), {0.5: 0.0}),
    "clamp_max": (aten.clamp_max.default, lambda x: x.clamp_max(0.5), {0.5: 0.0}),
    "softplus at its threshold": (aten.softplus.default, lambda x: F.softplus(x, 1.0, 2.0), {2.0: 0.8807970779778823}),
    "maximum of equals": (aten.maximum.default, lambda x: torch.maximum(x, 2 * x), {0.0: 1.5}),
    "minimum of equals": (aten.minimum.default, lambda x: torch.minimum(x, 2 * x), {0.0: 1.5}),
    "maximum with a constant": (aten.maximum.default, lambda x: torch.maximum(x, 0.0 * x.detach()), {0.0: 0.5}),
    "l1_loss": (aten.l1_loss.default, lambda x: F.l1_loss(x, 0.0 * x.detach(), reduction="none"), {0.0: 0.0}),
    "huber_loss": (
        aten.huber_loss.default,
        lambda x: F.huber_loss(x, 0.0 * x.detach(), reduction="none", delta=0.5),
        {0.5: 0.5, -0.5: -0.5},
    ),
    "smooth_l1_loss": (
        aten.smooth_l1_loss.default,
        lambda x: F.smooth_l1_loss(x, 0.0 * x.detach(), reduction="none", beta=0.5),
        {0.5: 1.0, -0.5: -1.0},
    ),
    "max_pool1d of equals": (
        aten.max_pool1d.default,
        lambda x: F.max_pool1d(torch.stack([x, 1.0 * x], 2), 2).flatten(1),
        {1.0: 1.0},
    ),
}
"""Operation, a function of one number a sample, and its derivatives in torch 2.14 where others are possible."""


def derivative(function, at, dtype):
    x = torch.full((3, 1), at, dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(function(x).sum(), x)
    return float(slope[0])


FOUND = {
    (name, place): derivative(function, place, torch.float64) for name, (_, function, at) in AT.items() for place in at
}
PLACES = [pytest.param(name, place, id=f"{name} at {place}") for name, place in FOUND]


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_installed_torch_has_the_derivative_that_the_rule_was_written_for(name, place):
    expected, found = AT[name][2][place], FOUND[name, place]
    assert found == pytest.approx(expected), f"torch {torch.__version__} has {found} where the rule expects {expected}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "place"), PLACES)
def test_bounds_contain_what_torch_computes_there_and_beside_it(name, place, dtype):
    op, function, _ = AT[name]
    setting = Setting(name, op, lambda m, x: function(x), (Box((1,)),))
    value = torch.tensor(place, dtype=dtype)
    beside = [torch.nextafter(value, torch.tensor(end, dtype=dtype)) for end in (-torch.inf, torch.inf)]
    for at in (value, *beside):
        contained(setting, [at.expand(3, 1).clone()], dtype)
