"""Train a module with certificates against data poisoning, and report them.

Half-moons, the default, needs no data. A run writes ``certificate.json``, ``bounds.safetensors``, ``metrics.csv``,
``figure.png`` and, last, ``result.json`` to ``output_dir``, which is ``outputs/<experiment>/<time>`` by default.

    python -m recipes.train
    python -m recipes.train experiment=household data.root=path/to/data
    python -m recipes.train debug=fast                                      seconds, to see that it runs

A sweep gives every point a folder of its own, skips those that are finished, and gathers all in ``points.csv``:

    python -m recipes.train -m adversary.n=0,50,100 output_dir=outputs/strengths
    python -m recipes.train -m sweep=halfmoons                              figure 1 of the paper
    python -m recipes.train -m sweep=household hydra/launcher=cores         figure 2, on all cores
"""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

import hydra
import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from recipes.runs.job import run_experiment
from recipes.runs.publish import publish
from recipes.runs.results import Result
from recipes.runs.run import WIDTHS, Run, certified_training, describe, table
from recipes.runs.sweep import unless_finished


def train(config: DictConfig, datamodule: L.LightningDataModule | None = None) -> Run:
    """Build the parts of a configuration, fit, test, certify, and write the files of a run.

    Args:
        config: ``conf/train.yaml``, composed; its function ``settled_by_data``, if there is one, is applied last.
        datamodule: the data, if it was built already.
    """
    ignore_harmless_warnings()
    composed = config
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
    leave_behind(run, composed, trainer.loggers, seconds)
    mean_width = certified.bounds.mean_width()
    print(table(results | {"mean width of the parameters": mean_width, "seconds of training": seconds}))
    print("Written to", run.output_dir, *sorted(path.name for path in run.output_dir.iterdir()), sep="\n  ", flush=True)
    return run


def leave_behind(run: Run, config: DictConfig, loggers: Sequence[Logger], seconds: float) -> None:
    """Write the files of a run, and last of all the result, which marks everything else as complete.

    Args:
        run: the training, whose callbacks and loggers have written their files.
        config: as it was composed.
        loggers: to hand figure and certificate to.
        seconds: of the training.
    """
    OmegaConf.save(config, run.output_dir / "config.yaml", resolve=True)
    run.widths().to_csv(run.output_dir / WIDTHS, index=False)
    if config.record:
        instantiate(config.record)(run)
    if config.figure:
        instantiate(config.figure)([run], run.output_dir / "figure.png")
    publish(run, config, loggers)
    Result.of(config, run.results, seconds).save(run.output_dir)


def ignore_harmless_warnings() -> None:
    """Silence warnings about which a user can do nothing."""
    warnings.filterwarnings("ignore", message=".*does not have many workers")  # the data is in memory
    warnings.filterwarnings("ignore", message="Experiment logs directory")  # Hydra's own log is there already
    warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)  # between Lightning and torch


@hydra.main(config_path="../conf", config_name="train", version_base="1.3")
def main(config: DictConfig) -> None:
    """Entry point of ``python -m recipes.train``."""
    several = HydraConfig.get().mode == RunMode.MULTIRUN
    run_experiment(partial(unless_finished, train) if several else train, config)


if __name__ == "__main__":
    main()
