"""The end of a run of Weights & Biases, which does not end with its job by itself."""

import os
import sys


def close_wandb(mode: str | None) -> None:
    """End a run of Weights & Biases, which would otherwise go on in the next job of a sweep, offline if this one was.

    Args:
        mode: value of WANDB_MODE before the job; None if it was not set.
    """
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()
    os.environ.pop("WANDB_MODE", None)
    if mode is not None:
        os.environ["WANDB_MODE"] = mode
