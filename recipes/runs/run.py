"""What one training leaves behind, for tables and figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L

from agt_lightning import BoundedAdversary, CertifiedModel, UnboundedAdversary


@dataclass(frozen=True)
class Run:
    """A finished training with its certificates.

    Args:
        module: the trained module.
        datamodule: its data.
        model: the module under its parameter bounds.
        adversary: whom the bounds hold against.
        callbacks: all callbacks of the training.
        results: certified quantities by name.
        output_dir: where the files are.
    """

    module: L.LightningModule
    datamodule: L.LightningDataModule
    model: CertifiedModel
    adversary: BoundedAdversary | UnboundedAdversary
    callbacks: Sequence[L.Callback]
    results: Mapping[str, float]
    output_dir: Path
