"""What is known of the gradient of one optimizer step before it is applied."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from agt_lightning.aggregation.mean_clipping import MeanClipping, clipped_gradients
from agt_lightning.errors import NOT_WHAT_IS_TRAINED
from agt_lightning.interval import Interval, require_inside
from agt_lightning.rounding import accumulated_roundoff


@dataclass(frozen=True)
class Tolerance:
    """How far a float program's sum of per-sample gradients can be from the real one, in each element.

    Args:
        relative: rounding with respect to the sum of the gradients' sizes.
        sizes: computes that sum, no less than any element of the gradients' sum.

    Example:
        >>> import torch
        >>> tolerance = Tolerance(0.5, lambda: 3.0)
        >>> tolerance.largest, [tolerance.covers(torch.tensor([error]), total=torch.ones(1)) for error in (1.4, 1.6)]
        (1.5, [True, False])
    """

    relative: float
    sizes: Callable[[], float]

    @cached_property
    def largest(self) -> float:
        """The tolerance itself; costs a pass over all gradients."""
        return self.relative * self.sizes()

    def covers(self, error: Tensor, total: Tensor) -> bool:
        """Whether an error is within it; NaN never is.

        Args:
            error: absolute, of any shape.
            total: the gradients' sum. Its largest element is no more than the sum of sizes and mostly decides already.
        """
        worst = float(error.max())
        return worst <= self.relative * float(total.abs().max()) or worst <= self.largest


@dataclass(frozen=True)
class StepBounds:
    """What one step's batches say about the gradient that the optimizer is about to apply.

    Args:
        bounds: interval of the applied gradient for every parameter in the box and every move of the adversary; empty
            without a box.
        gradient: gradient of the loss at the module's own parameters on the data as it is.
        applied: what the optimizer must get: ``gradient``, or for an unbounded adversary the clipped mean.
        tolerance: by parameter, how far a float program can stray from ``gradient`` by rounding.
        pending: what the other domains need for the coming update, by name.
    """

    bounds: Mapping[str, Interval]
    gradient: Mapping[str, Tensor]
    applied: Mapping[str, Tensor]
    tolerance: Mapping[str, Tolerance]
    data: Mapping[str, object] = field(default_factory=dict)


def clipped_descent(
    descent: StepBounds, clipping: MeanClipping, held: Sequence[str], verified: Mapping[str, Tensor]
) -> tuple[StepBounds, dict[str, Tensor]]:
    """Bounds after clipping of the mean gradient, and the gradients that training's own clipping must give.

    Args:
        descent: before clipping.
        clipping: how training clips.
        held: parameters that are clipped together, in the order of the norm's sum.
        verified: the training's gradients before clipping.

    Raises:
        UnsoundBoundError: if a clipped gradient leaves its bounds.
    """
    before = {name: descent.bounds[name] for name in held if name in descent.bounds}
    gradients = clipped_gradients(clipping, held, verified)
    reach = {name: box.hull(Interval.point(verified[name].to(box.dtype))) for name, box in before.items()}
    terms = sum(gradient.numel() for gradient in gradients.values())
    for name, interval in clipping.bounds(reach).items():
        tolerance = accumulated_roundoff(terms, gradients[name].dtype) * interval.magnitude
        require_inside(name, gradients[name].to(interval.dtype), interval, tolerance, NOT_WHAT_IS_TRAINED)
    return replace(descent, bounds={**descent.bounds, **clipping.bounds(before)}), gradients
