"""Bounds on the gradient of one optimizer step before it is applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agt_lightning.aggregation.mean_clipping import MeanClipping, clipped_gradients, coarsest_arithmetic
from agt_lightning.engine.self_checks import Tolerance
from agt_lightning.errors import NOT_WHAT_IS_TRAINED
from agt_lightning.interval import Interval, require_inside
from agt_lightning.rounding import Floats, accumulated_roundoff


@dataclass(frozen=True)
class RunsStep:
    """One step of the runs that one adversary could have caused.

    Args:
        bounds: interval of the applied gradient, by parameter name; empty if no domain bounds it.
        data: what each domain needs for the coming update, by name of the domain.
    """

    bounds: Mapping[str, Interval]
    data: Mapping[str, object]


@dataclass(frozen=True)
class StepBounds:
    """The gradient that the optimizer is about to apply, and bounds on it under each adversary.

    Args:
        runs: bounds for each adversary, in the order of the engine.
        gradient: gradient of the loss at the module's own parameters on the data as it is, by parameter name.
        applied: the gradient that the optimizer must apply, before any clipping of the mean: ``gradient``, or the mean
            of gradients that are clipped per sample if the adversary needs that.
        tolerance: by parameter name, the rounding error that a float program's ``gradient`` can have.
    """

    runs: tuple[RunsStep, ...]
    gradient: Mapping[str, Tensor]
    applied: Mapping[str, Tensor]
    tolerance: Mapping[str, Tolerance]

    @property
    def bounds(self) -> Mapping[str, Interval]:
        """Interval of the applied gradient under the first adversary, by parameter name."""
        return self.runs[0].bounds


def require_bounded(parameters: Mapping[str, nn.Parameter], bounds: StepBounds, floats: Floats) -> None:
    """Raise unless the gradients to be applied lie in their bounds under each adversary.

    Bounds on float runs contain training's own gradient as it is. Bounds on runs in real arithmetic contain the exact
    one: training's may leave them by its rounding error, which is computed only on demand.

    Args:
        parameters: those that the optimizer moves, by name; gradients of others can pile up.
        bounds: of the step.
        floats: which runs the bounds contain.

    Raises:
        UnsoundBoundError: naming the parameter, the worst violation and its index.
    """
    for name, interval in (named for runs in bounds.runs for named in runs.bounds.items()):
        training = parameters[name].grad if name in parameters else None
        if training is None:
            continue
        applied = bounds.applied[name]
        if floats == "run" and applied is bounds.gradient[name]:
            applied = training.detach().to(interval.dtype)
        if not interval.contains(applied):
            allowed = bounds.tolerance[name].largest if floats == "real" else 0.0
            require_inside(name, applied, interval, allowed, NOT_WHAT_IS_TRAINED)


def checked_clipping(
    bounds: Mapping[str, Interval],
    clipping: MeanClipping,
    names: Sequence[str],
    verified: Mapping[str, Tensor],
    floats: Floats,
) -> dict[str, Tensor]:
    """Return the gradients that training's own clipping must give, after checking that they lie in their bounds.

    Args:
        bounds: of the gradients before clipping, by parameter name.
        clipping: how training clips.
        names: parameters that are clipped together, in the order in which the norm sums them.
        verified: training's gradients before clipping, by parameter name.
        floats: which runs the bounds contain.

    Raises:
        UnsoundBoundError: if a clipped gradient leaves its bounds.
    """
    gradients = clipped_gradients(clipping, names, verified)
    before = {name: bounds[name] for name in names if name in bounds}
    hulls = {name: box.hull(Interval.point(verified[name].to(box.dtype))) for name, box in before.items()}
    terms = sum(gradient.numel() for gradient in gradients.values())
    types = {name: gradient.dtype for name, gradient in gradients.items()}
    own = next((box.dtype for box in hulls.values()), torch.float64)
    arithmetic = coarsest_arithmetic(types if floats == "run" else None, own)
    for name, interval in clipping.bounds(hulls, arithmetic).items():
        relative = accumulated_roundoff(terms, gradients[name].dtype) if floats == "real" else 0.0
        tolerance = relative * interval.magnitude
        require_inside(name, gradients[name].to(interval.dtype), interval, tolerance, NOT_WHAT_IS_TRAINED)
    return gradients
