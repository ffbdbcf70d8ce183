"""Optimizers and flags that are refused, and the messages."""

import pytest
import torch
from torch import nn

from agt_lightning.errors import BoundsMismatchError
from agt_lightning.optimizers import OPTIMIZERS, OptimizerState, abstract_optimizer, optimizer_problems
from tests.optimizers.oracles import OPTIMIZER_SETTINGS

REFUSED = {
    "centered": (
        torch.optim.RMSprop,
        {"centered": True},
        r"`centered=True` in parameter group 0.*Set `centered=False`",
    ),
    "capturable": (torch.optim.Adam, {"capturable": True}, r"bias corrections.*Set `capturable=False`"),
    "differentiable": (torch.optim.SGD, {"differentiable": True}, r"graph of the updates.*Set `differentiable=False`"),
    "betas that are tensors": (
        torch.optim.Adam,
        {"betas": (torch.tensor(0.9), torch.tensor(0.99)), "capturable": False, "foreach": False},
        r"tensors as `betas`.*Use numbers",
    ),
    "no eps": (torch.optim.Adam, {"eps": 0.0}, r"`eps=0.0`.*divided by zero. Set `eps=1e-8`"),
    "an eps that single precision takes for zero": (torch.optim.RMSprop, {"eps": 1e-46}, r"`eps=1e-46`.*by zero"),
    "no eps in Adagrad": (torch.optim.Adagrad, {"eps": 0.0}, r"`torch.optim.Adagrad` has `eps=0.0`"),
}


def parameters(count=1):
    return [nn.Parameter(torch.ones(1)) for _ in range(count)]


@pytest.mark.parametrize(("kind", "flags", "message"), REFUSED.values(), ids=REFUSED)
def test_flags_without_bounds_are_refused(kind, flags, message):
    (problem,) = optimizer_problems(kind(parameters(), lr=0.1, **flags))
    with pytest.raises(ValueError, match=message):
        raise ValueError(problem)


def test_every_group_is_looked_at():
    first, second = parameters(2)
    groups = [{"params": [first]}, {"params": [second], "centered": True}]
    (problem,) = optimizer_problems(torch.optim.RMSprop(groups, lr=0.1))
    assert "parameter group 1" in problem


def test_a_flag_of_a_later_torch_is_refused_by_name():
    optimizer = torch.optim.SGD(parameters(), lr=0.1)
    optimizer.defaults["lookahead"] = True
    optimizer.param_groups[0]["lookahead"] = True
    (problem,) = optimizer_problems(optimizer)
    assert "`lookahead=True`" in problem
    assert "Set `lookahead=False`" in problem


def test_what_schedulers_add_to_groups_is_no_flag():
    optimizer = torch.optim.AdamW(parameters(), lr=0.1)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=5)
    assert optimizer_problems(optimizer) == []


@pytest.mark.parametrize("setting", OPTIMIZER_SETTINGS, ids=str)
def test_every_flag_with_bounds_is_accepted(setting):
    assert optimizer_problems(setting.optimizer(parameters())) == []


@pytest.mark.parametrize("flag", ["foreach", "fused"])
def test_the_implementation_is_free(flag):
    assert optimizer_problems(torch.optim.Adam(parameters(), **{flag: True})) == []


class _Renamed(torch.optim.SGD):
    """A subclass could step differently."""


@pytest.mark.parametrize("kind", [torch.optim.Rprop, torch.optim.NAdam, torch.optim.LBFGS, _Renamed])
def test_other_optimizers_are_refused_with_those_that_exist(kind):
    optimizer = kind(parameters(), lr=0.1)
    assert abstract_optimizer(optimizer) is None
    (problem,) = optimizer_problems(optimizer)
    assert f"`{kind.__name__}` has no bounds" in problem
    assert all(f"`torch.optim.{known.__name__}`" in problem for known in OPTIMIZERS)


def test_adamw_is_no_adam():
    kinds = {kind: type(abstract_optimizer(kind(parameters(), lr=0.1))) for kind in OPTIMIZERS}
    assert kinds == OPTIMIZERS


def test_a_foreign_state_in_a_checkpoint_is_refused():
    with pytest.raises(BoundsMismatchError, match=r"`step`, `lower` and `upper`, but got \['exp_avg'\]"):
        OptimizerState.from_plain({"exp_avg": torch.zeros(1)})
