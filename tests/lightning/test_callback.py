"""The callback: bounds, files, checkpoints, masks, and the other stages of a Trainer."""

import json

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from agt_lightning import (
    BoundedAdversary,
    BoundsMismatchError,
    CertifiedTraining,
    ParameterBounds,
    UnboundedAdversary,
)

EQUAL = 1e-12
ADVERSARY = BoundedAdversary(n=1, epsilon=0.01, nu=0.05)


def assert_same_bounds(bounds, other):
    assert bounds.keys() == other.keys()
    for name, interval in bounds.items():
        assert torch.equal(interval.lower, other[name].lower), name
        assert torch.equal(interval.upper, other[name].upper), name


def make(kind):
    torch.manual_seed(5)
    return kind()


def test_bounds_before_training_have_a_clear_error():
    with pytest.raises(RuntimeError, match=r"no bounds yet. Call `trainer\.fit`"):
        _ = CertifiedTraining(ADVERSARY).bounds


def test_mean_width_is_logged(fit, loader, regressor):
    certified = CertifiedTraining(ADVERSARY)
    trainer = fit(make(regressor), loader(), certified)
    assert trainer.callback_metrics["agt/mean_width"].item() == pytest.approx(certified.bounds.mean_width(), rel=1e-4)


@pytest.mark.parametrize("clip", ["value", "norm"])
def test_the_unbounded_adversary_trains_clipped(clip, fit, loader, regressor):
    certified = CertifiedTraining(UnboundedAdversary(n=1, kappa=0.1, clip=clip))
    module, plain = make(regressor), make(regressor)
    fit(plain, loader())
    fit(module, loader(), certified)
    assert certified.bounds.contains(module)
    assert not torch.equal(plain.net[0].weight, module.net[0].weight)


@pytest.mark.parametrize("method", ["crown", "tightest"])
def test_the_method_is_used_in_training_and_named_in_the_certificate(method, fit, loader, regressor, tmp_path):
    widths = {}
    for choice in ("ibp", method):
        certified = CertifiedTraining(ADVERSARY, method=choice, domains="box", dirpath=tmp_path / choice)
        fit(make(regressor), loader(), certified, val=loader())
        widths[choice] = certified.bounds.mean_width()
        assert certified.certified_model().method == choice
        assert json.loads((tmp_path / choice / "certificate.json").read_text())["bounds"]["method"] == choice
    assert widths[method] < widths["ibp"]


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="Expected `method` to be one of"):
        CertifiedTraining(ADVERSARY, method="exact")


def test_files_are_written_and_can_be_loaded(fit, loader, regressor, tmp_path):
    module, certified = make(regressor), CertifiedTraining(ADVERSARY, dirpath=tmp_path / "run")
    fit(module, loader(), certified, val=loader())
    loaded = ParameterBounds.load(tmp_path / "run" / "bounds.safetensors")
    assert_same_bounds(loaded, certified.bounds)
    assert loaded.contains(module)
    assert certified.certified_model(module).bound_forward(torch.zeros(2, 3)).shape == (2, 1)
    record = json.loads((tmp_path / "run" / "certificate.json").read_text())
    assert record["adversary"] == {
        "type": "BoundedAdversary",
        "n": 1,
        "epsilon": 0.01,
        "p": "inf",
        "nu": 0.05,
        "q": "inf",
        "target_classes": None,
        "source_classes": None,
        "bounds": None,
        "at": None,
        "counts": "samples",
        "per": "batch",
    }
    assert record["steps"] == 2
    assert record["optimizer"]["type"] == "SGD"
    assert record["results"]["mean_width"] == pytest.approx(certified.bounds.mean_width())
    assert record["results"]["val_certified_mse"] >= record["results"]["val_nominal_mse"]
    assert {"torch", "lightning", "python"} <= record["versions"].keys()
    assert any("per batch" in assumption for assumption in record["assumptions"])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["bounds.safetensors", "certificate.json"]


def test_a_refused_training_writes_nothing(fit, loader, regressor, tmp_path):
    module = make(regressor)
    module.configure_optimizers = lambda: torch.optim.NAdam(module.parameters())
    with pytest.raises(Exception, match="NAdam"):
        fit(module, loader(), CertifiedTraining(ADVERSARY, dirpath=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_callback_can_be_used_again(fit, loader, regressor):
    once, again = CertifiedTraining(ADVERSARY), CertifiedTraining(ADVERSARY)
    fit(make(regressor), loader(), once)
    fit(make(regressor), loader(size=4), again)
    module = make(regressor)
    fit(module, loader(), again)
    assert_same_bounds(again.bounds, once.bounds)
    assert again.engine.steps == 2
    assert again.certified_model().module is module


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(fit, loader, regressor, tmp_path):
    """The checkpoint of two epochs of three."""
    saver = ModelCheckpoint(dirpath=tmp_path, filename="last", save_top_k=1)
    fit(make(regressor), loader(size=10), CertifiedTraining(ADVERSARY), saver, max_epochs=2, enable_checkpointing=True)
    return tmp_path / "last.ckpt"


@pytest.mark.slow
def test_a_resumed_run_has_the_bounds_of_an_uninterrupted_one(interrupted, fit, loader, regressor):
    whole, rest = CertifiedTraining(ADVERSARY), CertifiedTraining(ADVERSARY)
    plain, module = make(regressor), make(regressor)
    fit(plain, loader(size=10), whole, max_epochs=3)
    fit(module, loader(size=10), rest, max_epochs=3, ckpt_path=interrupted)
    assert torch.equal(plain.net[0].weight, module.net[0].weight)
    assert_same_bounds(rest.bounds, whole.bounds)
    assert rest.engine.steps == whole.engine.steps == 9


@pytest.mark.slow
def test_checkpoints_hold_tensors_and_plain_values_only(interrupted):
    checkpoint = torch.load(interrupted, weights_only=True)
    keys = {
        "steps",
        "floats",
        "adversary",
        "domains",
        "domains_of_others",
        "noted",
        "parameters",
        "statistics",
        "phases",
        "phases_of_others",
        "epochs_before",
        "buffers_at_start",
        "digest",
    }
    assert set(checkpoint["agt_bounds"]) == keys
    assert all(key.startswith("net.") for key in checkpoint["state_dict"])


@pytest.mark.slow
def test_resuming_with_another_adversary_is_refused(interrupted, fit, loader, regressor):
    other = CertifiedTraining(BoundedAdversary(n=2, epsilon=0.01, nu=0.05))
    with pytest.raises(BoundsMismatchError, match="adversary of the checkpoint"):
        fit(make(regressor), loader(size=10), other, max_epochs=4, ckpt_path=interrupted)


def test_resuming_without_bounds_is_refused(fit, loader, regressor, tmp_path):
    trainer = fit(make(regressor), loader(size=10), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(BoundsMismatchError, match="it has no bounds"):
        fit(make(regressor), loader(), CertifiedTraining(ADVERSARY), max_epochs=4, ckpt_path=tmp_path / "plain.ckpt")


@pytest.mark.slow
def test_a_checkpoint_whose_parameters_left_the_box_is_refused(interrupted, fit, loader, regressor):
    checkpoint = torch.load(interrupted, weights_only=True)
    checkpoint["state_dict"]["net.0.weight"] += 1
    torch.save(checkpoint, interrupted)
    with pytest.raises(BoundsMismatchError, match="outside"):
        fit(make(regressor), loader(), CertifiedTraining(ADVERSARY), max_epochs=4, ckpt_path=interrupted)


@pytest.mark.slow
def test_a_fresh_start_after_a_resumed_one(interrupted, fit, loader, regressor):
    certified, fresh = CertifiedTraining(ADVERSARY), CertifiedTraining(ADVERSARY)
    fit(make(regressor), loader(size=10), certified, max_epochs=3, ckpt_path=interrupted)
    fit(make(regressor), loader(), certified)
    fit(make(regressor), loader(), fresh)
    assert_same_bounds(certified.bounds, fresh.bounds)


@pytest.mark.slow
def test_testing_a_checkpoint_does_not_disturb_a_later_fit(interrupted, fit, loader, regressor):
    """`trainer.test(ckpt_path=...)` loads a checkpoint too; it is no resumption."""
    certified, fresh = CertifiedTraining(ADVERSARY), CertifiedTraining(ADVERSARY)
    module = make(regressor)
    module.test_step = module.validation_step
    fit.trainer(certified).test(module, loader(), ckpt_path=interrupted, verbose=False)
    fit(make(regressor), loader(), certified)
    fit(make(regressor), loader(), fresh)
    assert certified.engine.steps == 2
    assert_same_bounds(certified.bounds, fresh.bounds)


# --- other stages ---------------------------------------------------------------------------------------------------


def test_validate_test_and_predict_without_fit(fit, loader, regressor):
    module = make(regressor)
    module.test_step = module.validation_step
    module.predict_step = lambda batch, batch_idx: module(batch[0])
    trainer = fit.trainer(CertifiedTraining(ADVERSARY))
    assert "val_loss" in trainer.validate(module, loader(), verbose=False)[0]
    assert "val_loss" in trainer.test(module, loader(), verbose=False)[0]
    assert len(trainer.predict(module, loader())) == 2


@pytest.mark.slow
def test_the_sanity_check_is_not_certified(fit, loader, regressor):
    trainer = fit(make(regressor), loader(), CertifiedTraining(ADVERSARY), val=loader(), num_sanity_val_steps=2)
    assert "agt/val_certified_mse" in trainer.callback_metrics


# --- who can be poisoned --------------------------------------------------------------------------------------------


def keyed(x, y):
    return {"x": x, "y": y, "poisonable": torch.arange(len(x)) % 2 == 0}


@pytest.fixture
def keyed_regressor(regressor):
    class Keyed(regressor):
        def training_step(self, batch, batch_idx):
            return F.mse_loss(self(batch["x"]), batch["y"])

    return Keyed


@pytest.mark.parametrize("poisonable", ["poisonable", lambda batch: batch["poisonable"]], ids=["key", "function"])
def test_fewer_poisonable_samples_are_tighter(poisonable, fit, loader, keyed_regressor):
    data = loader(size=10, adapt=keyed)
    everyone, some = CertifiedTraining(ADVERSARY), CertifiedTraining(ADVERSARY, poisonable=poisonable)
    module = make(keyed_regressor)
    fit(make(keyed_regressor), data, everyone)
    fit(module, data, some)
    assert some.bounds.contains(module)
    assert some.bounds.mean_width() < everyone.bounds.mean_width()
    assert all((some.bounds[k].width <= everyone.bounds[k].width + EQUAL).all() for k in some.bounds)


def test_nobody_poisonable_is_a_point(fit, loader, keyed_regressor):
    nobody = CertifiedTraining(ADVERSARY, poisonable=lambda batch: torch.zeros(len(batch["x"]), dtype=torch.bool))
    fit(make(keyed_regressor), loader(adapt=keyed), nobody)
    assert nobody.bounds.mean_width() < 1e-5


MASKS = {
    "missing key": ("absent", KeyError, "absent"),
    "wrong type": (lambda batch: torch.ones(len(batch["x"])), ValueError, "boolean mask"),
    "wrong shape": (lambda batch: torch.ones(3, dtype=torch.bool), ValueError, r"shape \(4,\)"),
    "no tensor": (lambda batch: [True] * 4, ValueError, "boolean mask"),
}


@pytest.mark.parametrize(("poisonable", "error", "message"), MASKS.values(), ids=MASKS)
def test_wrong_masks_are_named(poisonable, error, message, fit, loader, keyed_regressor):
    certified = CertifiedTraining(ADVERSARY, poisonable=poisonable)
    with pytest.raises(error, match=message):
        fit(make(keyed_regressor), loader(adapt=keyed), certified)


@pytest.mark.slow
def test_a_setting_that_is_changed_before_training_counts(fit, loader, regressor):
    def first(batch):
        return torch.arange(len(batch[0])) < 1

    changed, whole = (CertifiedTraining(BoundedAdversary(n=2, epsilon=0.01), poisonable=p) for p in (first, None))
    changed.poisonable = None
    for certified in (changed, whole):
        torch.manual_seed(0)
        fit(regressor(), loader(), certified)
    assert changed.bounds.mean_width() == pytest.approx(whole.bounds.mean_width(), rel=1e-6)
    changed.method = "fast"
    with pytest.raises(ValueError, match="`method`"):
        fit(regressor(), loader(), changed)


def test_a_checkpoint_without_bounds_is_refused_when_training_starts(fit, loader, regressor):
    certified = CertifiedTraining(BoundedAdversary(n=1, epsilon=0.01))
    trainer = fit(regressor(), loader(), certified)
    trainer.state.fn = TrainerFn.FITTING
    certified.on_load_checkpoint(trainer, trainer.lightning_module, {"global_step": 2})
    with pytest.raises(BoundsMismatchError, match="no bounds"):
        certified.on_fit_start(trainer, regressor())
    certified.on_fit_start(trainer, regressor())
