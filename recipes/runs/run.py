"""A finished training, and how its numbers are shown."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import lightning as L
import pandas as pd

from agt_lightning import BoundedAdversary, CertifiedModel, CertifiedTraining, UnboundedAdversary

CONFIG = "config.yaml"
WIDTHS = "widths.csv"
SYMBOLS = {"epsilon": "ε", "nu": "ν", "kappa": "κ"}

Adversary = BoundedAdversary | UnboundedAdversary


@dataclass(frozen=True)
class Run:
    """A finished training with its certificates.

    Args:
        module: the trained module.
        datamodule: its data.
        model: the module under its parameter bounds.
        adversary: the threat model of the bounds.
        callbacks: all callbacks of the training.
        results: certified quantities by name.
        output_dir: folder of its files.
    """

    module: L.LightningModule
    datamodule: L.LightningDataModule
    model: CertifiedModel
    adversary: Adversary
    callbacks: Sequence[L.Callback]
    results: Mapping[str, float]
    output_dir: Path

    def widths(self) -> pd.DataFrame:
        """Return one row per parameter, in the order of the module: shape, width of its bounds, and mean magnitude."""
        nominal = dict(self.module.named_parameters())
        rows = [
            {
                "parameter": name,
                "shape": "×".join(map(str, interval.lower.shape)),
                "mean width": float(interval.width.mean()),
                "largest width": float(interval.width.max()),
                "mean magnitude": float(nominal[name].detach().abs().mean()),
            }
            for name, interval in self.model.bounds.items()
        ]
        return pd.DataFrame(rows)


def certified_training(trainer: L.Trainer) -> CertifiedTraining:
    """Return the trainer's `CertifiedTraining`.

    Raises:
        ValueError: if it has none.
    """
    for callback in trainer.callbacks:
        if isinstance(callback, CertifiedTraining):
            return callback
    raise ValueError("Expected a `CertifiedTraining` among the trainer's callbacks, but there is none. Add one.")


def describe(adversary: Adversary) -> str:
    """Return the adversary's settings that differ from their defaults, as in ``n = 200, ε = 0.01``."""
    values = {field.name: (getattr(adversary, field.name), field.default) for field in fields(adversary)}
    return ", ".join(
        f"{SYMBOLS.get(name, name)} = {value}"
        for name, (value, default) in values.items()
        if default is MISSING or value != default
    )


def table(rows: Mapping[str, float | str]) -> str:
    """Return one line per name, values in one column; numbers with four significant digits.

    Example:
        >>> print(table({"accuracy": 0.98765, "seconds": 12.0}))
          accuracy  0.9877
          seconds       12
    """
    cells = {name: value if isinstance(value, str) else f"{value:.4g}" for name, value in rows.items()}
    left, right = max(map(len, cells), default=0), max(map(len, cells.values()), default=0)
    return "\n".join(f"  {name:<{left}}  {value:>{right}}" for name, value in cells.items())
