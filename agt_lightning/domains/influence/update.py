"""One update of stochastic gradient descent as a linear map of parameter, momentum buffer and gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.errors import UncertifiableError
from agt_lightning.optimizers.base import Group, number_of

Numbers = tuple[float, float, float, float, float]
"""Coefficients of one parameter's update, as `SGDUpdate` names them: ``(step, carry, keep, share, decay)``."""


@dataclass(frozen=True)
class SGDSettings:
    """Settings of one parameter of the head at one step of `torch.optim.SGD`.

    Args:
        rate: learning rate α; 0 for a frozen parameter.
        weight_decay: λ.
        momentum: μ.
        dampening: τ.
        nesterov: whether the step looks ahead.

    Reference:
        `torch.optim.SGD`.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.9)
        >>> SGDSettings.of_group(optimizer.param_groups[0])
        SGDSettings(rate=0.5, weight_decay=0.0, momentum=0.9, dampening=0.0, nesterov=False)
    """

    rate: float
    weight_decay: float = 0.0
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    @classmethod
    def of_group(cls, group: Group) -> SGDSettings:
        """Read a parameter group of `torch.optim.SGD`.

        Raises:
            UncertifiableError: if the group maximizes.
        """
        if group.get("maximize"):
            raise UncertifiableError(["`maximize=True` moves away from the labels. Set `maximize=False`."])
        rate, decay, momentum, dampening = (
            number_of(group, name) for name in ("lr", "weight_decay", "momentum", "dampening")
        )
        return cls(rate, decay, momentum, dampening, bool(group["nesterov"]))

    def coefficients(self, *, started: bool) -> Numbers:
        r"""Numbers of the update, as `SGDUpdate` names them, ``(step, carry, keep, share, decay)``.

        Args:
            started: whether a buffer exists, left by an earlier step with momentum. The first one takes the whole
                direction: no dampening. A step without momentum neither reads nor writes the buffer.
        """
        if self.momentum == 0:
            return self.rate, 0.0, 1.0, 0.0, self.weight_decay
        share = 1.0 - self.dampening if started else 1.0
        step, carry = (1.0 + self.momentum * share, self.momentum**2) if self.nesterov else (share, self.momentum)
        return self.rate * step, self.rate * carry, self.momentum, share, self.weight_decay


@dataclass(frozen=True, eq=False)
class SGDUpdate:
    r"""``θ ← θ - step ∘ d - carry ∘ m``, ``m ← keep ∘ m + share ∘ d`` with ``d = gradient + decay ∘ θ``.

    Each field has one entry per input of the head, (D,): weight and bias can be in different parameter groups.
    """

    step: Tensor
    carry: Tensor
    keep: Tensor
    share: Tensor
    decay: Tensor

    @classmethod
    def of_columns(cls, columns: Sequence[Numbers], device: torch.device) -> SGDUpdate:
        """Stack the numbers of `SGDSettings.coefficients`, one tuple per input of the head."""
        return cls(*torch.tensor(columns, dtype=torch.float64, device=device).unbind(dim=1))

    @classmethod
    def of_head(cls, weight: Numbers, features: int, bias: Numbers | None, device: torch.device) -> SGDUpdate:
        """The numbers of the weight for all features and those of the bias, if there is one, behind them."""
        if bias is not None and bias != weight:
            return cls.of_columns([*[weight] * features, bias], device)
        numbers = torch.tensor(weight, dtype=torch.float64, device=device)
        # One number for all inputs, expanded: a long training keeps one such update a step.
        return cls(*(number.expand(features + int(bias is not None)) for number in numbers))

    def gains(self) -> Tensor:
        """How much of v and of u a functional ``W v + M u`` passes on to the direction, at most; (2,)."""
        return torch.stack([self.step.abs().max(), self.share.abs().max()])
