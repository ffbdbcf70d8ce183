"""The file states results with the weights they are about, and the settings of all steps."""

import json

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint

from agt_lightning import BoundedAdversary, CertifiedTraining, UnsoundBoundError
from agt_lightning.certificates.assumptions import OWN_OBJECTIVE
from agt_lightning.certificates.values import BoundedValues
from agt_lightning.engine.bounded_runs import BoundedRuns
from agt_lightning.interval import Interval
from agt_lightning.lightning.resume import signed

ADVERSARY = BoundedAdversary(n=1, epsilon=0.05, nu=0.1)
WEAK = BoundedAdversary(n=1, epsilon=0.001)


def made(kind):
    torch.manual_seed(5)
    return kind()


def read(folder):
    return json.loads((folder / "certificate.json").read_text())


def values_of(results):
    return {name for name in results if name.startswith("val_")}


@pytest.fixture
def certified(tmp_path):
    return CertifiedTraining(ADVERSARY, domains="box", dirpath=tmp_path)


# --- results and their weights ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_results_of_an_earlier_step_are_not_those_of_the_trained_module(fit, loader, regressor, tmp_path):
    module, certified = made(regressor), CertifiedTraining(WEAK, domains="box", dirpath=tmp_path)
    fit(module, loader(), certified, val=loader(size=11), max_epochs=7, check_val_every_n_epoch=5)
    record = read(tmp_path)
    assert record["steps"] == record["results_are_of"]["steps"] == 14
    assert set(record["results"]) == {"mean_width"}
    (earlier,) = record["earlier_results"]
    assert earlier["steps"] == 10
    assert earlier["digest_of_the_weights"] != record["results_are_of"]["digest_of_the_weights"]
    assert "after step 10 of 14" in record["remarks"][0]
    assert record["bounds"]["domains"]["decided_validation_bounds"] == {}

    fit.trainer(certified).validate(module, loader(size=11), verbose=False)
    certified.save(tmp_path, torch.optim.SGD(module.parameters(), lr=0.1))
    later = read(tmp_path)
    assert values_of(later["results"]) == values_of(earlier["results"])
    assert later["results"]["val_certified_mse"] > earlier["results"]["val_certified_mse"]
    assert later["earlier_results"] == later["remarks"] == []


@pytest.mark.slow
def test_results_of_the_last_step_are_numbers(fit, loader, regressor, certified, tmp_path):
    fit(made(regressor), loader(), certified, val=loader(size=11), max_epochs=2)
    record = read(tmp_path)
    assert {type(value) for value in record["results"].values()} == {float}
    assert record["results"]["val_best_mse"] <= record["results"]["val_nominal_mse"]
    assert record["results"]["val_nominal_mse"] <= record["results"]["val_certified_mse"]
    assert record["earlier_results"] == record["remarks"] == []


@pytest.mark.slow
def test_weights_that_stay_while_their_bounds_move_have_no_earlier_results(fit, loader, regressor, tmp_path):
    """The clean gradient is zero, so that steps leave the weights alone; a poisoned run can move them."""

    class Still(regressor):
        def training_step(self, batch, batch_idx):
            x, y = batch
            return F.relu(self(x) - 0 * y - 100).mean()

    certified = CertifiedTraining(BoundedAdversary(n=1, epsilon=500.0), domains="box", dirpath=tmp_path)
    module = made(Still)
    before = module.net[0].weight.clone()
    fit(module, loader(), certified, val=loader(), max_epochs=3, check_val_every_n_epoch=2)
    assert torch.equal(module.net[0].weight, before)
    assert certified.bounds.mean_width() > 0
    assert set(read(tmp_path)["results"]) == {"mean_width"}


def test_the_sanity_check_leaves_no_results(fit, loader, regressor, certified, tmp_path):
    fit(made(regressor), loader(), certified, val=loader(), num_sanity_val_steps=2, check_val_every_n_epoch=2)
    assert set(read(tmp_path)["results"]) == {"mean_width"}


@pytest.mark.slow
def test_a_fit_without_validation_has_no_results_of_the_one_before(fit, loader, regressor, certified, tmp_path):
    fit(made(regressor), loader(), certified, val=loader())
    fit(made(regressor), loader(), certified)
    record = read(tmp_path)
    assert set(record["results"]) == {"mean_width"}
    assert record["earlier_results"] == []


# --- other weights ---------------------------------------------------------------------------------------------------


class Swap(L.Callback):
    """A callback that validates half of the weights, as averages of weights are."""

    def on_validation_epoch_start(self, trainer, pl_module):
        self.kept = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        for parameter in pl_module.parameters():
            parameter.data.mul_(0.5)

    def on_validation_epoch_end(self, trainer, pl_module):
        for name, parameter in pl_module.named_parameters():
            parameter.data.copy_(self.kept[name])


@pytest.mark.parametrize("first", [True, False])
def test_weights_swapped_for_validation_have_no_results(first, fit, loader, regressor, certified, tmp_path):
    callbacks = [Swap(), certified] if first else [certified, Swap()]
    with pytest.warns(UserWarning, match="other weights than the last step left"):
        trainer = fit(made(regressor), loader(), *callbacks, val=loader(), num_sanity_val_steps=0)
    assert not [key for key in trainer.callback_metrics if key.startswith("agt/val")]
    record = read(tmp_path)
    assert set(record["results"]) == {"mean_width"}
    assert "other weights" in record["remarks"][0]


@pytest.mark.slow
def test_an_older_checkpoint_that_is_validated_has_no_results(fit, loader, regressor, certified, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    module = made(regressor)
    trainer = fit(module, loader(), certified, saver, val=loader(), max_epochs=2, enable_checkpointing=True)
    with pytest.warns(UserWarning, match="other weights than the last step left"):
        found = trainer.validate(module, loader(), ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False)
    assert not [key for key in found[0] if key.startswith("agt/")]
    with pytest.raises(UnsoundBoundError, match="something else changed it"):
        certified.save(tmp_path, trainer.optimizers[0])


def test_another_module_that_is_validated_has_no_results(fit, loader, regressor, certified):
    trainer = fit(made(regressor), loader(), certified)
    with pytest.warns(UserWarning, match="another module"):
        trainer.validate(regressor(), loader(), verbose=False)


def test_a_module_outside_of_its_bounds_is_never_reported(fit, loader, regressor, certified, monkeypatch):
    box = BoundedRuns.box.fget
    beside = lambda runs: {  # noqa: E731
        name: Interval.trusted(interval.upper + 0.1, interval.upper + 0.2) for name, interval in box(runs).items()
    }
    monkeypatch.setattr(BoundedRuns, "box", property(beside))
    with pytest.raises(UnsoundBoundError, match="the prediction of the trained module"):
        fit(made(regressor), loader(), certified, val=loader())


def test_a_module_worse_than_its_certificate_is_never_reported(fit, loader, classifier, certified, monkeypatch):
    positive = lambda values, target: Interval.point(torch.ones(len(target), 3, dtype=torch.float64))  # noqa: E731
    monkeypatch.setattr(BoundedValues, "margins", positive)
    adversary = BoundedAdversary(n=1, epsilon=0.01)
    with pytest.raises(UnsoundBoundError, match="Expected the trained module to predict sample"):
        fit(
            made(classifier), loader("class"), CertifiedTraining(adversary, domains="box"), val=loader("class", size=32)
        )


# --- settings of all steps -------------------------------------------------------------------------------------------


@pytest.fixture
def resumed(fit, loader, regressor, tmp_path):
    """Train some epochs under some settings and the rest under others; return certificate, callback and module."""

    def run(first, second, change=None, epochs=(2, 4)):
        saver = ModelCheckpoint(dirpath=tmp_path, filename="last", enable_version_counter=False)
        before = CertifiedTraining(ADVERSARY, domains="box", **first)
        fit(made(regressor), loader(), before, saver, max_epochs=epochs[0], enable_checkpointing=True)
        if change is not None:
            checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
            change(checkpoint["agt_bounds"])
            checkpoint["agt_bounds"] = signed(checkpoint["agt_bounds"])
            torch.save(checkpoint, tmp_path / "last.ckpt")
        certified, module = CertifiedTraining(ADVERSARY, domains="box", dirpath=tmp_path, **second), made(regressor)
        fit(module, loader(), certified, max_epochs=epochs[1], ckpt_path=tmp_path / "last.ckpt")
        return read(tmp_path), certified, module

    return run


def poison(x, y):
    """Move the first sample of each batch within the limits."""
    first = F.one_hot(torch.tensor(0), len(x))[:, None]
    return x - 0.05 * first, y + 0.1 * first


def nobody(batch):
    return torch.zeros(len(batch[0]), dtype=torch.bool)


@pytest.mark.slow
def test_a_resumed_training_does_not_claim_what_holds_for_its_last_steps_alone(resumed, fit, loader, regressor):
    record, certified, _ = resumed({"poisonable": nobody}, {}, epochs=(9, 10))
    assert record["bounds"]["all_samples_poisonable"] is False
    assert [phase["steps"] for phase in record["phases"]] == [[1, 18], [19, 20]]
    assert [phase["all_samples_poisonable"] for phase in record["phases"]] == [False, True]
    assert any("`poisonable` leaves out are clean" in sentence for sentence in record["assumptions"])

    poisoned = made(regressor)
    fit(poisoned, loader(adapt=poison), max_epochs=10)
    assert not certified.bounds.contains(poisoned), "an adversary at every step is what this certificate is not about"


@pytest.mark.slow
def test_each_type_of_a_resumed_training_is_listed(resumed):
    record, _, _ = resumed({"dtype": torch.float32}, {"dtype": torch.float64})
    assert record["bounds"]["dtype"] == "float32, then float64"


@pytest.mark.slow
def test_a_training_resumed_under_its_own_settings_is_one_phase(resumed):
    record, _, _ = resumed({}, {})
    assert [phase["steps"] for phase in record["phases"]] == [[1, 8]]
    assert record["bounds"]["all_samples_poisonable"] is True
    assert record["bounds"]["dtype"] == "float64"


@pytest.mark.slow
def test_settings_that_an_older_checkpoint_lacks_are_unknown(resumed):
    """Whether all its samples could be poisoned, here."""
    record, _, _ = resumed({}, {}, change=lambda bounds: bounds["phases"][0].pop("all_samples_poisonable"))
    assert record["bounds"]["all_samples_poisonable"] == "unknown"


@pytest.mark.parametrize("former", ["moment", "auto"])
def test_sums_of_an_older_checkpoint_are_told_apart(former, resumed):
    """It is from a version that bounded sums by moments, or chose between these and exact ones."""
    record, certified, _ = resumed({}, {}, change=lambda bounds: bounds["phases"][0].update(aggregation=former))
    assert record["bounds"]["aggregation"] == f"{former}, then exact"
    assert [phase["aggregation"] for phase in record["phases"]] == [former, "exact"]
    assert certified.bounds.mean_width() > 0


def with_objective(architecture):
    class WithObjective(architecture):
        def certified_objective(self, batch):
            return self.training_step(batch, 0)

    return WithObjective


def test_an_objective_of_the_users_own_is_assumed_to_be_the_trained_loss(fit, loader, regressor, certified, tmp_path):
    fit(made(with_objective(regressor)), loader(), certified)
    record = read(tmp_path)
    assert record["bounds"]["certified_objective_is_overridden"] is True
    assert OWN_OBJECTIVE.sentence in record["assumptions"]


@pytest.mark.slow
def test_what_else_is_stated_is_kept_in_checkpoints(resumed):
    def objective_was_overridden(bounds):
        bounds["phases"][0]["certified_objective_is_overridden"] = True

    record, _, _ = resumed({}, {}, change=objective_was_overridden)
    assert [phase["certified_objective_is_overridden"] for phase in record["phases"]] == [True, False]
    assert OWN_OBJECTIVE.sentence in record["assumptions"]


def test_frozen_parameters_are_named(fit, loader, regressor, certified, tmp_path):
    module = made(regressor)
    module.net[0].requires_grad_(False)
    fit(module, loader(), certified)
    assert read(tmp_path)["frozen_parameters"] == ["net.0.weight", "net.0.bias"]
