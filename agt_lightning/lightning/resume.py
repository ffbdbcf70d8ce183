"""The bounds in a checkpoint: what is saved, and how an interrupted training continues from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from agt_lightning.certificates.phases import Phase, bound_settings, followed_by
from agt_lightning.certificates.record import describe
from agt_lightning.certificates.start import StartOfTraining
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.engine.checkpoint import complete
from agt_lightning.errors import BoundsMismatchError

CHECKPOINT_KEY = "agt_bounds"
"""Key of the bounds in Lightning's checkpoint."""

BUFFERS_KEY = "agt_buffers_at_start"
"""Key of the digests of all buffers before the first step in Lightning's checkpoint."""


def bounds_to_save(engine: AbstractGradientEngine) -> dict[str, Any]:
    """Return the bounds of a training, their adversary and their settings, as tensors, numbers and strings."""
    phases = [phase.plain() for phase in phases_of(engine)]
    return {"adversary": describe(engine.adversary), "phases": phases, **engine.state()}


def phases_of(engine: AbstractGradientEngine) -> tuple[Phase, ...]:
    """Return the settings of all certified steps, those of the trainings that this one goes on from among them."""
    settings = bound_settings(engine.config, tuple(engine.domains.in_use), engine.clipping, engine.stated)
    return followed_by([Phase.of(plain) for plain in engine.earlier_phases], engine.steps, settings)


def saved_bounds(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what `bounds_to_save` put into a checkpoint.

    Raises:
        BoundsMismatchError: if the checkpoint has no bounds.
    """
    if checkpoint.get(CHECKPOINT_KEY) is None:
        raise BoundsMismatchError(
            "Expected a checkpoint of a certified training, but it has no bounds. Bounds that start in the middle "
            "of a training would miss everything an adversary did before. Train from the start, or resume from a "
            "checkpoint that was written with `CertifiedTraining`."
        )
    saved: Mapping[str, Any] = checkpoint[CHECKPOINT_KEY]
    return saved


def resume(engine: AbstractGradientEngine, saved: Mapping[str, Any]) -> None:
    """Continue from the bounds of a checkpoint.

    Args:
        engine: of a module with the checkpoint's parameters.
        saved: from `saved_bounds`.

    Raises:
        BoundsMismatchError: if the bounds are incomplete, or for another adversary or other parameters.
    """
    with complete(saved):
        adversary = saved["adversary"]
    if adversary != describe(engine.adversary):
        raise BoundsMismatchError(
            f"Expected to resume with the adversary of the checkpoint, {adversary}, but got "
            f"{describe(engine.adversary)}. Bounds for one adversary do not hold for another: use the same."
        )
    engine.restore(saved)
    with complete(saved):
        unknown = [Phase.unknown(engine.steps)] if engine.steps else []
        phases = [Phase.of(plain) for plain in saved["phases"]] if "phases" in saved else unknown
    engine.earlier_phases = tuple(phase.plain() for phase in phases)


def start_of_training(module: nn.Module, checkpoint: Mapping[str, Any] | None) -> StartOfTraining:
    """Keep a module as it is before its first step.

    Args:
        module: about to be trained.
        checkpoint: that this training continues from; None if it starts anew. What its training wrote into buffers
            counts as written by this one.

    Raises:
        CaptureError: if the module cannot be copied.
    """
    return StartOfTraining.of(module, None if checkpoint is None else checkpoint.get(BUFFERS_KEY))
