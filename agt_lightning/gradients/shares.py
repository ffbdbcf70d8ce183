"""The shares of a parameter's elements that processes bound, each one of them with all samples at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from agt_lightning.gradients.base import FactoredGradient
from agt_lightning.gradients.division import divisible_axis, slice_of
from agt_lightning.gradients.gathered import Gradients
from agt_lightning.interval import Interval
from agt_lightning.processes import Processes

Bound = Callable[[FactoredGradient, FactoredGradient | None], Interval]
"""Bounds on a weighted sum from clean and poisoned gradients of all samples; each element on its own."""


def divided(processes: Processes, clean: Gradients, poisoned: Gradients, bound: Bound) -> dict[str, Interval]:
    """Apply a bound to every parameter, each process to its share of the elements; all get all of it.

    Args:
        processes: each with the gradients of all samples, see `gathered`.
        clean: by parameter name.
        poisoned: by parameter name; parameters that cannot be poisoned are left out.
        bound: what to compute.
    """
    pairs = {name: (gradient, poisoned.get(name)) for name, gradient in clean.items()}
    if processes.size == 1:
        return {name: bound(*pair) for name, pair in pairs.items()}
    axes = {name: divisible_axis(pair) for name, pair in pairs.items()}
    own: dict[str, Interval] = {}
    with processes.together():
        for name, pair in pairs.items():
            axis = axes[name]
            share = None if axis is None else slice_of(pair, axis, processes.rank, processes.size)
            if share is not None:
                own[name] = bound(*share)
    received = processes.gather(own)
    return {
        name: bound(*pair) if axes[name] is None else _assembled(received, name, axes[name])
        for name, pair in pairs.items()
    }


def _assembled(received: Sequence[Mapping[str, object]], name: str, axis: int | None) -> Interval:
    assert axis is not None
    shares = [message[name] for message in received if name in message]
    parts = [share for share in shares if isinstance(share, Interval)]
    lower = torch.cat([part.lower for part in parts], dim=axis)
    if all(part.is_point for part in parts):
        return Interval.point(lower)
    return Interval.trusted(lower, torch.cat([part.upper for part in parts], dim=axis))
