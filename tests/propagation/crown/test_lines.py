"""Lines stay on their side of the function over the whole interval."""

import pytest
import torch

from agt_lightning.interval import Interval
from agt_lightning.propagation.crown.lines import kinked, sigmoidal

POINTS = 400
ROUNDING = 1e-12
"""Float64 rounding of a line through numbers below fifty."""

FUNCTIONS = {
    "relu": (kinked(lambda site: 0.0), torch.relu),
    "leaky": (kinked(lambda site: 0.2), lambda x: torch.nn.functional.leaky_relu(x, 0.2)),
    "tanh": (sigmoidal(torch.tanh, lambda x: 1 / x.cosh().square()), torch.tanh),
    "sigmoid": (sigmoidal(torch.sigmoid, lambda x: x.sigmoid() * (-x).sigmoid()), torch.sigmoid),
}


def boxes(scale):
    """Intervals of all kinds: on either side of zero, around it, touching it, and points."""
    ends = scale * torch.randn(2, 300, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lower, upper = ends.sort(dim=0).values
    lower[:20] = upper[:20]
    lower[20:40], upper[20:40] = 0, upper[20:40].abs()
    lower[40:60], upper[40:60] = -lower[40:60].abs(), 0
    lower[60:80] = upper[60:80] - 1e-9
    return Interval(lower, upper)


@pytest.mark.parametrize("scale", [0.01, 1.0, 20.0])
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_lines_enclose_the_function(name, scale):
    lines_of, function = FUNCTIONS[name]
    box = boxes(scale)
    alpha = torch.rand(300, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    lines = lines_of(None, box, alpha)
    share = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    x = box.lower.unsqueeze(1) + share[:, None] * box.width.unsqueeze(1)
    value = function(x)
    assert float((value - (lines.above_slope * x + lines.above_offset)).max()) <= ROUNDING
    assert float((lines.below_slope * x + lines.below_offset - value).max()) <= ROUNDING


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_curved_lines_touch_the_function(name):
    """Each line meets the function somewhere in the interval: none could be moved closer."""
    lines_of, function = FUNCTIONS[name]
    box = boxes(1.0)
    lines = lines_of(None, box, torch.zeros(300, 1, 1, dtype=torch.float64))
    x = box.lower.unsqueeze(1) + torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None] * box.width.unsqueeze(1)
    value = function(x)
    grid_error = 1e-5
    assert float((lines.above_slope * x + lines.above_offset - value).amin(1).max()) <= grid_error
    assert float((value - lines.below_slope * x - lines.below_offset).amin(1).max()) <= grid_error
