"""The figure of a sweep, as its configuration names it."""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

SWEEP = "multirun.yaml"


def draw(folder: Path, path: Path | None = None) -> Path:
    """Draw a sweep as its configuration says.

    Args:
        folder: of the sweep, with the configuration that Hydra left and the tables of `recipes.runs.tables.gather`.
        path: the file to write; None for ``figure.png`` in ``folder``.

    Raises:
        FileNotFoundError: if there is no configuration or no table.
        ValueError: if the configuration names no drawing.
    """
    config = configuration(folder)
    if not config.get("drawing"):
        raise ValueError(f"Expected a sweep with a drawing of its own in {folder}. Choose one of conf/sweep.")
    return instantiate(config.drawing)(folder, panels(config), path or folder / "figure.png")


def configuration(folder: Path) -> DictConfig:
    """Return the configuration that Hydra left in the folder of a sweep.

    Raises:
        FileNotFoundError: if it is not there.
    """
    if not (folder / SWEEP).is_file():
        raise FileNotFoundError(f"Expected {folder / SWEEP}, which a sweep leaves behind. Use the folder of a sweep.")
    config = OmegaConf.load(folder / SWEEP)
    assert isinstance(config, DictConfig)
    return config


def panels(config: DictConfig) -> dict[str, dict[str, Any]]:
    """Return the panels of a sweep's configuration, as plain data."""
    return OmegaConf.to_container(config.panels, resolve=False)  # type: ignore[return-value]
