"""Train a module with certificates against data poisoning, and report them.

Half-moons, the default, needs no data. A run writes ``certificate.json``, ``bounds.safetensors``, ``metrics.csv`` and
``figure.png`` to ``outputs/<experiment>/<time>``, or where ``output_dir`` says.

    python -m recipes.train
    python -m recipes.train experiment=household data.root=path/to/data
    python -m recipes.train -m adversary.n=50,100,200,300
"""

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import hydra
import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from agt_lightning.errors import AgtError
from recipes.callbacks import certified_training
from recipes.run import Run
from recipes.strengths import describe
from recipes.table import table


def train(config: DictConfig, datamodule: L.LightningDataModule | None = None) -> Run:
    """Build what the configuration says, fit, test, certify, and write the files of a run.

    Args:
        config: ``conf/train.yaml``, composed; its function ``settled_by_data``, if there is one, has the last word.
        datamodule: the data, if it was built already.
    """
    ignore_harmless_warnings()
    datamodule = instantiate(config.data) if datamodule is None else datamodule
    if config.settled_by_data is not None:
        config = instantiate(config.settled_by_data)(config, datamodule)
    L.seed_everything(config.seed, workers=True, verbose=False)
    module, adversary = (instantiate(config[group]) for group in ("model", "adversary"))
    callbacks = [instantiate(node) for node in config.callbacks.values()]
    loggers = [instantiate(node) for node in config.logger.values()]
    trainer = instantiate(config.trainer)(callbacks=[*callbacks], logger=loggers)

    print(f"{config.name}: training against {type(adversary).__name__} with {describe(adversary)}", flush=True)
    start = perf_counter()
    trainer.fit(module, datamodule)
    seconds = perf_counter() - start
    trainer.test(module, datamodule, verbose=False)

    certified = certified_training(trainer)
    model = certified.certified_model(module)
    results = instantiate(config.certificate)(model, module, datamodule.test_dataloader())
    run = Run(module, datamodule, model, adversary, callbacks, results, Path(config.output_dir))
    if config.figure:
        instantiate(config.figure)([run], run.output_dir / "figure.png")
    mean_width = certified.bounds.mean_width()
    print(table(results | {"mean width of the parameters": mean_width, "seconds of training": seconds}))
    print(f"Written to {run.output_dir}", flush=True)
    return run


def run_experiment(experiment: Callable[[DictConfig], Any], config: DictConfig) -> None:
    """Call ``experiment`` in Hydra's folder for this job; a failure that the user can mend ends in one message.

    Args:
        experiment: what to do with the configuration.
        config: ``conf/train.yaml``, composed; its ``output_dir`` becomes that of the job.

    Raises:
        SystemExit: after the message, unless HYDRA_FULL_ERROR is set, which shows the whole trace instead.
    """
    config.output_dir = HydraConfig.get().runtime.output_dir
    try:
        experiment(config)
    except (AgtError, InstantiationException, OSError, ValueError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"\nerror: {error}\nSet HYDRA_FULL_ERROR=1 for the whole trace.", file=sys.stderr)
        sys.exit(1)
    finally:
        close_wandb()


def ignore_harmless_warnings() -> None:
    """Silence what a reader can do nothing about."""
    warnings.filterwarnings("ignore", message=".*does not have many workers")  # the data is in memory
    warnings.filterwarnings("ignore", message="Experiment logs directory")  # Hydra's own log is there already
    warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)  # between Lightning and torch


def close_wandb() -> None:
    """End a run of Weights & Biases, which would otherwise go on in the next job of a sweep."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()


@hydra.main(config_path="../conf", config_name="train", version_base="1.3")
def main(config: DictConfig) -> None:
    """Entry point of ``python -m recipes.train``."""
    run_experiment(train, config)


if __name__ == "__main__":
    main()
