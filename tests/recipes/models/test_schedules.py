import pytest
import torch

from recipes.models.schedules import InverseTimeDecay


def rates(lr, decay, floor, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = InverseTimeDecay(optimizer, decay, floor)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_half_moons_rates_are_those_of_the_paper():
    assert rates(2.0, 0.6, 0.0, 4) == pytest.approx([2.0 / (1 + 0.6 * n) for n in range(4)])


def test_rate_never_falls_below_the_floor():
    assert rates(1.0, 1.0, 0.4, 4) == pytest.approx([1.0, 0.5, 0.4, 0.4])


def test_schedule_resumes_from_its_state():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = InverseTimeDecay(optimizer, 1.0)
    optimizer.step()
    schedule.step()
    resumed = InverseTimeDecay(torch.optim.SGD([parameter], lr=1.0), 9.0)
    resumed.load_state_dict(schedule.state_dict())
    assert resumed.get_lr() == [0.5]
