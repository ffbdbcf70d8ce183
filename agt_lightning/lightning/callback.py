"""The callback that certifies the training of an unchanged LightningModule."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer
from typing_extensions import override

from agt_lightning.adversaries import Adversary
from agt_lightning.adversaries.base import require_adversary
from agt_lightning.aggregation import Aggregation
from agt_lightning.bounds import ParameterBounds
from agt_lightning.capture.dropout import RandomState
from agt_lightning.certificates import CertifiedModel
from agt_lightning.certificates.record import bound_settings, certificate, write_certificate
from agt_lightning.domains.family import chosen_domains
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.engine.step_bounds import StepBounds
from agt_lightning.errors import UncertifiableError, UnsoundBoundError
from agt_lightning.lightning.checkpoint_io import (
    AtomicCheckpointIO,
    use_atomic_checkpoints,
    warn_of_boundless_checkpoints,
)
from agt_lightning.lightning.checks import mean_clipping, training_problems
from agt_lightning.lightning.company import company_problems
from agt_lightning.lightning.distributed import processes_of, strategy_problems
from agt_lightning.lightning.life_cycle import Fit, begin, begin_resumed, note_tuning
from agt_lightning.lightning.resume import CHECKPOINT_KEY, bounds_to_save, engine_at, holds_steps, saved_bounds
from agt_lightning.lightning.samplers import draws_once, sampler_problems
from agt_lightning.lightning.training_step import TrainingLoss
from agt_lightning.lightning.validation import Validation
from agt_lightning.propagation import Method
from agt_lightning.propagation.config import CertificationConfig, DomainChoice
from agt_lightning.propagation.samples import MicroBatch, Poisonable, SampleIds


class CertifiedTraining(Callback):
    """A callback that keeps bounds on the parameters of every run an adversary could have caused.

    The module is not changed. Its training is not changed either, down to the last bit, unless the threat model
    requires that each sample's gradient is clipped.

    Settings that would void the guarantee raise one `UncertifiableError` before the first step, listing all of them. At
    every step the gradient that Lightning applies is compared with the certified one; if they differ,
    `UnsoundBoundError` is raised.

    Each step logs ``agt/mean_width`` if a domain keeps a box, and other numbers of the domains in use. Each validation
    logs nominal and certified accuracy, or squared errors, as ``agt/val_*``.

    Args:
        adversary: the threat model, such as `BoundedAdversary`; see `agt_lightning.adversaries.Adversary`.
        method: how bounds are propagated forward: ``"ibp"``, intervals; ``"crown"``, linear bounds with interval
            parameters, far tighter for deep networks and slower; ``"tightest"``, the intersection of both, never wider
            than ``"ibp"``; ``"alpha-crown"``, the same with a search for the best lines of each bound.
        aggregation: how per-sample bounds become bounds of the sum: ``"exact"``, the n largest gains of each parameter
            element; ``"moment"``, a wider bound by matrix products alone; ``"auto"``, exact while that is cheap. Log
            and certificate list the method of each parameter.
        domains: which sets of parameters are kept side by side, by name or as subclasses of `Domain`: ``"box"``, the
            paper's; ``"ball"``, for a head of linear layers with ReLUs between them, trained by plain SGD, far tighter
            over many steps and cheaper; ``"influence"``, for one linear layer trained by SGD on squared error if only
            labels can be poisoned, exact, and required by `CertifiedModel.certified_flips`. ``"auto"`` means all of
            these that apply; log and certificate list the others with the reason. Bounds of ``"influence"`` take a
            replay of the training: certified models use them always, ``agt/val_*`` only if it is in use alone.
        poisonable: which samples can be poisoned: a function from batch to a boolean mask (batch,), or the key of such
            a mask in the batch. None means all.
        sample_ids: names of the samples in all epochs, for `CertifiedModel.certified_flips`, whose budget is for the
            whole data set: a function from batch to integers (batch,), or the key of such a tensor in the batch. None
            identifies samples by features and target; if an epoch brings new ones, as random augmentation does,
            `certified_flips` then raises. Bounds for the adversary's n of each batch need no names.
        dirpath: folder for ``certificate.json`` and ``bounds.safetensors``, written when training ends; None writes
            none.
        memory_budget: bytes for temporary tensors of the aggregation, and for the coefficients of linear bounds. None
            means a part of what is available: at most 32 MiB on a CPU, 1 GiB on a GPU.
        dtype: floating point type of the bounds' computation.

    Raises:
        TypeError: if ``adversary`` is not an adversary.
        ValueError: if ``method``, ``aggregation`` or a domain is unknown, or ``memory_budget`` is not positive.

    Example:
        >>> from agt_lightning import BoundedAdversary
        >>> certified = CertifiedTraining(BoundedAdversary(n=10, epsilon=0.01))
        >>> trainer = L.Trainer(max_epochs=4, callbacks=[certified], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        adversary: Adversary,
        *,
        method: Method = "ibp",
        aggregation: Aggregation = "exact",
        domains: DomainChoice = "auto",
        poisonable: Poisonable | None = None,
        sample_ids: SampleIds | None = None,
        dirpath: str | os.PathLike[str] | None = None,
        memory_budget: int | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        require_adversary(adversary)
        chosen_domains(domains)
        self.adversary = adversary
        self.method: Method = method
        self.aggregation: Aggregation = aggregation
        self.domains = domains
        self.poisonable = poisonable
        self.sample_ids = sample_ids
        self.memory_budget = memory_budget
        self.dtype = dtype
        self.dirpath = dirpath
        _ = self.config  # refuses unknown settings at once
        self._engine: AbstractGradientEngine | None = None
        self._earlier: tuple[AbstractGradientEngine | None, int] = None, 0
        self._fit: Fit | None = None
        self._starting: tuple[L.Trainer, L.LightningModule] | None = None
        self._position = 0
        self._loaders: object = None
        self._epochs_before = 0
        self._stepping = False
        self._loss: TrainingLoss | None = None
        self._batches: list[MicroBatch] = []
        self._step_bounds: StepBounds | None = None
        self._approved: set[object] = set()
        self._announced: set[str] = set()
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        self._restored: Mapping[str, Any] | None = None
        self._validation: Validation | None = None
        self._results: dict[str, float] = {}
        self._domain_shares: Mapping[int, Mapping[str, float]] = {}

    # --- results ---------------------------------------------------------------------------------------------------

    @property
    def config(self) -> CertificationConfig:
        """The settings as they are now; a training takes those at its start.

        Raises:
            ValueError: if a setting has an unknown value.
        """
        return CertificationConfig(
            method=self.method,
            aggregation=self.aggregation,
            domains=self.domains,
            poisonable=self.poisonable,
            sample_ids=self.sample_ids,
            memory_budget=self.memory_budget,
            dtype=self.dtype,
        )

    @property
    def engine(self) -> AbstractGradientEngine:
        """The engine of the current or last training.

        Raises:
            RuntimeError: before training.
        """
        self._begin()
        if self._engine is None:
            raise RuntimeError(
                "Expected a training to have started, but there are no bounds yet. Call `trainer.fit`. If it was "
                "called, the module has brought another `CertifiedTraining` by `configure_callbacks`, which Lightning "
                "uses in place of this one: see `trainer.callbacks`, or `module.certified_training` of the mixin."
            )
        return self._engine

    @property
    def bounds(self) -> ParameterBounds:
        """Bounds on all parameters after the last step, in the parameters' own types."""
        return self.engine.bounds

    def certified_model(self, module: torch.nn.Module | None = None) -> CertifiedModel:
        """Return the trained network with its bounds.

        Args:
            module: a module with the parameters that the last step left; None means the one that was trained.

        Raises:
            BoundsMismatchError: if the module has other parameters, such as those of another step.
            RuntimeError: before training.
        """
        return _certified(self.engine, self.engine.module if module is None else module)

    def certified_model_at(
        self, ckpt_path: str | os.PathLike[str], module: torch.nn.Module | None = None
    ) -> CertifiedModel:
        """Return the network of a checkpoint with its bounds, for runs that are compared at the same step.

        If metrics chose the checkpoint among others, as ``ModelCheckpoint(monitor=...)`` does, a poisoned run could
        have chosen another step, which these bounds do not cover.

        Args:
            ckpt_path: a checkpoint that was written with this `CertifiedTraining`, or one like it.
            module: a module with the checkpoint's parameters; None means the one that was trained.

        Raises:
            BoundsMismatchError: if the checkpoint has no bounds, or they are for another adversary or other parameters.
            FileNotFoundError: if there is no such file.
            RuntimeError: without ``module`` before training.
        """
        checkpoint = AtomicCheckpointIO().load_checkpoint(Path(ckpt_path), map_location=lambda storage, _: storage)
        module = self.engine.module if module is None else module
        saved = saved_bounds(checkpoint, self._checkpoint_key)
        return _certified(engine_at(module, self.adversary, self.config, saved), module)

    def save(self, dirpath: str | os.PathLike[str], optimizer: Optimizer) -> None:
        """Write ``certificate.json`` and ``bounds.safetensors``.

        Args:
            dirpath: folder to write to; made if missing.
            optimizer: the optimizer of the training.

        Raises:
            RuntimeError: before training.
        """
        domains = self.engine.domains.record() | {"decided_validation_bounds": self._domain_shares}
        record = certificate(
            self.adversary,
            optimizer,
            steps=self.engine.steps,
            results={"mean_width": self.bounds.mean_width(), **self._results},
            settings=bound_settings(self.engine.config, domains, self.engine.clipping),
        )
        self.bounds.save(Path(dirpath) / "bounds.safetensors")
        write_certificate(Path(dirpath) / "certificate.json", record)

    # --- Lightning's hooks -----------------------------------------------------------------------------------------

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._restored = None
            use_atomic_checkpoints(trainer)
            warn_of_boundless_checkpoints(trainer)
            note_tuning(trainer, pl_module)

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        company = [other for other in trainer.callbacks if isinstance(other, CertifiedTraining)]  # type: ignore[attr-defined]
        self._position = next((place for place, other in enumerate(company) if other is self), 0)
        self._earlier, self._fit = (self._engine, self._epochs_before), None
        checkpoint, self._restored = self._restored, None
        unboundable = [*strategy_problems(trainer), *company_problems(company)]
        if unboundable:
            raise UncertifiableError(unboundable)
        self._loss = TrainingLoss(trainer)
        self._batches, self._step_bounds, self._approved, self._announced = [], None, set(), set()
        self._loaders, self._stepping = None, False
        self._starting = trainer, pl_module
        if checkpoint is not None:
            saved = saved_bounds(checkpoint, self._checkpoint_key)
            self._use(begin_resumed(self._new_engine(trainer, pl_module), self._checkpoint_key, saved))

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._remove_hook()
        if len(trainer.optimizers) == 1:
            self._hook = trainer.optimizers[0].register_step_post_hook(self._after_optimizer_step)

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batches = []  # Lightning makes no step for a batch that a hook skipped at the end of an epoch.

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._begin()
        assert self._fit is not None
        self._approve(trainer, pl_module, batch)
        self._batches.append(MicroBatch(batch, RandomState.now(), self._fit.epoch(trainer.current_epoch)))

    @override
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        if not self._batches:
            raise UncertifiableError(["The optimizer steps twice on one batch. Let `optimizer_step` step once."])
        scale = 1.0 / trainer.accumulate_grad_batches
        self._step_bounds = self.engine.bound_gradient(self._batches, scale)
        try:
            self.engine.verify(self._step_bounds, self._batches, scale, optimizer)
        except UnsoundBoundError:
            # A loss that depends on the epoch or the step is recorded anew. Anything else that it depends on, such as
            # an attribute set from earlier batches, could differ in a poisoned run.
            if not self.engine.processes.any(self._loss is not None and self._loss.reads_time):
                raise
            self.engine.forget()
            self._step_bounds = self.engine.bound_gradient(self._batches, scale)
            self.engine.verify(self._step_bounds, self._batches, scale, optimizer)
        if self.engine.clipping is not None:  # Lightning clips after this hook.
            self._step_bounds = self.engine.clip(self._step_bounds, self.engine.clipping, optimizer)
        self._stepping = True  # until the bounds have moved with the parameters

    def _after_optimizer_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        """Move the bounds; a hook of the optimizer, since Lightning has none between the step and a rate's change."""
        if self._step_bounds is not None:
            self.engine.update(self._step_bounds, optimizer)
            if self._fit is not None:
                self._fit.note_step()
        self._step_bounds = None
        self._batches = []
        self._stepping = False

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._fit is None:
            return
        box = self.engine.domains.cheap_box()
        if box:
            pl_module.log(f"{self._prefix}mean_width", ParameterBounds(box).mean_width(), prog_bar=True)
        for name, value in self.engine.domains.metrics().items():
            pl_module.log(f"{self._prefix}{name}", value, prog_bar=True)

    @override
    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        certified = self._engine is not None and not trainer.sanity_checking
        self._validation = Validation(self.engine) if certified else None

    @override
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._validation is not None:
            self._validation.update(dataloader_idx, batch)

    @override
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._validation is None:
            return
        results = self._validation.compute(processes_of(trainer))
        if results.warning:
            rank_zero_warn(results.warning)
            return
        for name, value in results.metrics.items():
            pl_module.log(f"{self._prefix}{name}", value, prog_bar="best" not in name, add_dataloader_idx=False)
        self._results |= results.metrics
        self._domain_shares = results.domain_shares

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._remove_hook()
        if self._fit is None or not self._fit.made_steps:
            self._end(trainer)
            return
        self.engine.require_untouched()
        self._end(trainer)
        if self.dirpath is not None and trainer.is_global_zero and trainer.optimizers:
            self.save(self.dirpath, trainer.optimizers[0])

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._remove_hook()
        self._end(trainer, exception)

    @override
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._engine is not None and self._engine.module is pl_module:
            checkpoint[self._checkpoint_key] = bounds_to_save(self._engine, self._epochs_before)

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING and holds_steps(checkpoint):
            # A checkpoint without bounds is refused when training starts: tuners load their own before it does.
            self._restored = {key: value for key, value in checkpoint.items() if key.startswith(CHECKPOINT_KEY)}

    # --- parts of the hooks ----------------------------------------------------------------------------------------

    def _approve(self, trainer: L.Trainer, module: L.LightningModule, batch: object) -> None:
        """Raise all problems at once if a kind of batch comes for the first time; log remarks that are new."""
        if trainer.fit_loop._combined_loader is not self._loaders:
            self._loaders = trainer.fit_loop._combined_loader
            self._check_loaders(trainer)
        signature = self.engine.signature(batch)
        if not self.engine.processes.any(signature not in self._approved):
            return
        problems = training_problems(trainer, module, self.engine, batch)
        if problems:
            raise UncertifiableError(problems)
        self._approved.add(signature)
        for remark in self.engine.domains.remarks():
            if remark not in self._announced:
                rank_zero_info(f"`CertifiedTraining` {remark}")
                self._announced.add(remark)

    def _check_loaders(self, trainer: L.Trainer) -> None:
        """Look at how new loaders draw samples; those of the first batch are checked with all else."""
        self.engine.expect_repeats(possible=not draws_once(trainer))
        problems = sampler_problems(trainer, self.engine.processes) if self._approved else []
        if problems:
            raise UncertifiableError(problems)

    def _new_engine(self, trainer: L.Trainer, module: L.LightningModule) -> AbstractGradientEngine:
        assert self._loss is not None
        clipping, processes = mean_clipping(trainer), processes_of(trainer)
        return AbstractGradientEngine(
            module, self._loss, self.adversary, self.config, clipping=clipping, processes=processes
        )

    def _begin(self) -> None:
        """Start at the first batch, or when bounds are asked for: until then hooks may set the initial parameters."""
        if self._starting is not None:
            trainer, module = self._starting
            optimizer = trainer.optimizers[0] if trainer.optimizers else None
            engine = self._new_engine(trainer, module)
            self._use(begin(engine, self._checkpoint_key, optimizer, trainer.current_epoch))

    def _use(self, fit: Fit) -> None:
        self._starting = None
        self._fit, self._engine, self._epochs_before = fit, fit.engine, fit.epochs_before
        self._results, self._domain_shares = {}, {}

    def _end(self, trainer: L.Trainer, exception: BaseException | None = None) -> None:
        """Keep what a later `fit` goes on from; without a step, the bounds of the earlier one stay."""
        fit, self._fit, self._starting = self._fit, None, None
        stepping, self._stepping = self._stepping, False
        if fit is None:
            return
        problem = None
        if (stepping or fit.made_steps) and isinstance(exception, UnsoundBoundError):
            problem = "a self-check has failed"
        elif stepping:
            problem = "the training was cut off in the middle of a step"
        fit.end(trainer.optimizers[0] if trainer.optimizers else None, problem)
        if not (fit.made_steps or fit.resumed or problem):
            self._engine, self._epochs_before = self._earlier

    @property
    def _prefix(self) -> str:
        return "agt/" if self._position == 0 else f"agt/{self._position}/"

    @property
    def _checkpoint_key(self) -> str:
        return CHECKPOINT_KEY if self._position == 0 else f"{CHECKPOINT_KEY}/{self._position}"

    def _remove_hook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _certified(engine: AbstractGradientEngine, module: torch.nn.Module) -> CertifiedModel:
    sets, excluded = engine.parameter_sets, engine.domains.excluded
    return CertifiedModel(module, engine.bounds, engine.config.method, sets=sets, excluded=excluded)
