"""From one `fit` to the next: the bounds that a training goes on from, or why it must not start."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import lightning as L
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from torch import Tensor, nn
from torch.optim import Optimizer

from agt_lightning.adversaries.several import described
from agt_lightning.digest import tensors_digest
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.engine.checkpoint import complete
from agt_lightning.errors import BoundsMismatchError, UncertifiableError
from agt_lightning.lightning.packages import of_both
from agt_lightning.lightning.resume import bounds_to_save, resume

_WAY_OUT = (
    "Train a new module with a new `CertifiedTraining`, or resume from a checkpoint of the certified training by "
    "`trainer.fit(..., ckpt_path=...)`."
)


@dataclass(frozen=True)
class PastTraining:
    """Certified steps of a module, and where they left it.

    Args:
        adversary: its description, or that of several.
        start: digest of the parameters before the first step; None if it was resumed from a checkpoint.
        end: digest of the parameters after the last step; empty while steps are being made.
        saved: from `bounds_to_save`, after the last step.
        optimizer: digest of the optimizer's state after the last step.
        next_epoch: a number that no epoch had yet.
        problem: why no training can go on from here; None if one can.
        statistics: the buffers with running statistics that the steps have moved, as they were before, by name.
    """

    adversary: str
    start: str | None
    end: str = ""
    saved: Mapping[str, Any] = field(default_factory=dict)
    optimizer: str = ""
    next_epoch: int = 0
    problem: str | None = "its earlier training has not ended in order"
    statistics: Mapping[str, Tensor] = field(default_factory=dict)


_PAST: WeakKeyDictionary[nn.Module, dict[str, PastTraining]] = WeakKeyDictionary()
"""What certified trainings of this process left behind, by module and by the key of their callback in checkpoints."""

_ENDS: set[str] = set()
"""Digests of the parameters that certified trainings of this process left."""

_TUNED: WeakSet[nn.Module] = WeakSet()
"""Modules whose learning rate was chosen by the data."""


class Fit:
    """One `fit` of a module under one callback, from its first batch to its end.

    Args:
        engine: of the module, with the bounds that this `fit` goes on from.
        key: of the callback in checkpoints.
        start: digest of the parameters before the first step of all these fits; None if it is not known.
        epochs_before: what makes the Trainer's epoch a number that no epoch of an earlier `fit` had, if added to it.
        resumed: whether the bounds are those of a checkpoint.
        statistics: buffers that earlier fits have moved, as they were before, by name; None if there are none.
    """

    def __init__(
        self,
        engine: AbstractGradientEngine,
        key: str,
        start: str | None,
        epochs_before: int,
        *,
        resumed: bool = False,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.engine = engine
        self.key = key
        self.epochs_before = epochs_before
        self._start = start
        self._next_epoch = epochs_before
        self._steps_before = engine.steps
        self.resumed = resumed
        self._statistics = ChainMap(dict(statistics or {}), engine.statistics.before)  # those of earlier fits first

    @property
    def made_steps(self) -> bool:
        """Whether this `fit` has made a certified step."""
        return self.engine.steps > self._steps_before

    def epoch(self, trainer_epoch: int) -> int:
        """Return the number of an epoch over all fits of the module, and note it."""
        number = self.epochs_before + trainer_epoch
        self._next_epoch = max(self._next_epoch, number + 1)
        return number

    def note_step(self) -> None:
        """Note that the module leaves the bounds of earlier fits; called after each step."""
        if self.engine.steps == self._steps_before + 1:
            adversary = described(self.engine.adversaries)
            self._remember(PastTraining(adversary, self._start, statistics=self._statistics))

    def end(self, optimizer: Optimizer | None, problem: str | None = None) -> None:
        """Keep the bounds for a later `fit`, unless nothing has changed.

        Args:
            optimizer: of the training.
            problem: why no training can go on from here; None if one can.
        """
        if not (self.made_steps or self.resumed or problem):
            return
        saved = bounds_to_save(self.engine, self.epochs_before)
        if saved["parameters"] != self._start:
            _ENDS.add(saved["parameters"])
        self._remember(
            PastTraining(
                adversary=saved["adversary"],
                start=self._start,
                end=saved["parameters"],
                saved=saved,
                optimizer=optimizer_digest(optimizer),
                next_epoch=self._next_epoch,
                problem=problem,
                statistics=self._statistics,
            )
        )

    def _remember(self, past: PastTraining) -> None:
        _PAST.setdefault(self.engine.module, {})[self.key] = past


def begin(engine: AbstractGradientEngine, key: str, optimizer: Optimizer | None, trainer_epoch: int) -> Fit:
    """Start a training at its first batch: with bounds of width zero, or with those of an earlier `fit`.

    Args:
        engine: new, of the module.
        key: of the callback in checkpoints.
        optimizer: of this `fit`; None if there is none.
        trainer_epoch: the Trainer's number of the epoch.

    Raises:
        BoundsMismatchError: if the module was trained before, and its bounds are not known or not for this adversary.
        UncertifiableError: if the optimizer's state is neither empty nor that of the last step.
    """
    with engine.processes.collective_errors():
        digest = tensors_digest(engine.module.named_parameters())
        past = _past_of(engine.module, digest, described(engine.adversaries), key)
        if past is not None:
            _require_known_state(optimizer, past)
    if past is None:
        return Fit(engine, key, digest, epochs_before=0)
    resume(engine, past.saved)
    if not _has_state(optimizer):
        engine.restart_optimizer()
    epochs_before = past.next_epoch - trainer_epoch
    return Fit(engine, key, past.start, epochs_before, statistics=past.statistics)


def begin_resumed(engine: AbstractGradientEngine, key: str, saved: Mapping[str, Any]) -> Fit:
    """Start a training with the bounds of a checkpoint.

    It goes through the data set anew: an epoch that was interrupted may draw the same samples again.

    Args:
        engine: new, of the module with the checkpoint's parameters.
        key: of the callback in checkpoints.
        saved: from `saved_bounds`.

    Raises:
        BoundsMismatchError: if the bounds are incomplete, or for another adversary or other parameters.
    """
    resume(engine, saved)
    with complete(saved):
        epochs_before = int(saved.get("epochs_before", 0)) + int(engine.steps > 0)
    return Fit(engine, key, None, epochs_before, resumed=True)


def _past_of(module: nn.Module, digest: str, adversary: str, key: str) -> PastTraining | None:
    """Return the training that left these parameters; None if none changed them yet.

    Raises:
        BoundsMismatchError: if they were trained, but not by certified steps with this adversary alone.
    """
    own = _PAST.get(module, {})
    left = {name: past for name, past in own.items() if past.end == digest}
    if not left and all(past.start == digest for past in own.values()):
        if not own and digest in _ENDS:
            raise BoundsMismatchError(
                "Expected untrained parameters, but a certified training of another module has left these: the module "
                "is a copy of that one. Train that one further, or save a checkpoint of it and resume from there by "
                "`trainer.fit(..., ckpt_path=...)`."
            )
        _require_statistics_of_start(module, own.values())
        return None
    if not left and all(past.problem is None for past in own.values()):
        raise BoundsMismatchError(
            "Expected the parameters as the last certified step of this module left them, or as they were before the "
            "first one, but they differ: other weights were loaded, or something changed them. Bounds that start here "
            f"would miss everything an adversary did before. {_WAY_OUT}"
        )
    return _usable(left or own, adversary, key)


def _require_statistics_of_start(module: nn.Module, trainings: Iterable[PastTraining]) -> None:
    """Raise unless a module that starts anew has the running statistics that it had before it was trained."""
    buffers = dict(module.named_buffers())
    for name, value in (named for past in trainings for named in past.statistics.items()):
        if name in buffers and not torch.equal(buffers[name], value.to(buffers[name].device)):
            raise BoundsMismatchError(
                f"Expected the buffer `{name}` as it was before the module's first certified step, as its parameters "
                "are, but an earlier training has moved it, by data that can be poisoned. Call `reset_running_stats()` "
                "of that layer, or train a new module."
            )


def _usable(trainings: Mapping[str, PastTraining], adversary: str, key: str) -> PastTraining:
    """Return the training with this adversary, that of the same callback if there are several.

    Raises:
        BoundsMismatchError: if there is none, or no training can go on from it.
    """
    fitting = {name: past for name, past in trainings.items() if past.adversary == adversary}
    if not fitting:
        earlier = next(iter(trainings.values())).adversary
        raise BoundsMismatchError(
            f"Expected to go on with the adversary of the module's earlier training, {earlier}, but got {adversary}. "
            f"Bounds for one adversary do not hold for another. {_WAY_OUT}"
        )
    past = fitting.get(key, next(iter(fitting.values())))
    if past.problem is not None:
        raise BoundsMismatchError(f"Training cannot go on from the module's last step: {past.problem}. {_WAY_OUT}")
    return past


# --- the optimizer's state ---------------------------------------------------------------------------------------


def optimizer_digest(optimizer: Optimizer | None) -> str:
    """Return a digest of an optimizer's state; empty if there is no optimizer."""
    return "" if optimizer is None else tensors_digest(_state_of(optimizer))


def _require_known_state(optimizer: Optimizer | None, past: PastTraining) -> None:
    """Raise unless an optimizer's state is empty, as in every run, or the one that the last certified step left."""
    if _has_state(optimizer) and optimizer_digest(optimizer) != past.optimizer:
        raise UncertifiableError(
            [
                "The optimizer's state is neither empty nor the one that the last certified step left: it holds steps "
                "that have no bounds. Let `configure_optimizers` return a new optimizer."
            ]
        )


def _has_state(optimizer: Optimizer | None) -> bool:
    return optimizer is not None and any(True for _ in _state_of(optimizer))


def _state_of(optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Yield the entries of an optimizer's state that steps have made, by the parameter's position and their name."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for position, parameter in enumerate(parameters):
        for name, value in sorted(optimizer.state.get(parameter, {}).items()):
            if value is not None:
                yield f"{position} {name}", torch.as_tensor(value)


# --- learning rates that the data chose --------------------------------------------------------------------------


def note_tuning(trainer: L.Trainer, module: nn.Module) -> None:
    """Note that the learning rate of a module is being chosen by its loss on the data, by `Tuner.lr_find`."""
    if any(isinstance(callback, of_both(LearningRateFinder)) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        _TUNED.add(module)


def tuning_problems(module: nn.Module) -> list[str]:
    """Return a problem if the data chose the module's learning rate."""
    if module not in _TUNED:
        return []
    return [
        "`lr_find` has chosen the learning rate by the data, and a poisoned run would choose another. Fix the learning "
        "rate, and train a new module."
    ]
