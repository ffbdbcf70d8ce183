"""Trainer settings that would void the guarantee, each with its way out."""

import lightning as L
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import WeightedRandomSampler

_FULL_PRECISION = ("32-true", "64-true")

_CALLBACKS = {
    EarlyStopping: "stops at a step that depends on the data; a poisoned run would stop elsewhere. Fix `max_epochs`",
    LearningRateFinder: "chooses the learning rate by the data. Fix the learning rate",
    StochasticWeightAveraging: "replaces the trained parameters by averages that have no bounds. Remove it",
    WeightAveraging: "replaces the trained parameters by averages that have no bounds. Remove it",
}


def trainer_problems(trainer: L.Trainer, module: L.LightningModule) -> list[str]:
    """Every setting of trainer and module under which no certificate holds.

    Args:
        trainer: about to start its first step.
        module: the module to train.
    """
    return [
        *_precision_problems(trainer),
        *_clipping_problems(trainer, module),
        *_optimizer_problems(trainer, module),
        *_data_dependence_problems(trainer),
        *_process_problems(trainer),
    ]


def _precision_problems(trainer: L.Trainer) -> list[str]:
    precision = trainer.precision
    if precision in _FULL_PRECISION:
        return []
    return [f"`precision={precision!r}` rounds more than the bounds allow for. Use '32-true' or '64-true'."]


def _clipping_problems(trainer: L.Trainer, module: L.LightningModule) -> list[str]:
    problems = []
    if trainer.gradient_clip_val:
        problems.append(
            f"`gradient_clip_val={trainer.gradient_clip_val}` clips the mean gradient, which has no bounds. Leave it "
            "out, or clip each sample's gradient with `UnboundedAdversary(n, kappa, clip='norm')`."
        )
    if type(module).configure_gradient_clipping is not L.LightningModule.configure_gradient_clipping:
        problems.append("`configure_gradient_clipping` is overridden and may change gradients. Remove the override.")
    return problems


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
    """Whatever lets the data choose steps, rates or batches: a poisoned run would choose others."""
    problems = [
        f"The callback `{type(callback).__name__}` {reason}."
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        for kind, reason in _CALLBACKS.items()
        if isinstance(callback, kind)
    ]
    if any(isinstance(config.scheduler, ReduceLROnPlateau) for config in trainer.lr_scheduler_configs):
        problems.append(
            "`ReduceLROnPlateau` chooses the learning rate by a metric of the data; a poisoned run would use another. "
            "Use a schedule that depends on the step alone."
        )
    if isinstance(getattr(trainer.train_dataloader, "sampler", None), WeightedRandomSampler):
        problems.append(
            "`WeightedRandomSampler` chooses batches by weights that may come from labels, and repeats samples. Use a "
            "sampler that does not look at the data."
        )
    return problems


def _process_problems(trainer: L.Trainer) -> list[str]:
    if trainer.world_size == 1:
        return []
    return [f"{trainer.world_size} processes: bounds over several processes are not supported. Use `devices=1`."]
