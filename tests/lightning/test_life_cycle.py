"""Several fits of one module: bounds that go on, and trainings that are refused."""

import copy
import json

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from agt_lightning import (
    BoundedAdversary,
    BoundsMismatchError,
    CertifiedModel,
    CertifiedModule,
    CertifiedTraining,
    ParameterBounds,
    UncertifiableError,
    UnsoundBoundError,
)
from agt_lightning.domains.box import BoxDomain

ADVERSARY = BoundedAdversary(n=1, nu=0.5)
SHIFTS = (0.5, -0.5)


def make(kind, seed=5, **settings):
    torch.manual_seed(seed)
    return kind(**settings)


def targets(shift=0.0):
    """A loader in fixed order whose first sample of each batch has its target moved."""
    generator = torch.Generator().manual_seed(7)
    x, y = torch.randn(8, 3, generator=generator), torch.randn(8, 1, generator=generator)
    y[::4] += shift
    return DataLoader(TensorDataset(x, y), batch_size=4)


class Stop(L.Callback):
    """An exception at a batch of an epoch, once."""

    def __init__(self, error, epoch=1, batch=1):
        self.error, self.at = error, (epoch, batch)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.error is not None and (trainer.current_epoch, batch_idx) == self.at:
            error, self.error = self.error, None
            raise error


def with_optimizer(kind, name, **settings):
    class Module(kind):
        def configure_optimizers(self):
            return getattr(torch.optim, name)(self.parameters(), **settings)

    return Module


def assert_poisoned_runs_are_inside(certified, kind, train):
    """Train on moved targets as ``train(module, loader)`` does, and look whether the parameters are in the bounds."""
    for shift in SHIFTS:
        module = make(kind)
        train(module, targets(shift))
        assert certified.bounds.contains(module)


# --- a second fit goes on -------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "SGD": {"lr": 0.1},
    "momentum": {"lr": 0.05, "momentum": 0.9},
    "Adam": {"lr": 0.02},
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("domains", ["box", "auto"])
def test_a_second_fit_adds_to_the_bounds(optimizer, domains, fit, regressor):
    kind = with_optimizer(regressor, "Adam" if optimizer == "Adam" else "SGD", **OPTIMIZERS[optimizer])
    certified = CertifiedTraining(ADVERSARY, domains=domains)

    def twice(module, loader, *callbacks):
        for epochs in (2, 2):
            fit(module, loader, *callbacks, max_epochs=epochs)

    module = make(kind)
    fit(module, targets(), certified, max_epochs=2)
    width = certified.bounds.mean_width()
    fit(module, targets(), certified, max_epochs=2)
    assert certified.engine.steps == 8
    assert certified.bounds.mean_width() > width
    assert certified.bounds.contains(module)
    assert_poisoned_runs_are_inside(certified, kind, twice)


@pytest.mark.slow
def test_one_trainer_with_more_epochs_has_the_bounds_of_one_fit(fit, regressor):
    whole, certified = CertifiedTraining(ADVERSARY), CertifiedTraining(ADVERSARY)
    fit(make(regressor), targets(), whole, max_epochs=4)
    module = make(regressor)
    trainer = fit(module, targets(), certified, max_epochs=2)
    trainer.fit_loop.max_epochs = trainer.fit_loop.epoch_loop.max_epochs = 4
    trainer.fit(module, targets())
    assert certified.engine.steps == 8
    for name, interval in whole.bounds.items():
        assert torch.allclose(interval.lower, certified.bounds[name].lower, rtol=1e-6)
        assert torch.allclose(interval.upper, certified.bounds[name].upper, rtol=1e-6)


def test_a_fit_without_a_step_replaces_nothing(fit, regressor, tmp_path):
    certified = CertifiedTraining(ADVERSARY, dirpath=tmp_path)
    module = make(regressor)
    trainer = fit(module, targets(), certified, max_epochs=2)
    width, files = certified.bounds.mean_width(), {path: path.read_bytes() for path in tmp_path.iterdir()}
    trainer.fit(module, targets())
    fit(module, targets(), certified, max_steps=0)
    fit(make(regressor), targets(), certified, limit_train_batches=0)
    assert certified.bounds.mean_width() == width > 0
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert json.loads((tmp_path / "certificate.json").read_text())["steps"] == 4


def test_a_refused_fit_replaces_nothing(fit, regressor):
    certified = CertifiedTraining(ADVERSARY)
    module, refused = make(regressor), make(with_optimizer(regressor, "NAdam"))
    fit(module, targets(), certified, max_epochs=2)
    width = certified.bounds.mean_width()
    with pytest.raises(UncertifiableError, match="NAdam"):
        fit(refused, targets(), certified)
    assert certified.engine.module is module
    assert certified.bounds.mean_width() == width


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("full disk")], ids=["Ctrl-C", "exception"])
def test_training_goes_on_after_an_interruption(error, fit, regressor):
    kind = with_optimizer(regressor, "SGD", lr=0.05, momentum=0.9)
    certified = CertifiedTraining(ADVERSARY)

    def interrupted(module, loader, *callbacks):
        trainer = fit.trainer(*callbacks, Stop(error), max_epochs=2)
        with pytest.raises((SystemExit, RuntimeError)):
            trainer.fit(module, loader)
        steps.append(trainer.global_step)
        trainer.fit(module, loader)
        steps.append(trainer.global_step)

    steps = []
    module = make(kind)
    interrupted(module, targets(), certified)
    assert certified.engine.steps == steps[1] > steps[0] == 3
    assert certified.bounds.contains(module)
    assert_poisoned_runs_are_inside(certified, kind, interrupted)


@pytest.mark.slow
def test_an_optimizer_that_is_kept_keeps_its_state(fit, regressor):
    class Keeps(regressor):
        def __init__(self):
            super().__init__()
            self.kept = torch.optim.Adam(self.parameters(), lr=0.02)

        def configure_optimizers(self):
            return self.kept

    certified = CertifiedTraining(ADVERSARY)

    def twice(module, loader, *callbacks):
        for _ in range(2):
            fit(module, loader, *callbacks, max_epochs=2)

    twice(make(Keeps), targets(), certified)
    assert certified.engine.domains.in_use["box"].states["net.0.weight"].step == 8
    assert_poisoned_runs_are_inside(certified, Keeps, twice)


@pytest.mark.slow
def test_an_optimizer_with_a_foreign_state_is_refused(fit, regressor):
    class Keeps(regressor):
        def configure_optimizers(self):
            return self.kept

    certified, module = CertifiedTraining(ADVERSARY), make(Keeps)
    module.kept = torch.optim.Adam(module.parameters(), lr=0.02)
    fit(module, targets(), certified)
    module.kept.state[module.net[0].weight]["exp_avg"] *= 2
    with pytest.raises(UncertifiableError, match="neither empty nor the one"):
        fit(module, targets(), certified)
    module.kept.state.clear()
    fit(module, targets(), certified)
    assert certified.engine.steps == 4


def test_a_domain_that_does_not_define_a_restart_is_refused(fit, regressor):
    class Own(BoxDomain):
        name = "own"

        def restart_optimizer(self):
            super(BoxDomain, self).restart_optimizer()

    certified, module = CertifiedTraining(ADVERSARY, domains=[Own]), make(regressor)
    fit(module, targets(), certified)
    with pytest.raises(UncertifiableError, match="`restart_optimizer`"):
        fit(module, targets(), certified)


# --- another callback, another module -------------------------------------------------------------------------------


@pytest.mark.slow
def test_another_callback_goes_on_from_the_bounds(fit, regressor):
    first, second = CertifiedTraining(ADVERSARY), CertifiedTraining(ADVERSARY)

    def twice(module, loader, *callbacks):
        fit(module, loader, *callbacks[:1], max_epochs=2)
        fit(module, loader, *callbacks[1:], max_epochs=2)

    twice(make(regressor), targets(), first, second)
    assert second.engine.steps == 8
    assert_poisoned_runs_are_inside(second, regressor, twice)


@pytest.mark.slow
def test_the_callback_of_the_mixin_goes_on(fit, regressor):
    class Module(CertifiedModule, regressor):
        def configure_certification(self):
            return CertifiedTraining(ADVERSARY)

    module = make(Module)
    trainer = fit(module, targets(), max_epochs=1)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, targets())
    fit(module, targets(), max_epochs=1)
    assert module.certified_training.engine.steps == 6
    whole = CertifiedTraining(ADVERSARY)
    fit(make(regressor), targets(), whole, max_epochs=3)
    assert module.parameter_bounds.mean_width() == pytest.approx(whole.bounds.mean_width(), rel=1e-5)


@pytest.mark.slow
def test_a_copy_of_a_trained_module_goes_on_from_a_checkpoint(fit, regressor, tmp_path):
    certified, module = CertifiedTraining(ADVERSARY), make(regressor)
    trainer = fit(module, targets(), certified, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    copied = make(regressor, seed=1)
    copied.load_state_dict(module.state_dict())
    with pytest.raises(BoundsMismatchError, match="is a copy of that one"):
        fit(copied, targets(), certified)
    fit(copied, targets(), certified, max_epochs=4, ckpt_path=tmp_path / "last.ckpt")
    assert certified.engine.steps == 8


@pytest.mark.slow
def test_a_module_that_was_put_back_to_its_start_starts_again(fit, regressor):
    certified, module = CertifiedTraining(ADVERSARY), make(regressor)
    start = copy.deepcopy(module.state_dict())
    fit(module, targets(), certified)
    width = certified.bounds.mean_width()
    module.load_state_dict(start)
    fit(module, targets(), CertifiedTraining(BoundedAdversary(n=2, nu=0.1)))
    module.load_state_dict(start)
    fit(module, targets(), certified)
    assert certified.bounds.mean_width() == width
    assert certified.engine.steps == 2


def another_adversary(fit, module):
    return CertifiedTraining(BoundedAdversary(n=2, nu=0.5))


def changed_weights(fit, module):
    module.net[0].weight.data *= 0.5
    return CertifiedTraining(ADVERSARY)


def uncertified_steps(fit, module):
    fit(module, targets())
    return CertifiedTraining(ADVERSARY)


REFUSED = {
    another_adversary: "adversary of the module's earlier training",
    changed_weights: "as the last certified step of this module left them",
    uncertified_steps: "as the last certified step of this module left them",
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_has_no_bounds_is_refused_before_a_step(change, fit, regressor):
    module = make(regressor)
    fit(module, targets(), CertifiedTraining(ADVERSARY))
    certified = change(fit, module)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(BoundsMismatchError, match=REFUSED[change]):
        fit(module, targets(), certified)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    fit(make(regressor, seed=2), targets(), CertifiedTraining(BoundedAdversary(n=3, nu=0.1)))  # the way out


def test_a_training_that_was_cut_off_in_a_step_cannot_go_on(fit, regressor):
    class CutOff(regressor):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)  # the parameters stay, and nothing shows

        def on_before_optimizer_step(self, optimizer):
            if self.global_step == 1:
                raise RuntimeError("cut off")

    module, certified = make(CutOff), CertifiedTraining(ADVERSARY)
    with pytest.raises(RuntimeError, match="cut off"):
        fit(module, targets(), certified)
    with pytest.raises(BoundsMismatchError, match="in the middle of a step"):
        fit(module, targets(), certified)


def test_a_training_whose_self_check_failed_cannot_go_on(fit, regressor):
    class Remembers(regressor):
        scale = 1.0

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx) * self.scale
            self.scale += 1.0
            return loss

    module, certified = make(Remembers), CertifiedTraining(ADVERSARY)
    with pytest.raises(UnsoundBoundError):
        fit(module, targets(), certified)
    assert certified.engine.steps == 1
    with pytest.raises(BoundsMismatchError, match="a self-check"):
        fit(module, targets(), certified)


# --- samples through several fits -----------------------------------------------------------------------------------


class Head(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def signs(noise=0.0):
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(8, 3, generator=generator), torch.ones(8, 1)
    y[::2] = -1
    return DataLoader(TensorDataset(x + noise, y), batch_size=4)


@pytest.mark.slow
def test_influence_follows_momentum_that_starts_again(fit):
    certified = CertifiedTraining(ADVERSARY, domains="influence")

    def twice(module, loader, *callbacks):
        for _ in range(2):
            fit(module, loader, *callbacks, max_epochs=2)

    module = make(Head)
    twice(module, targets(), certified)
    assert certified.bounds.contains(module)
    assert_poisoned_runs_are_inside(certified, Head, twice)
    assert certified.certified_model().bound_forward(torch.ones(2, 3)).width.min() > 0


@pytest.mark.slow
def test_samples_of_a_second_fit_are_those_of_a_later_epoch(fit):

    for noise, known in ((0.0, True), (0.1, False)):
        certified, module = CertifiedTraining(ADVERSARY, domains="influence"), make(Head)
        fit(module, signs(), certified)
        fit(module, signs(noise), certified)  # both fits count their epochs from 0
        influence = certified.engine.domains.in_use["influence"].recorded_head.influence
        assert (influence.problem is None) is known


# --- weights and bounds ---------------------------------------------------------------------------------------------


def middle_of(bounds):
    return {name: (interval.lower + interval.upper) / 2 for name, interval in bounds.items()}


@pytest.fixture
def checkpoints(fit, regressor, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    certified, module = CertifiedTraining(ADVERSARY, dirpath=tmp_path / "bounds"), make(regressor)
    fit(module, targets(), certified, saver, max_epochs=3, enable_checkpointing=True)
    return module, certified, tmp_path


def test_bounds_belong_to_the_weights_of_the_last_step(checkpoints):
    module, certified, folder = checkpoints
    inside = middle_of(certified.bounds)
    last = copy.deepcopy(module.state_dict())
    for weights in (inside, torch.load(folder / "epoch=1.ckpt", weights_only=True)["state_dict"]):
        module.load_state_dict(weights)
        with pytest.raises(BoundsMismatchError, match=r"others: those of another step|lie outside"):
            certified.certified_model()
        with pytest.raises(BoundsMismatchError, match=r"others: those of another step|lie outside"):
            CertifiedModel(module, ParameterBounds.load(folder / "bounds" / "bounds.safetensors"))
    module.load_state_dict(last)
    certified.certified_model()
    certified.certified_model(copy.deepcopy(module).double())
    CertifiedModel(module, ParameterBounds.load(folder / "bounds" / "bounds.safetensors"))


def test_bounds_made_by_hand_are_the_caller_s_claim(checkpoints):
    module, certified, _ = checkpoints
    module.load_state_dict(middle_of(certified.bounds))
    CertifiedModel(module, ParameterBounds(dict(certified.bounds)))


@pytest.mark.slow
def test_a_checkpoint_has_its_own_bounds(checkpoints, fit, regressor):
    module, certified, folder = checkpoints
    path = folder / "epoch=1.ckpt"
    with pytest.raises(BoundsMismatchError, match="parameters"):
        certified.certified_model_at(path)
    module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    model = certified.certified_model_at(path)
    assert 0 < model.bounds.mean_width() < certified.bounds.mean_width()
    for shift in SHIFTS:
        poisoned = make(regressor)
        fit(poisoned, targets(shift), max_epochs=2)
        assert model.bounds.contains(poisoned)
    other = CertifiedTraining(ADVERSARY).certified_model_at(path, module)
    assert other.bounds.mean_width() == model.bounds.mean_width()
    with pytest.raises(BoundsMismatchError, match="adversary"):
        CertifiedTraining(BoundedAdversary(n=2, nu=0.5)).certified_model_at(path, module)


@pytest.mark.slow
def test_testing_the_best_checkpoint_leaves_weights_without_bounds(fit, regressor, tmp_path):
    class Tested(regressor):
        def test_step(self, batch, batch_idx):
            self.validation_step(batch, batch_idx)

    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", mode="max")
    certified, module = CertifiedTraining(ADVERSARY), make(Tested)
    trainer = fit(module, targets(), certified, saver, val=targets(), max_epochs=3, enable_checkpointing=True)
    certified.certified_model()
    trainer.test(module, targets(), ckpt_path="best", verbose=False)
    with pytest.raises(BoundsMismatchError, match="`trainer.test` and `trainer.validate` load the best"):
        certified.certified_model()
    assert certified.certified_model_at(saver.best_model_path).bounds.mean_width() < certified.bounds.mean_width()


def test_saved_bounds_belong_to_the_weights_of_the_last_step(fit, regressor):
    """Averages that are swapped in while a checkpoint is saved have no bounds, though they lie inside."""
    certified, module = CertifiedTraining(ADVERSARY), make(regressor)
    fit(module, targets(), certified, max_epochs=2)
    module.load_state_dict(middle_of(certified.bounds))
    saved = certified.engine.state()
    assert not certified.bounds.violations(module)
    with pytest.raises(BoundsMismatchError, match="parameters"):
        certified.engine.restore(saved)


# --- before the first batch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start", "on_train_epoch_start", "callback"])
def test_parameters_can_be_set_until_the_first_batch(hook, fit, regressor):
    def initialize(*_):
        if not hasattr(module_now, "initialized"):
            object.__setattr__(module_now, "initialized", True)
            for parameter in module_now.parameters():
                parameter.data.fill_(0.1)

    def train(module, loader, *callbacks):
        nonlocal module_now
        module_now = module
        own = L.Callback()
        if hook == "callback":
            own.on_train_start = initialize
        else:
            setattr(module, hook, initialize)
        fit(module, loader, *callbacks, own, max_epochs=2)

    module_now, certified = make(regressor), CertifiedTraining(ADVERSARY)
    train(module_now, targets(), certified)
    assert certified.bounds.contains(module_now)
    assert_poisoned_runs_are_inside(certified, regressor, train)


@pytest.mark.slow
def test_bounds_are_points_before_the_first_batch(fit, regressor):
    class Reads(L.Callback):
        def on_train_start(self, trainer, pl_module):
            widths.append(certified.bounds.mean_width())

    widths, certified, module = [], CertifiedTraining(ADVERSARY), make(regressor)
    fit(module, targets(), certified, Reads(), max_epochs=2)
    fit(module, targets(), certified, Reads(), max_steps=0)
    fit(module, targets(), certified, Reads(), max_epochs=1)
    assert widths[0] == 0 < widths[1] < certified.bounds.mean_width()
    assert certified.engine.steps == 6


def test_parameters_set_after_the_first_batch_began_are_refused(fit, regressor):
    class Late(regressor):
        def on_train_batch_start(self, batch, batch_idx):
            self.net[0].weight.data.fill_(0.1)

    with pytest.raises(UncertifiableError, match="writes to parameters"):
        fit(make(Late), targets(), CertifiedTraining(ADVERSARY))


class Sized(L.LightningDataModule):
    batch_size = 2

    def train_dataloader(self):
        return DataLoader(targets().dataset, batch_size=self.batch_size)

    def val_dataloader(self):
        return targets()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_batch_size_can_be_found_before_training(fit, regressor, tmp_path):
    certified, module, data = CertifiedTraining(ADVERSARY), make(regressor), Sized()
    trainer = fit.trainer(certified, max_epochs=2, default_root_dir=tmp_path)
    Tuner(trainer).scale_batch_size(module, datamodule=data, max_trials=2, steps_per_trial=1)
    trainer.fit(module, datamodule=data)
    assert certified.engine.steps == trainer.global_step > 0
    assert certified.bounds.contains(module)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_learning_rate_found_by_the_data_is_refused(fit, regressor, tmp_path):
    certified, module = CertifiedTraining(ADVERSARY), make(regressor)
    trainer = fit.trainer(certified, default_root_dir=tmp_path)
    Tuner(trainer).lr_find(module, targets(), num_training=3, attr_name="rate")
    with pytest.raises(UncertifiableError, match="`lr_find` has chosen"):
        trainer.fit(module, targets())


def test_a_fit_from_the_start_after_a_refused_resumption(fit, regressor, tmp_path):
    fit(make(regressor), targets()).save_checkpoint(tmp_path / "plain.ckpt")
    certified = CertifiedTraining(ADVERSARY)
    with pytest.raises(BoundsMismatchError, match="no bounds"):
        fit(make(regressor), targets(), certified, max_epochs=2, ckpt_path=tmp_path / "plain.ckpt")
    fit(make(regressor), targets(), certified)
    assert certified.engine.steps == 2


@pytest.mark.slow
def test_a_checkpoint_of_a_fit_that_never_began_is_forgotten(fit, regressor, tmp_path):
    class Fails(L.Callback):
        def on_fit_start(self, trainer, pl_module):
            raise RuntimeError("no disk")

    fit(make(regressor), targets(), CertifiedTraining(ADVERSARY)).save_checkpoint(tmp_path / "last.ckpt")
    certified = CertifiedTraining(ADVERSARY)
    with pytest.raises(RuntimeError, match="no disk"):
        fit(make(regressor), targets(), Fails(), certified, max_epochs=2, ckpt_path=tmp_path / "last.ckpt")
    fit(make(regressor), targets(), certified)
    assert certified.engine.steps == 2


@pytest.mark.slow
def test_a_resumption_without_a_step_has_the_bounds_of_the_checkpoint_and_can_go_on(fit, regressor, tmp_path):
    certified, resumed, module = CertifiedTraining(ADVERSARY), CertifiedTraining(ADVERSARY), make(regressor)
    trainer = fit(make(regressor), targets(), certified, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fit(module, targets(), resumed, max_epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert resumed.bounds.mean_width() == certified.bounds.mean_width()
    fit(module, targets(), CertifiedTraining(ADVERSARY))
    assert module.trainer.callbacks[0].engine.steps == 6


# --- parameters that no optimizer owns ------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_optimizer_of_the_head_alone(momentum, fit, regressor):
    class HeadOnly(regressor):
        def configure_optimizers(self):
            return torch.optim.SGD(self.net[2].parameters(), lr=0.1, momentum=momentum)

    certified, module = CertifiedTraining(ADVERSARY), make(HeadOnly)
    fit(module, targets(), certified, max_epochs=3)
    assert certified.bounds["net.0.weight"].is_point or not certified.bounds["net.0.weight"].width.any()
    assert certified.bounds.contains(module)
    assert_poisoned_runs_are_inside(certified, HeadOnly, lambda m, loader: fit(m, loader, max_epochs=3))


# --- several callbacks ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_callbacks_have_names_and_checkpoints_of_their_own(fit, regressor, tmp_path):
    adversaries = [ADVERSARY, BoundedAdversary(n=2, nu=0.1)]
    whole, first, second = ([CertifiedTraining(a) for a in adversaries] for _ in range(3))
    trainer = fit(make(regressor), targets(), *whole, val=targets(), max_epochs=4)
    for prefix, certified in zip(("agt/", "agt/1/"), whole, strict=True):
        assert trainer.callback_metrics[f"{prefix}mean_width"].item() == pytest.approx(certified.bounds.mean_width())
        assert f"{prefix}val_certified_mse" in trainer.callback_metrics
    fit(make(regressor), targets(), *first, max_epochs=2).save_checkpoint(tmp_path / "last.ckpt")
    fit(make(regressor), targets(), *second, max_epochs=4, ckpt_path=tmp_path / "last.ckpt")
    for one, other in zip(whole, second, strict=True):
        assert other.bounds.mean_width() == one.bounds.mean_width()
        assert other.engine.steps == 8


@pytest.mark.slow
def test_two_callbacks_go_on_in_a_second_fit(fit, regressor):
    module, adversaries = make(regressor), [ADVERSARY, BoundedAdversary(n=2, nu=0.1)]
    for _ in range(2):
        callbacks = [CertifiedTraining(adversary) for adversary in adversaries]
        fit(module, targets(), *callbacks)
    assert [certified.engine.steps for certified in callbacks] == [4, 4]


def test_two_callbacks_with_one_folder_are_refused(fit, regressor, tmp_path):
    callbacks = [CertifiedTraining(ADVERSARY, dirpath=tmp_path) for _ in range(2)]
    with pytest.raises(UncertifiableError, match="its own `dirpath`"):
        fit(make(regressor), targets(), *callbacks)


def test_a_trainer_s_callback_beside_the_module_s_is_refused(fit, regressor):
    class Module(CertifiedModule, regressor):
        def configure_certification(self):
            return CertifiedTraining(ADVERSARY)

    unused = CertifiedTraining(ADVERSARY)
    with pytest.raises(UncertifiableError, match="Use one of the two"):
        fit(make(Module), targets(), unused)
    with pytest.raises(RuntimeError, match="the module has brought another"):
        _ = unused.bounds
