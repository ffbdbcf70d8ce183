"""Laws of every abstract optimizer, with every flag that has a meaning."""

import pytest
import torch

from agt_lightning.interval import Interval
from agt_lightning.optimizers import OptimizerState
from tests.optimizers.oracles import (
    OPTIMIZER_SETTINGS,
    abstract_run,
    check_containment,
    check_monotone,
    check_points,
    gradient_boxes,
)

every_setting = pytest.mark.parametrize("setting", OPTIMIZER_SETTINGS, ids=str)


@every_setting
def test_boxes_contain_every_run_of_torch(setting):
    check_containment(setting)


@every_setting
def test_zero_width_is_torch_itself(setting):
    check_points(setting)


@every_setting
def test_wider_gradients_are_never_tighter(setting):
    check_monotone(setting)


@every_setting
def test_bounds_are_finite_and_ordered_in_every_type(setting, subtests):
    for dtype in (torch.float32, torch.float64):
        with subtests.test(dtype=dtype):
            require_ordered_bounds(setting, dtype)


def require_ordered_bounds(setting, dtype):
    """Raise unless the boxes and moments of a run are intervals of finite numbers of this type."""
    gradients = [interval.to(dtype=dtype) for interval in gradient_boxes(6, 12, 2.0)]
    state, boxes = abstract_run(setting, Interval.point(torch.zeros(12, dtype=dtype)), gradients)
    for interval in (*boxes, *state.moments.values()):
        Interval(interval.lower, interval.upper)
        assert interval.dtype == dtype


@every_setting
def test_gradients_of_any_size_are_bounded(setting, subtests):
    for size in (0.0, 1e-30, 1e-12, 1e12):
        with subtests.test(size=size):
            require_bounded(setting, size)


def require_bounded(setting, size):
    """Raise unless gradients multiplied by ``size`` leave boxes that are intervals of finite numbers."""
    gradients = [
        Interval.trusted(size * interval.lower, size * interval.upper) for interval in gradient_boxes(7, 5, 2.0)
    ]
    _, boxes = abstract_run(setting, Interval.point(torch.zeros(12, dtype=torch.float64)), gradients)
    for box in boxes:
        Interval(box.lower, box.upper)


@every_setting
def test_state_survives_a_checkpoint_to_the_last_bit(setting, tmp_path):
    gradients = gradient_boxes(8, 6, 0.5)
    start = Interval.point(torch.zeros(12, dtype=torch.float64))
    state, boxes = abstract_run(setting, start, gradients[:3])
    torch.save(state.plain(), tmp_path / "state.pt")
    loaded = OptimizerState.from_plain(torch.load(tmp_path / "state.pt", weights_only=True))
    group = setting.optimizer([torch.nn.Parameter(start.lower.clone())]).param_groups[0]
    one = two = boxes[-1]
    for gradient in gradients[3:]:
        state, one = setting.counterpart.step(group, state, one, gradient)
        loaded, two = setting.counterpart.step(group, loaded, two, gradient)
    assert torch.equal(one.lower, two.lower)
    assert torch.equal(one.upper, two.upper)
