"""Self-checks of a training run: what is applied must be what is certified, up to rounding that is accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from agt_lightning.errors import UnsoundBoundError
from agt_lightning.interval import Interval
from agt_lightning.objective import BoundedObjective
from agt_lightning.rules.rounded import Rounded

_NOT_WHAT_IS_TRAINED = (
    "What is certified is not what is trained: `training_step` depends on something besides the batch and the "
    "parameters (epoch, step, random numbers, a hook that changes gradients). Remove that, or mix in `CertifiedModule` "
    "and write `certified_objective(batch)`."
)


def require_inside(name: str, value: Tensor, bounds: Interval, tolerance: float) -> None:
    """Raise unless ``bounds`` contain ``value`` up to rounding; NaN is never inside.

    Raises:
        UnsoundBoundError: with the worst violation and its index.
    """
    excess = torch.maximum(bounds.lower - value, value - bounds.upper)
    if bool((excess <= tolerance).all()):
        return
    worst = torch.where(excess.isnan(), torch.inf, excess)
    index = tuple(int(i) for i in torch.unravel_index(worst.argmax(), worst.shape))
    raise UnsoundBoundError(
        f"Expected `{name}` within its bounds, but at index {index} got {value[index].item():.9g} outside "
        f"[{bounds.lower[index].item():.9g}, {bounds.upper[index].item():.9g}] by {worst[index].item():.3g} "
        f"(rounding allows {tolerance:.3g}). {_NOT_WHAT_IS_TRAINED}"
    )


def require_both(name: str, applied: Tensor | None, expected: Tensor | None) -> None:
    """Raise if only one of training and captured program has a gradient that is not zero.

    Raises:
        UnsoundBoundError: naming the parameter and where its gradient is.
    """
    gradient = applied if applied is not None else expected
    if gradient is not None and not bool((gradient == 0).all()):
        where = "training" if applied is not None else "the captured step"
        raise UnsoundBoundError(
            f"Expected the captured training step and the training itself to use the same parameters, but `{name}` "
            f"has a gradient only in {where}. {_NOT_WHAT_IS_TRAINED}"
        )


def require_untouched(module: nn.Module, trained: Mapping[str, Tensor]) -> None:
    """Raise if something besides the optimizer changed a parameter: the box would not have moved with it.

    Args:
        module: the module in training.
        trained: its parameters as the optimizer left them.

    Raises:
        UnsoundBoundError: naming the parameter.
    """
    for name, parameter in module.named_parameters():
        if not torch.equal(parameter.detach(), trained[name].to(parameter.device)):
            raise UnsoundBoundError(
                f"Expected `{name}` as the optimizer left it, but something else changed it (weight clipping, "
                "averaging, loading or re-initialization in a hook). The bounds do not cover that. Remove it."
            )


def rounded(bounded: BoundedObjective, dtype: torch.dtype) -> BoundedObjective:
    """The same loss with bounds that also contain what a program in ``dtype`` computes, in any order of summation."""
    rules = {call: Rounded(rule, dtype) for call, rule in bounded.program.rules.items()}
    return replace(bounded, program=replace(bounded.program, rules=rules))
