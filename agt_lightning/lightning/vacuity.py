"""Bounds that no longer say anything, told when they become so and not only when they are asked for."""

from __future__ import annotations

import math

_VACUOUS = 1.0
"""A set as large as its parameters: half of them, or all, can have either sign."""


def vacuity_warning(relative_size: float | None, steps: int) -> str:
    """Return what to say of bounds after a step; empty if they still say something.

    Args:
        relative_size: `Domain.relative_size` of the smallest set.
        steps: number of steps so far.

    Example:
        >>> vacuity_warning(0.2, 3), vacuity_warning(None, 3)
        ('', '')
        >>> vacuity_warning(1.7, 3)
        'After step 3 the bounds are 1.7 times as large as the trained parameters...
    """
    if relative_size is None or relative_size < _VACUOUS:
        return ""
    found = (
        f"the bounds are {relative_size:.2g} times as large as the trained parameters"
        if math.isfinite(relative_size)
        else "a bound on the trained parameters is infinite"
    )
    return (
        f"After step {steps} {found}: they say nothing about the runs that an adversary could have caused. Train for "
        "fewer steps, at a smaller rate, with larger batches or a weaker adversary, or fewer layers; plain SGD stays "
        "tighter than Adam. docs/diagnose.md shows which layer widens them."
    )
