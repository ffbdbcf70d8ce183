"""The certified steps of one `fit`: recorded before they run, bounded before they are applied, followed after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from weakref import WeakSet

import lightning as L
import torch
from torch.optim import Optimizer

from agt_lightning.adversaries.base import counts_sources
from agt_lightning.capture.clock import Clock
from agt_lightning.certificates.phases import EVALUATED, OVERRIDDEN_OBJECTIVE, ROLES, UNTRIED_HOOKS
from agt_lightning.certificates.task import Task
from agt_lightning.digest import content_digest
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.engine.bounded_runs import by_adversary
from agt_lightning.engine.step_bounds import StepBounds
from agt_lightning.errors import CaptureError, UncertifiableError, UnsoundBoundError
from agt_lightning.lightning.checks import caught_endings_now, training_problems
from agt_lightning.lightning.hooks import optimizer_problems, remarks
from agt_lightning.lightning.ledger import TrainedBatches
from agt_lightning.lightning.life_cycle import Fit
from agt_lightning.lightning.probes import try_hooks
from agt_lightning.lightning.samplers import (
    assignment_problems,
    collates_more,
    draws_once,
    follows_epochs,
    sampler_problems,
)
from agt_lightning.lightning.training_step import TrainingLoss
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.propagation.samples import MicroBatch, sources_of_samples


class CertifiedSteps:
    """The certified steps of one `fit`; the callback calls these methods from Lightning's hooks.

    Args:
        trainer: of the training.
        module: in training.
        fit: the bounds, and what they go on from.
        loss: of the training.
        announce: logs a remark, once.

    Attributes:
        task: what the losses of all steps compare with labels; None before the first step.
    """

    def __init__(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        fit: Fit,
        loss: TrainingLoss,
        announce: Callable[[str], None],
    ) -> None:
        self.trainer = trainer
        self.module = module
        self.fit = fit
        self.engine = fit.engine
        self.loss = loss
        self.task: Task | None = None
        self._announce = announce
        self._batches: list[MicroBatch] = []
        self._digests: list[str] = []  # of these batches, as `training_step` gets them
        self._bounds: StepBounds | None = None
        self._approved: WeakSet[BoundedObjective] = WeakSet()  # recordings that can be certified
        self._loaders: object = None
        self._collates_more = False
        self._follows_samples = True  # whether none can be drawn twice in an epoch, and changed in between
        self._stepping = False
        self._seed: int | None = None  # of torch's generator at the first step

    def drop_batches(self) -> None:
        """Forget batches for which Lightning made no step, because a hook ended their epoch."""
        self._batches, self._digests = [], []

    def before_training_step(self, batch: object, index: int) -> AbstractContextManager[None]:
        """Keep a batch as its step finds it, with its recording; raise all problems of a new recording at once.

        Args:
            batch: as `training_step` is about to get it.
            index: of the batch in its epoch.

        Returns:
            A context in which the step must run.
        """
        self._check_loaders()
        self.loss.now = Clock(self.trainer.current_epoch, self.trainer.global_step, index)
        observed: MicroBatch | None = None
        # A manual step optimizes by itself and must not run, not even on a replica, which shares the parameters.
        if self.module.automatic_optimization:
            with suppress(CaptureError), self.engine.processes.collective_errors():
                observed = self.engine.observe(batch, self.loss.now)
        if self.engine.processes.any(observed is None or observed.recorded not in self._approved):
            self._approve(MicroBatch(batch) if observed is None else observed)
        assert observed is not None
        assert observed.recorded is not None
        assert observed.state is not None
        if problems := caught_endings_now(observed.recorded):
            raise UncertifiableError(problems)
        self._seed = torch.initial_seed() if self._seed is None else self._seed
        if observed.recorded.graph.masks and torch.initial_seed() != self._seed:
            raise UncertifiableError([_SEEDED_AGAIN])
        size = observed.recorded.size(observed.data)
        self._note_size(size)
        self._batches.append(replace(observed, epoch=self._epoch()))
        self._digests += [content_digest(batch), *self._digest_of_sources(batch, size)]
        return observed.running(self.module)

    def before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Bound the gradient of the kept batches, and check that it is the one that training is about to apply.

        Raises:
            UncertifiableError: if the optimizer steps twice on one batch, has got a hook, or a domain is lost.
            UnsoundBoundError: if a self-check fails.
        """
        if not self._batches:
            raise UncertifiableError(["The optimizer steps twice on one batch. Let `optimizer_step` step once."])
        problems = optimizer_problems(self.trainer.optimizers)
        if problems:
            raise UncertifiableError(problems)
        scale = 1.0 / self.trainer.accumulate_grad_batches
        self._bounds = self.engine.bound_gradient(self._batches, scale)
        self.engine.verify(self._bounds, self._batches, scale, optimizer)
        if self.engine.clipping is not None:  # Lightning clips after the hook that calls this.
            self._bounds = self.engine.clip(self._bounds, self.engine.clipping, optimizer)
        self._stepping = True  # until the bounds have moved with the parameters

    def after_optimizer_step(self, optimizer: Optimizer) -> None:
        """Move the bounds."""
        if self._bounds is not None:
            self.engine.update(self._bounds, optimizer)
            self._note_batches()
            self.fit.note_step()
        self._bounds, self._stepping = None, False
        self.drop_batches()

    def _note_batches(self) -> None:
        """Add the batches of a step to the chain of digests, those of all processes."""
        samples = sum(each.recorded.size(each.data) for each in self._batches if each.recorded is not None)
        parts = self.engine.processes.gather({"digests": " ".join(self._digests), "samples": str(samples)})
        digests = [digest for part in parts for digest in str(part["digests"]).split()]
        total = sum(int(str(part["samples"])) for part in parts)
        TrainedBatches.of(self.engine).after(digests, total).note(self.engine)

    def require_sound_end(self) -> None:
        """Raise unless the module is as the last step left it.

        Raises:
            UnsoundBoundError: naming what has changed.
        """
        self.engine.require_untouched()
        self.engine.require_contained()

    def end(self, exception: BaseException | None) -> bool:
        """Keep what a later `fit` goes on from; return whether there is anything to go on from.

        Args:
            exception: that ended the training; None if it ended by itself.
        """
        problem = None
        if (self._stepping or self.fit.made_steps) and isinstance(exception, UnsoundBoundError):
            problem = "a self-check has failed"
        elif self._stepping:
            problem = "the training was cut off in the middle of a step"
        self.fit.end(self.trainer.optimizers[0] if self.trainer.optimizers else None, problem)
        return self.fit.made_steps or self.fit.resumed or problem is not None

    def _approve(self, batch: MicroBatch) -> None:
        """Raise all problems of training on batches like this one; log remarks that are new."""
        problems = training_problems(self.trainer, self.module, self.engine, batch)
        if not self._approved and self.module.automatic_optimization:
            tried = try_hooks(self.trainer, self.module, batch.data)
            problems += self.engine.processes.union(tried.problems)
            self.engine.stated[UNTRIED_HOOKS] = self.engine.processes.union(tried.untried)
        if problems:
            raise UncertifiableError(problems)
        assert batch.recorded is not None
        self._approved.add(batch.recorded)
        task = Task.of(batch.recorded.objective, batch.recorded.parameters)
        self.task = task if self.task is None else self.task | task
        self.engine.stated[OVERRIDDEN_OBJECTIVE] = bool(self.loss.own_objective)
        self.engine.stated[EVALUATED] = bool(self.engine.stated.get(EVALUATED)) or batch.recorded.prelude is not None
        roles = batch.recorded.objective
        known = self.engine.stated.setdefault(ROLES, [])
        if roles.record() not in known:
            known.append(roles.record())
        reading = f"reads the batch as {roles.summary()}"
        for remark in [
            reading,
            _level(self.engine),
            *_unstated(batch.recorded.program.unstated),
            *by_adversary(self.engine.runs, lambda runs: runs.domains.remarks(), "with the adversary"),
            *remarks(self.trainer, self.module),
        ]:
            self._announce(f"`CertifiedTraining` {remark}")

    def _digest_of_sources(self, batch: object, size: int) -> list[str]:
        """Return a digest of the sources of a batch if n counts sources; curves of other sources are other curves."""
        if not any(map(counts_sources, self.engine.adversaries)):
            return []
        whose = sources_of_samples(self.engine.config.sources, batch, size)
        return [] if whose is None else [content_digest(whose)]

    def _note_size(self, size: int) -> None:
        """Note that a batch has more samples than were drawn for it, in this process."""
        if not self._collates_more and collates_more(self.trainer, size):
            self._collates_more = True
            self.engine.expect_repeats(possible=True)

    def _epoch(self) -> int | None:
        """Return the number of the epoch; None if a sample could be drawn several times in it."""
        number = self.fit.epoch(self.trainer.current_epoch)
        return number if self._follows_samples and not self._collates_more else None

    def _check_loaders(self) -> None:
        """Look at how new loaders draw samples; those of the first batch are checked with all else."""
        loaders = self.trainer.fit_loop._combined_loader
        if loaders is self._loaders:
            return
        self._loaders = loaders
        self.engine.expect_repeats(possible=self._collates_more or not draws_once(self.trainer))
        self._follows_samples = follows_epochs(self.trainer, self.engine.processes)
        if not self._approved:
            return
        problems = sampler_problems(self.trainer, self.engine.processes)
        problems += self.engine.processes.union(assignment_problems(self.trainer, self.engine.adversaries))
        if problems:
            raise UncertifiableError(problems)


def _level(engine: AbstractGradientEngine) -> str:
    """Return which runs the bounds contain."""
    if engine.config.floats == "real":
        return 'bounds runs in real arithmetic (`floats="real"`); runs on hardware can leave them by rounding.'
    types = {str(p.dtype).removeprefix("torch.") for p in engine.module.parameters() if p.requires_grad}
    return f"bounds runs as hardware executes them in {', '.join(sorted(types))}, in any order of summation."


def _unstated(operations: Sequence[str]) -> list[str]:
    """Return a remark on rules that do not say how their operations round."""
    if not operations:
        return []
    return [
        f"widens the bounds of {', '.join(f'`{name}`' for name in operations)} by the rounding of a sum over a whole "
        "sample, since the rule states none. Give the rule `roundings` for narrower bounds (docs/rules.md)."
    ]


_SEEDED_AGAIN = (
    "The loss reads random numbers, and something has seeded torch's generator since the first step. If data decide "
    "when or how, a poisoned run draws other numbers. Seed before training, and in between a generator "
    "of your own."
)
