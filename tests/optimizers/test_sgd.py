"""SGD: exact for plain steps and for momentum without decay."""

import pytest
import torch
from torch import nn

from agt_lightning.interval import Interval
from agt_lightning.optimizers import AbstractSGD
from tests.optimizers.oracles import CONTAINMENT, OPTIMIZER_SETTINGS, Setting, abstract_run, check_sgd, gradient_boxes

GROUP = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1, weight_decay=0.2).param_groups[0]


def test_update_is_the_smallest_box_around_every_corner_of_torch_sgd():
    check_sgd(AbstractSGD().update)


def test_learning_rate_of_the_moment_is_used():
    parameter = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.25)
    box = Interval.point(torch.ones(1, dtype=torch.float64))
    assert AbstractSGD().update(optimizer.param_groups[0], box, box).lower.item() == pytest.approx(0.75, abs=1e-12)


def test_zero_width_grows_by_rounding_alone():
    point = Interval.point(torch.ones(3, dtype=torch.float64))
    assert 0 < float(AbstractSGD().update(GROUP, point, point).width.max()) < 1e-12


def test_parameters_without_gradient_stay_where_they_are():
    point, zero = Interval.point(torch.ones(3, dtype=torch.float64)), Interval.point(torch.zeros(3).double())
    new = AbstractSGD().update({**GROUP, "weight_decay": 0.0}, point, zero)
    assert torch.equal(new.lower, point.lower)
    assert torch.equal(new.upper, point.upper)


def test_plain_sgd_remembers_nothing():
    point = Interval.point(torch.ones(3))
    state, _ = AbstractSGD().step(GROUP, AbstractSGD().initial(GROUP, point), point, point)
    assert (state.step, dict(state.moments)) == (1, {})


def without_decay(setting: Setting) -> bool:
    flags = setting.flags
    return setting.kind is torch.optim.SGD and "weight_decay" not in flags and flags.get("dampening", 0) <= 1


@pytest.mark.parametrize("setting", list(filter(without_decay, OPTIMIZER_SETTINGS)), ids=str)
@pytest.mark.parametrize("rates", [(0.1,), (0.3, 0.0, 0.05)], ids=["constant", "schedule"])
def test_momentum_without_decay_is_exact(setting, rates):
    """Torch reaches both ends of the box at every step, with every gradient at one end."""
    gradients = gradient_boxes(0, 10, 1.0)
    start = torch.zeros(12, dtype=torch.float64)
    boxes, group = [Interval.point(start)], setting.optimizer([nn.Parameter(start)]).param_groups[0]
    state = setting.counterpart.initial(group, boxes[0])
    for step, gradient in enumerate(gradients):
        rate = {**group, "lr": rates[step % len(rates)]}
        state, box = setting.counterpart.step(rate, state, boxes[-1], gradient)
        boxes.append(box)
    sign = -1 if setting.flags.get("maximize") else 1
    for name, end in (("upper", -sign), ("lower", sign)):
        parameter = nn.Parameter(start.clone())
        optimizer = setting.optimizer([parameter])
        for step, (gradient, box) in enumerate(zip(gradients, boxes[1:], strict=True)):
            optimizer.param_groups[0]["lr"] = rates[step % len(rates)]
            parameter.grad = gradient.upper.clone() if end > 0 else gradient.lower.clone()
            optimizer.step()
            assert torch.allclose(parameter.detach(), getattr(box, name), rtol=0, atol=CONTAINMENT)


def test_decay_with_momentum_loses_little():
    """Twice the decay's share: against the run with each gradient at one end, 100 steps at αλ = 1e-4."""
    gradients = gradient_boxes(0, 100, 0.1)
    setting = Setting(torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01})
    start = torch.zeros(12, dtype=torch.float64)
    _, boxes = abstract_run(setting, Interval.point(start), gradients)
    ends = []
    for side in ("lower", "upper"):
        parameter = nn.Parameter(start.clone())
        optimizer = setting.optimizer([parameter])
        for gradient in gradients:
            parameter.grad = getattr(gradient, side).clone()
            optimizer.step()
        ends.append(parameter.detach())
    exact = (ends[0] - ends[1]).abs().sum()
    assert 1.0 <= float(boxes[-1].width.sum() / exact) < 1.1


def test_momentum_switched_off_leaves_the_buffer_alone():
    point = Interval.point(torch.ones(2))
    group = {**GROUP, "momentum": 0.5}
    state, box = AbstractSGD().step(group, AbstractSGD().initial(group, point), point, point)
    later, _ = AbstractSGD().step({**group, "momentum": 0.0}, state, box, point)
    assert later.moments["momentum_buffer"] is state.moments["momentum_buffer"]
