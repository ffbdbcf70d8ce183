"""Optimizer settings that the replay of a training covers: `torch.optim.SGD`, all of it but `maximize`."""

from __future__ import annotations

import torch
from torch import nn

from agt_lightning.domains.base import DomainLostError, OptimizerStep
from agt_lightning.domains.head import HeadLayer
from agt_lightning.domains.influence.update import SGDSettings
from agt_lightning.optimizers.checked_update import foreign_state_problems


def sgd_problems(
    optimizer: torch.optim.Optimizer | None, module: nn.Module, layer: HeadLayer, *, started: bool
) -> list[str]:
    """Why the steps of this optimizer are not covered, each with its way out.

    Args:
        optimizer: of the module; None if there is none.
        module: owner of the parameters.
        layer: its trained layer.
        started: whether steps of this training were recorded already.
    """
    if type(optimizer) is not torch.optim.SGD:
        name = "no optimizer" if optimizer is None else type(optimizer).__name__
        return [f"The influence domain covers `torch.optim.SGD` alone, but got {name}."]
    problems = []
    if any(group["maximize"] for group in optimizer.param_groups):
        problems.append("The influence domain does not cover `maximize`. Set `maximize=False`.")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name in trained_names(layer) if id(module.get_parameter(name)) not in held]
    if missing:
        problems.append(
            f"The influence domain needs all trained parameters in the optimizer, but {', '.join(missing)} is not "
            "there. Add it, or freeze it with `requires_grad_(False)`."
        )
    return problems if started else [*problems, *foreign_state_problems(module, optimizer, {})]


def trained_names(layer: HeadLayer) -> tuple[str, ...]:
    """Names of the layer's trained parameters."""
    return (layer.weight,) if layer.bias is None or not layer.trains_bias else (layer.weight, layer.bias)


def settings_of(step: OptimizerStep, layer: HeadLayer) -> tuple[SGDSettings, SGDSettings]:
    """Settings that the optimizer used for weight and bias; a frozen bias has learning rate 0.

    Raises:
        DomainLostError: if the optimizer did not move them, or is none that the domain covers.
    """
    if type(step.optimizer) is not torch.optim.SGD:
        raise DomainLostError("the optimizer was replaced by another kind during training")
    used = {name: group for name, group, _ in step.updates()}
    missing = [name for name in trained_names(layer) if name not in used]
    if missing or any(used[name]["maximize"] for name in trained_names(layer)):
        raise DomainLostError("the optimizer left out a parameter of the head, or `maximize` was switched on")
    weight = SGDSettings.of_group(used[layer.weight])
    if layer.bias is None:
        return weight, weight
    return weight, SGDSettings.of_group(used[layer.bias]) if layer.trains_bias else SGDSettings(rate=0.0)
