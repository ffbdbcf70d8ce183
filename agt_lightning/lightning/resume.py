"""The bounds in a checkpoint: what is saved, and how an interrupted training continues from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from agt_lightning.adversaries import Adversary
from agt_lightning.certificates.phases import FLOATS, UNKNOWN, Phase, bound_settings, followed_by
from agt_lightning.certificates.record import describe
from agt_lightning.digest import state_digest
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.engine.checkpoint import complete
from agt_lightning.errors import BoundsMismatchError
from agt_lightning.propagation.config import CertificationConfig
from agt_lightning.rounding import Floats

CHECKPOINT_KEY = "agt_bounds"
"""Key of the bounds in Lightning's checkpoint."""

BUFFERS_KEY = "agt_buffers_at_start"
"""Key of the digests of all buffers before the first step in Lightning's checkpoint."""

_DIGEST = "digest"
"""Key of the digest of all other entries in the bounds of a checkpoint."""

_BUFFERS_DIGEST = "buffers_at_start"
"""Key of the digest of what the checkpoint has under `BUFFERS_KEY`; None if nothing."""


def bounds_to_save(
    engine: AbstractGradientEngine, epochs_before: int, buffers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the bounds of a training, their adversary and their settings, as tensors, numbers and strings.

    Args:
        engine: after its last step.
        epochs_before: the number that is added to the Trainer's epochs, see `life_cycle.Fit`.
        buffers: what is saved beside the bounds under `BUFFERS_KEY`.
    """
    return signed(
        {
            "adversary": describe(engine.adversary),
            "phases": [phase.plain() for phase in phases_of(engine)],
            "epochs_before": epochs_before,
            _BUFFERS_DIGEST: None if buffers is None else state_digest(buffers),
            **engine.state(),
        }
    )


def signed(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return saved bounds with a digest of all their entries, by which `resume` finds damage.

    Raises:
        TypeError: if the state of a domain is not made of tensors, numbers and strings.

    Example:
        >>> once = signed({"steps": 3})
        >>> signed(once) == once
        True
    """
    entries = {key: value for key, value in saved.items() if key != _DIGEST}
    return {**entries, _DIGEST: state_digest(entries)}


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
        BoundsMismatchError: if the checkpoint has no bounds, or what is saved beside them is damaged.
    """
    if checkpoint.get(key) is None:
        raise BoundsMismatchError(
            "Expected a checkpoint of a certified training, but it has no bounds. Bounds that start in the middle "
            "of a training would miss everything an adversary did before. Train from the start, or resume from a "
            "checkpoint that was written with `CertifiedTraining`."
        )
    saved: Mapping[str, Any] = checkpoint[key]
    with complete(saved):
        buffers = saved.get(_BUFFERS_DIGEST)
        if buffers is not None and buffers != state_digest(checkpoint.get(BUFFERS_KEY)):
            raise BoundsMismatchError(_DAMAGED)
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
        BoundsMismatchError: if the bounds are damaged or incomplete, or for another adversary or other parameters.
    """
    with complete(saved):
        with engine.processes.collective_errors():
            _require_undamaged(saved)
        _require_adversary(engine, saved["adversary"])
        engine.restore(saved)
        phases = [Phase.of(plain) for plain in saved["phases"]]
        _require_floats(engine, phases)
        engine.earlier_phases = tuple(phase.plain() for phase in phases)


_DAMAGED = (
    "Expected the bounds of the checkpoint as they were saved, but their digest is missing or that of other ones: the "
    "file is damaged, or was changed, or is from before version 0.2. Resume from another checkpoint, or train from the "
    "start."
)


def _require_undamaged(saved: Mapping[str, Any]) -> None:
    """Raise unless the bounds have the digest that they were saved with; whoever changes a file can also leave it out.

    Raises:
        BoundsMismatchError: naming the ways out.
    """
    if saved.get(_DIGEST) != signed(saved)[_DIGEST]:
        raise BoundsMismatchError(_DAMAGED)


def _require_adversary(engine: AbstractGradientEngine, adversary: object) -> None:
    """Raise unless an engine has the adversary of a checkpoint."""
    if adversary != describe(engine.adversary):
        raise BoundsMismatchError(
            f"Expected to resume with the adversary of the checkpoint, {adversary}, but got "
            f"{describe(engine.adversary)}. Bounds for one adversary do not hold for another: use the same."
        )


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
