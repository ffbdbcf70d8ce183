r"""Certified accuracy of MNIST against flipped labels: abstract gradient training beside other defenses (figure 5).

All on the same 32 principal components, all really run. Writes ``flips.csv``, a row for each defense and test sample,
after each defense; ``figure.png`` and ``table.md`` are made from that file alone.

    python -m recipes.mnist_labels data.root=path/to/data
    python -m recipes.mnist_labels defenses.results=outputs/mnist_labels/TIME/flips.csv
"""

from collections.abc import Iterator
from pathlib import Path

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from recipes.baselines import dpa
from recipes.baselines.defense import Budget, Defense, load, save
from recipes.baselines.smoothing import LabelNoise, LeastSquares, certified_flips, log_thresholds
from recipes.data.mnist import MNISTFeatures
from recipes.figures.label_defenses import draw_label_defenses, markdown
from recipes.linear_probe import settled
from recipes.runs.flips import CertifiedFlips
from recipes.train import run_experiment, train


def compare(config: DictConfig) -> list[Defense]:
    """Run every defense, or read what they certified, and draw it.

    Args:
        config: ``conf/mnist_labels.yaml``, composed.
    """
    folder = Path(config.output_dir)
    defenses = run(config, folder / "flips.csv") if config.defenses.results is None else load(_path(config))
    draw_label_defenses(defenses, folder / "figure.png")
    table = markdown(defenses)
    (folder / "table.md").write_text(table + "\n")
    print(f"\n{table}\nWritten to {folder}", flush=True)
    return defenses


def _path(config: DictConfig) -> Path:
    return Path(config.defenses.results)


def run(config: DictConfig, path: Path) -> list[Defense]:
    """Run every defense and write all that are ready to ``path`` after each.

    Args:
        config: ``conf/mnist_labels.yaml``, composed.
        path: the file.
    """
    datamodule = instantiate(config.data)
    datamodule.prepare_data()
    datamodule.setup("fit")
    defenses: list[Defense] = []
    for kind in (abstract_gradients, influence, partitions, smoothing):
        for defense in kind(config, datamodule):
            defenses.append(defense)
            save(defenses, path)
            print(f"{defense.flips.label}: accuracy {defense.flips.accuracy:.4f}", flush=True)
    return defenses


def abstract_gradients(config: DictConfig, datamodule: MNISTFeatures) -> Iterator[Defense]:
    """One training for each n and choice of domains. A sample withstands the largest n tried that leaves it certain."""
    x, y = datamodule.splits["test"]
    for name, domains in config.defenses.agt.domains.items():
        flips = torch.full((len(x),), -1)
        for n in config.defenses.agt.flips:
            changes = {"adversary": {"n": n}, "callbacks": {"certified": {"domains": domains}}}
            trained = train(_changed(config, f"{'-'.join(domains)}/n={n}", changes), datamodule)
            certification = trained.model.certify(x)
            flips[certification.certified] = n
            if not certification.certified.any():
                break  # nor does any larger n
        yield _defense(name, flips, certification.label == y, "each step")


def influence(config: DictConfig, datamodule: MNISTFeatures) -> Iterator[Defense]:
    """The exact number of flips of a head trained by squared error."""
    changes = config.defenses.influence.overrides
    trained = train(settled(_changed(config, "influence", changes), datamodule), datamodule)
    numbers, x, y = _some(config, datamodule)
    correct = trained.module(x).argmax(dim=1) == y
    yield _defense("AGT, exact influence", trained.model.certified_flips(x), correct, "whole data set", numbers)


def partitions(config: DictConfig, datamodule: MNISTFeatures) -> Iterator[Defense]:
    """Votes of base models, each trained on its own part."""
    (features, labels), (x, y) = datamodule.splits["train"], datamodule.splits["test"]
    for parts in config.defenses.dpa.parts:
        part = dpa.partition(features, parts)
        heads = dpa.train_base_models(features, labels, part, parts, datamodule.classes, config.defenses.dpa.steps)
        counts = dpa.votes(heads, x)
        correct = dpa.predicted(counts) == y
        yield _defense(f"partitions, k = {parts}", dpa.certified_flips(counts), correct, "whole data set")


def smoothing(config: DictConfig, datamodule: MNISTFeatures) -> Iterator[Defense]:
    """Least squares under noise on its labels."""
    (features, labels), (numbers, x, y) = datamodule.splits["train"], _some(config, datamodule)
    settings = config.defenses.smoothing
    noises = [LabelNoise(flip, datamodule.classes) for flip in settings.flip]
    base = LeastSquares(dpa.with_bias(features), labels, datamodule.classes)
    predicted, bounds = base.smoothed(dpa.with_bias(x), noises)
    for noise, bound in zip(noises, bounds, strict=True):
        flips = certified_flips(bound, log_thresholds(noise, settings.largest))
        yield _defense(f"smoothing, q = {noise.flip:g}", flips, predicted == y, "whole data set", numbers)


def _some(config: DictConfig, datamodule: MNISTFeatures) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers, features and classes of the test samples for costly certificates."""
    x, y = datamodule.splits["test"]
    numbers = torch.arange(len(x))[:: config.defenses.every]
    return numbers, x[numbers], y[numbers]


def _changed(config: DictConfig, folder: str, changes: object) -> DictConfig:
    """The same experiment with other settings, in a subfolder of its own."""
    changed = config.copy()
    changed.merge_with(changes)
    changed.output_dir = str(Path(config.output_dir) / folder)
    return changed


def _defense(name: str, flips: Tensor, correct: Tensor, budget: Budget, numbers: Tensor | None = None) -> Defense:
    return Defense(
        CertifiedFlips(name, flips, correct), budget, torch.arange(len(flips)) if numbers is None else numbers
    )


@hydra.main(config_path="../conf", config_name="mnist_labels", version_base="1.3")
def main(config: DictConfig) -> None:
    """Entry point of ``python -m recipes.mnist_labels``."""
    run_experiment(compare, config)


if __name__ == "__main__":
    main()
