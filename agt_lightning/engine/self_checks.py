"""Self-checks of a training run: what is trained must be what is certified, up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from agt_lightning.capture.graph import Graph
from agt_lightning.capture.sameness import same_bits
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
    parameters = dict(module.named_parameters())
    for name in parameters.keys() ^ trained.keys():
        what = "has no longer" if name in trained else "has a new parameter"
        raise UnsoundBoundError(
            f"Expected the parameters that training began with, but the module {what} `{name}` (a layer that was added "
            "or removed, or weights that were tied). The bounds do not cover that. Change the module before training."
        )
    for name, parameter in parameters.items():
        if not torch.equal(parameter.detach(), trained[name].to(parameter.device)):
            raise UnsoundBoundError(
                f"Expected `{name}` as the optimizer left it, but something else changed it (weight clipping, "
                "averaging, loading or re-initialization in a hook). The bounds do not cover that. Remove it."
            )


def require_unhooked(module: nn.Module) -> None:
    """Raise if autograd calls a hook on the way to a gradient: it could change the gradient in a poisoned run alone.

    Raises:
        UnsoundBoundError: naming the parameter or submodule.
    """
    hooked = [
        name
        for name, parameter in module.named_parameters()
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None)
    ]
    hooked += [
        name or type(part).__name__
        for name, part in module.named_modules()
        if part._backward_hooks or part._backward_pre_hooks
    ]
    if hooked:
        raise UnsoundBoundError(
            f"Expected no hooks on gradients, but `{hooked[0]}` has one. It may change gradients in a poisoned run, "
            "although it does not on these data. Remove it."
        )


def require_unmoved(
    module: nn.Module, before: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Return copies of the parameters after a step; raise if it moved one that the optimizer does not step.

    An optimizer steps the parameters of its groups that have a gradient, be it zero: weight decay and momentum move
    them too. All others keep their bounds, so they must keep their values.

    Args:
        module: the module in training, after the step.
        before: its parameters before the step.
        optimizer: of the module.

    Raises:
        UnsoundBoundError: naming the parameter.
    """
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
    after = {}
    for name, parameter in module.named_parameters():
        value = parameter.detach()
        if id(parameter) in stepped:
            after[name] = value.clone()
            continue
        after[name] = before[name].to(parameter.device)
        if not torch.equal(value, after[name]):
            raise UnsoundBoundError(
                f"Expected `{name}` to stay, since the optimizer has no gradient for it, but it moved during the step "
                "(an average of other weights, shared memory, a hook of the optimizer). The bounds do not cover that. "
                "Keep averages outside of the module."
            )
    return after


def require_constant(graph: Graph, module: nn.Module, start: nn.Module, but: Collection[str] = frozenset()) -> None:
    """Raise if a buffer or another tensor that the loss reads changed: what changed it may have been poisoned.

    Args:
        graph: the captured loss.
        module: owner of the buffers.
        start: the same module as it was when training began.
        but: names of buffers that may have changed.

    Raises:
        UnsoundBoundError: naming the buffer, or the line that reads the tensor.
    """
    buffers = dict(module.named_buffers(remove_duplicate=False))
    first = dict(start.named_buffers(remove_duplicate=False))
    for name in set(graph.buffers.values()) - set(but):
        if name not in first or not same_bits(first[name], buffers[name]):
            raise UnsoundBoundError(
                f"Expected the buffer `{name}` constant, since the loss reads it, but it changed during training. It "
                "would be different in a poisoned run. Compute it before training."
            )
    for name, origin in graph.origins.items():
        if not same_bits(graph.constants[name], origin):
            raise UnsoundBoundError(
                f"Expected a constant tensor where {graph.users(name)[0].source} reads one that is neither parameter "
                "nor buffer, but it changed during training. It would be different in a poisoned run. Compute it "
                "before training."
            )


@dataclass(frozen=True)
class WriteMarks:
    """The gradients of a step, each with torch's count of writes to its memory.

    A hook that multiplies gradients by 1.0 leaves every bit as it is, but is seen by the count.

    Args:
        gradients: tensor and count by parameter name.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> layer(torch.ones(1, 1)).sum().backward()
        >>> marks = WriteMarks.of(layer)
        >>> marks.written(layer)
        []
        >>> layer.weight.grad.mul_(1.0)
        tensor([[1.]])
        >>> marks.written(layer)
        ['weight']
    """

    gradients: Mapping[str, tuple[Tensor, int]]

    @classmethod
    def of(cls, module: nn.Module) -> WriteMarks:
        """Return the marks of a module's gradients as they are now."""
        gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
        return cls({name: (grad, grad._version) for name, grad in gradients.items() if grad is not None})

    def written(self, module: nn.Module, once: Collection[str] = ()) -> list[str]:
        """Return the names of the parameters whose gradients were written or replaced since.

        Args:
            module: the module.
            once: names of parameters whose gradients had to be written once.
        """
        after = WriteMarks.of(module).gradients
        return [
            name
            for name in {**self.gradients, **after}
            if name not in self.gradients
            or name not in after
            or after[name][0] is not self.gradients[name][0]
            or after[name][1] != self.gradients[name][1] + (name in once)
        ]


def with_momentum(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, verified: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return checked gradients as the optimizer itself left them, where it added the momentum to them in place.

    Of torch's optimizers only the ``foreach`` implementation of SGD does, the default on CUDA devices, with Nesterov's
    momentum and neither decay nor ``maximize``, which make a copy first.

    Args:
        parameters: those of the optimizer after its step, by name.
        optimizer: of the parameters.
        verified: the checked gradients, by parameter name.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    left = {}
    for group in optimizer.param_groups if type(optimizer) is torch.optim.SGD else ():
        if not group["nesterov"] or group["weight_decay"] or group["maximize"]:
            continue
        for parameter in group["params"]:
            name, buffer = names.get(id(parameter), ""), optimizer.state.get(parameter, {}).get("momentum_buffer")
            if parameter.grad is None or buffer is None or name not in verified:
                continue
            if not same_bits(parameter.grad, verified[name]):
                (left[name],) = torch._foreach_add([verified[name]], [buffer], alpha=group["momentum"])
    return left


def require_unwritten(module: nn.Module, marks: WriteMarks, by_optimizer: Collection[str] = ()) -> None:
    """Raise if a gradient was written after it was checked, even if no bit of it changed.

    Args:
        module: after the optimizer's step.
        marks: of its gradients as they were checked.
        by_optimizer: parameters whose gradients the optimizer itself has written once.

    Raises:
        UnsoundBoundError: naming the parameter.
    """
    for name in marks.written(module, by_optimizer):
        raise UnsoundBoundError(
            f"Expected nothing to write the gradient of `{name}` between its check and the optimizer's step, but a "
            "hook did. It changed nothing here, but it could in a poisoned run (gradient clipping by hand). Remove "
            "that hook, and clip by `Trainer(gradient_clip_val=..., gradient_clip_algorithm=...)`."
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
