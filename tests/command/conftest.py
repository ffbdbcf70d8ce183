"""One certified training for all tests of commands, and the command itself, run in this process."""

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import pytest
import torch

from agt_lightning import Acceptance, BoundedAdversary, CertifiedTraining
from agt_lightning.command.main import main
from tests.command.modules import Classifier, held_out, loader

MODULE = "tests.command.modules:Classifier"
DATA = "tests.command.modules:held_out"

QUIET = {name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")}


@dataclass(frozen=True)
class Files:
    """What a certified training leaves behind."""

    certificate: Path
    bounds: Path
    weights: Path

    def arguments(self, *more: str) -> list[str]:
        return [str(self.certificate), "--bounds", str(self.bounds), "--weights", str(self.weights), *more]

    def copied(self, folder: Path) -> "Files":
        return Files(
            *(Path(shutil.copy(path, folder / path.name)) for path in (self.certificate, self.bounds, self.weights))
        )


def train(folder: Path, adversary, *, module=Classifier, epochs: int = 2, **settings) -> Files:
    """Train with a certificate in a folder."""
    certified = CertifiedTraining(adversary, dirpath=folder, **settings)
    with warnings.catch_warnings(action="ignore"):
        torch.manual_seed(0)
        trainer = L.Trainer(callbacks=[certified], accelerator="cpu", max_epochs=epochs, **QUIET)
        trainer.fit(module(), loader(), held_out())
        trainer.save_checkpoint(folder / "model.ckpt")
    return Files(folder / "certificate.json", folder / "bounds.safetensors", folder / "model.ckpt")


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Files:
    """A training with a criterion that it meets; nobody writes to its files."""
    criterion = Acceptance("val_certified_accuracy", at_least=0.1)
    folder = tmp_path_factory.mktemp("trained")
    return train(folder, BoundedAdversary(n=1, epsilon=0.02), domains=("box", "ball"), acceptance=criterion)


@pytest.fixture(scope="session")
def several(tmp_path_factory) -> Files:
    """A training for four adversaries; nobody writes to its files, of which `bounds` is that of n=1."""
    adversaries = [BoundedAdversary(n=n, epsilon=0.05) for n in (1, 2, 3, 4)]
    files = train(tmp_path_factory.mktemp("several"), adversaries, domains="box", epochs=1)
    return Files(files.certificate, files.certificate.with_name("bounds-n_1.safetensors"), files.weights)


@pytest.fixture
def files(trained, tmp_path) -> Files:
    """Copies of its files."""
    return trained.copied(tmp_path)


@pytest.fixture
def agt(capsys, monkeypatch):
    """Run ``agt`` with some words in a wide terminal; return its exit status and what it prints."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as ended:  # of argparse
            status = int(ended.code or 0)
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run
