"""A step of several processes, put together from what each of them knows."""

from types import SimpleNamespace

import pytest
import torch

from agt_lightning.aggregation import SampleSet
from agt_lightning.distributed.group import SingleProcess
from agt_lightning.domains.ball.gathered import gathered
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.samples import Poison, Samples
from agt_lightning.domains.losses import LabelPerturbation
from agt_lightning.errors import UnsoundBoundError
from agt_lightning.interval import Interval

INPUTS = torch.randn(3, 2, dtype=torch.float64)
TARGET = Interval.point(torch.randn(3, 1, dtype=torch.float64))
MOVES = Perturbation(torch.full((1, 2), 0.1, dtype=torch.float64))


class Two(SingleProcess):
    """This process and another one, whose message is this one's, changed."""

    def __init__(self, change):
        self.change = change

    @property
    def size(self):
        return 2

    def gather(self, message):
        return message, self.change(dict(message))


def together(change, moves=MOVES):
    step = SimpleNamespace(
        processes=Two(change),
        samples=SampleSet(torch.full((6,), 1 / 6, dtype=torch.float64)),
        adversary=SimpleNamespace(n=2),
    )
    poison = Poison(torch.arange(3), 2, LabelPerturbation(TARGET, TARGET), moves)
    return gathered(step, Samples(INPUTS, (INPUTS[:, :1],)), TARGET, poison)


def without(name):
    return lambda message: {key: value for key, value in message.items() if key != name}


def test_samples_stand_one_process_after_another():
    samples, target, poison = together(lambda message: message | {"inputs": -INPUTS})
    assert torch.equal(samples.inputs, torch.cat([INPUTS, -INPUTS]))
    assert target.shape == (6, 1)
    assert poison.n == 2
    assert torch.equal(poison.rows, torch.arange(6))
    assert torch.equal(poison.moves.half_widths, MOVES.half_widths)


def test_the_farther_reach_counts():
    other = torch.full((3, 2), 0.3, dtype=torch.float64)
    moves = together(lambda message: message | {"half_widths": other})[2].moves
    assert bool((moves.half_widths[3:] == 0.3).all())
    assert bool((moves.half_widths[:3] >= 0.1).all())


@pytest.mark.parametrize("change", [without("half_widths"), lambda message: message | {"p": "1.0"}])
def test_processes_that_disagree_about_features_are_refused(change):
    with pytest.raises(UnsoundBoundError, match="same adversary"):
        together(change)


def test_a_ball_that_one_process_knows_alone_is_refused():
    moves = Perturbation(MOVES.half_widths, scale=torch.ones(2, dtype=torch.float64), p=1.0)
    with pytest.raises(UnsoundBoundError, match="same adversary"):
        together(without("scale"), moves)
