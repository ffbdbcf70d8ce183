r"""Certified accuracy of MNIST against flipped labels: abstract gradient training beside other defenses (figure 5).

All on the same 32 principal components, all really run. Abstract gradient training for many n is a sweep of its own,
which comes first. Writes ``flips.csv``, a row for each defense and test sample, after each defense; ``figure.png`` and
``table.md`` are made from that file alone.

    python -m recipes.train -m sweep=mnist_labels data.root=path/to/data
    python -m recipes.compare_defenses data.root=path/to/data
    python -m recipes.compare_defenses defenses.results=outputs/mnist_labels/TIME/flips.csv
"""

from collections.abc import Iterator
from pathlib import Path

import hydra
import pandas as pd
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from recipes.baselines import dpa
from recipes.baselines.defense import Budget, Defense, load, save
from recipes.baselines.smoothing import LabelNoise, LeastSquares, certified_flips, log_thresholds
from recipes.data.mnist import MNISTFeatures
from recipes.figures.label_defenses import draw_label_defenses, markdown
from recipes.figures.panels import rows_of_panels
from recipes.models.rates import settled
from recipes.runs.drawing import configuration, panels
from recipes.runs.flips import PREDICTIONS, CertifiedFlips
from recipes.runs.job import run_experiment
from recipes.train import train


def compare(config: DictConfig) -> list[Defense]:
    """Run every defense, or read the certificates of an earlier run, and draw them.

    Args:
        config: ``conf/compare_defenses.yaml``, composed.
    """
    folder = Path(config.output_dir)
    earlier = config.defenses.results
    defenses = run(config, folder / "flips.csv") if earlier is None else load(Path(earlier))
    draw_label_defenses(defenses, folder / "figure.png")
    table = markdown(defenses)
    (folder / "table.md").write_text(table + "\n")
    print(f"\n{table}\nWritten to {folder}", flush=True)
    return defenses


def run(config: DictConfig, path: Path) -> list[Defense]:
    """Run every defense and write all that are ready to ``path`` after each.

    Args:
        config: ``conf/compare_defenses.yaml``, composed.
        path: the file.
    """
    defenses: list[Defense] = []

    def add(defense: Defense) -> None:
        defenses.append(defense)
        save(defenses, path)
        print(f"{defense.flips.label}: accuracy {defense.flips.accuracy:.4f}", flush=True)

    for defense in abstract_gradients(Path(config.defenses.sweep)):
        add(defense)
    datamodule = instantiate(config.data)
    datamodule.prepare_data()
    datamodule.setup("fit")
    for kind in (influence, partitions, smoothing):
        for defense in kind(config, datamodule):
            add(defense)
    return defenses


def abstract_gradients(folder: Path) -> Iterator[Defense]:
    """Yield one defense per panel of the sweep; a sample withstands the largest n that leaves it certified.

    Args:
        folder: of ``sweep=mnist_labels``, gathered.

    Raises:
        FileNotFoundError: if it is not there or not gathered.
    """
    if not (folder / PREDICTIONS).is_file():
        raise FileNotFoundError(
            f"Expected {folder / PREDICTIONS}. Run `python -m recipes.train -m sweep=mnist_labels` before, or set "
            "`defenses.sweep` to its folder."
        )
    chosen, predictions = panels(configuration(folder)), dict(list(pd.read_csv(folder / PREDICTIONS).groupby("point")))
    for name, rows in rows_of_panels(folder, chosen).items():
        table = predictions[rows[0]["point"]]
        flips = torch.full((len(table),), -1)
        for row in rows:
            certified = torch.tensor(predictions[row["point"]]["certified"].to_numpy()).bool()
            flips[certified] = int(chosen[name]["levels"][int(row["level"])])
        correct, numbers = (torch.tensor(table[column].to_numpy()) for column in ("correct", "test_sample"))
        yield _defense(chosen[name]["title"], flips, correct.bool(), "each step", numbers)


def influence(config: DictConfig, datamodule: MNISTFeatures) -> Iterator[Defense]:
    """Yield the exact number of flips of a head trained by squared error."""
    changed = config.copy()
    changed.merge_with(config.defenses.influence.overrides)
    changed.output_dir = str(Path(config.output_dir) / "influence")
    trained = train(settled(changed, datamodule), datamodule)
    numbers, x, y = _some(config, datamodule)
    correct = trained.module(x).argmax(dim=1) == y
    yield _defense("AGT, exact influence", trained.model.certified_flips(x), correct, "whole data set", numbers)


def partitions(config: DictConfig, datamodule: MNISTFeatures) -> Iterator[Defense]:
    """Yield the votes of base models, each trained on its own part."""
    (features, labels), (x, y) = datamodule.splits["train"], datamodule.splits["test"]
    for parts in config.defenses.dpa.parts:
        part = dpa.partition(features, parts)
        heads = dpa.train_base_models(features, labels, part, parts, datamodule.classes, config.defenses.dpa.steps)
        counts = dpa.votes(heads, x)
        correct = dpa.predicted(counts) == y
        yield _defense(f"partitions, k = {parts}", dpa.certified_flips(counts), correct, "whole data set")


def smoothing(config: DictConfig, datamodule: MNISTFeatures) -> Iterator[Defense]:
    """Yield least squares under noise on its labels, for each noise."""
    (features, labels), (numbers, x, y) = datamodule.splits["train"], _some(config, datamodule)
    settings = config.defenses.smoothing
    noises = [LabelNoise(flip, datamodule.classes) for flip in settings.flip]
    base = LeastSquares(dpa.with_bias(features), labels, datamodule.classes)
    predicted, bounds = base.smoothed(dpa.with_bias(x), noises)
    for noise, bound in zip(noises, bounds, strict=True):
        flips = certified_flips(bound, log_thresholds(noise, settings.largest))
        yield _defense(f"smoothing, q = {noise.flip:g}", flips, predicted == y, "whole data set", numbers)


def _some(config: DictConfig, datamodule: MNISTFeatures) -> tuple[Tensor, Tensor, Tensor]:
    """Return numbers, features and classes of the test samples for costly certificates."""
    x, y = datamodule.splits["test"]
    numbers = torch.arange(len(x))[:: config.defenses.every]
    return numbers, x[numbers], y[numbers]


def _defense(name: str, flips: Tensor, correct: Tensor, budget: Budget, numbers: Tensor | None = None) -> Defense:
    return Defense(
        CertifiedFlips(name, flips, correct), budget, torch.arange(len(flips)) if numbers is None else numbers
    )


@hydra.main(config_path="../conf", config_name="compare_defenses", version_base="1.3")
def main(config: DictConfig) -> None:
    """Entry point of ``python -m recipes.compare_defenses``."""
    run_experiment(compare, config)


if __name__ == "__main__":
    main()
