"""Points of a sweep: their settings and folders, which of them are finished, and what is done when all are."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from math import prod
from pathlib import Path
from time import time
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from typing_extensions import override

from recipes.runs.drawing import draw
from recipes.runs.publish_sweep import publish_sweep
from recipes.runs.results import FILE, Result, fingerprint
from recipes.runs.tables import gather, summary
from recipes.runs.wandb_end import close_wandb

START = "sweep.json"
ALL = "all"
_LONGEST_NAME = 80
_NOT_IN_NAMES = ("output_dir", "data.root", "sweep", "debug", "logger", "experiment", "trainer.enable_progress_bar")


def at_point(config: DictConfig) -> DictConfig:
    """Return the settings of the chosen level of the chosen panel, or the configuration as it is if no panel is chosen.

    Args:
        config: ``conf/train.yaml``, composed. A panel has a ``setting``, by dotted name, its ``levels``, and settings
            that are ``fixed`` throughout the panel; a whole group among these, such as ``adversary``, is exchanged.

    Raises:
        ValueError: if there is no such panel or level.
    """
    if config.get("panel") is None:
        return config
    if config.panel not in config.panels:
        raise ValueError(f"Expected `panel` to be one of {list(config.panels)}, but got {config.panel!r}.")
    panel = config.panels[config.panel]
    if not isinstance(config.level, int) or not 0 <= config.level < len(panel.levels):
        raise ValueError(
            f"Expected `level` to be from 0 to {len(panel.levels) - 1}, a list of these, or `{ALL}`, but got "
            f"{config.level}."
        )
    chosen = config.copy()
    for name, value in {**panel.fixed, panel.setting: panel.levels[config.level]}.items():
        OmegaConf.update(chosen, name, value, merge=False)
    return chosen


def point_name(overrides: Sequence[str]) -> str:
    """Return a folder's name for one point of a sweep, from the overrides of the command line.

    Hydra's own ``override_dirname`` is not used: it keeps the brackets of lists, makes a folder of each ``/`` in
    ``data/features=pca``, and has no limit, where a file system has one.

    Example:
        >>> point_name(["experiment=halfmoons", "adversary.n=50", "callbacks.certified.domains=[box]"])
        'adversary.n=50,callbacks.certified.domains=box'
    """
    named = [item for item in overrides if not item.lstrip("+").startswith(tuple(f"{key}=" for key in _NOT_IN_NAMES))]
    name = ",".join(named).translate(str.maketrans({"/": ".", **dict.fromkeys("[]{}'\" ", "")}))
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{sha256(name.encode()).hexdigest()[:8]}"
    return name or "point"


def unfinished(points: Sequence[DictConfig], folder: Path) -> list[DictConfig]:
    """Return the points of a sweep that are left to train; what is left of others in their folders no longer counts.

    A point is finished if its folder has a result with the same fingerprint of settings and code. Another point's
    result is copied if it has that fingerprint, since one setting can occur in several panels.

    Args:
        points: configurations, each with the folder of the point in ``output_dir``.
        folder: of the sweep.
    """
    return [point for point in points if not _is_finished(point, folder)]


def _is_finished(point: DictConfig, folder: Path) -> bool:
    own = Path(point.output_dir)
    twin = _finished(own, folder, fingerprint(point))
    if twin == own:
        print(f"Finished already: {own}", flush=True)
    elif twin is not None:
        _copy(twin, point)
        print(f"Finished already as {twin.name}: copied to {own}", flush=True)
    else:
        (own / FILE).unlink(missing_ok=True)  # of other settings or code
    return twin is not None


def _finished(own: Path, folder: Path, wanted: str) -> Path | None:
    """Return ``own``, or the folder of another point, if its result has the wanted fingerprint; None if none has."""
    for candidate in [own, *sorted(path.parent for path in folder.rglob(FILE))]:
        result = Result.load(candidate)
        if result is not None and result.fingerprint == wanted:
            return candidate
    return None


def _copy(twin: Path, config: DictConfig) -> None:
    folder = Path(config.output_dir)
    result = Result.load(twin)
    assert result is not None
    shutil.copytree(twin, folder, ignore=shutil.ignore_patterns(FILE, "wandb", ".*"), dirs_exist_ok=True)
    replace(result, point=folder.name, panel=config.panel, level=config.level).save(folder)


def progress(folder: Path, number: int) -> str:
    """Return the number of a job and the time left, at the mean time of a job since the start.

    Args:
        folder: of the sweep.
        number: of the job, from 1.
    """
    if not (folder / START).is_file():
        return f"Job {number}"
    start = json.loads((folder / START).read_text())
    jobs, since = start["jobs"], start["time"]
    recent = [path for path in folder.rglob(FILE) if path.stat().st_mtime >= since]
    trained = len({path.relative_to(folder).parts[0] for path in recent})
    left = (time() - since) / trained * (jobs - number) if trained else 0.0
    return f"Job {number} of {jobs}" + (f"; about {duration(left)} left" if number < jobs and trained else "")


def duration(seconds: float) -> str:
    """Return a duration in hours and minutes, in seconds below 100 of them.

    Example:
        >>> duration(42.0), duration(600.0), duration(7500.0)
        ('42 s', '10 min', '2 h 5 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class Sweep(Callback):
    """A Hydra callback around a sweep, which prints how to resume it, gathers its results and draws them."""

    @override
    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the number of jobs and the time of the start, from which the jobs compute the time left."""
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        jobs = _number_of_jobs(config)
        (folder / START).write_text(json.dumps({"jobs": jobs, "time": time()}))
        print(f"{jobs} jobs in {folder}. Stopped? The same command with output_dir={folder} goes on.", flush=True)

    @override
    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Gather what is finished; draw it; print one table."""
        folder = Path(config.hydra.sweep.dir)
        try:
            written = gather(folder)
            if config.get("drawing"):
                written.append(draw(folder))
            mode = os.environ.get("WANDB_MODE")
            publish_sweep(folder, config)
            close_wandb(mode)
            print(f"\n{summary(folder)}\n\nWritten:", *written, sep="\n  ", flush=True)
        except (OSError, ValueError) as error:
            print(f"\nerror: {error}", file=sys.stderr)
            sys.exit(1)


def _number_of_jobs(config: DictConfig) -> int:
    """Return the size of the grid; overrides on the command line replace those of the configuration."""
    params = [f"{name}={value}" for name, value in (config.hydra.sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
    swept = {item.get_key_element(): item for item in overrides}
    return prod(len(list(item.sweep_iterator())) for item in swept.values() if item.is_sweep_override())
