"""Hooks and overrides that could act on a poisoned run alone, found before the first step, each with its way out.

What changes gradients, parameters or the learning rate only above a threshold does nothing on clean data, so no
comparison of clean gradients can show it.
"""

from __future__ import annotations

import contextlib
import dis
import itertools
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.nn.modules import module as torch_modules
from torch.optim import optimizer as torch_optimizers
from torch.optim.lr_scheduler import ReduceLROnPlateau

from agt_lightning.capture.source import LIGHTNING

METRICS = frozenset({"callback_metrics", "logged_metrics", "progress_bar_metrics"})
"""Attributes of a Trainer whose values come from the data."""

_OWN = (*(f"{name}." for name in LIGHTNING), "agt_lightning.")

_DECORATING = ("contextlib.", "torch.", "lightning_utilities.", "typing_extensions.")
"""Libraries whose decorators Lightning uses: the code of what they return is theirs."""

_CLIPPING = ("clip_grad", "clip_gradients")

_STEP_HOOKS = (
    *("optimizer_step", "optimizer_zero_grad", "on_train_batch_start", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_before_zero_grad", "on_train_batch_end", "on_train_epoch_start"),
    "on_train_epoch_end",
)
"""Hooks that can reach gradients or parameters; `try_hooks` runs them."""

_STRATEGY_METHODS = (
    *("training_step", "post_training_step", "pre_backward", "backward", "post_backward", "optimizer_step"),
    "on_train_batch_start",
)

_VALIDATION_HOOKS = ("on_validation_batch_end", "on_validation_epoch_end", "on_validation_end")

_TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def hook_problems(trainer: L.Trainer, module: L.LightningModule) -> list[str]:
    """Return every hook and override that could act on a poisoned run alone.

    Args:
        trainer: about to start its first step.
        module: the module to train.
    """
    return [
        *_parameter_hook_problems(module),
        *_module_hook_problems(module),
        *optimizer_problems(trainer.optimizers),
        *_override_problems(module),
        *_plugin_problems(trainer),
        *_strategy_problems(trainer),
        *_loop_problems(trainer),
        *_schedule_problems(trainer, module),
        *_clipping_problems(trainer, module),
        *_stop_problems(trainer, module),
    ]


def written_by_user(owner: object, name: str) -> Callable[..., object] | None:
    """Return what a method calls if neither Lightning nor this package wrote it; None otherwise.

    A function is where its code is, also if `functools.wraps` gives it the name of another.
    """
    method = getattr(owner, name, None)
    function = getattr(method, "__func__", method)
    if isinstance(function, FunctionType):
        code = str(function.__globals__.get("__name__"))
        return None if function.__module__.startswith(_OWN) and f"{code}.".startswith(_OWN + _DECORATING) else function
    return function if callable(function) and _is_set_by_user(owner, name) else None


def _is_set_by_user(owner: object, name: str) -> bool:
    """Return whether an attribute, such as a `functools.partial`, is set on an object or on a class of the user's."""
    kinds = [kind for kind in type(owner).__mro__ if name in vars(kind)]
    return name in vars(owner) or bool(kinds and not kinds[0].__module__.startswith((*_OWN, "torch.", "builtins")))


def _patched(owner: object) -> list[str]:
    """Return the methods of an object of Lightning in whose place the user has put others."""
    names = [name for name in dir(type(owner)) if name[:2] != "__" and callable(getattr(type(owner), name))]
    return [name for name in names if written_by_user(owner, name) is not None]


def foreign_callbacks(trainer: L.Trainer) -> list[Callback]:
    """Return the callbacks of the Trainer besides `CertifiedTraining`; Lightning's own are among them."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [
        callback
        for callback in callbacks
        if not any(base.__module__ == "agt_lightning.lightning.callback" for base in type(callback).__mro__)
    ]


def title(owner: object, name: str) -> str:
    """Return the name of a hook for messages: class and method."""
    return f"`{type(owner).__name__}.{name}`"


# --- torch's hooks ----------------------------------------------------------------------------------------------------


def _parameter_hook_problems(module: nn.Module) -> list[str]:
    hooked = [
        name
        for name, parameter in module.named_parameters()
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None)
    ]
    return [f"{_names(hooked)} has a hook on its gradient (`register_hook`). {_ACTS} Remove it."] if hooked else []


def _module_hook_problems(module: nn.Module) -> list[str]:
    hooked = [
        name or type(part).__name__
        for name, part in module.named_modules()
        if part._backward_hooks or part._backward_pre_hooks
    ]
    problems = []
    if hooked:
        problems.append(
            f"{_names(hooked)} has a backward hook (`register_full_backward_hook`). {_ACTS} Remove it, or read the "
            "parameters' gradients in `on_after_backward`."
        )
    if torch_modules._global_backward_hooks or torch_modules._global_backward_pre_hooks:
        problems.append(
            f"There is a backward hook for all modules (`register_module_full_backward_hook`). {_ACTS} Remove it."
        )
    return problems


def optimizer_problems(optimizers: Iterable[torch.optim.Optimizer]) -> list[str]:
    """Return hooks of optimizers, and functions around their steps; hooks of this package and Lightning are not meant.

    Args:
        optimizers: of the training; they can get hooks at any time.
    """
    optimizers = list(optimizers)
    return [*_optimizer_hook_problems(optimizers), *_patched_step_problems(optimizers)]


def _optimizer_hook_problems(optimizers: Iterable[torch.optim.Optimizer]) -> list[str]:
    hooks = [*torch_optimizers._global_optimizer_pre_hooks.values()]
    hooks += torch_optimizers._global_optimizer_post_hooks.values()
    for optimizer in optimizers:
        hooks += [*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()]
    foreign = [hook for hook in hooks if not (getattr(hook, "__module__", None) or "").startswith(_OWN)]
    if not foreign:
        return []
    names = _names(sorted({getattr(hook, "__qualname__", type(hook).__name__) for hook in foreign}))
    return [
        f"The optimizer has the hook {names} (`register_step_pre_hook`, `register_step_post_hook`). {_ACTS} Move its "
        "code to `on_before_optimizer_step` or `on_train_batch_end` of a callback, which are tried before training."
    ]


def _patched_step_problems(optimizers: Iterable[torch.optim.Optimizer]) -> list[str]:
    patched = [type(optimizer).__name__ for optimizer in optimizers if _has_patched_step(optimizer)]
    return [
        f"Something has put another function in place of `{name}.step`, or around it. {_ACTS} Remove it, and change "
        "learning rates by a schedule."
        for name in patched
    ]


def _has_patched_step(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the step runs code besides its class's own and the counting that torch's schedulers put around."""
    own = type(optimizer).__module__ if "step" not in vars(optimizer) else "torch."
    step: object = getattr(optimizer.step, "__func__", optimizer.step)
    while step is not None:
        if not str(getattr(step, "__globals__", {}).get("__name__")).startswith(("torch.", own)):
            return True
        step = getattr(step, "__wrapped__", None)
    return False


# --- overrides --------------------------------------------------------------------------------------------------------


def _override_problems(module: L.LightningModule) -> list[str]:
    problems = []
    if written_by_user(module, "backward") is not None:
        problems.append(
            "`backward` is overridden and may change gradients. Remove the override, and scale or clip nothing by hand."
        )
    step = written_by_user(module, "lr_scheduler_step")
    if step is not None and METRICS & _names_in(step):
        problems.append(
            "`lr_scheduler_step` reads logged metrics, which are different in a poisoned run, and so are its rates. "
            "Use a schedule that depends on the step alone."
        )
    return problems


def _plugin_problems(trainer: L.Trainer) -> list[str]:
    plugin = trainer.strategy.precision_plugin
    if type(plugin).__module__.startswith(_OWN) and not _patched(plugin):
        return []
    return [
        f"The precision plugin `{type(plugin).__name__}` runs `training_step`, backward pass and optimizer step in its "
        "own way. Leave it out, and use `precision='32-true'` or '64-true'."
    ]


def _strategy_problems(trainer: L.Trainer) -> list[str]:
    """Return methods of a strategy of the user's that run the step, its gradients or its update."""
    strategy = trainer.strategy
    return [
        f"{title(strategy, name)} is overridden and may change gradients or steps. Remove the override, or use a "
        "strategy of Lightning."
        for name in _STRATEGY_METHODS
        if written_by_user(strategy, name) is not None
    ]


def _loop_problems(trainer: L.Trainer) -> list[str]:
    """Return loops of the user's, which can do anything between steps."""
    epoch = trainer.fit_loop.epoch_loop
    loops = (trainer.fit_loop, epoch, epoch.automatic_optimization)
    return [
        f"The loop `{type(loop).__name__}` is not Lightning's and may change gradients or steps. Use Lightning's own."
        for loop in loops
        if not type(loop).__module__.startswith(_OWN) or _patched(loop)
    ]


# --- choices that the data make ---------------------------------------------------------------------------------------


def _schedule_problems(trainer: L.Trainer, module: L.LightningModule) -> list[str]:
    """Return schedules that follow a metric."""
    problems = []
    if any(config.reduce_on_plateau or config.monitor for config in trainer.lr_scheduler_configs):
        problems.append(
            "A learning rate schedule has `monitor` or `reduce_on_plateau`, so that a metric of the data chooses the "
            "rate; a poisoned run would use another. Use a schedule that depends on the step alone, without `monitor`."
        )
    owners = [*module.modules(), *foreign_callbacks(trainer)]
    scheduled = any(isinstance(config.scheduler, ReduceLROnPlateau) for config in trainer.lr_scheduler_configs)
    if not scheduled and any(isinstance(value, ReduceLROnPlateau) for owner in owners for value in _values(owner)):
        problems.append(
            "An attribute is a `ReduceLROnPlateau`, which chooses the learning rate by a metric of the data; a "
            "poisoned run would use another. Use a schedule that depends on the step alone."
        )
    return problems


def _stop_problems(trainer: L.Trainer, module: L.LightningModule) -> list[str]:
    """Return hooks of validation that stop training."""
    stopping = [
        title(owner, name)
        for owner in (module, *foreign_callbacks(trainer))
        for name in _VALIDATION_HOOKS
        for hook in (written_by_user(owner, name),)
        if hook is not None and _stores(hook, "should_stop")
    ]
    return [
        f"{hook} sets `should_stop` by a validation; a poisoned run would stop at another step. Use "
        "`Trainer(max_steps=...)` or `max_epochs`."
        for hook in stopping
    ]


def _clipping_problems(trainer: L.Trainer, module: L.LightningModule) -> list[str]:
    """Return hooks that clip by hand: below its limit, clipping is not seen in any gradient."""
    clipping = [
        title(owner, name)
        for owner in (module, *foreign_callbacks(trainer))
        for name in _STEP_HOOKS
        for hook in (written_by_user(owner, name),)
        if hook is not None and any(read.startswith(_CLIPPING) for read in _names_in(hook))
    ]
    return [
        f"{hook} clips gradients, which the bounds follow only if Lightning does it. Use "
        "`Trainer(gradient_clip_val=..., gradient_clip_algorithm=...)`; to log a norm, use "
        "`torch.nn.utils.get_total_norm`."
        for hook in clipping
    ]


def outer_values(function: Callable[..., object]) -> Iterator[object]:
    """Yield what a function refers to besides its arguments: variables around it and globals."""
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # not assigned yet
            yield cell.cell_contents
    known = getattr(function, "__globals__", {})
    for instruction in _instructions(function):
        if instruction.opname == "LOAD_GLOBAL":
            yield known.get(instruction.argval)


def _names_in(function: Callable[..., object]) -> set[str]:
    """Return the names of attributes and globals that a function loads, functions inside of it included."""
    return {
        instruction.argval
        for instruction in _instructions(function)
        if instruction.opname.startswith("LOAD_") and isinstance(instruction.argval, str)
    }


def _stores(function: Callable[..., object], attribute: str) -> bool:
    return any(i.opname == "STORE_ATTR" and i.argval == attribute for i in _instructions(function))


def _instructions(function: Callable[..., object]) -> Iterator[dis.Instruction]:
    """Yield the instructions of a function written in Python, and those of functions inside of it."""
    waiting = [function.__code__] if isinstance(function, FunctionType) else []
    while waiting:
        code = waiting.pop()
        yield from dis.get_instructions(code)
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _values(owner: object) -> Iterator[object]:
    """Yield the attributes of an object, and the items of those that are lists or tuples."""
    for value in vars(owner).values():
        yield value
        if isinstance(value, list | tuple):
            yield from value


def remarks(trainer: L.Trainer, module: L.LightningModule) -> list[str]:
    """Return what the guarantee presumes of the data's way to `training_step`: sentences without their subject."""
    owners = [module, trainer.datamodule]  # type: ignore[attr-defined]
    transfers = [
        title(owner, name) for owner in owners for name in _TRANSFER_HOOKS if written_by_user(owner, name) is not None
    ]
    sentences = [
        f"presumes that {hook} treats each sample by itself: a statistic of the batch would be another in a poisoned "
        "run, and the adversary moves what the hook returns."
        for hook in transfers
    ]
    combined = trainer.fit_loop._combined_loader
    if combined is not None and len(combined.flattened) > 1:
        sentences.append("counts the rows with one index in the batches of all training loaders as one sample.")
    return sentences


# --- parameters -------------------------------------------------------------------------------------------------------

_TYPES = (torch.float32, torch.float64)


def parameter_problems(module: nn.Module) -> list[str]:
    """Return parameters of types that round more than the bounds allow for, and those that share memory."""
    problems = []
    coarse: dict[torch.dtype, str] = {}
    for name, parameter in module.named_parameters():
        if (parameter.is_floating_point() or parameter.is_complex()) and parameter.dtype not in _TYPES:
            coarse.setdefault(parameter.dtype, name)
    problems += [
        f"The parameter `{name}` has the type {dtype}, which has no bounds. Use float32 or float64 (`module.float()`)."
        for dtype, name in coarse.items()
    ]
    problems += [
        f"The parameters `{first}` and `{second}` share memory but are different objects, so the optimizer moves both "
        "by a step of one. Tie them by using one `Parameter` in both places, or clone one of them."
        for first, second in _overlapping(module)
    ]
    return problems


def _overlapping(module: nn.Module) -> list[tuple[str, str]]:
    """Return pairs of parameters that lie one inside the other's memory."""
    spans = []
    for name, parameter in module.named_parameters():
        if parameter.numel() and parameter.device.type != "meta" and parameter.layout == torch.strided:
            last = sum((size - 1) * stride for size, stride in zip(parameter.shape, parameter.stride(), strict=True))
            start = parameter.data_ptr()
            spans.append((str(parameter.device), start, start + (last + 1) * parameter.element_size(), name))
    spans.sort()
    return [
        (first[3], second[3])
        for first, second in itertools.pairwise(spans)
        if first[0] == second[0] and second[1] < first[2]
    ]


_ACTS = "It may change gradients or parameters in a poisoned run, although it does not on these data."


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
