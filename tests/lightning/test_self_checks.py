"""What is certified is what is trained: every step proves it, and raises where it cannot."""

import random

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from agt_lightning import BoundedAdversary, CertifiedTraining, UncertifiableError, UnsoundBoundError

WEAK = BoundedAdversary(n=1, epsilon=0.01)
STRONG = BoundedAdversary(n=3, epsilon=0.3)


def scale(module, factor):
    for parameter in module.parameters():
        parameter.grad *= factor


class ScalingCallback(L.Callback):
    """Comes after ours and changes gradients after they were checked."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        scale(pl_module, 0.99)


@pytest.fixture
def variant(regressor):
    """A regressor with other methods."""
    return lambda **methods: type("Variant", (regressor,), methods)()


def on_after_backward(self):
    scale(self, 0.5)


def on_before_optimizer_step(self, optimizer):
    scale(self, 0.99)


def clip_by_hand(self, optimizer):
    nn.utils.clip_grad_norm_(self.parameters(), 0.5)


def backward(self, loss):
    (2 * loss).backward()


def on_train_batch_end(self, outputs, batch, batch_idx):
    with torch.no_grad():
        for parameter in self.parameters():
            parameter.clamp_(-0.1, 0.1)


def on_train_epoch_end(self):
    self.net[0].reset_parameters()


def optimizer_step_twice(self, epoch, batch_idx, optimizer, optimizer_closure=None):
    optimizer.step(closure=optimizer_closure)
    optimizer.step()


HOOKS = {
    "scaled after backward": {"on_after_backward": on_after_backward},
    "scaled before the step": {"on_before_optimizer_step": on_before_optimizer_step},
    "clipped by hand": {"on_before_optimizer_step": clip_by_hand},
    "other backward": {"backward": backward},
    "clamped parameters": {"on_train_batch_end": on_train_batch_end},
    "reset parameters": {"on_train_epoch_end": on_train_epoch_end},
    "two steps": {"optimizer_step": optimizer_step_twice},
}


@pytest.mark.parametrize("adversary", [WEAK, STRONG], ids=["weak", "strong"])
@pytest.mark.parametrize("methods", HOOKS.values(), ids=HOOKS)
def test_hooks_that_change_gradients_or_parameters_raise(methods, adversary, fit, loader, variant):
    with pytest.raises((UnsoundBoundError, UncertifiableError)):
        fit(variant(**methods), loader(), CertifiedTraining(adversary), max_epochs=2)


@pytest.mark.parametrize("adversary", [WEAK, STRONG], ids=["weak", "strong"])
def test_a_later_callback_that_changes_gradients_raises(adversary, fit, loader, variant):
    with pytest.raises(UncertifiableError, match="writes to gradients"):
        fit(variant(), loader(), CertifiedTraining(adversary), ScalingCallback(), max_epochs=2)


@pytest.mark.parametrize("methods", [HOOKS["clamped parameters"], HOOKS["reset parameters"]])
def test_a_change_after_the_last_step_raises(methods, fit, loader, variant):
    with pytest.raises(UncertifiableError, match="writes to parameters"):
        fit(variant(**methods), loader(), CertifiedTraining(STRONG), limit_train_batches=1)


def test_hooks_on_a_parameter_raise(fit, loader, variant):
    module = variant()
    module.net[0].weight.register_hook(lambda gradient: 0.5 * gradient)
    with pytest.raises(UncertifiableError, match=r"net\.0\.weight"):
        fit(module, loader(), CertifiedTraining(WEAK))


def loss_of(self, batch):
    x, y = batch
    return F.mse_loss(self(x), y)


def python_random(self, batch, batch_idx):
    return loss_of(self, batch) * (1 + random.random())


def torch_random(self, batch, batch_idx):
    return loss_of(self, batch) * torch.rand(())


def noisy_features(self, batch, batch_idx):
    x, y = batch
    return loss_of(self, (x + 0.1 * torch.randn_like(x), y))


@pytest.mark.parametrize("step", [python_random, torch_random, noisy_features])
def test_random_losses_raise(step, fit, loader, variant):
    with pytest.raises((UnsoundBoundError, UncertifiableError)):
        fit(variant(training_step=step), loader(), CertifiedTraining(WEAK), max_epochs=2)


def by_epoch(self, batch, batch_idx):
    return loss_of(self, batch) * (1 + self.current_epoch)


def by_step(self, batch, batch_idx):
    return loss_of(self, batch) / (1 + self.global_step)


def by_batch(self, batch, batch_idx):
    return loss_of(self, batch) * (1 + batch_idx)


@pytest.mark.parametrize("step", [by_epoch, by_step, by_batch])
def test_losses_that_depend_on_time_are_right_or_raise(step, fit, loader, variant):
    torch.manual_seed(0)
    plain = variant(training_step=step)
    torch.manual_seed(0)
    module = variant(training_step=step)
    fit(plain, loader(), max_epochs=2)
    certified = CertifiedTraining(BoundedAdversary(n=0))
    try:
        fit(module, loader(), certified, max_epochs=2)
    except UnsoundBoundError:
        return
    assert certified.bounds.contains(plain)
    assert certified.bounds.mean_width() < 1e-4


class RemembersData(L.LightningModule):
    """What a poisoned sample leaves in a buffer, or an attribute, reaches all later gradients."""

    def __init__(self, *, buffer: bool):
        super().__init__()
        self.net = nn.Linear(3, 1)
        self.register_buffer("mean", torch.zeros(3))
        self.size = 1.0
        self.buffer = buffer

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self.net((x - self.mean) * self.size), y)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.buffer:
            self.mean = 0.9 * self.mean + 0.1 * batch[0].mean(dim=0)
        else:
            self.size = float(batch[0].std())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("buffer", [True, False], ids=["buffer", "attribute"])
def test_a_loss_that_remembers_data_raises(buffer, fit, loader):
    with pytest.raises((UnsoundBoundError, UncertifiableError)):
        fit(RemembersData(buffer=buffer), loader(), CertifiedTraining(WEAK), max_epochs=2)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")
def test_a_step_that_is_skipped_raises_or_is_skipped(fit, loader, variant):
    def sometimes(self, batch, batch_idx):
        return loss_of(self, batch) if batch_idx != 1 else None

    with pytest.raises((UnsoundBoundError, UncertifiableError)):
        fit(variant(training_step=sometimes), loader(), CertifiedTraining(WEAK))


@pytest.mark.slow
def test_divergence_is_named(fit, loader, variant):
    """Infinite bounds are no bug, and the message says what to do."""
    real, strong = variant(), BoundedAdversary(n=4, epsilon=1.0)
    with pytest.raises(UnsoundBoundError, match="fewer steps, a smaller learning rate or a weaker adversary"):
        fit(real, loader(size=4), CertifiedTraining(strong, floats="real"), max_epochs=30)
    with pytest.raises(UncertifiableError, match="is infinite there.*a weaker adversary or fewer steps"):
        fit(variant(), loader(size=4), CertifiedTraining(strong), max_epochs=30)


# --- no false alarms ------------------------------------------------------------------------------------------------


class AtTheKink(L.LightningModule):
    """Hidden units that are exactly zero: zero biases, many zero inputs, integers."""

    def __init__(self, seed: int, kind: str):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.kind = kind
        self.net = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))
        for layer in self.net[::2]:
            nn.init.zeros_(layer.bias)
            with torch.no_grad():
                layer.weight.copy_(torch.randint(-1, 2, layer.weight.shape, generator=generator) / 4)

    def training_step(self, batch, batch_idx):
        x, y = batch
        if self.kind == "classes":
            return F.cross_entropy(self.net(x), y)
        return F.mse_loss(self.net(x), F.one_hot(y, 3).float())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def kink_loader(seed: int, size: int) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-1, 2, (size, 6), generator=generator).float()
    x[: size // 4] = 0
    return DataLoader(TensorDataset(x, torch.randint(0, 3, (size,), generator=generator)), batch_size=size // 2)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("n", [0, 5])
@pytest.mark.parametrize("seed", range(5))
def test_units_at_zero_raise_no_false_alarm(seed, n, fit):
    kind = "classes" if seed % 2 else "numbers"
    certified = CertifiedTraining(BoundedAdversary(n=n, epsilon=0.01))
    module = AtTheKink(seed, kind)
    fit(module, kink_loader(seed, 4000), certified)
    assert certified.bounds.contains(module)


@pytest.mark.parametrize("seed", range(3))
def test_large_float32_batches_raise_no_false_alarm(seed, fit, regressor):
    torch.manual_seed(seed)
    module = regressor(inputs=20, hidden=64)
    x = 100 * torch.randn(2000, 20)
    y = x[:, :1].sin()
    data = DataLoader(TensorDataset(x / 100, y), batch_size=2000)
    certified = CertifiedTraining(BoundedAdversary(n=5, epsilon=0.001))
    fit(module, data, certified, max_epochs=5)
    assert certified.bounds.contains(module)
