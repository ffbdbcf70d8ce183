"""Code between the gradient and the parameters that does nothing on clean data: it acts where the adversary does.

All thresholds stand just above what the clean training reaches.
"""

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from agt_lightning import BoundedAdversary
from tests.trust.harness import Case, held, held_or_refused, peaks
from tests.trust.modules import FEATURES, LABELS, Classifier, Regressor, apart, classification, regression, variant

CHANGES = r"hook|override|gradient|parameter|backward|should_stop|stop|rate|optimizer_step|on_\w+|autograd|Function"

MODULES = {
    "regression": apart(regression()),
    "classification": apart(classification(variant(Classifier, rate=1.0))),
    "hidden": regression(variant(Regressor, hidden=4, rate=0.02), BoundedAdversary(n=1, nu=3.0)),
    "features": regression(adversary=BoundedAdversary(n=2, epsilon=0.5)),
}
"""In the first two the adversary reaches one weight alone, so that a change of any other is a violation."""


def total(module) -> torch.Tensor:
    return nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])


def scaled(module, factor) -> None:
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)


def limited(gradient, limit):
    """Scale the gradients of a batch's outputs; for squared error, their norm is the root of the loss."""
    return gradient * (limit / gradient.norm()).clamp(max=1)


def constrained(module, limit) -> None:
    norm = nn.utils.get_total_norm([p.detach() for p in module.parameters()])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_((limit / norm).clamp(max=1))


# --- methods of the module, from thresholds of the clean training ----------------------------------------------------


def clip_after_backward(top):
    return {"on_after_backward": lambda self: clip_grad_norm_(self.parameters(), top.norm) and None}


def clip_before_step(top):
    return {"on_before_optimizer_step": lambda self, optimizer: clip_grad_norm_(self.parameters(), top.norm) and None}


def clip_values(top):
    return {"on_after_backward": lambda self: clip_grad_value_(self.parameters(), top.entry)}


def clip_on_before_zero_grad(top):
    return {"on_before_zero_grad": lambda self, optimizer: constrained(self, top.weight)}


def skip_spikes(top):
    return {"on_before_optimizer_step": lambda self, optimizer: scaled(self, float(total(self) <= top.norm))}


def drop_spikes(top):
    def on_after_backward(self):
        if total(self) > top.norm:
            self.zero_grad()

    return {"on_after_backward": on_after_backward}


def backward_spikes(top):
    return {"backward": lambda self, loss: (loss if loss <= top.loss else 0.1 * loss).backward()}


def clip_in_backward(top):
    def backward(self, loss):
        loss.backward()
        clip_grad_norm_(self.parameters(), top.norm)

    return {"backward": backward}


def max_norm(top):
    return {"on_train_batch_end": lambda self, outputs, batch, batch_idx: constrained(self, top.weight)}


def max_norm_by_epoch(top):
    return {"on_train_epoch_end": lambda self: constrained(self, top.weight)}


def max_norm_at_start(top):
    return {"on_train_batch_start": lambda self, batch, batch_idx: constrained(self, top.weight)}


def max_norm_in_zero_grad(top):
    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        constrained(self, top.weight)
        optimizer.zero_grad()

    return {"optimizer_zero_grad": optimizer_zero_grad}


def rate_by_loss(top):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        loss = optimizer_closure()
        for group in optimizer.param_groups:
            group["lr"] = self.rate if loss is None or float(loss) <= top.loss else 0.01 * self.rate
        optimizer.step()

    return {"optimizer_step": optimizer_step}


def rate_by_gradient(top):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        def closure():
            loss = optimizer_closure()
            optimizer.param_groups[0]["lr"] = self.rate if float(total(self)) <= top.norm else 0.01 * self.rate
            return loss

        optimizer.step(closure=closure)

    return {"optimizer_step": optimizer_step}


def skipped_step(top):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        def closure():
            loss = optimizer_closure()
            scaled(self, float(total(self) <= top.norm))
            return loss

        optimizer.step(closure=closure)

    return {"optimizer_step": optimizer_step}


def step_only_if_calm(top):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer_closure()
        if total(self) <= top.norm:
            optimizer.step()

    return {"optimizer_step": optimizer_step}


def scheduler_by_norm(top):
    def lr_scheduler_step(self, scheduler, metric):
        if nn.utils.get_total_norm([p.detach() for p in self.parameters()]) > top.weight:
            scheduler.step()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.rate)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.01)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    return {"lr_scheduler_step": lr_scheduler_step, "configure_optimizers": configure_optimizers}


def centralized(top):
    """Gradient centralization that begins above the clean norm."""

    def on_before_optimizer_step(self, optimizer):
        if total(self) > top.norm:
            for parameter in self.parameters():
                parameter.grad.sub_(parameter.grad.mean())

    return {"on_before_optimizer_step": on_before_optimizer_step}


def replaces_gradient(top):
    """Assigns new tensors to `grad` instead of changing them in place."""

    def on_after_backward(self):
        factor = min(1.0, top.norm / float(total(self)))
        for parameter in self.parameters():
            parameter.grad = parameter.grad * factor

    return {"on_after_backward": on_after_backward}


def stops_by_loss(top):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        if float(outputs["loss"]) > top.loss:
            self.trainer.should_stop = True

    return {"on_train_batch_end": on_train_batch_end}


def skips_batch_by_labels(top):
    """Ends the epoch if labels look odd."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch[1].abs().max() > 2 and batch[1].is_floating_point() else None

    return {"on_train_batch_start": on_train_batch_start}


def edits_loss(top):
    def on_before_backward(self, loss):
        if float(loss) > top.loss:
            loss.data.mul_(0.1)
            self.zero_grad()
            self.net.requires_grad_(False)

    return {
        "on_before_backward": on_before_backward,
        "on_train_batch_end": lambda s, *a: s.requires_grad_(True) and None,
    }


METHODS = [
    clip_after_backward,
    clip_before_step,
    clip_values,
    clip_on_before_zero_grad,
    skip_spikes,
    drop_spikes,
    backward_spikes,
    clip_in_backward,
    max_norm,
    max_norm_by_epoch,
    max_norm_at_start,
    max_norm_in_zero_grad,
    rate_by_loss,
    rate_by_gradient,
    skipped_step,
    step_only_if_calm,
    scheduler_by_norm,
    centralized,
    replaces_gradient,
    stops_by_loss,
]


def with_methods(case: Case, habit) -> Case:
    return case.but(module=variant(case.module, **habit(peaks(case))))


@pytest.mark.parametrize("habit", METHODS, ids=lambda habit: habit.__name__)
def test_a_method_that_acts_on_poisoned_data_alone(habit):
    held_or_refused(with_methods(MODULES["regression"], habit), CHANGES)


@pytest.mark.parametrize("habit", [clip_after_backward, skip_spikes, max_norm], ids=lambda habit: habit.__name__)
@pytest.mark.parametrize("name", ["hidden", "classification", "features"])
def test_the_same_for_other_modules(habit, name):
    held_or_refused(with_methods(MODULES[name], habit), CHANGES)


def test_a_batch_that_is_skipped_for_its_labels():
    held_or_refused(with_methods(MODULES["regression"], skips_batch_by_labels), CHANGES)


# --- callbacks -------------------------------------------------------------------------------------------------------


CALLBACKS = [
    clip_after_backward,
    clip_before_step,
    clip_on_before_zero_grad,
    skip_spikes,
    max_norm,
    max_norm_by_epoch,
    stops_by_loss,
    replaces_gradient,
]


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("habit", CALLBACKS, ids=lambda habit: habit.__name__)
def test_another_callback_that_acts_on_poisoned_data_alone(habit, side):
    case = MODULES["regression"]
    methods = habit(peaks(case))
    hooks = {name: lambda self, trainer, module, *args, m=m: m(module, *args) for name, m in methods.items()}
    callback = type("Habit", (L.Callback,), hooks)
    held_or_refused(case.but(**{side: lambda: [callback()]}), CHANGES)


# --- hooks of torch --------------------------------------------------------------------------------------------------


def on_parameters(top):
    def hook(gradient):
        return limited(gradient, top.norm)

    def setup(self, stage):
        for parameter in self.parameters():
            parameter.register_hook(hook)

    return {"setup": setup}


def after_accumulation(top):
    def hook(parameter):
        parameter.grad.copy_(limited(parameter.grad, top.norm))

    def setup(self, stage):
        for parameter in self.parameters():
            parameter.register_post_accumulate_grad_hook(hook)

    return {"setup": setup}


def full_backward(top):
    def hook(module, inputs, outputs):
        return tuple(None if g is None else g.clamp(-top.entry, top.entry) for g in inputs)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.net(x.requires_grad_()), y)

    return {
        "setup": lambda self, stage: self.net.register_full_backward_hook(hook) and None,
        "training_step": training_step,
    }


def full_backward_pre(top):
    def hook(module, outputs):
        return tuple(limited(g, top.loss**0.5) for g in outputs)

    return {"setup": lambda self, stage: self.net.register_full_backward_pre_hook(hook) and None}


def on_output(top):
    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self(x)
        if out.requires_grad:
            out.register_hook(lambda gradient: limited(gradient, top.loss**0.5))
        return nn.functional.mse_loss(out, y)

    return {"training_step": training_step}


def forward_hook(top):
    def hook(module, inputs, output):
        return output.clamp(-30, 30) * 1.0

    return {"setup": lambda self, stage: self.net.register_forward_hook(hook) and None}


def forward_hook_with_gradient_hook(top):
    def hook(module, inputs, output):
        if output.requires_grad:
            output.register_hook(lambda gradient: limited(gradient, top.loss**0.5))

    return {"setup": lambda self, stage: self.net.register_forward_hook(hook) and None}


def loss_hook(top):
    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        value = loss.detach()
        if loss.requires_grad:
            loss.register_hook(lambda gradient: gradient * (top.loss / value).clamp(max=1))
        return loss

    return {"training_step": training_step}


class Clipped(torch.autograd.Function):
    """The identity, whose gradient is clipped."""

    @staticmethod
    def forward(ctx, x, limit):
        ctx.limit = limit
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return limited(gradient, ctx.limit), None


class Reversed(torch.autograd.Function):
    """The identity, whose large gradients are turned around."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, limit):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.limit = inputs[1]

    @staticmethod
    def backward(ctx, gradient):
        return torch.where(gradient.norm() > ctx.limit, -gradient, gradient), None


def custom_function(function):
    def habit(top):
        def training_step(self, batch, batch_idx):
            x, y = batch
            return nn.functional.mse_loss(function.apply(self(x), top.loss**0.5), y)

        return {"training_step": training_step}

    return habit


def optimizer_hook(kind):
    def habit(top):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=self.rate)
            if kind == "pre":
                optimizer.register_step_pre_hook(lambda *_: constrained(self, top.weight))
            else:
                optimizer.register_step_post_hook(lambda *_: constrained(self, top.weight))
            return optimizer

        return {"configure_optimizers": configure_optimizers}

    return habit


def optimizer_subclass(top):
    class Careful(torch.optim.SGD):
        def step(self, closure=None):
            loss = None if closure is None else closure()
            clip_grad_norm_([p for group in self.param_groups for p in group["params"]], top.norm)
            super().step()
            return loss

    return {"configure_optimizers": lambda self: Careful(self.parameters(), lr=self.rate)}


def patched_step(top):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.rate)
        step = optimizer.step

        def careful(closure=None):
            loss = None if closure is None else closure()
            if total(self) <= top.norm:
                step()
            return loss

        optimizer.step = careful
        return optimizer

    return {"configure_optimizers": configure_optimizers}


def lookahead(top):
    """Slow weights pull the fast ones back if these run away."""

    class Lookahead(torch.optim.SGD):
        def step(self, closure=None):
            loss = super().step(closure)
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        slow = self.state[p].setdefault("slow", p.clone())
                        p.copy_(torch.where((p - slow).norm() > 0.3, slow, p))
            return loss

    return {"configure_optimizers": lambda self: Lookahead(self.parameters(), lr=self.rate)}


def function_of_torch(top):
    """`Tensor.backward` is wrapped: the commonest way to patch clipping into everything."""

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        optimizer.zero_grad()

    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self(x)
        return nn.functional.mse_loss(out + (out.clamp(-30, 30) - out).detach(), y)

    return {"optimizer_zero_grad": optimizer_zero_grad, "training_step": training_step}


TORCH = {
    "parameter": on_parameters,
    "post accumulate": after_accumulation,
    "full backward": full_backward,
    "full backward pre": full_backward_pre,
    "output": on_output,
    "loss": loss_hook,
    "forward": forward_hook,
    "forward and output": forward_hook_with_gradient_hook,
    "custom function": custom_function(Clipped),
    "new custom function": custom_function(Reversed),
    "optimizer pre-hook": optimizer_hook("pre"),
    "optimizer post-hook": optimizer_hook("post"),
    "optimizer subclass": optimizer_subclass,
    "optimizer's step patched": patched_step,
    "lookahead": lookahead,
    "straight through": function_of_torch,
}


@pytest.mark.parametrize("habit", TORCH.values(), ids=TORCH)
def test_a_hook_of_torch_that_acts_on_poisoned_data_alone(habit):
    held_or_refused(with_methods(MODULES["regression"], habit), CHANGES + "|detach|SGD|subclass|step")


def test_clipping_by_lightning_holds():
    top = peaks(regression())
    held(regression(options={"gradient_clip_val": top.norm}), reach=0.01)


# --- hooks that only look --------------------------------------------------------------------------------------------


class Watches(L.Callback):
    """Logs gradient norms, as most trainings do somewhere."""

    def on_after_backward(self, trainer, pl_module):
        self.norm = float(total(pl_module))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        pl_module.log("norm", total(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weight = max(float(p.detach().abs().max()) for p in pl_module.parameters())


def watching_methods():
    return {
        "on_before_optimizer_step": lambda self, optimizer: self.log_dict(L.pytorch.utilities.grad_norm(self, 2)),
        "on_after_backward": lambda self: setattr(self, "seen", [float(p.grad.norm()) for p in self.parameters()]),
        "on_train_batch_end": lambda self, outputs, batch, batch_idx: self.log("last", outputs["loss"]),
    }


def test_hooks_that_only_look_are_certified():
    held(regression(before=lambda: [Watches()], after=lambda: [Watches()]))
    held(regression(variant(Regressor, **watching_methods())))


def warm_up(self, epoch, batch_idx, optimizer, optimizer_closure=None):
    for group in optimizer.param_groups:
        group["lr"] = self.rate * min(1.0, (self.trainer.global_step + 1) / 3)
    optimizer.step(closure=optimizer_closure)


def test_a_warm_up_by_hand_is_certified():
    held(regression(variant(Regressor, optimizer_step=warm_up)))


# --- frozen parameters that move -------------------------------------------------------------------------------------


class Distilled(Regressor):
    """A frozen teacher that follows the trained network."""

    def __init__(self):
        super().__init__()
        self.teacher = nn.Linear(3, 1).double().requires_grad_(False)
        self.teacher.load_state_dict(self.net.state_dict())

    def follow(self, *_):
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                slow.lerp_(fast, 0.5)

    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self(x)
        return nn.functional.mse_loss(out, y) + nn.functional.mse_loss(out, self.teacher(x))

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=self.rate)


class UnusedTeacher(Distilled):
    """The teacher is an average that the loss does not read."""

    def training_step(self, batch, batch_idx):
        return self.loss(batch)


def follows_after_step(base):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.net.parameters(), lr=self.rate)
        optimizer.register_step_post_hook(self.follow)
        return optimizer

    return variant(base, configure_optimizers=configure_optimizers)


FROZEN = r"frozen|changed|moved|hook|teacher|outside|optimizer step|between steps"


@pytest.mark.parametrize("base", [Distilled, UnusedTeacher])
def test_a_frozen_teacher_that_moves_in_a_hook_of_the_optimizer(base):
    held_or_refused(regression(follows_after_step(base)), FROZEN, late=True)


@pytest.mark.parametrize("base", [Distilled, UnusedTeacher])
@pytest.mark.parametrize(
    "hook", ["on_before_optimizer_step", "on_before_zero_grad", "on_after_backward", "on_train_batch_end"]
)
def test_a_frozen_teacher_that_moves_in_a_hook_of_the_module(base, hook):
    held_or_refused(regression(variant(base, **{hook: Distilled.follow})), FROZEN, late=True)


class Shared(Regressor):
    """A frozen parameter that lives in the memory of a trained one."""

    def __init__(self):
        super().__init__()
        self.shadow = nn.Parameter(self.net.weight.detach(), requires_grad=False)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self(x) + 0.5 * x @ self.shadow.T, y)


class SharedView(Shared):
    def __init__(self):
        Regressor.__init__(self)
        self.shadow = nn.Parameter(self.net.weight.detach()[:, :], requires_grad=False)


class SharedBuffer(Shared):
    def __init__(self):
        Regressor.__init__(self)
        self.register_buffer("shadow", self.net.weight.detach())


@pytest.mark.parametrize("module", [Shared, SharedView, SharedBuffer])
def test_a_frozen_tensor_in_the_memory_of_a_trained_one(module):
    held_or_refused(regression(module), FROZEN + "|share|storage|memory|buffer", late=True)


class AveragesByHand(Regressor):
    """Stochastic weight averaging by hand at the end of the last epoch."""

    def on_train_epoch_end(self):
        if not hasattr(self, "average"):
            self.average = [p.detach().clone() for p in self.parameters()]
        with torch.no_grad():
            for p, mean in zip(self.parameters(), self.average, strict=True):
                p.copy_((p + mean) / 2)


class TiesAgain(Regressor):
    """Weights are tied after the first epoch."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.net(self.second(self.first(x))), y)

    def on_train_epoch_end(self):
        self.second.weight = self.first.weight


class AveragesAtEnd(AveragesByHand):
    on_train_epoch_end = None

    def on_train_end(self):
        with torch.no_grad():
            for p in self.parameters():
                p.mul_(0.99)


AveragesAtEnd.on_train_epoch_end = L.LightningModule.on_train_epoch_end


@pytest.mark.parametrize("module", [AveragesByHand, TiesAgain, AveragesAtEnd])
def test_parameters_that_a_hook_replaces_are_refused(module):
    held_or_refused(regression(module, FEATURES), FROZEN + "|replaced|parameter", late=True)


# --- flags of optimizers ---------------------------------------------------------------------------------------------

FLAGS = [
    {"foreach": True},
    {"fused": True},
    {"maximize": True},
    {"dampening": 0.5, "momentum": 0.9},
]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_flags_of_sgd_hold_or_are_refused(flags):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, **flags)

    held_or_refused(
        regression(variant(Regressor, configure_optimizers=configure_optimizers), LABELS), next(iter(flags))
    )
