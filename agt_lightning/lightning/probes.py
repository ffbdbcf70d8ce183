"""Hooks of module and callbacks, tried before the first step on copies with other gradients and parameters.

A hook between backward pass and optimizer step, or between steps, that acts above a threshold only does nothing on the
clean data. Here gradients, parameters, losses and metrics are far larger, far smaller and very unequal, and all must
stay as they are, to the last bit and without a write. This is no proof; what could not be tried is named.
"""

from __future__ import annotations

import copy
import logging
import types
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BaseFinetuning, Callback
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.loops.loop import _Loop
from torch import Tensor, nn
from torch.optim import Optimizer

from agt_lightning.capture import flatten
from agt_lightning.capture.clock import Clock, Reads
from agt_lightning.capture.draws import DRAWS_DIFFER, generator_states, seed_all
from agt_lightning.capture.dropout import RandomState
from agt_lightning.capture.replica import independent_replica
from agt_lightning.capture.traces import no_traces
from agt_lightning.engine.probes import undisturbed
from agt_lightning.errors import CaptureError
from agt_lightning.lightning.hooks import foreign_callbacks, outer_values, title, written_by_user
from agt_lightning.lightning.packages import LIGHTNING_MODULES, TRAINERS, of_both
from agt_lightning.lightning.silence import silence

Owner = Callback | L.LightningModule
Outcome = tuple[object, ...]

_LARGE, _SMALL = 2.0**20, 2.0**-20

_HOOKS = (
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_zero_grad",
    "optimizer_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "optimizer_step",
    "lr_scheduler_step",
    "on_train_batch_end",
    "on_train_epoch_end",
)
"""The hooks of a batch in Lightning's order."""

_OF_MODULE = ("optimizer_zero_grad", "optimizer_step", "lr_scheduler_step")

_LAST_STEP = 10**6


@dataclass(frozen=True)
class TriedHooks:
    """What the trial of all hooks showed.

    Args:
        problems: hooks that change gradients, parameters or the course of training, each with its way out.
        untried: hooks that could not run on copies, each with the reason.
    """

    problems: tuple[str, ...] = ()
    untried: tuple[str, ...] = ()


def try_hooks(trainer: L.Trainer, module: L.LightningModule, batch: object) -> TriedHooks:
    """Run every hook that the user wrote on copies, and return what it changed.

    Module, optimizer, callbacks, random state and the global variables of the module's files stay as they are, and
    nothing is logged or printed. Hooks that write to other objects, such as a service, do write there.

    Args:
        trainer: about to start its first step.
        module: the module to train.
        batch: the first one.
    """
    hooks = _hooks(trainer, module)
    if not hooks or not trainer.optimizers:
        return TriedHooks()
    trial = _Trial(trainer, module, batch, hooks)
    epochs, steps = _length(trainer)
    try:
        with no_traces(module):
            for factor in (_LARGE, _SMALL, None):
                trial.run(Clock(trainer.current_epoch, trainer.global_step), factor)
            for factor in (_LARGE, _SMALL):
                trial.run(Clock(epochs - 1, steps - 1), factor)
    except CaptureError:  # a module that cannot be copied cannot be recorded either, which `training_problems` states
        return TriedHooks()
    return TriedHooks(tuple(trial.problems.values()), tuple(trial.untried.values()))


@dataclass(frozen=True)
class _Hook:
    """A hook that the user wrote.

    Args:
        owner: module or callback of the training.
        name: of the method.
    """

    owner: Owner
    name: str

    @property
    def title(self) -> str:
        return title(self.owner, self.name)


def _hooks(trainer: L.Trainer, module: L.LightningModule) -> list[_Hook]:
    owners: list[Owner] = [*foreign_callbacks(trainer), module]
    return [
        _Hook(owner, name)
        for name in _HOOKS
        for owner in owners
        if not (name in _OF_MODULE and owner is not module) and _code_of(owner, name) is not None
    ]


def _code_of(owner: Owner, name: str) -> Callable[..., object] | None:
    """Return the user's code that a hook runs, such as the `finetune_function` of a callback; None if there is none."""
    if name == "on_train_epoch_start" and isinstance(owner, of_both(BaseFinetuning)):
        return written_by_user(owner, "finetune_function") or written_by_user(owner, name)
    return written_by_user(owner, name)


def _length(trainer: L.Trainer) -> tuple[int, int]:
    """Return the number of epochs and steps of the training; large ones if it has no end."""
    epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else 1000
    steps = trainer.num_training_batches * epochs
    return epochs, int(min(steps, _LAST_STEP))


# --- copies ----------------------------------------------------------------------------------------------------------


class _Metrics(dict[str, Tensor]):
    """Logged values that all are one number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def __missing__(self, key: str) -> Tensor:
        return torch.tensor(self.value)

    def __contains__(self, key: object) -> bool:
        return True

    def get(self, key: str, default: object = None) -> Tensor:
        return self[key]


class _StandInStrategy:
    """A strategy with the copied optimizer."""

    def __init__(self, trainer: L.Trainer) -> None:
        self._strategy = trainer.strategy
        self.optimizers: list[Optimizer] = []
        self._lightning_optimizers = self.optimizers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._strategy, name)


class _StandInLoop:
    """A loop of a Trainer that keeps what is written to it."""

    def __init__(self, loop: _Loop) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._loop, name)
        if isinstance(value, of_both(_Loop)):
            value = self.__dict__[name] = _StandInLoop(value)
        return value

    def written(self) -> Outcome:
        """Return what was written, inner loops included."""
        kept = {name: value for name, value in vars(self).items() if name != "_loop"}
        return tuple(
            (name, value.written() if isinstance(value, _StandInLoop) else value)
            for name, value in sorted(kept.items())
            if not isinstance(value, _StandInLoop) or value.written()
        )


class _StandInTrainer:
    """A Trainer with copies of module and optimizer, at any moment, whose own methods do nothing or raise."""

    def __init__(self, trainer: L.Trainer, clock: Clock) -> None:
        self._trainer = trainer
        self.current_epoch, self.global_step = clock.epoch, clock.step
        self.should_stop = False
        self.fit_loop = _StandInLoop(trainer.fit_loop)
        self.logger = DummyLogger()
        self.loggers = [self.logger]
        self.strategy = _StandInStrategy(trainer)
        self.optimizers = self.strategy.optimizers
        self.model: nn.Module | None = None
        self.lightning_module: nn.Module | None = None
        self.set_metrics(1.0)

    def set_metrics(self, value: float) -> None:
        self.callback_metrics = self.logged_metrics = self.progress_bar_metrics = _Metrics(value)

    def save_checkpoint(self, *args: object, **kwargs: object) -> None:
        """Save nothing."""

    def print(self, *args: object, **kwargs: object) -> None:
        """Print nothing."""

    def __getattr__(self, name: str) -> object:
        value = getattr(self._trainer, name)
        if isinstance(value, types.MethodType) and value.__self__ is self._trainer:
            raise RuntimeError(f"it calls `trainer.{name}`")
        return value


class _Stage:
    """Copies of module, optimizer and callbacks under a stand-in for the Trainer.

    Args:
        trainer: of the training.
        module: of the training.
        clock: the moment that hooks find.

    Attributes:
        failures: callbacks that cannot be copied, by identity, with the reason.
    """

    def __init__(self, trainer: L.Trainer, module: L.LightningModule, clock: Clock) -> None:
        self.trainer = _StandInTrainer(trainer, clock)
        shared = [trainer.train_dataloader, trainer.val_dataloaders, getattr(trainer, "datamodule", None)]
        memo: dict[int, object] = {id(value): value for value in shared if value is not None}
        memo[id(trainer)] = self.trainer
        self.module = independent_replica(module, memo)
        self.optimizer = copy.deepcopy(trainer.optimizers[0], memo)
        self.trainer.optimizers.append(self.optimizer)
        self.trainer.model = self.trainer.lightning_module = self.module
        self._memo = memo
        self.failures: dict[int, str] = {}
        self._copies: dict[int, Owner] = {id(module): self.module}
        for callback in foreign_callbacks(trainer):
            try:
                self._copies[id(callback)] = copy.deepcopy(callback, memo)
            except Exception as error:
                self.failures[id(callback)] = f"it cannot be copied ({type(error).__name__}: {error})"
        silence(self.module, self.trainer, clock, Reads())  # type: ignore[arg-type]
        self.module._trainer = self.trainer  # type: ignore[assignment]  # with optimizers that can be set
        self.clean = {name: parameter.detach().clone() for name, parameter in self.module.named_parameters()}

    def method(self, hook: _Hook) -> Callable[..., Any]:
        """Return the hook of the copy."""
        method: Callable[..., Any] = getattr(self._copies[id(hook.owner)], hook.name)
        return method

    def schedulers(self) -> list[Any]:
        """Return new copies of the schedules, for the copied optimizer."""
        return [
            copy.deepcopy(config.scheduler, dict(self._memo)) for config in self.trainer.strategy.lr_scheduler_configs
        ]

    def fill(self, factor: float | None) -> None:
        """Scale the parameters, and give them gradients of this size with random signs; None makes all unequal."""
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                scale = _unequal(parameter) if factor is None else torch.full_like(parameter, factor)
                parameter.copy_((self.clean[name] + (self.clean[name] == 0)) * scale)
                if parameter.requires_grad:
                    parameter.grad = torch.randn_like(parameter) * scale

    @property
    def settings(self) -> Outcome:
        """The optimizer's settings, which parameters are trained, modes, and the wish to stop or another end."""
        groups = [
            tuple((key, _number(value)) for key, value in sorted(group.items()) if key != "params")
            for group in self.optimizer.param_groups
        ]
        trained = tuple(parameter.requires_grad for parameter in self.module.parameters())
        modes = tuple(part.training for part in self.module.modules())
        return (*groups, trained, modes, self.trainer.should_stop, self.trainer.fit_loop.written())


def _equal(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors are the same; NaN equals itself."""
    return first.shape == second.shape and bool(((first == second) | (first != first) & (second != second)).all())


def _unequal(parameter: Tensor) -> Tensor:
    return torch.exp2(torch.randint_like(parameter, -20, 21))


def _number(value: object) -> object:
    return float(value) if isinstance(value, Tensor) and value.numel() == 1 else value


# --- trial -----------------------------------------------------------------------------------------------------------


@dataclass
class _Trial:
    """A trial of all hooks, and what it has shown so far.

    Args:
        trainer: of the training.
        module: of the training.
        batch: the first one.
        hooks: in the order of a batch.
    """

    trainer: L.Trainer
    module: L.LightningModule
    batch: object
    hooks: list[_Hook]
    problems: dict[str, str] = field(default_factory=dict)
    untried: dict[str, str] = field(default_factory=dict)
    outcomes: dict[tuple[object, ...], Outcome] = field(default_factory=dict)
    states: dict[tuple[object, ...], Hashable] = field(default_factory=dict)

    def run(self, clock: Clock, factor: float | None) -> None:
        """Run two batches on new copies: one as usual, and one of another size."""
        stage = _Stage(self.trainer, self.module, clock)
        with undisturbed(RandomState.now()), _quiet():
            for usual in (True, False):
                for hook in self.hooks:
                    if hook.title not in self.untried and hook.title not in self.problems:
                        self._try(stage, hook, clock, 1.0 if usual else factor, usual=usual)
                        if hook.title in self.untried or hook.title in self.problems:
                            stage = _Stage(self.trainer, self.module, clock)

    def _try(self, stage: _Stage, hook: _Hook, clock: Clock, factor: float | None, *, usual: bool) -> None:
        outside = _outside(hook)
        reason = stage.failures.get(id(hook.owner)) or outside
        if reason:
            self.untried[hook.title] = f"{hook.title} could not be tried: {reason}"
            return
        stage.fill(factor)
        size = _LARGE if factor is None else factor
        stage.trainer.set_metrics(size)
        before = _Content(stage.module)
        seed_all(_SEED)
        try:
            returned = _run(stage, hook, self.batch, size)
        except Exception as error:
            if usual:
                self.untried[hook.title] = f"{hook.title} could not be tried: {type(error).__name__}: {error}"
            return
        changed = before.changed(stage.module, gradients=hook.name != "optimizer_zero_grad")
        if returned == (_LOSS,):
            changed = _LOSS
        if changed:
            self.problems[hook.title] = f"{hook.title} writes to {changed}. {_ADVICE[changed]}"
        elif hook.name == "optimizer_zero_grad" and _has_gradients(stage.optimizer):
            self.problems[hook.title] = f"{hook.title} leaves gradients of another step. Call `optimizer.zero_grad()`."
        states = generator_states()
        if self.states.setdefault((hook.title, clock, usual), states) != states:
            self.problems.setdefault(hook.title, f"{hook.title}: {DRAWS_DIFFER}")
        outcome = (*stage.settings, *returned)
        if self.outcomes.setdefault((hook.title, clock, usual), outcome) != outcome:
            self.problems.setdefault(
                hook.title,
                f"{hook.title} chooses the learning rate, what is trained, whether to step or when to stop by "
                "gradients, losses or metrics; a poisoned run would choose otherwise. Let these depend on the step "
                "alone.",
            )
        if hook.name == "on_train_batch_start" and hook.title not in self.problems and self._mixes(hook, clock, size):
            self.problems[hook.title] = (
                f"{hook.title} changes its batch by a statistic of all its samples, which is another one in a poisoned "
                "run, so that one poisoned sample reaches all others. Compute it in `training_step`, or once for the "
                "data set, before training."
            )

    def _mixes(self, hook: _Hook, clock: Clock, size: float) -> bool:
        """Return whether a hook changes samples of its batch by others: another first sample changes what follows."""
        left = []
        for other in (False, True):
            stage = _Stage(self.trainer, self.module, clock)
            data = _sized(self.batch, size)
            before = [leaf.clone() for leaf in flatten(data)[0]]
            samples = max((len(leaf) for leaf in before if leaf.ndim), default=0)
            for leaf in flatten(data)[0]:
                if other and leaf.ndim and len(leaf) == samples:
                    leaf[0] = 1024 * leaf[0] + 1 if leaf.is_floating_point() else leaf[-1]
            method = stage.method(hook)
            state = RandomState.now()
            with undisturbed(state):
                method(*(() if isinstance(hook.owner, LIGHTNING_MODULES) else (stage.trainer, stage.module)), data, 0)
            after = flatten(data)[0]
            left.append([leaf[1:] if leaf.ndim and len(leaf) == samples else leaf for leaf in after])
            if not other and all(map(_equal, before, after)) and len(before) == len(after):
                return False
        return len(left[0]) != len(left[1]) or not all(map(_equal, *left))


_SEED = 20260711
"""From which each hook draws random numbers, so that what it draws can be compared."""

_ACTION = (
    "It need not change any on these data: a poisoned run can cross a threshold, and the bounds do not cover that."
)

_LOSS = "the loss"

_ADVICE: Mapping[str, str] = {
    "gradients": f"{_ACTION} To clip, use `Trainer(gradient_clip_val=..., gradient_clip_algorithm=...)`; to log a "
    "norm, use `torch.nn.utils.get_total_norm`; otherwise remove it.",
    _LOSS: f"{_ACTION} Change the loss in `training_step`.",
    "parameters": f"{_ACTION} Remove it: instead of constraints use the optimizer's `weight_decay`, and keep averages "
    "outside of the module.",
}


class _Content:
    """Parameters and gradients of a module with torch's counts of writes.

    Args:
        module: a copy.
    """

    def __init__(self, module: nn.Module) -> None:
        self.parameters = {
            name: (parameter.detach().clone(), parameter._version) for name, parameter in module.named_parameters()
        }
        gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
        self.gradients = {
            name: (grad, grad.detach().clone(), grad._version) for name, grad in gradients.items() if grad is not None
        }

    def changed(self, module: nn.Module, *, gradients: bool) -> str:
        """Return what was written since, ``"gradients"`` or ``"parameters"``; empty if nothing was."""
        parameters = dict(module.named_parameters())
        if parameters.keys() != self.parameters.keys():
            return "parameters"
        for name, parameter in parameters.items():
            value, version = self.parameters[name]
            if parameter._version != version or not torch.equal(parameter.detach(), value):
                return "parameters"
            if gradients and self._other_gradient(name, parameter.grad):
                return "gradients"
        return ""

    def _other_gradient(self, name: str, gradient: Tensor | None) -> bool:
        if name not in self.gradients or gradient is None:
            return name in self.gradients or gradient is not None
        kept, value, version = self.gradients[name]
        return gradient is not kept or gradient._version != version or not torch.equal(gradient, value)


def _run(stage: _Stage, hook: _Hook, batch: object, size: float) -> Outcome:
    """Run a hook of a copy, and return what else of it could steer training."""
    method, loss = stage.method(hook), torch.tensor(size)
    data = _sized(batch, size)
    trainer = () if isinstance(hook.owner, LIGHTNING_MODULES) else (stage.trainer, stage.module)
    if hook.name == "on_train_batch_start":
        return (method(*trainer, data, 0),)
    if hook.name == "on_before_backward":
        return _before_backward(lambda value: method(*trainer, value), size)
    if hook.name == "lr_scheduler_step":
        schedulers = stage.schedulers()
        for scheduler in schedulers:
            method(scheduler, None)
        return tuple(scheduler.last_epoch for scheduler in schedulers)
    if hook.name == "optimizer_step":
        return _optimizer_step(stage, method, loss)
    arguments: dict[str, tuple[object, ...]] = {
        "on_train_batch_end": ({"loss": loss}, data, 0),
        "on_before_zero_grad": (stage.optimizer,),
        "on_before_optimizer_step": (stage.optimizer,),
        "optimizer_zero_grad": (stage.trainer.current_epoch, 0, stage.optimizer),
    }
    method(*trainer, *arguments.get(hook.name, ()))
    return ()


def _before_backward(hook: Callable[[Tensor], object], size: float) -> Outcome:
    """Return whether a hook writes to the loss, or changes its gradient by a hook of its own."""
    source = torch.tensor(size, requires_grad=True)
    loss = 1.0 * source
    hook(loss)
    return (_LOSS,) if loss._version > 0 or loss._backward_hooks or float(loss) != size else ()


def _optimizer_step(stage: _Stage, method: Callable[..., object], loss: Tensor) -> Outcome:
    """Return the settings at each step that an overridden `optimizer_step` makes."""
    made: list[Outcome] = []
    before = _Content(stage.module)

    def step(closure: Callable[[], object] | None = None, **_: object) -> object:
        result = closure() if closure is not None else None
        made.append((stage.settings, before.changed(stage.module, gradients=True)))
        return result

    stage.optimizer.step = step  # type: ignore[method-assign, assignment]
    stage.optimizer.optimizer = stage.optimizer  # type: ignore[attr-defined]
    method(stage.trainer.current_epoch, 0, stage.optimizer, lambda: loss)
    return tuple(made)


def _sized(batch: object, size: float) -> object:
    """Return a copy of a batch with its real numbers scaled."""
    leaves, rebuild = flatten(batch)
    return rebuild([leaf.detach() * size if leaf.is_floating_point() else leaf.clone() for leaf in leaves])


def _has_gradients(optimizer: Optimizer) -> bool:
    return any(
        parameter.grad is not None and bool((parameter.grad != 0).any())
        for group in optimizer.param_groups
        for parameter in group["params"]
    )


def _outside(hook: _Hook) -> str:
    """Return that a hook refers to a module, a tensor or an optimizer that is not copied with its owner."""
    function = _code_of(hook.owner, hook.name)
    assert function is not None
    if isinstance(hook.owner, LIGHTNING_MODULES) and hook.name in vars(hook.owner):
        return "it is set on the object, not on its class"
    kinds = (nn.Module, Tensor, Optimizer, *TRAINERS)
    named = [type(value).__name__ for value in outer_values(function) if isinstance(value, kinds)]
    return f"it refers to a `{named[0]}` outside of its object" if named else ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out warnings and log messages."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
