"""Settings, results, widths, figure and certificate of a finished run, handed to its loggers."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from matplotlib.image import imread
from omegaconf import DictConfig, OmegaConf

from recipes.runs.results import settings
from recipes.runs.run import Run

ARTIFACT = "agt-certificate"
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
    """Log settings, results, a table of widths, the figure, and the certificate with its bounds as an artifact."""
    import wandb

    logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
    logger.experiment.summary.update(_results(runs))
    for picture in _pictures(folder):
        logger.log_image(picture.stem, [str(picture)])
    artifact = wandb.Artifact(f"{config.name}-{logger.experiment.id}", type=ARTIFACT, metadata=_results(runs))
    for name, run in runs.items():
        logger.log_table(_below(name, "widths"), dataframe=run.widths())
        for file in CERTIFICATE:
            artifact.add_file(str(run.output_dir / file), name=_below(name, file))
    logger.experiment.log_artifact(artifact)


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
