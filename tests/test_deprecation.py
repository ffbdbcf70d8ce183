"""Names of before work for one minor version, with a warning at the user's line, and not any longer."""

import pytest
import torch
from torch import nn

import agt_lightning
from agt_lightning import AbstractGradientEngine, BoundedAdversary, rules
from agt_lightning.deprecation import FORMER


def loss(module, batch):
    return nn.functional.mse_loss(module(batch[0]), batch[1])


def minor(version):
    return tuple(map(int, version.split(".")[:2]))


def test_each_warns_for_one_minor_version():
    for former in FORMER.values():
        major, since = minor(former.since)
        assert minor(former.gone_in) == (major, since + 1)


def test_nothing_stays_longer_than_its_warning_says():
    late = [name for name, former in FORMER.items() if minor(former.gone_in) <= minor(agt_lightning.__version__)]
    assert not late, "Expected these to be gone by now: delete them, their tests and their lines in `FORMER`."


def test_descend_is_bound_gradient():
    torch.manual_seed(0)
    engine = AbstractGradientEngine(nn.Linear(2, 1), loss, BoundedAdversary(n=1, epsilon=0.1))
    batch = torch.linspace(-1, 1, 10).reshape(5, 2), torch.ones(5, 1)
    with pytest.warns(FutureWarning, match="Write `engine.bound_gradient`. .* gone in version 0.3") as said:
        former = engine.descend([batch])
    assert said[0].filename == __file__
    for name, gradient in engine.bound_gradient([batch]).gradient.items():
        assert torch.equal(former.gradient[name], gradient)


def test_pieces_is_piecewise_monotone_function():
    with pytest.warns(FutureWarning, match="Write `rules.PiecewiseMonotoneFunction`") as said:
        assert rules.Pieces is rules.PiecewiseMonotoneFunction
    assert said[0].filename == __file__


def test_other_names_of_rules_do_not_exist():
    with pytest.raises(AttributeError, match="has no attribute 'Piece'"):
        _ = rules.Piece
