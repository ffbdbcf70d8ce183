"""Settings, results, widths, figure and certificate of a finished run, handed to its loggers."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from matplotlib.image import imread
from omegaconf import DictConfig, OmegaConf

from agt_lightning.command.main import main as agt
from recipes.runs.results import settings
from recipes.runs.run import Run

ARTIFACT = "agt-certificate"
DIGEST = "certificate sha256"
REPORT = "report"
CERTIFICATE = ("certificate.json", "bounds.safetensors", "config.yaml")

Runs = Mapping[str, Run]
"""Those of one training by name of the adversary, which is empty if there is only one."""


def publish(runs: Runs, folder: Path, config: DictConfig, loggers: Iterable[Logger]) -> None:
    """Hand what is in the folders of a training to Weights & Biases and TensorBoard; other loggers get nothing.

    Args:
        runs: whose files are written.
        folder: of the training.
        config: as it was composed.
        loggers: of its trainer.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _to_wandb(runs, folder, config, logger)
        elif isinstance(logger, TensorBoardLogger):
            _to_tensorboard(runs, folder, config, logger)


def _to_wandb(runs: Runs, folder: Path, config: DictConfig, logger: WandbLogger) -> None:
    """Log settings, results, widths, pictures and a page about the certificates, and these with bounds as an artifact.

    The digests of a certificate are metadata of the artifact, and its own digest is in the summary of the run, so that
    a file from elsewhere can be told to be the same.
    """
    import wandb

    digests = {name: _digests(run) for name, run in runs.items()}
    logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
    logger.experiment.summary.update(_results(runs))
    logger.experiment.summary.update({_below(name, DIGEST): each["certificate"] for name, each in digests.items()})
    for picture in _pictures(folder):
        logger.log_image(picture.stem, [str(picture)])
    page = _report(runs, folder)
    logger.experiment.log({REPORT: wandb.Html(page.read_text(encoding="utf-8"), inject=False)})
    metadata = _results(runs) | {_below(name, "digests"): each for name, each in digests.items()}
    artifact = wandb.Artifact(f"{config.name}-{logger.experiment.id}", type=ARTIFACT, metadata=metadata)
    artifact.add_file(str(page), name=page.name)
    for name, run in runs.items():
        logger.log_table(_below(name, "widths"), dataframe=run.widths())
        for file in CERTIFICATE:
            artifact.add_file(str(run.output_dir / file), name=_below(name, file))
    logger.experiment.log_artifact(artifact)


def _report(runs: Runs, folder: Path) -> Path:
    """Write the page of ``agt report`` about the certificates of a training, and return its path."""
    page = folder / f"{REPORT}.html"
    paths = [str(run.output_dir / "certificate.json") for run in runs.values()]
    if agt(["report", *paths, "--output", str(page)]) != 0:
        raise RuntimeError(f"Expected certificates in {folder} that hold together, but {page.name} was not written.")
    return page


def _digests(run: Run) -> dict[str, Any]:
    """Return the digest of a certificate and those that it states."""
    record = json.loads((run.output_dir / "certificate.json").read_text())
    return {"certificate": record["sha256_of_content"], **record["digests"]}


def _to_tensorboard(runs: Runs, folder: Path, config: DictConfig, logger: TensorBoardLogger) -> None:
    """Log settings with results, and the figure."""
    logger.log_hyperparams(settings(config), metrics=_results(runs))
    for picture in _pictures(folder):
        logger.experiment.add_image(picture.stem, imread(picture)[..., :3], dataformats="HWC")
    logger.experiment.flush()


def _results(runs: Runs) -> dict[str, float]:
    return {_below(name, result): value for name, run in runs.items() for result, value in run.results.items()}


def _below(name: str, part: str) -> str:
    return f"{name}/{part}" if name else part


def _pictures(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))
