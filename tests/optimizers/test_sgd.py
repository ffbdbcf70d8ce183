import pytest
import torch
from torch import nn

from agt_lightning.interval import Interval
from agt_lightning.optimizers import AbstractSGD, abstract_optimizer
from tests.optimizers.oracles import SETTINGS, check_sgd, torch_step

STEPS = 8
ROUNDING = 1e-12
"""Eight steps of float64 on values that grow to a few hundred."""


def test_update_is_the_smallest_box_around_every_corner_of_torch_sgd():
    check_sgd(AbstractSGD().update)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_box_contains_whole_runs_of_torch_sgd(settings):
    generator = torch.Generator().manual_seed(1)
    ends = torch.randn(STEPS, 2, 5, generator=generator, dtype=torch.float64)
    gradients = [Interval(pair.amin(dim=0), pair.amax(dim=0)) for pair in ends]
    start = torch.randn(5, generator=generator, dtype=torch.float64)
    group = torch.optim.SGD([nn.Parameter(start)], **settings).param_groups[0]
    for _ in range(20):
        box, value = Interval.point(start), start
        for gradient in gradients:
            share = torch.rand(5, generator=generator, dtype=torch.float64).round()
            value = torch_step(value, gradient.lower + share * gradient.width, settings)
            box = AbstractSGD().update(group, box, gradient)
            assert box.contains(value, ROUNDING * (1 + float(value.abs().max())))


def test_learning_rate_of_the_moment_is_used():
    parameter = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.25)
    box = Interval.point(torch.ones(1, dtype=torch.float64))
    assert AbstractSGD().update(optimizer.param_groups[0], box, box).lower.item() == 0.75


def test_zero_width_stays_zero_width():
    point = Interval.point(torch.ones(3, dtype=torch.float64))
    assert AbstractSGD().update({"lr": 0.1, "weight_decay": 0.2}, point, point).is_point


REFUSED = {
    "momentum": ({"momentum": 0.9}, r"`torch.optim.SGD` has `momentum=0.9` in parameter group 0.*Set `momentum=0.0`"),
    "nesterov": ({"momentum": 0.9, "nesterov": True}, r"has `nesterov=True`.*Set `nesterov=False`"),
    "maximize": ({"maximize": True}, r"has `maximize=True`.*Set `maximize=False`"),
    "dampening": ({"dampening": 0.5}, r"has `dampening=0.5`.*Set `dampening=0.0`"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_without_bounds_are_refused(name):
    settings, message = REFUSED[name]
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1, **settings)
    problems = "\n".join(AbstractSGD().problems(optimizer))
    with pytest.raises(ValueError, match=message):
        raise ValueError(problems)


def test_every_group_is_looked_at():
    optimizer = torch.optim.SGD(
        [{"params": [nn.Parameter(torch.ones(1))]}, {"params": [nn.Parameter(torch.ones(1))], "momentum": 0.5}], lr=0.1
    )
    (problem,) = AbstractSGD().problems(optimizer)
    assert "parameter group 1" in problem


def test_plain_sgd_with_decay_has_no_problems():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1, weight_decay=0.1)
    assert AbstractSGD().problems(optimizer) == []


class _Renamed(torch.optim.SGD):
    """A subclass could step differently."""


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, _Renamed])
def test_only_sgd_itself_has_a_counterpart(kind):
    assert abstract_optimizer(kind([nn.Parameter(torch.ones(1))], lr=0.1)) is None


def test_sgd_has_a_counterpart():
    assert isinstance(abstract_optimizer(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)), AbstractSGD)
