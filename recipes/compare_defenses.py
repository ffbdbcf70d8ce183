r"""Certified accuracy of MNIST against flipped labels: abstract gradient training beside other defenses (figure 5).

All on the same features, all really run. Abstract gradient training for many n is a sweep of its own, which comes
first; the other two configurations compare heads and votes on spectral features, without such a sweep. Writes
``flips.csv``, a row for each defense and test sample, after each defense; ``figure.png`` and ``table.md`` are made from
that file alone.

    python -m recipes.train -m sweep=mnist_labels data.root=path/to/data
    python -m recipes.compare_defenses data.root=path/to/data
    python -m recipes.compare_defenses --config-name compare_features data.root=path/to/data
    python -m recipes.compare_defenses --config-name compare_features_pneumonia data.root=path/to/data
    python -m recipes.compare_defenses defenses.results=outputs/mnist_labels/TIME/flips.csv
"""

from collections.abc import Iterator
from pathlib import Path

import hydra
import pandas as pd
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from agt_lightning.domains.influence import SmootherInfluence
from agt_lightning.domains.influence.certified_flips import certified_flips as exact_flips
from agt_lightning.domains.influence.label_sets import LabelFlips
from agt_lightning.domains.influence.target_encoding import TargetEncoding
from recipes.baselines import dpa
from recipes.baselines.ceiling import largest_flips
from recipes.baselines.defense import Budget, Defense, load, save
from recipes.baselines.smoothing import LabelNoise, LeastSquares, certified_flips, log_thresholds
from recipes.data.frozen import FrozenFeatures
from recipes.figures.label_defenses import FIGURE_5, draw_label_defenses, markdown
from recipes.figures.panels import rows_of_panels
from recipes.models.rates import settled
from recipes.runs.drawing import configuration, panels
from recipes.runs.flips import PREDICTIONS, CertifiedFlips
from recipes.runs.job import run_experiment
from recipes.train import train

_CHUNK = 500  # test samples whose influences are in memory together


def compare(config: DictConfig) -> list[Defense]:
    """Run every defense, or read the certificates of an earlier run, and draw them.

    Args:
        config: ``conf/compare_defenses.yaml``, composed.
    """
    folder = Path(config.output_dir)
    earlier = config.defenses.results
    defenses = run(config, folder / "flips.csv") if earlier is None else load(Path(earlier))
    frame = FIGURE_5 if config.defenses.frame is None else instantiate(config.defenses.frame)
    draw_label_defenses(defenses, folder / "figure.png", frame)
    table = markdown(defenses, frame.at)
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

    if config.defenses.sweep is not None:
        for defense in abstract_gradients(Path(config.defenses.sweep)):
            add(defense)
    datamodule = instantiate(config.data)
    datamodule.prepare_data()
    datamodule.setup("fit")
    for kind in config.defenses.kinds:
        for defense in KINDS[kind](config, datamodule):
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


def influence(config: DictConfig, datamodule: FrozenFeatures) -> Iterator[Defense]:
    """Yield the exact number of flips of a head trained by squared error."""
    changed = config.copy()
    changed.merge_with(config.defenses.influence.overrides)
    changed.output_dir = str(Path(config.output_dir) / "influence")
    trained = train(settled(changed, datamodule), datamodule)
    numbers, x, y = _some(config, datamodule)
    correct = trained.module(x).argmax(dim=1) == y
    yield _defense("AGT, exact influence", trained.model.certified_flips(x), correct, "whole data set", numbers)


def class_sums(config: DictConfig, datamodule: FrozenFeatures) -> Iterator[Defense]:
    """Yield the exact number of flips of the sums of features by class, for each shift."""
    (features, labels), (numbers, x, y) = datamodule.splits["train"], _some(config, datamodule)
    targets = F.one_hot(labels, datamodule.classes)
    for shift in config.defenses.class_sums.shifts:
        model = SmootherInfluence.class_sums(features, targets, shift)
        flips = LabelFlips.of_targets(model.targets, TargetEncoding.one_hot(datamodule.classes))
        correct = torch.cat([model.outputs(chunk).argmax(dim=1) for chunk in x.split(_CHUNK)]) == y
        exact = exact_flips(model, x, flips)
        yield _defense(f"class sums, shift {shift}", exact, correct, "whole data set", numbers)


def ceiling(config: DictConfig, datamodule: FrozenFeatures) -> Iterator[Defense]:
    """Yield what no classifier that treats classes alike can exceed, were it always right."""
    (_, labels), (_, y) = datamodule.splits["train"], datamodule.splits["test"]
    most = largest_flips(labels, datamodule.classes)[y]
    yield _defense("ceiling of symmetric classifiers", most, torch.ones(len(y)).bool(), "whole data set")


def partitions(config: DictConfig, datamodule: FrozenFeatures) -> Iterator[Defense]:
    """Yield the votes of base models, each trained on its own part."""
    (features, labels), (x, y) = datamodule.splits["train"], datamodule.splits["test"]
    for parts in config.defenses.dpa.parts:
        part = dpa.partition(features, parts)
        heads = BASE_MODELS[config.defenses.dpa.base](config, features, labels, part, parts, datamodule.classes)
        counts = dpa.votes(heads, x)
        correct = dpa.predicted(counts) == y
        yield _defense(f"partitions, k = {parts}", dpa.certified_flips(counts), correct, "whole data set")


def smoothing(config: DictConfig, datamodule: FrozenFeatures) -> Iterator[Defense]:
    """Yield least squares under noise on its labels, for each noise."""
    (features, labels), (numbers, x, y) = datamodule.splits["train"], _some(config, datamodule)
    settings = config.defenses.smoothing
    noises = [LabelNoise(flip, datamodule.classes) for flip in settings.flip]
    base = LeastSquares(dpa.with_bias(features), labels, datamodule.classes)
    predicted, bounds = base.smoothed(dpa.with_bias(x), noises)
    for noise, bound in zip(noises, bounds, strict=True):
        flips = certified_flips(bound, log_thresholds(noise, settings.largest))
        yield _defense(f"smoothing, q = {noise.flip:g}", flips, predicted == y, "whole data set", numbers)


def _softmax_regressions(
    config: DictConfig, features: Tensor, labels: Tensor, part: Tensor, parts: int, classes: int
) -> Tensor:
    return dpa.train_base_models(features, labels, part, parts, classes, config.defenses.dpa.steps)


def _class_sum_models(
    config: DictConfig, features: Tensor, labels: Tensor, part: Tensor, parts: int, classes: int
) -> Tensor:
    return dpa.class_sum_models(features, labels, part, parts, classes)


KINDS = {
    "influence": influence,
    "class_sums": class_sums,
    "partitions": partitions,
    "smoothing": smoothing,
    "ceiling": ceiling,
}
"""The defenses by their names in the configuration."""

BASE_MODELS = {"softmax": _softmax_regressions, "class_sums": _class_sum_models}
"""The base models of partitions by their names in the configuration."""


def _some(config: DictConfig, datamodule: FrozenFeatures) -> tuple[Tensor, Tensor, Tensor]:
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
