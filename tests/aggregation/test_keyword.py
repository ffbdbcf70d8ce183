"""The keyword that chose between exact and wider sums is still accepted wherever it was."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from agt_lightning import AbstractGradientEngine, AbstractGradientStrategy, BoundedAdversary, CertifiedTraining
from agt_lightning.propagation.config import CertificationConfig

ADVERSARY = BoundedAdversary(n=1, epsilon=0.1)


def loss(module, batch):
    return nn.functional.mse_loss(module(batch[0]), batch[1])


def engine(**settings):
    torch.manual_seed(0)
    return AbstractGradientEngine(nn.Linear(2, 1), loss, ADVERSARY, **settings)


DOORS = {
    "config": CertificationConfig,
    "changed config": lambda **settings: replace(CertificationConfig(method="crown"), **settings),
    "engine": engine,
    "callback": lambda **settings: CertifiedTraining(ADVERSARY, **settings),
    "strategy": lambda **settings: AbstractGradientStrategy(ADVERSARY, certification=settings),
}


@pytest.mark.parametrize("open_door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("former", ["moment", "auto"])
def test_former_values_are_accepted_with_one_warning(open_door, former):
    with pytest.warns(FutureWarning, match=rf"`aggregation='{former}'` gave. Delete `aggregation=`") as said:
        open_door(aggregation=former)
    assert len(said) == 1


@pytest.mark.parametrize("open_door", DOORS.values(), ids=DOORS)
def test_exact_is_accepted_silently(open_door):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_door(aggregation="exact")


@pytest.mark.parametrize("open_door", DOORS.values(), ids=DOORS)
def test_other_values_are_refused(open_door):
    with pytest.raises(ValueError, match="Expected `aggregation` to be one of .* but got 'loose'"):
        open_door(aggregation="loose")


@pytest.mark.parametrize("open_door", [DOORS["config"], DOORS["callback"]], ids=["config", "callback"])
def test_the_warning_names_the_line_that_has_the_keyword(open_door):
    with pytest.warns(FutureWarning) as said:
        open_door(aggregation="auto")
    assert said[0].filename == __file__


def test_settings_that_were_warned_about_are_taken_over_silently():
    with pytest.warns(FutureWarning):
        config = CertificationConfig(aggregation="moment")
    assert replace(config, method="crown") == CertificationConfig(method="crown")


def test_bounds_are_the_exact_ones_whatever_was_written():
    batch = torch.linspace(-1, 1, 10).reshape(5, 2), torch.ones(5, 1)
    exact = engine()
    with pytest.warns(FutureWarning):
        former = engine(aggregation="moment")
    for each in (exact, former):
        each.step([batch], torch.optim.SGD(each.module.parameters(), lr=0.1))
    for name, interval in exact.box.items():
        assert torch.equal(former.box[name].lower, interval.lower)
        assert torch.equal(former.box[name].upper, interval.upper)
