"""The callback: certified training of an unchanged LightningModule."""

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
from agt_lightning.aggregation.mean_clipping import MeanClipping
from agt_lightning.bounds import ParameterBounds
from agt_lightning.capture.dropout import RandomState
from agt_lightning.certificates import CertifiedModel
from agt_lightning.certificates.record import certificate, describe, write_certificate
from agt_lightning.domains.family import chosen_domains
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.engine.checkpoint import complete
from agt_lightning.engine.step_bounds import StepBounds
from agt_lightning.errors import BoundsMismatchError, CaptureError, UncertifiableError, UnsoundBoundError
from agt_lightning.lightning.checkpoint_io import boundless_checkpoints, use_atomic_checkpoints
from agt_lightning.lightning.checks import mean_clipping, trainer_problems
from agt_lightning.lightning.distributed import processes_of, sampler_problems, strategy_problems
from agt_lightning.lightning.training_step import TrainingLoss
from agt_lightning.lightning.validation import Validation
from agt_lightning.propagation import Method
from agt_lightning.propagation.config import CertificationConfig, DomainChoice
from agt_lightning.propagation.samples import MicroBatch, Poisonable, SampleIds

_CHECKPOINT_KEY = "agt_bounds"


class CertifiedTraining(Callback):
    """Keeps, beside an ordinary training, bounds on the parameters of every run an adversary could have caused.

    The module is not changed. With a `BoundedAdversary` its training is not changed either, down to the last bit; with
    an `UnboundedAdversary` each sample's gradient is clipped, as that threat model requires.

    What would void the guarantee is refused before the first step, all reasons in one `UncertifiableError`. At every
    step the gradient that Lightning applies is compared with the certified one; `UnsoundBoundError` if they differ.

    Logs ``agt/mean_width`` at every step, where a domain keeps a box, and, on the validation loader, nominal and
    certified accuracy or squared error as ``agt/val_*``.

    Args:
        adversary: the threat model, `BoundedAdversary` or `UnboundedAdversary`.
        method: how bounds are propagated forward: ``"ibp"``, intervals; ``"crown"``, linear bounds with interval
            parameters, far tighter for deep networks and slower; ``"tightest"``, what both allow, never wider than
            ``"ibp"``; ``"alpha-crown"``, the same with a search for each bound's own lines.
        aggregation: how per-sample bounds become bounds of the sum: ``"exact"``, the n largest gains of each parameter
            element; ``"moment"``, a wider bound by matrix products alone; ``"auto"``, exact while that is cheap. What
            each parameter took stands in the log and in the certificate.
        domains: which sets of parameters are kept side by side: ``"box"``, the paper's; ``"ball"``, for a head of one
            or two linear layers trained by plain SGD, far tighter over many steps and cheaper; ``"influence"``, for one
            linear layer trained by SGD on squared error where only labels can be poisoned, exact, and what
            `CertifiedModel.certified_flips` needs; several of them; or ``"auto"`` for all that apply. Those left out
            stand in the log and in the certificate, with the reason. Bounds of ``"influence"`` take a replay of the
            training: certified models have them, ``agt/val_*`` only where it is in use alone.
        poisonable: which samples can be poisoned: a function from batch to a boolean mask (batch,), or the key of such
            a mask in the batch. None means all.
        sample_ids: which samples of several epochs are the same, for `CertifiedModel.certified_flips`, whose budget is
            for the whole data set: a function from batch to integers (batch,), or the key of such a tensor in the
            batch. None identifies samples by features and target; where an epoch brings new ones, as random
            augmentation does, `certified_flips` is then refused. Bounds for the adversary's n of each batch need none.
        dirpath: where ``certificate.json`` and ``bounds.safetensors`` are written when training ends; None means
            nowhere.
        memory_budget: bytes for temporary tensors of the aggregation, and for the coefficients of linear bounds. None
            means a part of what is available: at most 32 MiB on a CPU, 1 GiB on a GPU.
        dtype: floating point type of the bounds' computation.

    Raises:
        TypeError: if ``adversary`` is not an adversary.
        ValueError: if ``method``, ``aggregation`` or a domain is unknown.

    Example:
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
        self.config = CertificationConfig(
            method=method,
            aggregation=aggregation,
            domains=domains,
            poisonable=poisonable,
            sample_ids=sample_ids,
            memory_budget=memory_budget,
            dtype=dtype,
        )
        self.dirpath = dirpath
        self._engine: AbstractGradientEngine | None = None
        self._loss: TrainingLoss | None = None
        self._batches: list[MicroBatch] = []
        self._step_bounds: StepBounds | None = None
        self._clipping: MeanClipping | None = None
        self._approved: set[object] = set()
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        self._restored: dict[str, Any] | None = None
        self._announced: set[str] = set()
        self._resumed = False
        self._validation: Validation | None = None
        self._results: dict[str, float] = {}
        self._deciding: dict[int, dict[str, float]] = {}

    # --- what a user asks for --------------------------------------------------------------------------------------

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
        """The trained network with its bounds.

        Args:
            module: the trained module; None means the one that was trained.
        """
        module = self.engine.module if module is None else module
        engine = self.engine
        return CertifiedModel(
            module,
            self.bounds,
            method=self.config.method,
            sets=engine.parameter_sets,
            excluded=engine.domains.excluded,
        )

    def save(self, dirpath: str | os.PathLike[str], optimizer: Optimizer) -> None:
        """Write ``certificate.json`` and ``bounds.safetensors``.

        Args:
            dirpath: folder to write to; made if missing.
            optimizer: the optimizer of the training.
        """
        record = certificate(
            self.adversary,
            optimizer,
            steps=self.engine.steps,
            results={"mean_width": self.bounds.mean_width(), **self._results},
            settings={
                "method": self.config.method,
                "domains": self.engine.domains.record() | {"decided_validation_bounds": self._deciding},
                "aggregation": self.config.aggregation,
                "dtype": str(self.config.dtype).removeprefix("torch."),
                "all_samples_poisonable": self.config.poisonable is None,
                "clipping_of_the_mean_gradient": None if self._clipping is None else repr(self._clipping),
            },
        )
        self.bounds.save(Path(dirpath) / "bounds.safetensors")
        write_certificate(Path(dirpath) / "certificate.json", record)

    # --- Lightning's hooks -----------------------------------------------------------------------------------------

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        use_atomic_checkpoints(trainer)
        if boundless_checkpoints(trainer):
            rank_zero_warn(
                "`ModelCheckpoint(save_weights_only=True)` saves no bounds: training cannot be resumed from its files, "
                "and they certify nothing. Set it to False."
            )

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        unboundable = strategy_problems(trainer)
        if unboundable:
            raise UncertifiableError(unboundable)
        self._loss = TrainingLoss(trainer)
        self._engine = AbstractGradientEngine(
            pl_module,
            self._loss,
            self.adversary,
            self.config,
            clipping=mean_clipping(trainer),
            processes=processes_of(trainer),
        )
        self._batches, self._step_bounds, self._approved, self._results, self._announced = [], None, set(), {}, set()
        self._clipping = self._engine.clipping
        if self._restored is not None:
            self._restore(self._restored)
        elif self._resumed:
            raise BoundsMismatchError(
                "Expected a checkpoint of a certified training, but it has no bounds. Bounds that start in the middle "
                "of a training would miss everything an adversary did before. Train from the start, or resume from a "
                "checkpoint that was written with `CertifiedTraining`."
            )
        self._restored, self._resumed = None, False

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._remove_hook()
        if len(trainer.optimizers) == 1:
            self._hook = trainer.optimizers[0].register_step_post_hook(self._after_optimizer_step)

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batches = []  # a batch that a hook skipped at the end of an epoch leads to no step

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
            # Code that depends on the epoch is recorded anew. Any other reason, such as an attribute set from earlier
            # batches, would be different in a poisoned run.
            if not self.engine.processes.any(self._loss is not None and self._loss.reads_time):
                raise
            self.engine.forget()
            self._step_bounds = self.engine.bound_gradient(self._batches, scale)
            self.engine.verify(self._step_bounds, self._batches, scale)
        if self._clipping is not None:  # Lightning clips after this hook
            self._step_bounds = self.engine.clip(self._step_bounds, self._clipping, optimizer)

    def _after_optimizer_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        """Lightning has no hook after the optimizer's step; this one sees the rates that were used."""
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
        means, shares, problem = self._validation.compute(processes_of(trainer))
        if problem:
            rank_zero_warn(
                f"No certified metric on the validation loader: its batches do not fit the training loss.\n{problem}"
            )
            return
        several = len(means) > 1
        results = {
            f"agt/val_{name}/dataloader_idx_{index}" if several else f"agt/val_{name}": value
            for index, found in means.items()
            for name, value in found.items()
        }
        for name, value in results.items():
            pl_module.log(name, value, prog_bar="best" not in name, add_dataloader_idx=False)
        self._results |= {name.removeprefix("agt/"): value for name, value in results.items()}
        self._deciding = shares

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
            checkpoint[_CHECKPOINT_KEY] = {"adversary": describe(self.adversary), **self._engine.state()}

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._resumed = True
            self._restored = checkpoint.get(_CHECKPOINT_KEY)

    # --- parts of the hooks ----------------------------------------------------------------------------------------

    def _approve(self, trainer: L.Trainer, module: L.LightningModule, batch: object) -> None:
        """Refuse what cannot be certified, all reasons at once, when a kind of batch comes for the first time."""
        signature, processes = self.engine.signature(batch), self.engine.processes
        if not processes.any(signature not in self._approved):
            return
        problems = processes.union(trainer_problems(trainer, module)) + sampler_problems(trainer, processes)
        try:
            # A manual step optimizes by itself; it must not run, not even on a replica: parameters are shared.
            if module.automatic_optimization:
                problems += self.engine.problems(batch, trainer.optimizers[0] if trainer.optimizers else None)
        except CaptureError as error:
            problems.append(str(error))
        if problems:
            raise UncertifiableError(list(dict.fromkeys(problems)))
        self._approved.add(signature)
        self._announce()

    def _announce(self) -> None:
        """Log, once each, which domains are excluded and how bounds are computed."""
        domains = self.engine.domains
        excluded = [f"goes on without the domain `{name}`. {reason}" for name, reason in domains.excluded.items()]
        for remark in (*excluded, *domains.remarks()):
            if remark not in self._announced:
                rank_zero_info(f"`CertifiedTraining` {remark}")
                self._announced.add(remark)

    def _restore(self, state: Mapping[str, Any]) -> None:
        with complete(state):
            before = state["adversary"]
        if before != describe(self.adversary):
            raise BoundsMismatchError(
                f"Expected to resume with the adversary of the checkpoint, {before}, but got "
                f"{describe(self.adversary)}. Bounds for one adversary say nothing about another: use the same."
            )
        self.engine.restore(state)

    def _remove_hook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
