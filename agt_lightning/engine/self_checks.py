"""Self-checks of a training run: what is trained must be what is certified, up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from agt_lightning.errors import NOT_WHAT_IS_TRAINED, UnsoundBoundError


@dataclass(frozen=True)
class Tolerance:
    """A bound on the rounding error of a float program's sum of per-sample gradients, in each element.

    Args:
        relative: the error, relative to the sum of the gradients' sizes.
        sizes: computes that sum, which is no less than any element of the gradients' sum.

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
        """The absolute tolerance; computing it takes a pass over all gradients."""
        return self.relative * self.sizes()

    def covers(self, error: Tensor, total: Tensor) -> bool:
        """Return whether an error is within the tolerance; NaN never is.

        Args:
            error: absolute, of any shape.
            total: the gradients' sum. Its largest element is no more than the sum of sizes, so that an error within
                this part of the tolerance needs no pass over the gradients.
        """
        worst = float(error.max())
        return worst <= self.relative * float(total.abs().max()) or worst <= self.largest


def require_both(name: str, applied: Tensor | None, expected: Tensor | None) -> None:
    """Raise if a parameter has a gradient in training or in the captured program, but not in both.

    A gradient of zeros counts as none.

    Args:
        name: the parameter's.
        applied: training's gradient; None if the parameter has none.
        expected: the captured program's; None if the program does not use the parameter.

    Raises:
        UnsoundBoundError: naming the parameter and where its gradient is.
    """
    gradient = applied if applied is not None else expected
    if gradient is not None and not bool((gradient == 0).all()):
        where = "training" if applied is not None else "the captured step"
        raise UnsoundBoundError(
            f"Expected the captured training step and the training itself to use the same parameters, but `{name}` "
            f"has a gradient only in {where}. {NOT_WHAT_IS_TRAINED}"
        )


def differs(name: str, gradient: Tensor | None, expected: Tensor | None, tolerance: Tolerance | None) -> bool:
    """Return whether training's gradient differs from the captured program's by more than the rounding of sums.

    Args:
        name: the parameter's.
        gradient: training's; None if the parameter has none.
        expected: the captured program's; None if the program does not use the parameter.
        tolerance: of ``expected``; None if that is None.

    Raises:
        UnsoundBoundError: if only one of the two has a gradient that is not zero.
    """
    if gradient is None or expected is None or tolerance is None:
        require_both(name, gradient, expected)
        return False
    error = (gradient.detach().to(expected.dtype) - expected).abs()
    return not tolerance.covers(error, expected)


def require_untouched(module: nn.Module, trained: Mapping[str, Tensor]) -> None:
    """Raise if something besides the optimizer changed a parameter, since the bounds would not have moved with it.

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
        names: names of the buffers that the loss reads.
        first: values of buffers when they were first read, by name; new ones are added to it.

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


def require_same_gradients(parameters: Mapping[str, nn.Parameter], verified: Mapping[str, Tensor]) -> None:
    """Raise unless the optimizer applied the gradients that were checked, to the last bit.

    Args:
        parameters: those of the optimizer after its step, with the gradients that were applied, by name.
        verified: the checked gradients, by parameter name.

    Raises:
        UnsoundBoundError: naming the parameter.
    """
    for name, parameter in parameters.items():
        applied, checked = parameter.grad, verified.get(name)
        if applied is None and checked is None:
            continue
        if applied is None or checked is None or not torch.equal(applied, checked):
            raise UnsoundBoundError(
                f"Expected the gradient of `{name}` as it was checked, but a hook changed it before the optimizer's "
                "step (gradient clipping or scaling in `on_before_optimizer_step`). Remove that hook."
            )
