"""Train a module with certificates against data poisoning, and report them.

Half-moons, the default, needs no data. A run writes ``certificate.json``, ``bounds.safetensors``, ``metrics.csv``,
``figure.png`` and, last, ``result.json`` to ``output_dir``, which is ``outputs/<experiment>/<time>`` by default.

    python -m recipes.train
    python -m recipes.train experiment=household data.root=path/to/data
    python -m recipes.train debug=fast                                      seconds, to see that it runs

A list of strengths is one training with a certificate for each adversary; each has a folder of its own, and all are in
``points.csv`` and ``strengths.png``:

    python -m recipes.train 'adversary.n=[1,50,100]'

A sweep is one training for each point, gives each a folder of its own, skips those that are finished, and gathers all:

    python -m recipes.train -m optimizer.lr=1,2 'adversary.n=[1,50,100]' output_dir=outputs/strengths
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

from agt_lightning.adversaries.several import names_of
from recipes.figures.strengths import draw_strengths
from recipes.runs.job import run_experiment
from recipes.runs.publish import publish
from recipes.runs.results import Result
from recipes.runs.run import CONFIG, WIDTHS, Run, certified_training, describe, table
from recipes.runs.sweep import progress, unfinished
from recipes.runs.tables import gather
from recipes.runs.together import joined, points_of, separate, trainings


def train(config: DictConfig, datamodule: L.LightningDataModule | None = None) -> Run:
    """Build the parts of a configuration, fit, test, certify, and write the files of a run.

    Args:
        config: of one point; its function ``settled_by_data``, if there is one, is applied last.
        datamodule: the data, if it was built already.
    """
    (run,) = train_together([config], Path(config.output_dir), datamodule)
    return run


def train_together(
    points: Sequence[DictConfig], folder: Path, datamodule: L.LightningDataModule | None = None
) -> list[Run]:
    """Train once for points that differ in the adversary alone, and write the files of each.

    Args:
        points: one, or several of `recipes.runs.together.trainings`.
        folder: of the training; of one point, its own.
        datamodule: the data, if it was built already.
    """
    ignore_harmless_warnings()
    composed = config = joined(points, folder)
    datamodule = instantiate(config.data) if datamodule is None else datamodule
    if config.settled_by_data is not None:
        config = instantiate(config.settled_by_data)(config, datamodule)
    L.seed_everything(config.seed, workers=True, verbose=False)
    module = instantiate(config.model)
    callbacks = [instantiate(node) for node in config.callbacks.values()]
    loggers = [instantiate(node) for node in config.logger.values()]
    trainer = instantiate(config.trainer)(callbacks=[*callbacks], logger=loggers)

    certified = certified_training(trainer)
    against = (f"{type(each).__name__} with {describe(each)}" for each in certified.adversaries)
    print(f"{config.name}: training against {'; '.join(against)}", flush=True)
    start = perf_counter()
    trainer.fit(module, datamodule)
    seconds = perf_counter() - start
    trainer.test(module, datamodule, verbose=False)

    runs = []
    for point, adversary in zip(points, certified.adversaries, strict=True):
        model, own = certified.certified_model(module, adversary=adversary), Path(point.output_dir)
        own.mkdir(parents=True, exist_ok=True)
        results = instantiate(point.certificate)(model, module, datamodule.test_dataloader())
        runs.append(Run(module, datamodule, model, adversary, callbacks, results, own))
    leave_behind(runs, points, folder, composed, trainer.loggers, seconds)
    for run in runs:
        mean_width = run.model.bounds.mean_width()
        shown = run.results | {"mean width of the parameters": mean_width, "seconds of training": seconds}
        print(f"{describe(run.adversary)}:\n{table(shown)}" if len(runs) > 1 else table(shown))
    print("Written to", folder, *sorted(path.name for path in folder.iterdir()), sep="\n  ", flush=True)
    return runs


def leave_behind(
    runs: Sequence[Run],
    points: Sequence[DictConfig],
    folder: Path,
    config: DictConfig,
    loggers: Sequence[Logger],
    seconds: float,
) -> None:
    """Write the files of all runs of a training, and last of all the results, which mark everything else as complete.

    Args:
        runs: whose callbacks and loggers have written their files.
        points: the configuration of each, as it was composed.
        folder: of the training.
        config: of the training, as it was composed.
        loggers: to hand figure and certificates to.
        seconds: of the training.
    """
    names = names_of([run.adversary for run in runs])
    if len(runs) > 1:
        separate(runs, names, folder)
        OmegaConf.save(config, folder / CONFIG, resolve=True)
    for run, point in zip(runs, points, strict=True):
        OmegaConf.save(point, run.output_dir / CONFIG, resolve=True)
        run.widths().to_csv(run.output_dir / WIDTHS, index=False)
        if point.record:
            instantiate(point.record)(run)
    if config.figure:
        instantiate(config.figure)(runs, folder / "figure.png")
    publish(dict(zip(names, runs, strict=True)), folder, config, loggers)
    for run, point in zip(runs, points, strict=True):
        Result.of(point, run.results, seconds).save(run.output_dir)


def train_points(config: DictConfig, sweep: Path | None = None) -> None:
    """Train the points that a configuration stands for, in as few trainings as certify them, and draw their curve.

    Args:
        config: ``conf/train.yaml``, composed.
        sweep: folder of the sweep that they are part of, whose finished points are skipped; None if it is none.
    """
    folder, points = Path(config.output_dir), points_of(config)
    left = points if sweep is None else unfinished(points, sweep)
    found = trainings(left)
    several = sum(len(group) > 1 for group in found)
    for number, group in enumerate(found):
        if len(group) == 1:
            train(group[0])
        else:
            train_together(group, folder if several == 1 else folder / f"training_{number}")
    if len(points) > 1:
        print(f"Points: {len(points)}, trainings: {len(found)}", flush=True)
        print("Written", *gather(folder), draw_strengths(folder), sep="\n  ", flush=True)


def ignore_harmless_warnings() -> None:
    """Silence warnings about which a user can do nothing."""
    warnings.filterwarnings("ignore", message=".*does not have many workers")  # the data is in memory
    warnings.filterwarnings("ignore", message="Experiment logs directory")  # Hydra's own log is there already
    warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)  # between Lightning and torch


@hydra.main(config_path="../conf", config_name="train", version_base="1.3")
def main(config: DictConfig) -> None:
    """Entry point of ``python -m recipes.train``."""
    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN:
        sweep = Path(job.runtime.output_dir)
        run_experiment(partial(train_points, sweep=sweep), config)
        print(progress(sweep, job.job.num + 1), flush=True)
    else:
        run_experiment(train_points, config)


if __name__ == "__main__":
    main()
