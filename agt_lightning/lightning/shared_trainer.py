"""Several `CertifiedTraining` in one Trainer: what they cannot share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agt_lightning.lightning.callback import CertifiedTraining


def shared_trainer_problems(callbacks: Sequence[CertifiedTraining]) -> list[str]:
    """Return why several callbacks cannot certify one training together.

    Args:
        callbacks: all `CertifiedTraining` of a Trainer.
    """
    if len(callbacks) < 2:
        return []
    problems = []
    if any(callback.adversary.sample_clipping is not None for callback in callbacks):
        problems.append(
            "One of several `CertifiedTraining` needs each sample's gradient clipped, and the others would bound "
            "another training. Certify for that adversary alone, or, in one `CertifiedTraining`, for several that need "
            "the same clipping."
        )
    folders = [Path(callback.dirpath).resolve() for callback in callbacks if callback.dirpath is not None]
    if len(set(folders)) < len(folders):
        problems.append("Several `CertifiedTraining` write their files to one folder. Give each its own `dirpath`.")
    return problems
