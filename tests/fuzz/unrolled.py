"""Trainings as differentiable functions of their data, in double precision; attacks climb their gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from agt_lightning.aggregation.mean_clipping import MeanClipping, MeanNormClipping, MeanValueClipping
from tests.fuzz.trainings import Batch, Training

Parameters = dict[str, Tensor]
State = dict[str, dict[str, Tensor]]


def unrolled(
    case: Training,
    module: nn.Module,
    parameters: Parameters,
    state: State,
    steps: Sequence[Sequence[Batch]],
    first: int,
) -> tuple[Parameters, State]:
    """Return parameters and the optimizer's state after some steps.

    Args:
        case: whose loss and optimizer are used.
        module: in double precision.
        parameters: trained ones before the steps.
        state: of the optimizer, empty at the start; counts of steps come from ``first``.
        steps: micro-batches of each step.
        first: number of the first of them.
    """
    for number, batches in enumerate(steps, first):
        losses = [case.criterion(functional_call(module, parameters, (x,)), y) for x, y, _ in batches]
        loss = torch.stack(losses).mean()
        names = [name for name in parameters if not case.rests(name, number)]
        gradients = torch.autograd.grad(
            loss, [parameters[name] for name in names], create_graph=True, allow_unused=True, materialize_grads=True
        )
        moved = dict(parameters)
        for name, gradient in zip(names, _clipped(case.clipping, gradients), strict=True):
            update, state = UPDATES[case.optimizer], dict(state)
            moved[name], state[name] = update(
                case.settings_at(number), state.get(name, {}), parameters[name], gradient, number + 1
            )
        parameters = moved
    return parameters, state


def _clipped(clipping: MeanClipping | None, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the gradients of all parameters after clipping of their mean."""
    if isinstance(clipping, MeanValueClipping):
        return [gradient.clamp(-clipping.limit, clipping.limit) for gradient in gradients]
    if isinstance(clipping, MeanNormClipping):
        norm = (torch.stack([gradient.square().sum() for gradient in gradients]).sum() + 1e-30).sqrt()
        return [gradient * (clipping.limit / (norm + 1e-6)).clamp(max=1.0) for gradient in gradients]
    return gradients


def _decayed(settings: Mapping[str, Any], p: Tensor, g: Tensor) -> Tensor:
    g = -g if settings.get("maximize") else g
    return g + settings.get("weight_decay", 0.0) * p


def _sgd(s: Mapping[str, Any], state: dict[str, Tensor], p: Tensor, g: Tensor, step: int) -> Any:
    g, momentum = _decayed(s, p, g), s.get("momentum", 0.0)
    if momentum:
        buffer = momentum * state["m"] + (1 - s.get("dampening", 0.0)) * g if "m" in state else g
        g, state = g + momentum * buffer if s.get("nesterov") else buffer, {"m": buffer}
    return p - s["lr"] * g, state


def _adam(
    s: Mapping[str, Any], state: dict[str, Tensor], p: Tensor, g: Tensor, step: int, *, apart: bool = False
) -> Any:
    (b1, b2), zero = s.get("betas", (0.9, 0.999)), torch.zeros_like(p)
    decay = s.get("weight_decay", 0.01 if apart else 0.0)
    p, g = (p * (1 - s["lr"] * decay), g) if apart else (p, g + decay * p)
    m = b1 * state.get("m", zero) + (1 - b1) * g
    v = b2 * state.get("v", zero) + (1 - b2) * g.square()
    largest = torch.maximum(state.get("largest", zero), v) if s.get("amsgrad") else v
    root = ((largest + 1e-30) / (1 - b2**step)).sqrt() + s.get("eps", 1e-8)
    return p - s["lr"] * m / (1 - b1**step) / root, {"m": m, "v": v, "largest": largest}


def _adamw(s: Mapping[str, Any], state: dict[str, Tensor], p: Tensor, g: Tensor, step: int) -> Any:
    return _adam(s, state, p, g, step, apart=True)


def _rmsprop(s: Mapping[str, Any], state: dict[str, Tensor], p: Tensor, g: Tensor, step: int) -> Any:
    g, zero, alpha = _decayed(s, p, g), torch.zeros_like(p), s.get("alpha", 0.99)
    v = alpha * state.get("v", zero) + (1 - alpha) * g.square()
    move = g / ((v + 1e-30).sqrt() + s.get("eps", 1e-8))
    buffer = s.get("momentum", 0.0) * state.get("m", zero) + move
    return p - s["lr"] * buffer, {"v": v, "m": buffer}


def _adagrad(s: Mapping[str, Any], state: dict[str, Tensor], p: Tensor, g: Tensor, step: int) -> Any:
    g = _decayed(s, p, g)
    total = state.get("sum", torch.zeros_like(p)) + g.square()
    rate = s["lr"] / (1 + (step - 1) * s.get("lr_decay", 0.0))
    return p - rate * g / ((total + 1e-30).sqrt() + s.get("eps", 1e-10)), {"sum": total}


UPDATES = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adamw,
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Adagrad: _adagrad,
}
"""Updates of one parameter, differentiable: of settings, state, parameter, gradient and the step's number from 1."""
