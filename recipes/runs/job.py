"""The job around a recipe: its folder, its logger's run, and one message in place of a traceback."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig

from agt_lightning.errors import AgtError
from recipes.runs.sweep import point_name
from recipes.runs.wandb_end import close_wandb


def run_experiment(experiment: Callable[[DictConfig], Any], config: DictConfig) -> None:
    """Call ``experiment`` in the folder of this Hydra job.

    Args:
        experiment: the recipe.
        config: as composed; its ``output_dir`` becomes that of the job.

    Raises:
        SystemExit: if it fails in a way that the user can mend, see `one_message`.
    """
    config.output_dir = str(job_folder(HydraConfig.get()))
    mode = os.environ.get("WANDB_MODE")
    try:
        with one_message():
            experiment(config)
    finally:
        close_wandb(mode)


@contextmanager
def one_message() -> Iterator[None]:
    """Print a failure that the user can mend, such as missing data, as one message and end the program.

    Raises:
        SystemExit: after the message. With HYDRA_FULL_ERROR=1 the error itself is raised instead.
    """
    try:
        yield
    except (AgtError, InstantiationException, OSError, ValueError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"\nerror: {error}\nSet HYDRA_FULL_ERROR=1 for the whole trace.", file=sys.stderr)
        sys.exit(1)


def job_folder(job: Any) -> Path:
    """Return Hydra's folder for this job; in a sweep, a subfolder named after the overrides of the point.

    Args:
        job: Hydra's own configuration.
    """
    folder = Path(job.runtime.output_dir)
    return folder / point_name(job.overrides.task) if job.mode == RunMode.MULTIRUN else folder
