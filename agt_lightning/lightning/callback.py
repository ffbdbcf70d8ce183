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
from agt_lightning.capture.entries import Selection
from agt_lightning.certificates import CertifiedModel
from agt_lightning.certificates.record import bound_settings, certificate, write_certificate
from agt_lightning.domains.family import chosen_domains
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.engine.step_bounds import StepBounds
from agt_lightning.errors import UncertifiableError, UnsoundBoundError
from agt_lightning.lightning.checkpoint_io import use_atomic_checkpoints, warn_of_boundless_checkpoints
from agt_lightning.lightning.checks import mean_clipping, training_problems
from agt_lightning.lightning.distributed import processes_of, strategy_problems
from agt_lightning.lightning.resume import CHECKPOINT_KEY, bounds_to_save, resume, saved_bounds
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
        features: batch entries that the adversary moves by epsilon: a key, position or field of the batch, a name as
            messages print it, such as ``"batch['inputs'][0]"``, or a sequence of these. A container means all tensors
            in it. With ``features`` or ``labels``, no other entry is moved; None for both means that the roles are
            found in `training_step`, and asked for where that is not certain. Log and certificate list them.
        labels: batch entries that the adversary moves by nu, likewise.
        memory_budget: bytes for temporary tensors of the aggregation, and for the coefficients of linear bounds. None
            means a part of what is available: at most 32 MiB on a CPU, 1 GiB on a GPU.
        dtype: floating point type of the bounds' computation.

    Attributes:
        roles: by kind of training batch, the entries that an adversary can move, as the certificate lists them.

    Raises:
        TypeError: if ``adversary`` is not an adversary, or ``features`` or ``labels`` are no names of batch entries.
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
        features: Selection | None = None,
        labels: Selection | None = None,
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
        self.features = features
        self.labels = labels
        self.memory_budget = memory_budget
        self.dtype = dtype
        self.dirpath = dirpath
        _ = self.config  # refuses unknown settings at once
        self._engine: AbstractGradientEngine | None = None
        self._loss: TrainingLoss | None = None
        self._batches: list[MicroBatch] = []
        self._step_bounds: StepBounds | None = None
        self._approved: set[object] = set()
        self._announced: set[str] = set()
        self.roles: list[dict[str, object]] = []
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
            features=self.features,
            labels=self.labels,
            memory_budget=self.memory_budget,
            dtype=self.dtype,
        )

    @property
    def engine(self) -> AbstractGradientEngine:
        """The engine of the current or last training.

        Raises:
            RuntimeError: before training.
        """
        if self._engine is None:
            raise RuntimeError("Expected a training to have started, but there are no bounds yet. Call `trainer.fit`.")
        return self._engine

    @property
    def bounds(self) -> ParameterBounds:
        """Bounds on all parameters after the last step, in the parameters' own types."""
        return self.engine.bounds

    def certified_model(self, module: torch.nn.Module | None = None) -> CertifiedModel:
        """Return the trained network with its bounds.

        Args:
            module: a module with the trained parameters; None means the one that was trained.

        Raises:
            BoundsMismatchError: if the module has other parameters.
            RuntimeError: before training.
        """
        engine = self.engine
        module = engine.module if module is None else module
        sets, excluded = engine.parameter_sets, engine.domains.excluded
        return CertifiedModel(module, self.bounds, self.engine.config.method, sets=sets, excluded=excluded)

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
            settings=bound_settings(self.engine.config, domains, self.engine.clipping) | {"roles": self.roles},
        )
        self.bounds.save(Path(dirpath) / "bounds.safetensors")
        write_certificate(Path(dirpath) / "certificate.json", record)

    # --- Lightning's hooks -----------------------------------------------------------------------------------------

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            use_atomic_checkpoints(trainer)
            warn_of_boundless_checkpoints(trainer)

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        unboundable = strategy_problems(trainer)
        if unboundable:
            raise UncertifiableError(unboundable)
        self._loss = TrainingLoss(trainer)
        clipping, processes = mean_clipping(trainer), processes_of(trainer)
        self._engine = AbstractGradientEngine(
            pl_module, self._loss, self.adversary, self.config, clipping=clipping, processes=processes
        )
        self._batches, self._step_bounds, self._approved, self._announced = [], None, set(), set()
        self._results, self._domain_shares, self.roles = {}, {}, []
        checkpoint, self._restored = self._restored, None
        if checkpoint is not None:
            resume(self._engine, saved_bounds(checkpoint))

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
        self._approve(trainer, pl_module, batch)
        self._batches.append(MicroBatch(batch, RandomState.now(), trainer.current_epoch))

    @override
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        if not self._batches:
            raise UncertifiableError(["The optimizer steps twice on one batch. Let `optimizer_step` step once."])
        scale = 1.0 / trainer.accumulate_grad_batches
        self._step_bounds = self.engine.bound_gradient(self._batches, scale)
        try:
            self.engine.verify(self._step_bounds, self._batches, scale)
        except UnsoundBoundError:
            # A loss that depends on the epoch or the step is recorded anew. Anything else that it depends on, such as
            # an attribute set from earlier batches, could differ in a poisoned run.
            if not self.engine.processes.any(self._loss is not None and self._loss.reads_time):
                raise
            self.engine.forget()
            self._step_bounds = self.engine.bound_gradient(self._batches, scale)
            self.engine.verify(self._step_bounds, self._batches, scale)
        if self.engine.clipping is not None:  # Lightning clips after this hook.
            self._step_bounds = self.engine.clip(self._step_bounds, self.engine.clipping, optimizer)

    def _after_optimizer_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        """Move the bounds; a hook of the optimizer, since Lightning has none between the step and a rate's change."""
        if self._step_bounds is not None:
            self.engine.update(self._step_bounds, optimizer)
        self._step_bounds = None
        self._batches = []

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        box = self.engine.domains.cheap_box()
        if box:
            pl_module.log("agt/mean_width", ParameterBounds(box).mean_width(), prog_bar=True)
        for name, value in self.engine.domains.metrics().items():
            pl_module.log(f"agt/{name}", value, prog_bar=True)

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
            pl_module.log(f"agt/{name}", value, prog_bar="best" not in name, add_dataloader_idx=False)
        self._results |= results.metrics
        self._domain_shares = results.domain_shares

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._remove_hook()
        self.engine.require_untouched()
        if self.dirpath is not None and trainer.is_global_zero and trainer.optimizers:
            self.save(self.dirpath, trainer.optimizers[0])

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._remove_hook()

    @override
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._engine is not None:
            checkpoint[CHECKPOINT_KEY] = bounds_to_save(self._engine)

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            # A checkpoint without bounds is refused when training starts: tuners load their own before it does.
            self._restored = {CHECKPOINT_KEY: checkpoint.get(CHECKPOINT_KEY)}

    # --- parts of the hooks ----------------------------------------------------------------------------------------

    def _approve(self, trainer: L.Trainer, module: L.LightningModule, batch: object) -> None:
        """Raise all problems at once if a kind of batch comes for the first time; log remarks that are new."""
        signature = self.engine.signature(batch)
        if not self.engine.processes.any(signature not in self._approved):
            return
        problems = training_problems(trainer, module, self.engine, batch)
        if problems:
            raise UncertifiableError(problems)
        self._approved.add(signature)
        roles = self.engine.objective(batch).objective
        if roles.record() not in self.roles:
            self.roles.append(roles.record())
        for remark in (f"reads the batch as {roles.summary()}", *self.engine.domains.remarks()):
            if remark not in self._announced:
                rank_zero_info(f"`CertifiedTraining` {remark}")
                self._announced.add(remark)

    def _remove_hook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
