"""Running statistics after a step, as devices compute them."""

import pytest
import torch

from agt_lightning.capture.batch_statistics import Running
from agt_lightning.interval import Interval
from agt_lightning.propagation.running_statistics import StatisticsUpdate, followed


@pytest.mark.parametrize("momentum", [0.1, 0.99, 0.99999])
def test_a_factor_that_is_taken_from_a_rounded_momentum_is_covered(momentum):
    """A kernel in single precision takes 1 - m from m in that type, which is far off relatively where m is near one."""
    old, statistic = torch.tensor([300.0, -7.0]), torch.tensor([0.0, 0.01])
    rounded = torch.tensor(momentum)
    run = (1 - rounded) * old + rounded * statistic
    point = Interval.point(statistic.double())
    update = StatisticsUpdate(Running("mean", "variance", momentum), point, point)
    before = dict.fromkeys(("mean", "variance"), Interval.point(old.double()))
    after = followed(before, [update], dict.fromkeys(before, torch.float32), "run")
    assert after["mean"].contains(run.double())
    assert after["mean"].contains(old.double() * (1 - momentum) + statistic.double() * momentum)
    assert after["mean"].width.max() < 1e-3
