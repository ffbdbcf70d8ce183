"""Settings of a training that would void the guarantee, each with its way out."""

from types import FrameType

import lightning as L
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch.optim.lr_scheduler import ReduceLROnPlateau

from agt_lightning.aggregation.mean_clipping import MeanClipping, MeanNormClipping, MeanValueClipping
from agt_lightning.capture.raising import has_handler, is_caught
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.errors import NOT_WHAT_IS_TRAINED, CaptureError
from agt_lightning.lightning.hooks import hook_problems, parameter_problems, written_by_user
from agt_lightning.lightning.life_cycle import tuning_problems
from agt_lightning.lightning.packages import of_both
from agt_lightning.lightning.samplers import assignment_problems, sampler_problems
from agt_lightning.optimizers import optimizer_problems
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.propagation.samples import MicroBatch

_FULL_PRECISION = ("32-true", "64-true")

_CALLBACKS = {
    EarlyStopping: "stops at a step that depends on the data; a poisoned run would stop elsewhere. Fix `max_epochs`",
    LearningRateFinder: "chooses the learning rate by the data. Fix the learning rate",
    ModelPruning: "sets trained parameters to zero by their values. Remove it, or prune before training",
    StochasticWeightAveraging: "replaces the trained parameters by averages that have no bounds. Remove it",
    WeightAveraging: "replaces the trained parameters by averages that have no bounds. Remove it",
}


def training_problems(
    trainer: L.Trainer, module: L.LightningModule, engine: AbstractGradientEngine, batch: object
) -> list[str]:
    """Return every reason why training on batches like this one cannot be certified; a collective.

    Args:
        trainer: about to start a step.
        module: the module in training.
        engine: of this module.
        batch: the step's batch in this process.
    """
    problems = engine.processes.union(trainer_problems(trainer, module))
    problems += sampler_problems(trainer, engine.processes)
    problems += engine.processes.union(assignment_problems(trainer, engine.adversaries))
    optimizer = trainer.optimizers[0] if trainer.optimizers else None
    try:
        # A manual step optimizes by itself and must not run, not even on a replica, which shares the parameters.
        if module.automatic_optimization:
            problems += engine.problems(batch, optimizer)
            problems += engine.processes.union(_caught_endings(module, engine, batch))
    except CaptureError as error:  # what does not depend on the recording is known all the same
        problems += [str(error), *optimizer_problems(optimizer)]
    if _precision_problems(trainer):  # of which this is a consequence
        problems = [problem for problem in problems if NOT_WHAT_IS_TRAINED not in problem]
    return list(dict.fromkeys(problems))


def _caught_endings(module: L.LightningModule, engine: AbstractGradientEngine, batch: object) -> list[str]:
    """Return a problem if the code can end a run by an error, and something around it may catch that error."""
    micro_batch = MicroBatch.of(batch)
    bounded = micro_batch.recorded or engine.objective(micro_batch.data)
    override = written_by_user(module, "optimizer_step")
    if override is None:
        return []
    code = getattr(override, "__code__", None)
    return _caught(bounded) if code is None or has_handler(code) else caught_endings_now(bounded)


def caught_endings_now(bounded: BoundedObjective) -> list[str]:
    """Return a problem if code that now runs around the training step may catch an error that ends a poisoned run.

    Args:
        bounded: the step's loss.
    """
    return _caught(bounded) if bounded.graph.endings and is_caught(_is_of_trainer) else []


def _caught(bounded: BoundedObjective) -> list[str]:
    """Return a problem if the code can end a run by an error, which something around it may catch."""
    return [
        f"{line} can raise an error in a poisoned run, and `optimizer_step`, which runs `training_step`, is overridden "
        "and may catch it, so that the run goes on without that batch. Remove the check, or the `try` in the override: "
        "schedules can change learning rates."
        for line in bounded.graph.endings[:1]
    ]


def _is_of_trainer(frame: FrameType) -> bool:
    """Return whether a frame is one of the Trainer, around which errors end the run."""
    return str(frame.f_globals.get("__name__")).endswith("trainer.trainer")


def trainer_problems(trainer: L.Trainer, module: L.LightningModule) -> list[str]:
    """Return every reason why no certificate holds under the settings of Trainer and module.

    Args:
        trainer: about to start its first step.
        module: the module to train.
    """
    return [
        *_precision_problems(trainer),
        *parameter_problems(module),
        *_clipping_problems(module),
        *_optimizer_problems(trainer, module),
        *_data_dependence_problems(trainer),
        *hook_problems(trainer, module),
        *tuning_problems(module),
    ]


def _precision_problems(trainer: L.Trainer) -> list[str]:
    precision = trainer.precision
    if precision in _FULL_PRECISION:
        return []
    taken = ", which Lightning also takes for '16-mixed' on a CPU," if precision == "bf16-mixed" else ""
    return [f"`precision={precision!r}`{taken} rounds more than the bounds allow for. Use '32-true' or '64-true'."]


def mean_clipping(trainer: L.Trainer) -> MeanClipping | None:
    """Return the clipping that ``gradient_clip_val`` and ``gradient_clip_algorithm`` set; None if they set none.

    Lightning clips the gradients of the optimizer's parameters together, by torch's own functions. If the adversary
    needs each sample's gradient clipped, Lightning clips the mean of the clipped gradients, and so do the bounds.
    """
    limit = trainer.gradient_clip_val
    if limit is None or limit <= 0:
        return None
    if trainer.gradient_clip_algorithm == GradClipAlgorithmType.VALUE:
        return MeanValueClipping(float(limit))
    return MeanNormClipping(float(limit))


def _clipping_problems(module: L.LightningModule) -> list[str]:
    return [
        f"`{name}` is overridden and may change gradients. Remove the override, and use "
        "`Trainer(gradient_clip_val=..., gradient_clip_algorithm=...)`."
        for name in ("configure_gradient_clipping", "clip_gradients")
        if written_by_user(module, name) is not None
    ]


def _optimizer_problems(trainer: L.Trainer, module: L.LightningModule) -> list[str]:
    problems = []
    if not module.automatic_optimization:
        problems.append(
            "`automatic_optimization=False`: steps outside Lightning's loop have no bounds. Set it to True."
        )
    if len(trainer.optimizers) != 1:
        problems.append(f"{len(trainer.optimizers)} optimizers are configured, but one can be certified. Use one.")
    return problems


def _data_dependence_problems(trainer: L.Trainer) -> list[str]:
    """Return settings by which the data choose steps, rates or batches, since a poisoned run would choose others."""
    problems = [
        f"The callback `{type(callback).__name__}` {reason}."
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        for kind, reason in _CALLBACKS.items()
        if isinstance(callback, of_both(kind))
    ]
    if any(isinstance(config.scheduler, ReduceLROnPlateau) for config in trainer.lr_scheduler_configs):
        problems.append(
            "`ReduceLROnPlateau` chooses the learning rate by a metric of the data; a poisoned run would use another. "
            "Use a schedule that depends on the step alone."
        )
    return problems
