"""Self-checks of a training run: what is applied must be what is certified, up to rounding that is accounted for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def require_inside(name: str, value: Tensor, bounds: Interval, tolerance: float | Tensor) -> None:
    """Raise unless ``bounds`` contain ``value`` up to rounding; NaN is never inside.

    Args:
        name: what is bounded, for the message.
        value: what training computed.
        bounds: of the same shape.
        tolerance: what rounding can add, one number or one per element.

    Raises:
        UnsoundBoundError: with the worst violation and its index.
    """
    excess = torch.maximum(bounds.lower - value, value - bounds.upper)
    if bool((excess <= tolerance).all()):
        return
    allowed = torch.as_tensor(tolerance, dtype=excess.dtype, device=excess.device).expand_as(excess)
    worst = torch.where(excess.isnan(), torch.inf, excess)
    beyond = (worst - allowed).argmax()
    index = tuple(int(i) for i in torch.unravel_index(beyond, worst.shape))
    raise UnsoundBoundError(
        f"Expected `{name}` within its bounds, but at index {index} got {value[index].item():.9g} outside "
        f"[{bounds.lower[index].item():.9g}, {bounds.upper[index].item():.9g}] by {worst[index].item():.3g} "
        f"(rounding allows {allowed[index].item():.3g}). {_NOT_WHAT_IS_TRAINED}"
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


def require_constant(module: nn.Module, names: Iterable[str], first: dict[str, Tensor]) -> None:
    """Raise if a buffer that the loss reads changed: what changed it may have been poisoned.

    Args:
        module: owner of the buffers.
        names: buffers that the loss reads.
        first: their values when they were first read; new ones are added.

    Raises:
        UnsoundBoundError: naming the buffer.
    """
    buffers = dict(module.named_buffers(remove_duplicate=False))
    for name in names:
        if not torch.equal(first.setdefault(name, buffers[name].detach().clone()), buffers[name]):
            raise UnsoundBoundError(
                f"Expected the buffer `{name}` constant, since the loss reads it, but it changed during training. It "
                "would be different in a poisoned run. Compute it before training."
            )


def require_same_gradients(module: nn.Module, verified: Mapping[str, Tensor]) -> None:
    """Raise unless the optimizer applied the very gradients that were checked, to the last bit.

    Raises:
        UnsoundBoundError: naming the parameter.
    """
    for name, parameter in module.named_parameters():
        applied, checked = parameter.grad, verified.get(name)
        if applied is None and checked is None:
            continue
        if applied is None or checked is None or not torch.equal(applied, checked):
            raise UnsoundBoundError(
                f"Expected the gradient of `{name}` as it was checked, but a hook changed it before the optimizer's "
                "step (gradient clipping or scaling in `on_before_optimizer_step`). Remove that hook."
            )


def rounded(bounded: BoundedObjective, dtype: torch.dtype) -> BoundedObjective:
    """The same loss with bounds that also contain what a program in ``dtype`` computes, in any order of summation."""
    rules = {call: Rounded(rule, dtype) for call, rule in bounded.program.rules.items()}
    return replace(bounded, program=replace(bounded.program, rules=rules))
