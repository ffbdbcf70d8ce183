"""What a training will cost, whether it can be had, and when its bounds say nothing any more."""

import time
import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from agt_lightning import BoundedAdversary, CertifiedTraining
from agt_lightning.lightning import cost
from agt_lightning.lightning.cost import StepCost
from agt_lightning.lightning.plan import _predicted, batch_size, first_batch, rows_of


class Regressor(L.LightningModule):
    def __init__(self, rate=0.01, width=8):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 1))
        self.net[0].bias.requires_grad_(False)
        self.rate = rate

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Argmaxing(Regressor):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + (batch[0] - batch[0].mean(0)).square().mean()


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(32, 4), torch.randn(32, 1)


def plan_of(module, data, **settings):
    adversary = settings.pop("adversary", BoundedAdversary(n=1, epsilon=0.001))
    return CertifiedTraining(adversary, domains=settings.pop("domains", "auto")).plan(
        module, data, accelerator="cpu", **settings
    )


def test_a_plan_tells_roles_domains_and_cost_and_changes_nothing(batch):
    module = Regressor()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    found = plan_of(module, batch)
    assert not found.problems
    assert found.frozen == ("net.0.bias",)
    assert set(found.domains) == {"box", "ball"}
    assert [name for name, _ in found.left_out] == ["influence"]
    assert found.samples == found.tried == 32
    assert found.cost.certified >= found.cost.plain > 0
    assert found.peak_memory > 2**20
    assert not found.warning
    assert "batch[0]" in str(found)
    assert "a step on 32 samples" in str(found)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert module._trainer is None


@pytest.mark.slow
def test_all_problems_are_told_as_fit_would_tell_them(batch):
    module = Argmaxing()
    found = plan_of(module, batch)
    with pytest.raises(Exception, match="cannot be certified") as raised:
        L.Trainer(
            max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
            callbacks=[CertifiedTraining(BoundedAdversary(n=1, epsilon=0.001))],
        ).fit(module, DataLoader(TensorDataset(*batch), batch_size=32))  # fmt: skip
    assert found.problems == raised.value.problems
    assert str(found) == str(raised.value)
    assert found.cost is None


@pytest.mark.parametrize("kind", ["loader", "data module"])
def test_loaders_and_data_modules_give_their_first_batch(batch, kind):
    loader = DataLoader(TensorDataset(*batch), batch_size=8)
    data = loader if kind == "loader" else L.LightningDataModule.from_datasets(TensorDataset(*batch), batch_size=8)
    data = data if kind == "loader" else _with(data, loader)
    assert torch.equal(first_batch(data)[0], batch[0][:8])


def _with(data, loader):
    data.train_dataloader = lambda: loader
    return data


@pytest.mark.slow
def test_a_module_gets_the_batch_as_it_was_given(batch):
    class Picky(Regressor):
        def training_step(self, batch, batch_idx):
            assert type(batch) is tuple
            return super().training_step(batch, batch_idx)

    assert not plan_of(Picky(), batch).problems


@pytest.mark.slow
def test_other_callbacks_count_and_empty_loaders_are_named(batch):
    stopping = EarlyStopping("loss")
    for callbacks in (stopping, [stopping]):
        (problem,) = plan_of(Regressor(), batch, callbacks=callbacks).problems
        assert "`EarlyStopping`" in problem
    with pytest.raises(ValueError, match="at least one batch"):
        plan_of(Regressor(), DataLoader([]))


def test_steps_that_take_long_are_predicted_from_parts_of_the_batch(batch):
    found = plan_of(Regressor(), batch, seconds=0.0)
    assert (found.samples, found.tried) == (32, 8)
    assert "from batches of up to 8" in str(found)


def test_predictions_lie_on_the_line_through_the_two_largest_batches():
    costs = {1: StepCost(9.0, 9.0), 4: StepCost(3.0, 1.0), 8: StepCost(5.0, 1.5)}
    assert _predicted(costs, 32) == StepCost(17.0, 4.5)
    assert _predicted(costs, 8) == StepCost(5.0, 1.5)
    assert _predicted({4: StepCost(3.0, 1.0)}, 8) == StepCost(6.0, 2.0)
    assert _predicted({4: StepCost(3.0, 1.0), 8: StepCost(2.0, 1.0)}, 32) == StepCost(2.0, 1.0)


def test_rows_are_taken_of_entries_with_samples_alone():
    batch = {"x": torch.ones(6, 2), "y": torch.arange(6), "w": torch.ones(2), "name": "a"}
    assert batch_size(batch) == 6
    part = rows_of(batch, 6, 2)
    assert (len(part["x"]), len(part["y"]), len(part["w"]), part["name"]) == (2, 2, 2, "a")
    with pytest.raises(ValueError, match="Expected a batch with tensors"):
        batch_size("text")


def fitted(module, batch, steps, **settings):
    certified = CertifiedTraining(BoundedAdversary(**settings), domains=["box"])
    L.Trainer(
        max_epochs=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False, callbacks=[certified],
    ).fit(module, DataLoader(TensorDataset(*batch), batch_size=32))  # fmt: skip
    return certified


def test_bounds_that_say_nothing_are_told_once(batch):
    with pytest.warns(UserWarning, match=r"After step \d+ the bounds are .* as large as the trained") as caught:
        fitted(Regressor(rate=0.1), batch, 4, n=32, epsilon=1.0)
    assert sum("they say nothing" in str(each.message) for each in caught) == 1


def test_bounds_that_say_something_are_not_told(batch):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        certified = fitted(Regressor(), batch, 3, n=1, epsilon=0.001)
    assert not any("say nothing" in str(each.message) for each in caught)
    assert certified.cost.certified >= certified.cost.plain > 0


def test_steps_of_bounds_that_take_far_longer_than_plain_ones_are_told(batch, monkeypatch):
    monkeypatch.setattr(cost, "_WORTH_SAYING", 0.0)
    monkeypatch.setattr(cost, "_FACTOR", 2.0)
    with pytest.warns(UserWarning, match="times as long as a plain one"):
        fitted(Regressor(), batch, 3, n=1, epsilon=0.001)


def test_the_seconds_of_bounds_are_told_from_those_of_the_training():
    watch = cost.Stopwatch()
    for _ in range(3):
        watch.start_step()
        time.sleep(0.01)
        with watch.bounding():
            time.sleep(0.05)
        watch.end_step()
    watch.end_step()  # without a start
    assert watch.cost.certified >= 0.06
    assert 0.01 <= watch.cost.plain < watch.cost.certified - 0.04
    assert StepCost(2.0, 0.01).warning()
    assert not StepCost(0.9, 0.001).warning()
    assert not StepCost(2.0, 0.1).warning()
