"""The curves of a sweep, as one run of Weights & Biases beside those of its points."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig

from recipes.runs.results import Result
from recipes.runs.tables import POINTS, finished, text_table

if TYPE_CHECKING:
    from wandb.plot import CustomChart

JOB_TYPE = "sweep"
"""Tells the run of a whole sweep from those of its points."""

N = "adversary.n"


def publish_sweep(folder: Path, config: DictConfig) -> None:
    """Log certified quantities against n, one custom chart each, with the table and the pictures of a sweep.

    Nothing happens if the configuration has no logger of Weights & Biases.

    Args:
        folder: of the sweep, gathered.
        config: of the sweep.

    Raises:
        FileNotFoundError: if no point is finished.
    """
    if "wandb" not in (config.get("logger") or {}):
        return
    name = f"{config.name}, all points"
    logger: WandbLogger = instantiate(config.logger.wandb, save_dir=str(folder), name=name, job_type=JOB_TYPE)
    logger.log_table("points", dataframe=text_table(folder / POINTS))
    for picture in sorted(folder.glob("*.png")):
        logger.log_image(picture.stem, [str(picture)])
    logger.experiment.log({f"curve/{title}": chart for title, chart in charts(finished(folder)).items()})


def charts(results: Sequence[Result]) -> "Mapping[str, CustomChart]":
    """Return a chart of each certified quantity against n by its name; none if all points have the same n.

    A chart has a line for each combination of the other settings in which the points differ.
    """
    import wandb

    lines = _lines(results)
    names = dict.fromkeys(name for result in results for name in result.values)
    if not any(len(line) > 1 for line in lines.values()):
        return {}
    return {
        name: wandb.plot.line_series(
            xs=[[result.settings[N] for result in line] for line in lines.values()],
            ys=[[result.values.get(name) for result in line] for line in lines.values()],
            keys=[label or name for label in lines],
            title=f"{name} against n",
            xname="n",
        )
        for name in names
    }


def _lines(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return the points by all settings but n in which they differ, each by n."""
    names = dict.fromkeys(name for result in results for name in result.settings)
    texts = {name: [str(result.settings.get(name)) for result in results] for name in names}
    others = [name for name, values in texts.items() if len(set(values)) > 1 and not _is_n(name)]
    lines: dict[str, list[Result]] = {}
    for index, result in enumerate(results):
        if isinstance(result.settings.get(N), int | float):
            label = ", ".join(f"{name}={texts[name][index]}" for name in others)
            lines.setdefault(label, []).append(result)
    return {label: sorted(line, key=_n_of) for label, line in lines.items()}


def _is_n(name: str) -> bool:
    """Return whether a setting is n, or a copy of it in another part of the configuration."""
    return name == N or name.endswith(f".{N}")


def _n_of(result: Result) -> Any:
    return result.settings[N]
