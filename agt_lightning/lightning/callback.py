"""The callback that certifies the training of an unchanged LightningModule."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer
from typing_extensions import override

from agt_lightning.adversaries import Adversary
from agt_lightning.adversaries.several import Adversaries, all_adversaries
from agt_lightning.aggregation.keyword import check_aggregation
from agt_lightning.bounds import ParameterBounds
from agt_lightning.capture.clock import Clock
from agt_lightning.capture.entries import Selection
from agt_lightning.certificates import Budget, CertifiedModel
from agt_lightning.certificates.acceptance import Acceptance, criteria
from agt_lightning.certificates.budget_search import read_off
from agt_lightning.certificates.document import read_certificate, write_certificate
from agt_lightning.certificates.phases import ROLES
from agt_lightning.certificates.record import Circumstances, Weights, certificate, certificates, frozen_parameters
from agt_lightning.certificates.start import StartOfTraining
from agt_lightning.certificates.task import Task
from agt_lightning.domains.family import chosen_domains
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.engine.bounded_runs import BoundedRuns
from agt_lightning.errors import BoundsMismatchError, UncertifiableError
from agt_lightning.lightning.checkpoint_io import (
    AtomicCheckpointIO,
    use_atomic_checkpoints,
    warn_of_boundless_checkpoints,
)
from agt_lightning.lightning.checks import mean_clipping
from agt_lightning.lightning.circumstances import circumstances
from agt_lightning.lightning.cost import StepCost
from agt_lightning.lightning.distributed import processes_of, strategy_problems
from agt_lightning.lightning.ledger import open_ledger
from agt_lightning.lightning.life_cycle import begin, begin_resumed, note_tuning
from agt_lightning.lightning.observer import StepObserver
from agt_lightning.lightning.origin import Origin
from agt_lightning.lightning.packages import CallbackOfBoth, package_problems
from agt_lightning.lightning.plan import Plan, plan
from agt_lightning.lightning.report import Report
from agt_lightning.lightning.resume import (
    BUFFERS_KEY,
    CHECKPOINT_KEY,
    bounds_to_save,
    engine_at,
    holds_steps,
    level,
    phases_of,
    saved_bounds,
)
from agt_lightning.lightning.shared_trainer import shared_trainer_problems
from agt_lightning.lightning.steps import CertifiedSteps
from agt_lightning.lightning.training_step import TrainingLoss
from agt_lightning.lightning.validation import Validation, weights_of
from agt_lightning.lightning.validation_draws import ValidationDraws
from agt_lightning.lightning.validation_record import ValidationRecord
from agt_lightning.propagation import Method
from agt_lightning.propagation.config import CertificationConfig, DomainChoice
from agt_lightning.propagation.samples import Poisonable, SampleIds, Sources
from agt_lightning.rounding import Floats


class CertifiedTraining(CallbackOfBoth):
    """A callback that keeps bounds on the parameters of every run an adversary could have caused.

    The module is not changed. Its training is not changed either, down to the last bit, unless the threat model
    requires that each sample's gradient is clipped.

    Settings that would void the guarantee raise one `UncertifiableError` before the first step, listing all of them. At
    every step the gradient that Lightning applies is compared with the certified one; if they differ,
    `UnsoundBoundError` is raised.

    Each step logs ``agt/mean_width`` if a domain keeps a box, and other numbers of the domains in use. Each validation
    logs nominal and certified accuracy, or squared errors, as ``agt/val_*``, if the module has the weights of the last
    step and the loss compares exactly one prediction with exactly one label; otherwise log and certificate have the
    reason.

    With several adversaries, one training keeps bounds for each, the same ones as in a training with that adversary
    alone. Each is named in log, files and certificate by the settings in which they differ, as in
    ``agt/n_5/mean_width``. All other settings are shared.

    Args:
        adversary: the threat model, such as `BoundedAdversary`; see `agt_lightning.adversaries.Adversary`. Or a
            sequence of several, which must be distinct and have the same clipping of each sample's gradient.
        method: how bounds are propagated forward: ``"ibp"``, intervals; ``"crown"``, linear bounds with interval
            parameters, far tighter for deep networks and slower; ``"tightest"``, the intersection of both, never wider
            than ``"ibp"``; ``"alpha-crown"``, the same with a search for the best lines of each bound.
        aggregation: leave it out. Per-sample bounds are summed exactly; the former values ``"moment"`` and ``"auto"``
            are accepted with a warning until the next release.
        domains: which sets of parameters are kept side by side, by name or as subclasses of `Domain`: ``"box"``, the
            paper's; ``"ball"``, for a head of linear layers with ReLUs between them, trained by plain SGD, far tighter
            over many steps and cheaper; ``"influence"``, for one linear layer trained by SGD on squared error if only
            labels can be poisoned, exact, and required by `CertifiedModel.certified_flips`. ``"auto"`` means all of
            these that apply; log and certificate list the others with the reason. ``"adjoint"`` must be named, together
            with ``"ball"``: for one trained layer or two, it bounds each output by the worst poison for that output,
            far tighter than the ball. Bounds of ``"influence"`` and ``"adjoint"`` take a replay of the training:
            certified models and ``trainer.validate`` after training use them always, ``agt/val_*`` in the course of a
            training only if it is in use alone.
        poisonable: which samples can be poisoned: a function from batch to a boolean mask (batch,), or the key of such
            a mask in the batch. None means all.
        sample_ids: names of the samples in all epochs, for `CertifiedModel.certified_flips`, whose budget is for the
            whole data set: a function from batch to integers (batch,), or the key of such a tensor in the batch. None
            means that a sample is a distinct pair of features and target. If an epoch brings new ones, as random
            augmentation does, `certified_flips` then raises; so it does with new ones in the second step, if the
            sampler is not one of PyTorch's or Lightning's, or a loader starts again within an epoch, and with samples
            of equal content that are not all in one step of every epoch. Bounds for the adversary's n of each batch
            need no names.
        sources: whom each sample comes from, such as a supplier or a hospital, for adversaries with
            ``counts="sources"``, whose n counts these: a function from batch to integers (batch,), or the key of such a
            tensor in the batch.
        dirpath: folder for ``certificate.json`` and ``bounds.safetensors``, written when training ends; None writes
            none. Of several adversaries, each has its own ``bounds-<name>.safetensors``.
        features: batch entries that the adversary moves by epsilon: a key, position or field of the batch, a name as
            messages print it, such as ``"batch['inputs'][0]"``, or a sequence of these. A container means all tensors
            in it. With ``features`` or ``labels``, no other entry is moved; None for both means that the roles are
            found in `training_step`, and asked for where that is not certain. Log and certificate list them.
        labels: batch entries that the adversary moves by nu, likewise.
        memory_budget: bytes for temporary tensors of the aggregation, and for the coefficients of linear bounds. None
            means a part of what is available: at most 32 MiB on a CPU, 1 GiB on a GPU.
        dtype: floating point type of the bounds' computation, whose rounding they cover; with float32 they are wider.
        floats: ``"run"``: bounds contain every run as hardware executes it, in the parameters' own type, any order of
            summation and any number of threads; ``"real"``: every run in real arithmetic. See docs/floats.md.
        acceptance: criteria that results must meet, such as ``Acceptance("val_certified_accuracy", at_least=0.9)``, or
            several. The certificate states them, whether they were set before the first step, and whether they are met;
            a training that goes on from a checkpoint keeps the date of those that were there before.

    Attributes:
        adversaries: all threat models.
        roles: by kind of training batch, the entries that an adversary can move, as the certificate lists them.

    Raises:
        TypeError: if ``adversary`` is not an adversary or a sequence of them, or ``features`` or ``labels`` are no
            names of batch entries.
        ValueError: if ``method``, ``aggregation``, ``floats`` or a domain is unknown, ``memory_budget`` is not
            positive, or several adversaries are not of one training.

    Example:
        >>> from agt_lightning import BoundedAdversary
        >>> certified = CertifiedTraining(BoundedAdversary(n=10, epsilon=0.01))
        >>> trainer = L.Trainer(max_epochs=4, callbacks=[certified], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        adversary: Adversaries,
        *,
        method: Method = "ibp",
        aggregation: str = "exact",
        domains: DomainChoice = "auto",
        poisonable: Poisonable | None = None,
        sample_ids: SampleIds | None = None,
        sources: Sources | None = None,
        features: Selection | None = None,
        labels: Selection | None = None,
        dirpath: str | os.PathLike[str] | None = None,
        memory_budget: int | None = None,
        dtype: torch.dtype = torch.float64,
        floats: Floats = "run",
        acceptance: Acceptance | Sequence[Acceptance] | None = None,
    ) -> None:
        super().__init__()
        self.adversaries = all_adversaries(adversary)
        chosen_domains(domains)
        check_aggregation(aggregation, stacklevel=3)
        self.method: Method = method
        self.domains = domains
        self.poisonable = poisonable
        self.sample_ids = sample_ids
        self.sources = sources
        self.features = features
        self.labels = labels
        self.memory_budget = memory_budget
        self.dtype = dtype
        self.floats: Floats = floats
        self.acceptance = criteria(acceptance)
        self.dirpath = dirpath
        _ = self.config  # refuses unknown settings at once
        self._engine: AbstractGradientEngine | None = None
        self._epochs_before = 0
        self._earlier: tuple[AbstractGradientEngine | None, int] = None, 0
        self._starting: tuple[L.Trainer, L.LightningModule] | None = None
        self._steps: CertifiedSteps | None = None
        self._origin: Origin | None = None
        self._task: Task | None = None
        self._loss: TrainingLoss | None = None
        self._incoming: tuple[object, int] | None = None
        self._datamodule: object = None  # of the last training
        self._times = datetime.now(UTC), datetime.now(UTC)  # at which it started and ended
        self._position = 0  # among several in one Trainer
        self._report = Report()
        self._handles: list[Any] = []  # of what observes the steps
        self._restored: Mapping[str, Any] | None = None  # of a checkpoint that is being loaded
        self._continued: Mapping[str, Any] | None = None  # of the checkpoint from which the training continues
        self._validating: Validation | None = None
        self._validation_draws = ValidationDraws()
        self._validations: defaultdict[str, ValidationRecord] = defaultdict(ValidationRecord)  # by adversary's name

    # --- results ---------------------------------------------------------------------------------------------------

    @property
    def adversary(self) -> Adversary:
        """The threat model; of several, the first one."""
        return self.adversaries[0]

    @adversary.setter
    def adversary(self, adversary: Adversaries) -> None:
        self.adversaries = all_adversaries(adversary)

    @property
    def config(self) -> CertificationConfig:
        """The settings as they are now; a training takes those at its start.

        Raises:
            ValueError: if a setting has an unknown value.
        """
        return CertificationConfig(
            method=self.method,
            domains=self.domains,
            poisonable=self.poisonable,
            sample_ids=self.sample_ids,
            sources=self.sources,
            features=self.features,
            labels=self.labels,
            memory_budget=self.memory_budget,
            dtype=self.dtype,
            floats=self.floats,
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
    def roles(self) -> list[dict[str, object]]:
        """What the adversary may do to each entry of the batches, one dictionary for each kind of batch."""
        return list(self.engine.stated.get(ROLES, []))

    @property
    def cost(self) -> StepCost | None:
        """Seconds of a certified step beside a plain one, without the first; None before the second step."""
        return self._report.watch.cost

    @property
    def bounds(self) -> ParameterBounds:
        """Bounds on all parameters after the last step, in their own types; of several adversaries, for the first."""
        return self.engine.bounds

    def bounds_of(self, adversary: Adversary) -> ParameterBounds:
        """Return bounds on all parameters after the last step for one of the `adversaries`.

        Raises:
            RuntimeError: before training.
            ValueError: if the training was not certified for this adversary.
        """
        return self.engine.bounds_of(adversary)

    def budget(self, metric: str, *, at_least: float | None = None, at_most: float | None = None) -> Budget:
        """Return the largest n of the `adversaries` whose certified value is within a limit, from the last validation.

        The adversaries differ in n alone. Nothing is trained: n between two of them are not tried. To search by one
        training for each n, use `agt_lightning.budget`; to read a sweep, the command ``agt budget``.

        Args:
            metric: name of the result, as in the certificate, such as ``"val_certified_accuracy"``.
            at_least: smallest value that is accepted; either this or `at_most`.
            at_most: largest value that is accepted.

        Raises:
            RuntimeError: before training.
            ValueError: if adversaries differ in something else, there is no such result after the last step, or not
                exactly one limit is given.

        Example:
            >>> import warnings
            >>> import torch
            >>> from agt_lightning import BoundedAdversary
            >>> class Signs(L.LightningModule):
            ...     def __init__(self):
            ...         super().__init__()
            ...         self.net = torch.nn.Linear(2, 2)
            ...     def forward(self, x):
            ...         return self.net(x)
            ...     def training_step(self, batch, _):
            ...         return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
            ...     def validation_step(self, batch, _):
            ...         pass
            ...     def configure_optimizers(self):
            ...         return torch.optim.SGD(self.parameters(), lr=1.0)
            >>> x = torch.tensor([[2.0, 0.0], [-2.0, 0.0]]).repeat(16, 1)
            >>> data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
            >>> loader = torch.utils.data.DataLoader(data, batch_size=32)
            >>> certified = CertifiedTraining([BoundedAdversary(n=n, nu=1, q=0) for n in (1, 2, 30)])
            >>> parts = ["logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar"]
            >>> quiet = dict.fromkeys(parts, False)
            >>> trainer = L.Trainer(max_epochs=2, accelerator="cpu", callbacks=[certified], **quiet)
            >>> with warnings.catch_warnings(action="ignore"):  # of Lightning, about so few data
            ...     trainer.fit(Signs(), loader, loader)
            >>> found = certified.budget("val_certified_accuracy", at_least=0.9)
            >>> found.n, found.fails_at
            (2, 30)
        """
        limit, weights = Acceptance(metric, at_least=at_least, at_most=at_most), weights_of(self.engine)
        results = [self._validations[runs.name].metrics(weights) for runs in self.engine.runs]
        return read_off([runs.adversary for runs in self.engine.runs], results, limit)

    def plan(self, module: L.LightningModule, data: object, *, seconds: float = 20.0, **trainer: Any) -> Plan:
        """Try the training of a module for a few steps on a copy, and return what it takes, or why it cannot be had.

        Nothing is changed, neither the module nor this callback.

        Args:
            module: as it would be trained.
            data: a batch, a loader of batches of which the first is taken, or a `LightningDataModule`.
            seconds: of the longest step that is tried; what a longer one takes is told from parts of the batch.
            **trainer: settings of the Trainer that matter, such as ``accelerator``, ``gradient_clip_val`` or other
                ``callbacks``, which are copied.

        Example:
            >>> from lightning.pytorch.demos.boring_classes import BoringModel
            >>> from agt_lightning import BoundedAdversary
            >>> certified = CertifiedTraining(BoundedAdversary(n=1, epsilon=0.01))
            >>> print(certified.plan(BoringModel(), torch.randn(8, 32)))  # doctest: +SKIP
        """
        return plan(self._anew, module, data, seconds, trainer)

    def _anew(self) -> CertifiedTraining:
        """Return a callback with the same settings that writes nothing."""
        settings = {
            field.name: getattr(self, field.name) for field in fields(CertificationConfig) if field.name in vars(self)
        }
        return CertifiedTraining(self.adversaries, **settings)

    def certified_model(
        self,
        module: torch.nn.Module | None = None,
        *,
        output: str | int | None = None,
        adversary: Adversary | None = None,
    ) -> CertifiedModel:
        """Return the trained network with its bounds.

        Args:
            module: a module with the parameters that the last step left; None means the one that was trained.
            output: key, attribute or position of the outputs if `forward` returns several tensors.
            adversary: one of the `adversaries`; None means the first.

        Raises:
            BoundsMismatchError: if the module has other parameters, such as those of another step.
            RuntimeError: before training.
            ValueError: if the training was not certified for this adversary.
        """
        module = self.engine.module if module is None else module
        start = None if self._origin is None else self._origin.start
        return self._certified(self.engine, self.engine.runs_of(adversary), module, output, start)

    def certified_model_at(
        self,
        ckpt_path: str | os.PathLike[str],
        module: torch.nn.Module | None = None,
        *,
        output: str | int | None = None,
        adversary: Adversary | None = None,
    ) -> CertifiedModel:
        """Return the network of a checkpoint with its bounds, for runs that are compared at the same step.

        If metrics chose the checkpoint among others, as ``ModelCheckpoint(monitor=...)`` does, a poisoned run could
        have chosen another step, which these bounds do not cover.

        Args:
            ckpt_path: a checkpoint that was written with this `CertifiedTraining`, or one like it.
            module: a module with the checkpoint's parameters; None means the one that was trained.
            output: key, attribute or position of the outputs if `forward` returns several tensors.
            adversary: one of the `adversaries`; None means the first.

        Raises:
            BoundsMismatchError: if the checkpoint has no bounds, or they are for another adversary or other parameters.
            FileNotFoundError: if there is no such file.
            RuntimeError: without ``module`` before training.
            ValueError: if the training was not certified for this adversary.
        """
        checkpoint = AtomicCheckpointIO().load_checkpoint(Path(ckpt_path), map_location=lambda storage, _: storage)
        module = self.engine.module if module is None else module
        saved = saved_bounds(checkpoint, self._checkpoint_key)
        engine = engine_at(module, self.adversaries, self.config, saved)
        start = None if self._origin is None else self._origin.start
        if start is None and BUFFERS_KEY in checkpoint:
            start = StartOfTraining.of(module, checkpoint[BUFFERS_KEY])
        return self._certified(engine, engine.runs_of(adversary), module, output, start)

    def save(self, dirpath: str | os.PathLike[str], optimizer: Optimizer) -> None:
        """Write ``certificate.json`` and the bounds of each adversary.

        Args:
            dirpath: folder to write to; made if missing.
            optimizer: the optimizer of the training.

        Raises:
            BoundsMismatchError: if no step was made, and the folder has the certificate of a training that made some.
            RuntimeError: before training.
            UnsoundBoundError: if the module has no longer the weights that the last step left.
        """
        weights, path = weights_of(self.engine), Path(dirpath) / "certificate.json"
        _keep_certified_steps(path, weights.steps)
        records = {}
        for runs in self.engine.runs:
            bounds = self.engine.bounds_of(runs.adversary)
            file = path.with_name(f"{'-'.join(filter(None, ['bounds', runs.name]))}.safetensors")
            bounds.save(file)
            tied = circumstances(
                self.engine,
                runs,
                bounds,
                file,
                validation_data=self._validations[runs.name].data(weights),
                datamodule=self._datamodule,
                times=self._times,
            )
            records[runs.name] = self._record(runs, optimizer, weights, bounds.mean_width(), tied)
        record = records[""] if len(records) == 1 else certificates(self.engine.adversaries, records)
        write_certificate(path, record)

    # --- Lightning's hooks -----------------------------------------------------------------------------------------

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            problems = package_problems(trainer, pl_module)
            if problems:
                raise UncertifiableError(problems)
            self._restored = None
            use_atomic_checkpoints(trainer)
            warn_of_boundless_checkpoints(trainer)
            note_tuning(trainer, pl_module)

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        sharing = [other for other in trainer.callbacks if isinstance(other, CertifiedTraining)]  # type: ignore[attr-defined]
        self._position = next((place for place, other in enumerate(sharing) if other is self), 0)
        self._earlier, self._steps = (self._engine, self._epochs_before), None
        checkpoint, self._restored = self._restored, None
        unboundable = [*strategy_problems(trainer), *shared_trainer_problems(sharing)]
        if unboundable:
            raise UncertifiableError(unboundable)
        self._origin, self._continued = None, checkpoint
        if self._engine is None or self._engine.module is not pl_module:
            self._task = None
        self._loss = TrainingLoss(trainer)
        self._report = Report(self._position)
        self._validation_draws = ValidationDraws()
        self._starting = trainer, pl_module
        self._datamodule = getattr(trainer, "datamodule", None)
        self._times = datetime.now(UTC), datetime.now(UTC)
        if checkpoint is not None:
            self._begin(saved_bounds(checkpoint, self._checkpoint_key))

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_observing()
        self._handles = [StepObserver(trainer, self._before_training_step)]
        if len(trainer.optimizers) == 1:
            self._handles.append(trainer.optimizers[0].register_step_post_hook(self._after_optimizer_step))

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._steps is not None:
            self._steps.drop_batches()
        self._make_origin(pl_module)
        self._note_hook(trainer, pl_module, "on_train_epoch_start")

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._report.watch.start_step()
        self._incoming = batch, batch_idx
        self._note_hook(trainer, pl_module, "on_train_batch_start")

    def _before_training_step(self) -> AbstractContextManager[None]:
        """Keep the batch as its step finds it; called by an observer, since hooks of the batch come later than ours."""
        with self._report.watch.bounding():
            self._begin()
            assert self._steps is not None
            assert self._incoming is not None
            return self._steps.before_training_step(*self._incoming)

    @override
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        self._note_hook(trainer, pl_module, "on_before_optimizer_step")
        if self._steps is not None:
            with self._report.watch.bounding():
                self._steps.before_optimizer_step(optimizer)

    def _after_optimizer_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        """Move the bounds; a hook of the optimizer, since Lightning has none between the step and a rate's change."""
        if self._steps is not None:
            with self._report.watch.bounding():
                self._steps.after_optimizer_step(optimizer)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._note_hook(trainer, pl_module, "on_train_batch_end")
        if self._steps is None:
            return
        self._report.end_step(pl_module, self.engine)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note_hook(trainer, pl_module, "on_train_epoch_end")

    @override
    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        certified = self._engine is not None and not trainer.sanity_checking
        training = trainer.state.fn == TrainerFn.FITTING  # while it goes on, bounds that replay it are left out
        sets_of = attrgetter("cheap_sets" if training else "parameter_sets")
        self._validating = Validation(self.engine, pl_module, sets_of) if certified else None

    @override
    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._validating is not None and trainer.state.fn == TrainerFn.FITTING:
            self._validation_draws.begin()

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
        if self._validating is not None:
            self._validation_draws.end(batch, dataloader_idx)
            self._validating.update(dataloader_idx, batch)

    @override
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        found = {} if self._validating is None else self._validating.compute(processes_of(trainer))
        for warning in dict.fromkeys(results.warning for results in found.values() if results.warning):
            rank_zero_warn(warning)
        for runs, results in found.items():
            self._validations[runs.name].add(results)
            self._report.announce(results.remark)
            for name, value in results.metrics.items():
                key = f"{self._report.prefix(runs)}{name}"
                pl_module.log(key, value, prog_bar="best" not in name, add_dataloader_idx=False)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._steps is not None:  # before Lightning moves the module to the CPU
            self.engine.require_recorded()

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_observing()
        made_steps = self._steps is not None and self._steps.fit.made_steps
        if made_steps and self._steps is not None:
            self._steps.require_sound_end()
        self._times = self._times[0], datetime.now(UTC)
        self._end()
        if made_steps and self.dirpath is not None and trainer.is_global_zero and trainer.optimizers:
            self.save(self.dirpath, trainer.optimizers[0])

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._validation_draws.stop()
        self._stop_observing()
        self._end(exception)

    @override
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._engine is not None and self._engine.module is pl_module:
            buffers = None if self._origin is None else dict(self._origin.start.buffers)
            checkpoint[self._checkpoint_key] = bounds_to_save(self._engine, self._epochs_before, buffers)
            if buffers is not None:
                checkpoint[BUFFERS_KEY] = buffers

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING and holds_steps(checkpoint):
            # A checkpoint without bounds is refused when training starts: tuners load their own before it does.
            kept = (CHECKPOINT_KEY, BUFFERS_KEY)
            self._restored = {key: value for key, value in checkpoint.items() if key.startswith(kept)}

    # --- parts of the hooks ----------------------------------------------------------------------------------------

    def _note_hook(self, trainer: L.Trainer, module: L.LightningModule, hook: str) -> None:
        if self._origin is not None:
            index = 0 if self._incoming is None else self._incoming[1]
            self._origin.note_hook(module, hook, Clock(trainer.current_epoch, trainer.global_step, index))

    def _make_origin(self, module: L.LightningModule) -> Origin:
        """Return what the module is before its first step: after `on_train_start`, in which it may be initialized."""
        if self._origin is None:
            self._origin = Origin.of(module, self._continued)
            if self._loss is not None:
                self._loss.hooks = self._origin.hooks
        return self._origin

    def _begin(self, saved: Mapping[str, Any] | None = None) -> None:
        """Start at the first batch, or when bounds are asked for: until then hooks may set the initial parameters.

        Args:
            saved: bounds of a checkpoint to go on from; None if there is none.
        """
        if self._starting is None:
            return
        trainer, module = self._starting
        assert self._loss is not None
        engine = AbstractGradientEngine(
            module,
            self._loss,
            self.adversaries,
            self.config,
            clipping=mean_clipping(trainer),
            processes=processes_of(trainer),
            trained=self._loss.as_trained,
            start=lambda: self._make_origin(module).start.module,
        )
        if saved is None:
            optimizer = trainer.optimizers[0] if trainer.optimizers else None
            fit = begin(engine, self._checkpoint_key, optimizer, trainer.current_epoch)
        else:
            fit = begin_resumed(engine, self._checkpoint_key, saved)
        self._starting = None
        open_ledger(fit.engine, self.acceptance)
        self._steps = CertifiedSteps(trainer, module, fit, self._loss, self._report.announce)
        self._engine, self._epochs_before = fit.engine, fit.epochs_before
        self._validations = defaultdict(ValidationRecord)

    def _end(self, exception: BaseException | None = None) -> None:
        """Keep what a later `fit` goes on from; without a step, the bounds of the earlier one stay."""
        steps, self._steps, self._starting = self._steps, None, None
        if steps is None:
            return
        if steps.task is not None:
            self._task = steps.task if self._task is None else self._task | steps.task
        kept, origin = steps.end(exception), self._make_origin(steps.module)
        if kept or origin.start.changed_buffers(steps.module):  # which data do in a forward pass, before any step
            origin.keep(steps.module)
        if not kept:
            self._engine, self._epochs_before = self._earlier

    def _certified(
        self,
        engine: AbstractGradientEngine,
        runs: BoundedRuns,
        module: torch.nn.Module,
        output: str | int | None,
        start: StartOfTraining | None,
    ) -> CertifiedModel:
        return CertifiedModel(
            module,
            engine.bounds_of(runs.adversary),
            engine.config.method,
            sets=runs.parameter_sets,
            excluded=runs.domains.excluded,
            task=self._task if self._steps is None else self._steps.task,
            start=start,
            output=output,
            floats=level(engine),
        )

    def _record(
        self, runs: BoundedRuns, optimizer: Optimizer, weights: Weights, width: float, tied: Circumstances
    ) -> dict[str, object]:
        """Return the certificate for one adversary."""
        return certificate(
            runs.adversary,
            optimizer,
            circumstances=tied,
            phases=phases_of(self.engine, runs),
            frozen=frozen_parameters(self.engine.module, optimizer),
            **self._validations[runs.name].described(weights, {"mean_width": width}, runs.domains.record()),
        )

    @property
    def _checkpoint_key(self) -> str:
        return CHECKPOINT_KEY if self._position == 0 else f"{CHECKPOINT_KEY}/{self._position}"

    def _stop_observing(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _keep_certified_steps(path: Path, steps: int) -> None:
    """Raise if the start of a training is about to take the place of a certificate of steps.

    Raises:
        BoundsMismatchError: if it is.
    """
    if steps == 0 and path.is_file() and read_certificate(path).get("steps") != 0:
        raise BoundsMismatchError(
            f"Expected steps to certify, but none was made, and {path} is the certificate of a training. Train first, "
            "or save to another folder."
        )
