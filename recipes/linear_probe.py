r"""Linear heads on frozen features: search features and steps for the best trade of accuracy and certified label flips.

Every setting of ``search`` in ``conf/experiment/linear_probe.yaml`` is trained and certified in a folder of its own, as
``python -m recipes.train experiment=linear_probe`` does with one. ``search.png`` shows accuracy against the median of
certified flips, ``search.csv`` has the numbers.

    python -m recipes.linear_probe data.root=path/to/data
    python -m recipes.linear_probe search.steps=[2,4] ~search.features.ReLU-2000
"""

import csv
from collections.abc import Mapping
from pathlib import Path

import hydra
import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig

from recipes.figures.flips_curve import draw_search
from recipes.models.rates import mse_rate
from recipes.runs.flips import CertifiedFlips
from recipes.runs.run import Run
from recipes.table import table
from recipes.train import run_experiment, train


def settled(config: DictConfig, datamodule: L.LightningDataModule) -> DictConfig:
    """The configuration with what only the features tell: their number, and the learning rate.

    Args:
        config: with the learning rate in units of 1 / λ, λ the largest eigenvalue of the Hessian over all samples.
        datamodule: features for a linear head; prepared and set up here.
    """
    datamodule.prepare_data()
    datamodule.setup("fit")
    features, _ = datamodule.splits["train"]
    changed = config.copy()
    changed.model.features = features.shape[1]
    rate = mse_rate(features, config.model.classes, config.optimizer.weight_decay)
    changed.optimizer.lr = config.optimizer.lr * rate
    return changed


def search(config: DictConfig) -> dict[str, list[Run]]:
    """Train and certify every setting, draw them together, and print what came out.

    Args:
        config: ``conf/linear_probe.yaml``, composed.

    Returns:
        Runs by name of their features, in the order of their steps.
    """
    runs = {name: _runs_of_features(config, name) for name in config.search.features}
    folder = Path(config.output_dir)
    curves = {name: [_curve(run) for run in found] for name, found in runs.items()}
    draw_search(curves, folder / "search.png")
    rows = {f"{name}, {_steps(run)}": run.results for name, found in runs.items() for run in found}
    _write(rows, folder / "search.csv")
    lines = {name: _line(results) for name, results in rows.items()}
    print(f"\nAll settings, drawn in {folder / 'search.png'}:", table(lines), sep="\n", flush=True)
    return runs


def _runs_of_features(config: DictConfig, name: str) -> list[Run]:
    """One training for each number of steps, on features that are fitted once."""
    chosen = config.copy()
    chosen.data.features = config.search.features[name]
    datamodule = instantiate(chosen.data)
    runs = []
    for steps in config.search.steps:
        setting = chosen.copy()
        setting.trainer.max_epochs = steps
        setting.output_dir = str(Path(config.output_dir) / f"{name.replace(' ', '_')},steps={steps}")
        runs.append(train(setting, datamodule))
    return runs


def _curve(run: Run) -> CertifiedFlips:
    return CertifiedFlips.load(run.output_dir / "flips.csv", _steps(run))


def _steps(run: Run) -> str:
    return f"{run.output_dir.name.rsplit('=', 1)[1]} steps"


def _line(results: Mapping[str, float]) -> str:
    return f"accuracy {results['nominal accuracy']:.4f}  median flips {results['median certified flips']:g}"


def _write(rows: Mapping[str, Mapping[str, float]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["setting", *next(iter(rows.values()))])
        writer.writerows([name, *results.values()] for name, results in rows.items())


@hydra.main(config_path="../conf", config_name="linear_probe", version_base="1.3")
def main(config: DictConfig) -> None:
    """Entry point of ``python -m recipes.linear_probe``."""
    run_experiment(search, config)


if __name__ == "__main__":
    main()
