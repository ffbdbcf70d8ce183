"""The bounds in a checkpoint: what is saved, and how an interrupted training continues from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from agt_lightning.adversaries import Adversary
from agt_lightning.certificates.phases import FLOATS, UNKNOWN, Phase, bound_settings, followed_by
from agt_lightning.certificates.record import describe
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.engine.checkpoint import complete
from agt_lightning.errors import BoundsMismatchError
from agt_lightning.propagation.config import CertificationConfig
from agt_lightning.rounding import Floats

CHECKPOINT_KEY = "agt_bounds"
"""Key of the bounds in Lightning's checkpoint."""

BUFFERS_KEY = "agt_buffers_at_start"
"""Key of the digests of all buffers before the first step in Lightning's checkpoint."""


def bounds_to_save(engine: AbstractGradientEngine, epochs_before: int) -> dict[str, Any]:
    """Return the bounds of a training, their adversary and their settings, as tensors, numbers and strings.

    Args:
        engine: after its last step.
        epochs_before: the number that is added to the Trainer's epochs, see `life_cycle.Fit`.
    """
    phases = [phase.plain() for phase in phases_of(engine)]
    adversary = describe(engine.adversary)
    return {"adversary": adversary, "phases": phases, "epochs_before": epochs_before, **engine.state()}


def phases_of(engine: AbstractGradientEngine) -> tuple[Phase, ...]:
    """Return the settings of all certified steps, those of the trainings that this one goes on from among them."""
    settings = bound_settings(engine.config, tuple(engine.domains.in_use), engine.clipping, engine.stated)
    return followed_by([Phase.of(plain) for plain in engine.earlier_phases], engine.steps, settings)


def saved_bounds(checkpoint: Mapping[str, Any], key: str = CHECKPOINT_KEY) -> Mapping[str, Any]:
    """Return what `bounds_to_save` put into a checkpoint.

    Args:
        checkpoint: Lightning's.
        key: of the callback.

    Raises:
        BoundsMismatchError: if the checkpoint has no bounds.
    """
    if checkpoint.get(key) is None:
        raise BoundsMismatchError(
            "Expected a checkpoint of a certified training, but it has no bounds. Bounds that start in the middle "
            "of a training would miss everything an adversary did before. Train from the start, or resume from a "
            "checkpoint that was written with `CertifiedTraining`."
        )
    saved: Mapping[str, Any] = checkpoint[key]
    return saved


def holds_steps(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint was written after the first step; tuners write and load one before it."""
    return int(checkpoint.get("global_step", 0)) > 0 or any(key.startswith(CHECKPOINT_KEY) for key in checkpoint)


def engine_at(
    module: nn.Module, adversary: Adversary, config: CertificationConfig, saved: Mapping[str, Any]
) -> AbstractGradientEngine:
    """Return an engine with the bounds of a checkpoint, to make certificates with; it trains nothing.

    Args:
        module: with the checkpoint's parameters.
        adversary: the threat model of the training.
        config: how bounds are computed.
        saved: from `saved_bounds`.

    Raises:
        BoundsMismatchError: if the bounds are incomplete, or for another adversary or other parameters.
    """
    engine = AbstractGradientEngine(module, _train_nothing, adversary, config)
    resume(engine, saved)
    return engine


def _train_nothing(module: nn.Module, batch: object) -> Tensor:
    raise RuntimeError("Expected to make certificates, but got a batch to train on.")


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
    _require_floats(engine, phases)
    engine.earlier_phases = tuple(phase.plain() for phase in phases)


def level(engine: AbstractGradientEngine) -> Floats:
    """Return which runs the bounds of all certified steps contain."""
    earlier = [phase.settings.get(FLOATS) for phase in phases_of(engine)]
    return "run" if engine.config.floats == "run" and all(floats == "run" for floats in earlier) else "real"


def _require_floats(engine: AbstractGradientEngine, phases: Sequence[Phase]) -> None:
    """Raise if earlier steps bound runs in real arithmetic alone, which is not enough for bounds on float runs."""
    levels = [phase.settings.get(FLOATS, UNKNOWN) for phase in phases]
    if engine.config.floats == "run" and any(level != "run" for level in levels):
        raise BoundsMismatchError(
            f'Expected bounds on runs as hardware executes them (`floats="run"`), but those to go on from have '
            f'`floats` {", ".join(str(level) for level in levels)}. Go on with `floats="real"`, or train '
            "from the start."
        )
