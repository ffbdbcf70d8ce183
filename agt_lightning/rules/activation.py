"""Activation functions."""

import torch

from agt_lightning.rules.elementwise import Monotone

relu = Monotone(
    function=lambda site, x: torch.clamp(x, min=0),
    derivative=lambda site, x: (x > 0).to(x.dtype),
    nonnegative=True,
)
"""``max(x, 0)`` with derivative ``[l > 0, u > 0]``: section 3.4's Heaviside interval, zero at zero as in autograd."""
