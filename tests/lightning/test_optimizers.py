"""Every optimizer under the callback: no false alarms, checkpoints, accumulation, the certificate's record."""

import json

import lightning as L
import pytest
import torch
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

from agt_lightning import BoundedAdversary, CertifiedTraining, UncertifiableError
from agt_lightning.lightning.resume import signed

ADVERSARY = BoundedAdversary(n=1, epsilon=0.02)

OPTIMIZERS = {
    "momentum": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "nesterov of all at once": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True, foreach=True),
    "Adam": lambda p: Adam(p, lr=0.01),
    "AMSGrad": lambda p: Adam(p, lr=0.01, amsgrad=True, weight_decay=0.01),
    "AdamW": lambda p: AdamW(p, lr=0.01),
    "RMSprop": lambda p: RMSprop(p, lr=0.001, momentum=0.5),
    "Adagrad": lambda p: Adagrad(p, lr=0.05),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def module_of(regressor, make, seed=0):
    torch.manual_seed(seed)
    module = regressor()
    module.configure_optimizers = lambda: make(module.parameters())
    return module


@pytest.mark.thinned(5)
@every_optimizer
@pytest.mark.parametrize("n", [0, 2])
def test_training_is_unchanged_and_raises_no_false_alarm(make, n, fit, loader, regressor):
    for seed in range(2):
        plain, module = module_of(regressor, make, seed), module_of(regressor, make, seed)
        fit(plain, loader(size=16), max_epochs=4)
        certified = CertifiedTraining(BoundedAdversary(n=n, epsilon=0.01))
        fit(module, loader(size=16), certified, max_epochs=4)
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), module.parameters(), strict=True))
        assert certified.bounds.contains(module)


@pytest.mark.thinned(3)
@every_optimizer
def test_bounds_in_float32_raise_no_false_alarm(make, fit, loader, regressor):
    for seed in range(2):
        module = module_of(regressor, make, seed)
        certified = CertifiedTraining(BoundedAdversary(n=seed, epsilon=0.01), dtype=torch.float32)
        fit(module, loader(size=16), certified, max_epochs=4)
        assert certified.bounds.contains(module)


@pytest.mark.thinned(3)
@every_optimizer
def test_a_resumed_training_has_the_same_bounds_to_the_last_bit(make, fit, loader, regressor, tmp_path):
    whole, first, second = (CertifiedTraining(ADVERSARY) for _ in range(3))
    fit(module_of(regressor, make), loader(), whole, max_epochs=4)
    interrupted = fit(module_of(regressor, make), loader(), first, max_epochs=2)
    interrupted.save_checkpoint(tmp_path / "half.ckpt")
    fit(module_of(regressor, make), loader(), second, max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    for name, box in whole.engine.box.items():
        assert torch.equal(box.lower, second.engine.box[name].lower)
        assert torch.equal(box.upper, second.engine.box[name].upper)
        for moment, interval in whole.engine.domains.in_use["box"].states[name].moments.items():
            assert torch.equal(interval.upper, second.engine.domains.in_use["box"].states[name].moments[moment].upper)
    assert second.engine.domains.in_use["box"].states.keys() == whole.engine.domains.in_use["box"].states.keys()


def test_checkpoints_load_without_code(fit, loader, regressor, tmp_path):
    trainer = fit(module_of(regressor, OPTIMIZERS["Adam"]), loader(), CertifiedTraining(ADVERSARY))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    checkpoint = torch.load(tmp_path / "one.ckpt", weights_only=True)
    state = checkpoint["agt_bounds"]["domains"]["box"]["optimizer"]["net.0.weight"]
    assert state["step"] == 2
    assert set(state["lower"]) == set(state["upper"]) == {"exp_avg", "exp_avg_sq", "ratio"}


@pytest.mark.slow
def test_a_checkpoint_that_lost_the_states_is_refused(fit, loader, regressor, tmp_path):
    trainer = fit(module_of(regressor, OPTIMIZERS["Adam"]), loader(), CertifiedTraining(ADVERSARY))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    checkpoint = torch.load(tmp_path / "one.ckpt", weights_only=True)
    checkpoint["agt_bounds"]["domains"]["box"]["optimizer"].clear()
    checkpoint["agt_bounds"] = signed(checkpoint["agt_bounds"])
    torch.save(checkpoint, tmp_path / "less.ckpt")
    module = module_of(regressor, OPTIMIZERS["Adam"])
    with pytest.raises(UncertifiableError, match="that have no bounds. Use a new optimizer, or resume"):
        fit(module, loader(), CertifiedTraining(ADVERSARY), max_epochs=2, ckpt_path=tmp_path / "less.ckpt")


@every_optimizer
def test_a_short_last_window_steps_once(make, fit, loader, regressor):
    """Three batches, two a step: two steps, n for each, and the training is Lightning's own."""
    plain, module = module_of(regressor, make), module_of(regressor, make)
    fit(plain, loader(size=12), accumulate_grad_batches=2)
    certified = CertifiedTraining(ADVERSARY)
    fit(module, loader(size=12), certified, accumulate_grad_batches=2)
    assert certified.engine.steps == 2
    assert {state.step for state in certified.engine.domains.in_use["box"].states.values()} == {2}
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), module.parameters(), strict=True))
    assert certified.bounds.contains(module)


@pytest.mark.slow
def test_schedules_are_read_at_the_step(fit, loader, regressor):
    class Scheduled(regressor):
        def configure_optimizers(self):
            optimizer = AdamW(self.parameters(), lr=0.01)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=20)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    module, certified = Scheduled(), CertifiedTraining(BoundedAdversary(n=0))
    fit(module, loader(), certified, max_epochs=5)
    assert certified.bounds.mean_width() < 1e-5


class ResetsMoments(L.Callback):
    """Forgets the optimizer's state in the middle of training."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            for state in trainer.optimizers[0].state.values():
                state["exp_avg"].zero_()


def test_a_callback_that_changes_the_optimizer_is_caught(fit, loader, regressor):
    module = module_of(regressor, OPTIMIZERS["Adam"])
    with pytest.raises(Exception, match="within its bounds"):
        fit(module, loader(), CertifiedTraining(BoundedAdversary(n=4, epsilon=0.1)), ResetsMoments(), max_epochs=3)


def test_the_record_names_every_setting(fit, loader, regressor, tmp_path):
    module = module_of(regressor, lambda p: AdamW(p, lr=torch.tensor(0.01), foreach=False))
    fit(module, loader(), CertifiedTraining(ADVERSARY, dirpath=tmp_path), gradient_clip_val=0.5)
    record = json.loads((tmp_path / "certificate.json").read_text())
    (group,) = record["optimizer"]["param_groups_at_the_end"]
    assert record["optimizer"]["type"] == "AdamW"
    assert group["betas"] == [0.9, 0.999]
    assert group["lr"] == pytest.approx(0.01)
    assert record["bounds"]["clipping_of_the_mean_gradient"] == "MeanNormClipping(limit=0.5)"
