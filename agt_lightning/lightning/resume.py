"""The bounds in a checkpoint: what is saved, and how an interrupted training continues from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from agt_lightning.adversaries.several import Adversaries, described
from agt_lightning.certificates.phases import FLOATS, UNKNOWN, Phase, bound_settings, followed_by
from agt_lightning.digest import state_digest
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.engine.bounded_runs import BoundedRuns
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
    """Return the bounds of a training, their adversaries and their settings, as tensors, numbers and strings.

    Args:
        engine: after its last step.
        epochs_before: the number that is added to the Trainer's epochs, see `life_cycle.Fit`.
        buffers: what is saved beside the bounds under `BUFFERS_KEY`.
    """
    return signed(
        {
            "adversary": described(engine.adversaries),
            "phases": _plain_phases(engine, engine.runs[0]),
            "phases_of_others": [_plain_phases(engine, runs) for runs in engine.runs[1:]],
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


def phases_of(engine: AbstractGradientEngine, runs: BoundedRuns) -> tuple[Phase, ...]:
    """Return the settings of all certified steps, those of the trainings that this one goes on from among them.

    Args:
        engine: of the training.
        runs: those of one adversary.
    """
    settings = bound_settings(engine.config, tuple(runs.domains.in_use), engine.clipping, engine.stated)
    return followed_by([Phase.of(plain) for plain in runs.earlier_phases], engine.steps, settings)


def _plain_phases(engine: AbstractGradientEngine, runs: BoundedRuns) -> list[dict[str, Any]]:
    return [phase.plain() for phase in phases_of(engine, runs)]


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
    module: nn.Module, adversary: Adversaries, config: CertificationConfig, saved: Mapping[str, Any]
) -> AbstractGradientEngine:
    """Return an engine with the bounds of a checkpoint, to make certificates with; it trains nothing.

    Args:
        module: with the checkpoint's parameters.
        adversary: the threat model of the training, or all of them.
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
        every = [saved["phases"], *saved.get("phases_of_others", [])]
        for runs, plain in zip(engine.runs, every, strict=True):
            phases = [Phase.of(phase) for phase in plain]
            _require_floats(engine, phases)
            runs.earlier_phases = tuple(phase.plain() for phase in phases)


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
    """Raise unless an engine has the adversaries of a checkpoint, in their order."""
    if adversary != described(engine.adversaries):
        raise BoundsMismatchError(
            f"Expected to resume with the adversary of the checkpoint, {adversary}, but got "
            f"{described(engine.adversaries)}. Bounds for one adversary do not hold for another: use the same."
        )


def level(engine: AbstractGradientEngine) -> Floats:
    """Return which runs the bounds of all certified steps contain."""
    earlier = [phase.settings.get(FLOATS) for phase in phases_of(engine, engine.runs[0])]
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
