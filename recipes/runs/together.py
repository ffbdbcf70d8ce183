"""Points of a job that differ in the adversary alone: one training certifies them all."""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from recipes.runs.results import settings
from recipes.runs.run import Run
from recipes.runs.sweep import ALL, at_point, point_name

LISTED = ("n", "epsilon", "p", "nu", "q", "kappa", "clip")
"""Settings of an adversary of which a list means several adversaries."""

BOUNDS, CERTIFICATE = "bounds.safetensors", "certificate.json"


def points_of(config: DictConfig) -> list[DictConfig]:
    """Return the points that a configuration stands for: every combination of its levels and its lists of strengths.

    Args:
        config: ``conf/train.yaml``, composed. ``level`` may be a list of levels of the panel, or ``all``; `LISTED`
            settings of the adversary may be lists.

    Returns:
        The configuration of each point. If anything is listed, each has a folder of its own below ``output_dir``.

    Raises:
        ValueError: if a list is empty or repeats a value, there is no such panel or level, or the adversary has no
            setting of that name.
    """
    points = []
    for level, listed in _levels(config):
        at_level = config.copy()
        at_level.level = level
        chosen = at_point(at_level)
        _require_known_settings(chosen.adversary)
        lists = {f"adversary.{name}": value for name, value in _lists(chosen.adversary).items()}
        for values in product(*lists.values()):
            strengths = dict(zip(lists, values, strict=True))
            points.append(_placed(chosen, ([f"level={level}"] if listed else []), strengths))
    return points


def trainings(points: Iterable[DictConfig]) -> list[list[DictConfig]]:
    """Return the points, those together that one training certifies.

    These differ in the adversary alone, and need the same clipping of each sample's gradient. A training that a
    callback ends where its certificate is vacuous is about one adversary.
    """
    found: dict[str, list[DictConfig]] = {}
    for point in points:
        found.setdefault(_training(point), []).append(point)
    return list(found.values())


def joined(points: Sequence[DictConfig], folder: Path) -> DictConfig:
    """Return the configuration of one training for all points: the adversaries are listed; of one point, its own.

    Args:
        points: of one of the `trainings`.
        folder: of the training.
    """
    if len(points) == 1:
        return points[0]
    whole = _resolved(points[0], folder)
    adversaries = [OmegaConf.to_container(point.adversary, resolve=True) for point in points]
    for callback in _about_the_adversary(whole):
        callback.adversary = adversaries
    whole.adversary = adversaries
    return whole


def separate(runs: Sequence[Run], names: Sequence[str], folder: Path) -> None:
    """Give each point the certificate and the bounds of its adversary, as a training alone leaves them.

    Args:
        runs: of one training, several.
        names: of their adversaries.
        folder: of the training, which keeps ``certificate.json`` about all.
    """
    record = json.loads((folder / CERTIFICATE).read_text())
    for run, name in zip(runs, names, strict=True):
        own = json.dumps(record["certificates"][name], indent=2)
        (run.output_dir / CERTIFICATE).write_text(own + "\n")
        shutil.move(folder / f"bounds-{name}.safetensors", run.output_dir / BOUNDS)


def _levels(config: DictConfig) -> list[tuple[int | None, bool]]:
    """Return the chosen levels of the panel, and whether they are listed."""
    level = config.get("level")
    if level == ALL and config.get("panel") in config.panels:
        level = list(range(len(config.panels[config.panel].levels)))
    elif isinstance(level, ListConfig):
        level = _distinct("level", list(level))
    return [(each, True) for each in level] if isinstance(level, list) else [(level, False)]


def _lists(adversary: DictConfig) -> dict[str, list[Any]]:
    return {
        name: _distinct(f"adversary.{name}", list(adversary[name]))
        for name in LISTED
        if isinstance(adversary.get(name), ListConfig)
    }


def _distinct(name: str, values: list[Any]) -> list[Any]:
    if not values or len(set(values)) < len(values):
        raise ValueError(f"Expected `{name}` to list distinct values, at least one, but got {values}.")
    return values


def _require_known_settings(adversary: DictConfig) -> None:
    kind = get_class(adversary._target_)
    known = [field.name for field in fields(kind)]
    unknown = [str(name) for name in adversary if not str(name).startswith("_") and name not in known]
    if unknown:
        raise ValueError(
            f"Expected settings of `{kind.__name__}`, {known}, but got {unknown}. Leave out what it does not have, or "
            "choose another kind with `adversary=`."
        )


def _placed(point: DictConfig, listed: Sequence[str], strengths: dict[str, Any]) -> DictConfig:
    """Return a point at some strengths, in a folder named after what was listed."""
    placed = point.copy()
    for name, value in strengths.items():
        OmegaConf.update(placed, name, value, merge=False)
    names = [*listed, *(f"{name}={value}" for name, value in strengths.items())]
    if names:
        placed.output_dir = str(Path(point.output_dir) / point_name(names))
    return placed


def _training(point: DictConfig) -> str:
    """Return text that is the same for points of one training."""
    shared = _resolved(point, Path())
    for callback in _about_the_adversary(shared):
        callback.adversary = None
    shared.adversary = None
    alone = any(node.get("stop_above") is not None for node in point.callbacks.values())
    own = point.output_dir if alone else instantiate(point.adversary).sample_clipping
    return json.dumps([settings(shared), str(own)], sort_keys=True)


def _resolved(point: DictConfig, folder: Path) -> DictConfig:
    """Return the configuration of a point with its files in some folder, without references between its parts."""
    placed = point.copy()
    placed.output_dir = str(folder)
    whole = OmegaConf.create(OmegaConf.to_container(placed, resolve=True))
    assert isinstance(whole, DictConfig)
    return whole


def _about_the_adversary(whole: DictConfig) -> list[DictConfig]:
    """Return the callbacks whose adversary is that of the point."""
    return [node for node in whole.callbacks.values() if node.get("adversary") == whole.adversary]
