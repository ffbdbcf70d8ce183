"""Settings, results, widths, figure and certificate of a finished run, handed to its loggers."""

from collections.abc import Iterable
from pathlib import Path

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from matplotlib.image import imread
from omegaconf import DictConfig, OmegaConf

from recipes.runs.results import settings
from recipes.runs.run import Run

ARTIFACT = "agt-certificate"
CERTIFICATE = ("certificate.json", "bounds.safetensors", "config.yaml")


def publish(run: Run, config: DictConfig, loggers: Iterable[Logger]) -> None:
    """Hand what is in the run's folder to Weights & Biases and TensorBoard; other loggers get nothing.

    Args:
        run: a training whose files are written.
        config: as it was composed.
        loggers: of its trainer.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _to_wandb(run, config, logger)
        elif isinstance(logger, TensorBoardLogger):
            _to_tensorboard(run, config, logger)


def _to_wandb(run: Run, config: DictConfig, logger: WandbLogger) -> None:
    """Log settings, results, a table of widths, the figure, and the certificate with its bounds as an artifact."""
    import wandb

    logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
    logger.experiment.summary.update(dict(run.results))
    logger.log_table("widths", dataframe=run.widths())
    for picture in _pictures(run):
        logger.log_image(picture.stem, [str(picture)])
    artifact = wandb.Artifact(f"{config.name}-{logger.experiment.id}", type=ARTIFACT, metadata=dict(run.results))
    for name in CERTIFICATE:
        artifact.add_file(str(run.output_dir / name))
    logger.experiment.log_artifact(artifact)


def _to_tensorboard(run: Run, config: DictConfig, logger: TensorBoardLogger) -> None:
    """Log settings with results, and the figure."""
    logger.log_hyperparams(settings(config), metrics=dict(run.results))
    for picture in _pictures(run):
        logger.experiment.add_image(picture.stem, imread(picture)[..., :3], dataformats="HWC")
    logger.experiment.flush()


def _pictures(run: Run) -> list[Path]:
    return sorted(run.output_dir.glob("*.png"))
