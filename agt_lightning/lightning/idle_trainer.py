"""A Trainer that trains nothing, for code that a module runs only with one."""

from __future__ import annotations

from typing import Any

import lightning as L

from agt_lightning.lightning.packages import trainer_of


def idle_trainer(module: L.LightningModule) -> L.Trainer:
    """Return a Trainer of the module's package, on one CPU, that logs and writes nothing.

    Args:
        module: that it is for; it is not connected.
    """
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return trainer_of(module)(**settings)
