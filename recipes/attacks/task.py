"""A training that can be attacked, and its runs on poisoned data."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from agt_lightning import BoundedAdversary, UnboundedAdversary
from recipes.attacks.limits import require_allowed

Batch = tuple[Tensor, Tensor]
Parameters = Mapping[str, Tensor]
Poison = Callable[[nn.Module, Batch], Batch]
"""A function from the module, as the attack has moved it so far, and a clean batch to the poisoned batch."""


@dataclass(frozen=True)
class Task:
    """Plain SGD with given rates on given batches; the adversary may change each batch.

    Args:
        network: where training starts; never changed. All its parameters are trained.
        loss_function: torch's own for outputs and targets of one shape, ``(b, 1)``: takes ``reduction``, is a mean by
            default.
        batches: inputs and targets, served in turn.
        rates: learning rate of each step.
        adversary: what attacks may do; an unbounded one makes training clip each sample's gradient entries to κ.
    """

    network: nn.Module
    loss_function: Callable[..., Tensor]
    batches: Sequence[Batch]
    rates: Sequence[float]
    adversary: BoundedAdversary | UnboundedAdversary

    def __post_init__(self) -> None:
        if isinstance(self.adversary, UnboundedAdversary) and self.adversary.clip != "value":
            raise ValueError(f"Expected an adversary with `clip='value'`, but got {self.adversary}.")

    def batch(self, step: int) -> Batch:
        """Return the clean batch of a step."""
        return self.batches[step % len(self.batches)]

    def loss(self, module: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss of a batch."""
        return self.loss_function(module(batch[0]), batch[1])

    def losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each sample, ``(b,)``."""
        return self.loss_function(outputs, target, reduction="none").squeeze(-1)

    def attacked(self, poison: Poison) -> Sequence[Parameters]:
        """Return the parameters before the first step and after each, on poisoned batches.

        The steps are computed by autograd alone, apart from the engine whose bounds are put to the test.

        Raises:
            ValueError: if the poison is more than the adversary is granted.
        """
        module = copy.deepcopy(self.network)
        path = [_values(module)]
        for step, rate in enumerate(self.rates):
            clean = self.batch(step)
            poisoned = poison(module, clean)
            require_allowed(self.adversary, clean, poisoned)
            gradient = self._gradient(module, poisoned)
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter.sub_(rate * gradient[name])
            path.append(_values(module))
        return path

    def _gradient(self, module: nn.Module, batch: Batch) -> Parameters:
        if isinstance(self.adversary, UnboundedAdversary):
            return self._clipped(module, batch, self.adversary.kappa)
        parameters = dict(module.named_parameters())
        gradients = torch.autograd.grad(self.loss(module, batch), list(parameters.values()))
        return dict(zip(parameters, gradients, strict=True))

    def _clipped(self, module: nn.Module, batch: Batch, kappa: float) -> Parameters:
        """Return the mean of the gradients of all samples, every entry cut to [-κ, κ]."""

        def loss(parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
            return self.losses(functional_call(module, dict(parameters), (x[None],)), y[None]).sum()

        gradients = vmap(grad(loss), in_dims=(None, 0, 0))(_values(module), *batch)
        return {name: gradient.clamp(-kappa, kappa).mean(dim=0) for name, gradient in gradients.items()}


def untouched(module: nn.Module, batch: Batch) -> Batch:
    """Return the batch without any poison."""
    return batch


def _values(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
