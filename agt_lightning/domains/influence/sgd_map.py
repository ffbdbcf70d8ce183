"""One update of stochastic gradient descent as a linear map of parameter, momentum buffer and gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from agt_lightning.domains.sgd import SGDSettings


class UpdateFactors(NamedTuple):
    """The factors of one parameter's update; `SGDMap` defines them."""

    step: float
    carry: float
    keep: float
    share: float
    decay: float

    @classmethod
    def of_settings(cls, settings: SGDSettings, *, started: bool) -> UpdateFactors:
        r"""Return the factors of a step of `torch.optim.SGD`.

        With learning rate α, weight decay λ, momentum μ and dampening τ, the buffer becomes ``m' = μ m + s d`` with
        ``s = 1 - τ``, and the parameter moves by ``-α m'``, or by ``-α (d + μ m')`` with Nesterov.

        Args:
            settings: of the step.
            started: whether an earlier step with momentum left a buffer. The first one takes the whole direction,
                ``s = 1``. A step without momentum neither reads nor writes the buffer.
        """
        if settings.momentum == 0:
            return cls(settings.rate, 0.0, 1.0, 0.0, settings.weight_decay)
        share = 1.0 - settings.dampening if started else 1.0
        momentum = settings.momentum
        step, carry = (1.0 + momentum * share, momentum**2) if settings.nesterov else (share, momentum)
        return cls(settings.rate * step, settings.rate * carry, momentum, share, settings.weight_decay)


@dataclass(frozen=True, eq=False)
class SGDMap:
    r"""An update ``θ ← θ - step ∘ d - carry ∘ m``, ``m ← keep ∘ m + share ∘ d`` with ``d = gradient + decay ∘ θ``.

    Each field has one entry per input of the head, (D,): weight and bias can be in different parameter groups.

    Reference:
        docs/theory.md, eq. (11.1).
    """

    step: Tensor
    carry: Tensor
    keep: Tensor
    share: Tensor
    decay: Tensor

    @classmethod
    def of_columns(cls, columns: Sequence[UpdateFactors], device: torch.device) -> SGDMap:
        """Stack the factors of all inputs of the head."""
        return cls(*torch.tensor(columns, dtype=torch.float64, device=device).unbind(dim=1))

    @classmethod
    def of_head(cls, weight: UpdateFactors, features: int, bias: UpdateFactors | None, device: torch.device) -> SGDMap:
        """Repeat the factors of the weight for all features, and append those of the bias, if there is one."""
        if bias is not None and bias != weight:
            return cls.of_columns([*[weight] * features, bias], device)
        factors = torch.tensor(weight, dtype=torch.float64, device=device)
        # One number for all inputs, expanded: a long training keeps one such map a step.
        return cls(*(factor.expand(features + int(bias is not None)) for factor in factors))

    def gains(self) -> Tensor:
        """Return the largest factors by which ``W v + M u`` passes v and u on to the direction, (2,)."""
        return torch.stack([self.step.abs().max(), self.share.abs().max()])
