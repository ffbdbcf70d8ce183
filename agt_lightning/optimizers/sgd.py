"""Stochastic gradient descent on boxes (Algorithm 1, line 10)."""

from collections.abc import Mapping

import torch

from agt_lightning.interval import Interval
from agt_lightning.rules.arithmetic import scaled


class AbstractSGD:
    """``θ ← (1 - α λ) θ - α Δ`` for all θ and Δ in their boxes; exact for each parameter.

    Weight decay is evaluated jointly with θ, so it shrinks the box.

    Example:
        >>> box, gradient = Interval(torch.tensor([0.0]), torch.tensor([1.0])), Interval.point(torch.tensor([2.0]))
        >>> AbstractSGD().update({"lr": 0.5, "weight_decay": 0.0}, box, gradient)
        Interval(lower=tensor([-1.]), upper=tensor([0.]))
    """

    def problems(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Momentum and ascent have no counterpart."""
        problems: list[str] = []
        for number, group in enumerate(optimizer.param_groups):
            for flag in ("momentum", "dampening", "nesterov", "maximize"):
                if group[flag]:
                    problems.append(
                        f"`torch.optim.SGD` has `{flag}={group[flag]}` in parameter group {number}, which has no "
                        f"bounds. Set `{flag}={type(group[flag])(0)}`."
                    )
        return problems

    def update(self, group: Mapping[str, object], box: Interval, gradient: Interval) -> Interval:
        """One step with the group's learning rate and weight decay as they are now.

        Args:
            group: settings, ``lr`` and ``weight_decay``.
            box: bounds on the parameter.
            gradient: bounds on the gradient of the loss, without weight decay.
        """
        rate, decay = float(group["lr"]), float(group["weight_decay"])  # type: ignore[arg-type]
        return scaled(box, 1.0 - rate * decay) - scaled(gradient, rate)
