"""Which runs the bounds contain: stated in log and certificate, and kept when a training is resumed."""

import json
import math
from fractions import Fraction

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from agt_lightning import BoundedAdversary, BoundsMismatchError, CertifiedTraining, rules
from agt_lightning.lightning import report
from agt_lightning.rules import Monotone
from agt_lightning.rules.roundings import Relative

ADVERSARY = BoundedAdversary(n=1, epsilon=0.01)


def test_an_unknown_level_is_refused_at_once():
    with pytest.raises(ValueError, match="floats"):
        CertifiedTraining(ADVERSARY, floats="double")


@pytest.mark.parametrize(
    ("floats", "said"), [("run", "as hardware executes them in float32"), ("real", "in real arith")]
)
def test_the_level_stands_in_log_and_certificate(floats, said, tmp_path, monkeypatch, fit, loader, regressor):
    remarks = []
    monkeypatch.setattr(report, "rank_zero_info", remarks.append)
    fit(regressor(), loader(), CertifiedTraining(ADVERSARY, floats=floats, dirpath=tmp_path))
    assert sum(said in remark for remark in remarks) == 1
    record = json.loads((tmp_path / "certificate.json").read_text())
    assert record["bounds"]["floats"] == floats
    assert [phase["floats"] for phase in record["phases"]] == [floats]


@pytest.mark.parametrize(("first", "second", "allowed"), [("run", "real", True), ("real", "run", False)])
def test_bounds_on_real_runs_are_not_enough_for_float_runs(first, second, allowed, tmp_path, fit, loader, regressor):
    before = CertifiedTraining(ADVERSARY, floats=first)
    trainer = fit(regressor(), loader(), before, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    after = CertifiedTraining(ADVERSARY, floats=second, dirpath=tmp_path)
    if not allowed:
        with pytest.raises(BoundsMismatchError, match='floats="real"'):
            fit(regressor(), loader(), after, max_epochs=2, ckpt_path=tmp_path / "one.ckpt")
        return
    fit(regressor(), loader(), after, max_epochs=2, ckpt_path=tmp_path / "one.ckpt")
    assert json.loads((tmp_path / "certificate.json").read_text())["bounds"]["floats"] == "run, then real"


def test_bounds_in_single_precision_cover_their_own_rounding(fit, loader, regressor):
    """Wider than those in double precision, and about the same training."""

    def bounds(dtype):
        torch.manual_seed(0)
        certified = CertifiedTraining(ADVERSARY, dtype=dtype, domains=("box",))
        fit(regressor(), loader(), certified, max_epochs=2)
        return certified.engine.box

    double, single = bounds(torch.float64), bounds(torch.float32)
    for name, interval in double.items():
        assert bool((single[name].lower.double() <= interval.lower).all())
        assert bool((single[name].upper.double() >= interval.upper).all())
        assert float(single[name].width.max()) < 1.1 * float(interval.width.max())


class Doubling(nn.Module):
    """``2^x``, for which there is no rule."""

    def forward(self, x):
        return torch.exp2(x)


@pytest.mark.parametrize("rounding", [None, Relative(12, 14)], ids=["none", "stated"])
def test_a_rule_that_states_no_roundings_is_named(rounding, monkeypatch, fit, loader, regressor):
    remarks = []
    monkeypatch.setattr(report, "rank_zero_info", remarks.append)
    given = {} if rounding is None else {"rounding": rounding}
    rule = Monotone(torch.exp2, lambda x: torch.exp2(x) * math.log(2), nonnegative=True, **given)
    monkeypatch.setitem(rules._rules, torch.ops.aten.exp2.default, rule)
    module = regressor()
    module.net = nn.Sequential(module.net, Doubling())
    fit(module, loader(), CertifiedTraining(ADVERSARY))
    assert sum("`aten.exp2` by the rounding of a sum" in remark for remark in remarks) == (rounding is None)


@pytest.mark.parametrize("label", [0.1, -0.1, 0.3, 0.7])
def test_errors_of_validation_cover_labels_that_the_bounds_round(label, tmp_path, fit):
    """One tenth is no number in single precision, and the module computes in double precision."""

    class Zero(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 1, bias=False).double()
            nn.init.zeros_(self.linear.weight)

        def training_step(self, batch, _):
            return nn.functional.mse_loss(self.linear(batch[0]), batch[1])

        def validation_step(self, batch, _):
            self.training_step(batch, 0)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.0)

    data = TensorDataset(torch.zeros(4, 2).double(), torch.full((4, 1), label, dtype=torch.float64))
    batches = DataLoader(data, 2)
    fit(Zero(), batches, CertifiedTraining(ADVERSARY, dtype=torch.float32, dirpath=tmp_path), val=batches)
    results = json.loads((tmp_path / "certificate.json").read_text())["results"]
    assert Fraction(results["val_best_mse"]) <= Fraction(label) ** 2 <= Fraction(results["val_certified_mse"])
