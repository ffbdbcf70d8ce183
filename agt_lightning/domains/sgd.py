"""Which optimizers the domains for a head cover: `torch.optim.SGD`, either plain or with momentum and schedules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from agt_lightning.domains.base import DomainLostError, OptimizerStep, TrainingSetup
from agt_lightning.errors import UncertifiableError
from agt_lightning.optimizers.base import Group, number_of
from agt_lightning.optimizers.checked_update import foreign_state_problems


@dataclass(frozen=True)
class SGDSettings:
    """Settings of one parameter at one step of `torch.optim.SGD`, which descends.

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


def sgd_problems(domain: str, setup: TrainingSetup, trained: Sequence[str], *, started: bool) -> list[str]:
    """Return the reasons why a domain for SGD with any settings but `maximize` does not apply, each with its way out.

    Args:
        domain: name of the domain.
        setup: module and optimizer.
        trained: names of the parameters that the optimizer must move.
        started: whether steps of this training were recorded before; otherwise the optimizer must remember none.
    """
    if type(setup.optimizer) is not torch.optim.SGD:
        return [_another_kind(domain, setup.optimizer)]
    problems = [*_setting_problems(domain, setup.optimizer, "maximize"), *_missing_problems(domain, setup, trained)]
    return problems if started else [*problems, *foreign_state_problems(setup.module, setup.optimizer, {})]


def plain_sgd_problems(domain: str, setup: TrainingSetup, trained: Sequence[str]) -> list[str]:
    """Return the reasons why a domain for plain gradient descent does not apply, each with its way out.

    Plain means no momentum, and one learning rate and weight decay for all parameters.

    Args:
        domain: name of the domain.
        setup: module and optimizer.
        trained: names of the parameters that the optimizer must move.
    """
    if type(setup.optimizer) is not torch.optim.SGD:
        return [_another_kind(domain, setup.optimizer)]
    problems = [
        *_setting_problems(domain, setup.optimizer, "momentum", "maximize"),
        *_missing_problems(domain, setup, trained),
    ]
    for key in ("lr", "weight_decay"):
        values = {float(group[key]) for group in setup.optimizer.param_groups}
        if len(values) > 1:
            problems.append(f"The {domain} domain needs one `{key}` for all parameters, but got {sorted(values)}.")
    return problems


def sgd_settings(step: OptimizerStep, trained: Sequence[str]) -> dict[str, SGDSettings]:
    """Return the settings by which the optimizer moved parameters, by name.

    Args:
        step: as the optimizer made it.
        trained: names of the parameters.

    Raises:
        DomainLostError: if the optimizer is no `torch.optim.SGD` any more, did not move one of them, or maximizes.
    """
    if type(step.optimizer) is not torch.optim.SGD:
        raise DomainLostError("the optimizer was replaced by another kind during training")
    groups = {name: group for name, group, _ in step.updates()}
    if any(name not in groups or groups[name]["maximize"] for name in trained):
        raise DomainLostError("the optimizer left out a parameter of the head, or `maximize` was switched on")
    return {name: SGDSettings.of_group(groups[name]) for name in trained}


def plain_sgd_settings(step: OptimizerStep, trained: Sequence[str]) -> tuple[float, float]:
    """Return learning rate and weight decay of a step of plain gradient descent.

    Args:
        step: as the optimizer made it.
        trained: names of the parameters.

    Raises:
        DomainLostError: as `sgd_settings`, if they differ among parameters, if there is momentum, or if one of them is
            negative: the poison of a step that ascends, and its roundings, would count with the wrong sign.
    """
    settings = sgd_settings(step, trained).values()
    used = {(setting.rate, setting.weight_decay, setting.momentum) for setting in settings}
    if len(used) != 1:
        raise DomainLostError(f"the parameters of the head have different settings, {sorted(used)}")
    rate, decay, momentum = used.pop()
    if momentum != 0:
        raise DomainLostError("momentum was switched on during training")
    if not min(rate, decay) >= 0:
        raise DomainLostError(f"the learning rate is {rate} and the weight decay {decay}, and one of them is negative")
    return rate, decay


def _another_kind(domain: str, optimizer: torch.optim.Optimizer | None) -> str:
    name = "no optimizer" if optimizer is None else type(optimizer).__name__
    return f"The {domain} domain covers `torch.optim.SGD` alone, but got {name}."


def _setting_problems(domain: str, optimizer: torch.optim.SGD, *uncovered: str) -> list[str]:
    """Return the problems of settings that must be zero or false."""
    plain = {"momentum": 0, "maximize": False}
    return [
        f"The {domain} domain does not cover `{key}`. Set `{key}={plain[key]}`."
        for key in uncovered
        if any(group[key] != plain[key] for group in optimizer.param_groups)
    ]


def _missing_problems(domain: str, setup: TrainingSetup, trained: Sequence[str]) -> list[str]:
    """Return the problem of trained parameters that the optimizer does not move."""
    assert setup.optimizer is not None
    moved = {id(parameter) for group in setup.optimizer.param_groups for parameter in group["params"]}
    missing = [name for name in trained if id(setup.module.get_parameter(name)) not in moved]
    if not missing:
        return []
    return [
        f"The {domain} domain needs all trained parameters in the optimizer, but {', '.join(missing)} is not there. "
        "Add it, or freeze it with `requires_grad_(False)`."
    ]
