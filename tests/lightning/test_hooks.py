"""Hooks that do nothing on clean data, but act in a poisoned run, are refused before the first step."""

import functools
import sys
import types

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import LambdaCallback, Timer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR

from agt_lightning import BoundedAdversary, CertifiedTraining, UncertifiableError, UnsoundBoundError
from agt_lightning.certificates.phases import UNTRIED_HOOKS
from agt_lightning.lightning import hooks, steps

ADVERSARY = BoundedAdversary(n=1, epsilon=0.1)
LIMIT = 100.0
"""Far above every norm, loss and feature of the clean data."""

CLIP = r"Trainer\(gradient_clip_val=\.\.\., gradient_clip_algorithm=\.\.\.\)"


@pytest.fixture
def variant(regressor):
    """A regressor with other methods."""
    return lambda **methods: type("Variant", (regressor,), methods)()


@pytest.fixture
def refused(fit, loader):
    """Require that a training is refused with this reason before its first step, with our callback first and last."""

    def check(make, message, make_callback=None, **options):
        for first in (True, False):
            module, ours = make(), CertifiedTraining(ADVERSARY)
            others = [] if make_callback is None else [make_callback()]
            before = [parameter.detach().clone() for parameter in module.parameters()]
            with pytest.raises(UncertifiableError, match=message):
                fit(module, loader(), *([ours, *others] if first else [*others, ours]), max_epochs=2, **options)
            assert all(map(torch.equal, before, module.parameters()))

    return check


def norm(module):
    return torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm()


def clip(module):
    nn.utils.clip_grad_norm_(module.parameters(), LIMIT)


def clip_by_hand(self, *_):
    nn.utils.clip_grad_norm_(self.parameters(), LIMIT)


def clip_elsewhere(self, *_):
    clip(self)


def clip_data(self, *_):
    for parameter in self.parameters():
        parameter.grad.data.clamp_(-LIMIT, LIMIT)


def skip_spikes(self, *_):
    if norm(self) > LIMIT:
        self.zero_grad()


def skip_spikes_over_average(self, *_):
    size = norm(self)
    if size > 10 * getattr(self, "average", size):
        self.zero_grad()
    self.average = size


def skip_spikes_later(self, *_):
    if self.current_epoch > 0 and norm(self) > LIMIT:
        self.zero_grad()


def through_the_optimizer(self, *_):
    for group in self.optimizers().param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and parameter.grad.norm() > LIMIT:
                parameter.grad = None


GRADIENT_HOOKS = {
    "clipped": (clip_by_hand, CLIP),
    "clipped in a function": (clip_elsewhere, "writes to gradients.*" + CLIP),
    "data": (clip_data, "writes to gradients"),
    "spikes": (skip_spikes, "writes to gradients"),
    "spikes over average": (skip_spikes_over_average, "writes to gradients"),
    "spikes later": (skip_spikes_later, "writes to gradients"),
    "optimizer": (through_the_optimizer, "writes to gradients"),
}


@pytest.mark.parametrize("name", ["on_after_backward", "on_before_optimizer_step"])
@pytest.mark.parametrize(("hook", "message"), GRADIENT_HOOKS.values(), ids=GRADIENT_HOOKS)
def test_hooks_that_change_large_gradients(hook, message, name, variant, refused):
    refused(lambda: variant(**{name: hook}), rf"Variant\.{name}.*{message}")


def max_norm(self, *_):
    with torch.no_grad():
        for parameter in self.parameters():
            if parameter.norm() > LIMIT:
                parameter.mul_(LIMIT / parameter.norm())


@pytest.mark.parametrize("name", ["on_train_batch_start", "on_train_batch_end", "on_train_epoch_end"])
def test_hooks_that_constrain_large_parameters(name, variant, refused):
    refused(lambda: variant(**{name: max_norm}), rf"Variant\.{name}` writes to parameters.*weight_decay")


class Clips(L.Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        clip(pl_module)


class ClipsGroups(L.Callback):
    def on_after_backward(self, trainer, pl_module):
        for parameter in trainer.optimizers[0].param_groups[0]["params"]:
            if parameter.grad is not None and parameter.grad.norm() > LIMIT:
                parameter.grad.zero_()


class Stops(L.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if outputs["loss"] > LIMIT:
            trainer.should_stop = True


class StopsByMetric(L.Callback):
    def on_train_batch_end(self, trainer, *_):
        self.check(trainer)

    def check(self, trainer):
        trainer.should_stop = bool(trainer.callback_metrics.get("loss", 0) > LIMIT)


class SlowsDown(L.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if outputs["loss"] > LIMIT:
            trainer.optimizers[0].param_groups[0]["lr"] *= 0.1


class SkipsBatches(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        return -1 if batch[0].abs().max() > LIMIT else None


class CutsLoss(L.Callback):
    def on_before_backward(self, trainer, pl_module, loss):
        if loss > LIMIT:
            loss.register_hook(lambda gradient: 0 * gradient)


class StopsAfterValidation(L.Callback):
    def on_validation_epoch_end(self, trainer, pl_module):
        if trainer.callback_metrics.get("val_loss", 0) > LIMIT:
            trainer.should_stop = True


CALLBACKS = {
    "clips": (Clips, r"Clips\.on_before_optimizer_step` writes to gradients"),
    "clips groups": (ClipsGroups, r"ClipsGroups\.on_after_backward` writes to gradients"),
    "lambda": (lambda: LambdaCallback(on_after_backward=lambda trainer, module: clip(module)), "writes to gradients"),
    "partial": (
        lambda: LambdaCallback(on_after_backward=functools.partial(lambda trainer, module: clip(module))),
        "writes to gradients",
    ),
    "stops": (Stops, "when to stop"),
    "stops by metric": (StopsByMetric, "when to stop"),
    "stops after validation": (StopsAfterValidation, "should_stop"),
    "slows down": (SlowsDown, "learning rate"),
    "skips": (SkipsBatches, "whether to step"),
    "cuts the loss": (CutsLoss, "writes to the loss"),
}


@pytest.mark.parametrize(("make", "message"), CALLBACKS.values(), ids=CALLBACKS)
def test_callbacks_that_act_above_a_threshold(make, message, regressor, refused):
    refused(regressor, message, make)


def backward(self, loss):
    (loss if loss < LIMIT else 0 * loss).backward()


def rate_by_loss(self, epoch, batch_idx, optimizer, optimizer_closure=None):
    loss = optimizer_closure()
    optimizer.param_groups[0]["lr"] = 0.01 if loss > LIMIT else 0.1
    optimizer.step()


def no_step_for_large_losses(self, epoch, batch_idx, optimizer, optimizer_closure=None):
    if optimizer_closure() < LIMIT:
        optimizer.step()


def rate_by_metric(self, scheduler, metric):
    scheduler.step(self.trainer.callback_metrics.get("loss"))


OVERRIDES = {
    "backward": ({"backward": backward}, "`backward` is overridden"),
    "rate by loss": ({"optimizer_step": rate_by_loss}, r"optimizer_step` chooses the learning rate"),
    "steps by loss": ({"optimizer_step": no_step_for_large_losses}, r"optimizer_step` chooses .* whether to step"),
    "rate by metric": ({"lr_scheduler_step": rate_by_metric}, "`lr_scheduler_step` reads logged metrics"),
}


@pytest.mark.parametrize(("methods", "message"), OVERRIDES.values(), ids=OVERRIDES)
def test_overrides_that_act_above_a_threshold(methods, message, variant, refused):
    refused(lambda: variant(**methods), message)


def limited(gradient):
    return gradient.clamp(-LIMIT, LIMIT)


TENSOR_HOOKS = {
    "parameter": (lambda module: module.net[0].weight.register_hook(limited), r"net\.0\.weight.*register_hook"),
    "accumulated": (
        lambda module: module.net[0].weight.register_post_accumulate_grad_hook(lambda weight: None),
        r"net\.0\.weight",
    ),
    "module": (lambda module: module.net[1].register_full_backward_hook(lambda *_: None), r"net\.1.*on_after_backward"),
    "before module": (lambda module: module.net[1].register_full_backward_pre_hook(lambda *_: None), r"net\.1"),
}


@pytest.mark.parametrize(("register", "message"), TENSOR_HOOKS.values(), ids=TENSOR_HOOKS)
def test_hooks_of_autograd(register, message, regressor, refused):
    def make():
        module = regressor()
        register(module)
        return module

    refused(make, message)


def hooked(optimizer):
    optimizer.register_step_post_hook(lambda *_: None)


def patched(optimizer):
    step = optimizer.step
    optimizer.step = functools.wraps(step)(lambda closure=None: step(closure))


def patched_method(optimizer):
    optimizer.step = types.MethodType(lambda self, closure=None: type(self).step(self, closure), optimizer)


@pytest.mark.parametrize("change", [hooked, patched, patched_method])
@pytest.mark.parametrize("scheduled", [False, True])
def test_steps_of_the_optimizer_with_other_code(change, scheduled, fit, loader, variant, refused):
    def configured(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if scheduled and change is not patched_method:
            return [optimizer], [StepLR(optimizer, 1)]
        return optimizer

    def changed(self):
        configuration = configured(self)
        change(configuration[0][0] if isinstance(configuration, tuple) else configuration)
        return configuration

    def on_train_batch_end(self, outputs, batch, batch_idx):
        change(self.trainer.optimizers[0])

    message = "register_step_post_hook" if change is hooked else r"another function in place of `SGD\.step`"
    refused(lambda: variant(configure_optimizers=changed), message)
    later = variant(configure_optimizers=configured, on_train_batch_end=on_train_batch_end)
    with pytest.raises(UncertifiableError, match=message):
        fit(later, loader(), CertifiedTraining(ADVERSARY), max_epochs=2)


def test_a_hook_that_comes_later_raises(fit, loader, variant):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.net[0].weight.register_hook(limited)

    with pytest.raises(UnsoundBoundError, match=r"`net\.0\.weight` has one"):
        fit(variant(on_train_batch_end=on_train_batch_end), loader(), CertifiedTraining(ADVERSARY))


@pytest.mark.parametrize("register", ["register_step_pre_hook", "register_step_post_hook"])
def test_hooks_of_the_optimizer(register, regressor, refused):
    def make():
        module = regressor()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        getattr(optimizer, register)(lambda *_: None)
        module.configure_optimizers = lambda: optimizer
        return module

    refused(make, "register_step_post_hook.*on_before_optimizer_step")


@pytest.mark.slow
def test_schedules_that_follow_a_metric(regressor, variant, refused):
    def configured(self, **settings):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = {"scheduler": StepLR(optimizer, 1), "monitor": "loss", "strict": False} | settings
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    refused(lambda: variant(configure_optimizers=configured), "monitor")
    flagged = functools.partialmethod(configured, reduce_on_plateau=True)
    refused(lambda: variant(configure_optimizers=flagged), "reduce_on_plateau")

    def by_hand(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        self.plateau = ReduceLROnPlateau(optimizer)
        return optimizer

    refused(lambda: variant(configure_optimizers=by_hand), "is a `ReduceLROnPlateau`")


def test_types_of_parameters(regressor, refused):
    def make():
        module = regressor()
        module.net.append(nn.Linear(1, 1).bfloat16().requires_grad_(False))
        return module

    refused(make, r"`net\.3\.weight` has the type torch\.bfloat16")


def test_parameters_that_share_memory(regressor, refused):
    def make():
        module = regressor()
        module.copy = nn.Parameter(module.net[0].weight.data, requires_grad=False)
        return module

    refused(make, "share memory")


# --- parameters that move without the optimizer ----------------------------------------------------------------------


class FollowsWeights(L.LightningModule):
    """A frozen average of weights that an attribute, not a hook, moves within the optimizer's step."""

    def __init__(self):
        super().__init__()
        self.net, self.average = nn.Linear(3, 1), nn.Linear(3, 1).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        step = optimizer.step

        @functools.wraps(step)
        def follow(closure=None):
            result = step(closure)
            with torch.no_grad():
                self.average.weight.lerp_(self.net.weight, 0.1)
            return result

        optimizer.step = follow
        return optimizer


def test_a_frozen_parameter_that_moves_with_the_step_raises(fit, loader, monkeypatch):
    monkeypatch.setattr(steps, "optimizer_problems", lambda _: [])
    monkeypatch.setattr(hooks, "optimizer_problems", lambda _: [])
    with pytest.raises(UnsoundBoundError, match=r"average\.weight"):
        fit(FollowsWeights(), loader(), CertifiedTraining(ADVERSARY))


def add_layer(self, *_):
    self.extra = nn.Linear(1, 1)


def smaller_layer(self, *_):
    self.net[0] = nn.Linear(1, 1)


@pytest.mark.parametrize("change", [add_layer, smaller_layer])
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_epoch_end"])
def test_hooks_that_change_the_layers_are_refused(change, hook, variant, refused):
    methods = {hook: lambda self, *_: change(self), "on_before_zero_grad": clip_by_hand}
    refused(lambda: variant(**methods), rf"{hook}` writes to parameters")


@pytest.mark.slow
def test_an_average_in_a_hook_is_refused(variant, refused):
    def average(self, *_):
        with torch.no_grad():
            self.frozen.weight.lerp_(self.net[0].weight, 0.1)

    def make():
        module = variant(on_before_optimizer_step=average)
        module.frozen = nn.Linear(3, 5).requires_grad_(False)
        return module

    refused(make, "writes to parameters.*averages outside of the module")


# --- honest hooks ----------------------------------------------------------------------------------------------------


def log_norms(self, *_):
    self.log("norm", norm(self))
    self.log_dict({name: parameter.grad.norm() for name, parameter in self.named_parameters()})
    self.norms = [*getattr(self, "norms", []), float(norm(self))]


def warmup(self, epoch, batch_idx, optimizer, optimizer_closure=None):
    optimizer.step(closure=optimizer_closure)
    optimizer.param_groups[0]["lr"] = 0.1 * min(1.0, (self.trainer.global_step + 1) / 3)


def zero_grad(self, epoch, batch_idx, optimizer):
    optimizer.zero_grad(set_to_none=True)


def step_if_calm(self, scheduler, metric):
    if norm(self) < LIMIT:
        scheduler.step()


@pytest.mark.slow
def test_a_schedule_that_follows_gradients(variant, refused):
    methods = {"lr_scheduler_step": step_if_calm, "configure_optimizers": scheduled}
    refused(lambda: variant(**methods), "lr_scheduler_step` chooses the learning rate")


@pytest.mark.parametrize("where", [lambda trainer: trainer.fit_loop, lambda trainer: trainer.fit_loop.epoch_loop])
def test_hooks_that_move_the_end_by_the_loss(where, variant, refused):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        if outputs["loss"] > LIMIT:
            where(self.trainer).max_epochs = where(self.trainer).max_steps = 1

    made = [variant(on_train_batch_end=on_train_batch_end) for _ in range(2)]
    left = list(made)
    refused(left.pop, "when to stop")
    assert all(module.trainer.fit_loop.max_epochs == 2 for module in made)


def timm_step(self, scheduler, metric):
    scheduler.step(epoch=self.current_epoch)


def scheduled(self):
    optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
    return [optimizer], [LambdaLR(optimizer, lambda epoch: 0.5**epoch)]


HONEST = {
    "logging": {"on_after_backward": log_norms, "on_before_optimizer_step": log_norms},
    "warmup": {"optimizer_step": warmup},
    "zeroing": {"optimizer_zero_grad": zero_grad},
    "schedule": {"lr_scheduler_step": timm_step, "configure_optimizers": scheduled},
}


@pytest.mark.parametrize("methods", HONEST.values(), ids=HONEST)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
def test_honest_hooks_are_left_alone(methods, fit, loader, variant):
    certified = CertifiedTraining(ADVERSARY)
    module = variant(**methods)
    fit(module, loader(), certified, max_epochs=2)
    assert certified.bounds.contains(module)
    assert not certified.engine.stated[UNTRIED_HOOKS]


class Records(L.Callback):
    def __init__(self):
        self.sizes = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.sizes.append(len(batch[0]))

    def on_after_backward(self, trainer, pl_module):
        self.sizes.append(float(norm(pl_module)))
        sys.stdout.write("norm\n")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.sizes.append(float(outputs["loss"]))
        if trainer.global_step == 3:
            trainer.should_stop = True


@pytest.mark.slow
def test_trying_hooks_leaves_no_trace(fit, loader, variant, capsys):
    """Counters, output and random numbers are as without certification."""
    outcomes = []
    for callbacks in ([], [CertifiedTraining(ADVERSARY)]):
        torch.manual_seed(0)
        module, records = variant(on_after_backward=log_norms), Records()
        fit(module, loader(), records, Timer(), *callbacks, max_epochs=2)
        outcomes.append((records.sizes, module.norms, torch.rand(()).item(), capsys.readouterr().out.count("norm")))
    assert outcomes[0] == outcomes[1]


def test_a_hook_that_cannot_be_tried_is_named(fit, loader, regressor):
    module = regressor()

    class Outside(L.Callback):
        def on_after_backward(self, trainer, pl_module):
            self.norm = float(norm(module))

    certified = CertifiedTraining(ADVERSARY)
    fit(module, loader(), Outside(), certified)
    (reason,) = certified.engine.stated[UNTRIED_HOOKS]
    assert "Outside.on_after_backward` could not be tried: it refers to a `Regressor` outside" in reason


def scale_gradients(module):
    for parameter in module.parameters():
        parameter.grad *= 0.99


def shrink(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.99)


UNTRIED = {
    "on_before_optimizer_step": (scale_gradients, r"gradient of `net\.0\.weight` as it was checked"),
    "on_train_batch_end": (shrink, r"`net\.0\.weight` as the optimizer left it"),
    "on_train_epoch_end": (shrink, r"`net\.0\.weight` as the optimizer left it"),
    # Clipping above a limit multiplies by 1.0 below it: no bit changes, but torch counts the write.
    "on_before_optimizer_step: clips": (clip, r"write the gradient of `net\.0\.weight`.*" + CLIP),
}


@pytest.mark.parametrize(("name", "case"), UNTRIED.items(), ids=UNTRIED)
def test_every_step_watches_hooks_that_cannot_be_tried(name, case, fit, loader, regressor):
    act, message = case
    module = regressor()

    def outside(self, *_):
        act(module)

    callback = type("Outside", (L.Callback,), {name.split(":")[0]: outside})()
    with pytest.raises(UnsoundBoundError, match=message):
        fit(module, loader(), CertifiedTraining(ADVERSARY), callback, max_epochs=2)
