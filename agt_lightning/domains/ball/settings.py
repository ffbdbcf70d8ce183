"""Optimizer settings under which the ball's step is proved: plain gradient descent, one rate for all parameters."""

from __future__ import annotations

import torch
from torch import nn

from agt_lightning.domains.base import DomainLostError, OptimizerStep
from agt_lightning.domains.head import Head


def plain_sgd_problems(optimizer: torch.optim.Optimizer | None, module: nn.Module, head: Head) -> list[str]:
    """Why the steps of this optimizer are not covered, each with its way out.

    Args:
        optimizer: of the module; None if there is none.
        module: owner of the parameters.
        head: its trained layers.
    """
    if type(optimizer) is not torch.optim.SGD:
        name = "no optimizer" if optimizer is None else type(optimizer).__name__
        return [f"The ball domain covers `torch.optim.SGD` alone, but got {name}."]
    problems = []
    for key, plain in (("momentum", 0), ("maximize", False)):
        if any(group[key] != plain for group in optimizer.param_groups):
            problems.append(f"The ball domain does not cover `{key}`. Set `{key}={plain}`.")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name in head.parameters if id(module.get_parameter(name)) not in held]
    if missing:
        problems.append(
            f"The ball domain needs all trained parameters in the optimizer, but {', '.join(missing)} is not there. "
            "Add it, or freeze it with `requires_grad_(False)`."
        )
    for key in ("lr", "weight_decay"):
        values = {float(group[key]) for group in optimizer.param_groups}
        if len(values) > 1:
            problems.append(f"The ball domain needs one `{key}` for all parameters, but got {sorted(values)}.")
    return problems


def settings_of(step: OptimizerStep, head: Head) -> tuple[float, float]:
    """Learning rate and weight decay that the optimizer used for the head.

    Raises:
        DomainLostError: if they differ among parameters, or the optimizer is none that the domain covers.
    """
    groups = {name: group for name, group, _ in step.updates() if name in head.parameters}
    if len(groups) < len(head.parameters) or type(step.optimizer) is not torch.optim.SGD:
        raise DomainLostError("the optimizer left out a parameter of the head, or was replaced")
    settings = {
        (float(group["lr"]), float(group["weight_decay"]), float(group["momentum"]), bool(group["maximize"]))
        for group in groups.values()
    }
    if len(settings) != 1:
        raise DomainLostError(f"the parameters of the head have different settings, {sorted(settings)}")
    rate, decay, momentum, maximize = settings.pop()
    if momentum != 0 or maximize:
        raise DomainLostError("momentum or `maximize` was switched on during training")
    return rate, decay
