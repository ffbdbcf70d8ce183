r"""Certified accuracy of MNIST against inserted and deleted training samples: one model beside votes of many.

All on the same fixed features, all really run. Writes ``edits.csv``, a row for each defense and test sample, after each
defense; ``figure.png`` and ``table.md`` are made from that file alone.

    python -m recipes.compare_edits data.root=path/to/data
    python -m recipes.compare_edits redraw=outputs/compare_edits/edits.csv
    python -m recipes.compare_edits debug=fast                                 seconds, to see that it runs
"""

from collections.abc import Iterator
from pathlib import Path

import hydra
import pandas as pd
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from agt_lightning.domains.edits import (
    InnerProduct,
    KernelSums,
    LeastSquaresSteps,
    RadiusVote,
    Shifted,
    certified_edits,
    certified_replacements,
)
from recipes.baselines import dpa
from recipes.data.frozen import FrozenFeatures
from recipes.figures.edits import draw_edits
from recipes.runs.edits import markdown, rows_of
from recipes.runs.job import run_experiment

_CHUNK = 500  # test samples whose outputs are in memory together


def compare(config: DictConfig) -> pd.DataFrame:
    """Run every defense, or read the certificates of an earlier run, and draw them.

    Args:
        config: ``conf/compare_edits.yaml``, composed.
    """
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    rows = run(config, folder / "edits.csv") if config.redraw is None else pd.read_csv(config.redraw)
    published = OmegaConf.to_container(config.published)
    assert isinstance(published, dict)
    draw_edits(rows, folder / "figure.png", config.largest, published)
    table = markdown(rows, config.at, published)
    (folder / "table.md").write_text(table + "\n")
    print(f"\n{table}\nWritten to {folder}", flush=True)
    return rows


def run(config: DictConfig, path: Path) -> pd.DataFrame:
    """Run every defense and write all that are ready to ``path`` after each.

    Args:
        config: ``conf/compare_edits.yaml``, composed.
        path: the file.
    """
    datamodule = instantiate(config.data)
    datamodule.prepare_data()
    datamodule.setup("fit")
    done: list[pd.DataFrame] = []
    for kind, settings in config.defenses.items():
        for rows in KINDS[kind](settings, config.error, datamodule):
            done.append(rows)
            pd.concat(done).to_csv(path, index=False)
            print(f"{rows['defense'].iloc[0]}: accuracy {rows['correct'].mean():.4f}", flush=True)
    return pd.read_csv(path)


def radius_votes(settings: DictConfig, error: float, datamodule: FrozenFeatures) -> Iterator[pd.DataFrame]:
    """Yield votes of all training samples within a radius, for each radius."""
    (features, labels), (numbers, x, y) = datamodule.splits["train"], _some(settings, datamodule)
    for threshold in settings.thresholds:
        kernel = RadiusVote(threshold, error)
        moved = Shifted(kernel, settings.shift) if settings.shift else kernel
        model = KernelSums(moved, features, labels, datamodule.classes)
        edits = certified_edits(model, x)
        name = f"radius vote, cos > {threshold:g}" + (f", shift {settings.shift:g}" if settings.shift else "")
        # n replacements are 2 n edits, and no other bound is better where each summand is one of two values.
        replaced = edits.where(edits < 0, edits.div(2, rounding_mode="floor"))
        yield rows_of(name, numbers, edits, replaced, _predicted(model, x) == y)


def class_sums(settings: DictConfig, error: float, datamodule: FrozenFeatures) -> Iterator[pd.DataFrame]:
    """Yield sums of the features of each class: one gradient step."""
    (features, labels), (numbers, x, y) = datamodule.splits["train"], _some(settings, datamodule)
    model = KernelSums(InnerProduct(nonnegative=True, error=error), features, labels, datamodule.classes)
    edits, replaced = certified_edits(model, x), certified_replacements(model, x)
    yield rows_of("class sums", numbers, edits, replaced, _predicted(model, x) == y)


def least_squares(settings: DictConfig, error: float, datamodule: FrozenFeatures) -> Iterator[pd.DataFrame]:
    """Yield a few steps of gradient descent on squared error, for each number of steps."""
    (features, labels), (numbers, x, y) = datamodule.splits["train"], _some(settings, datamodule)
    for steps in settings.steps:
        model = LeastSquaresSteps(features, labels, datamodule.classes, settings.rate, steps, error)
        edits, replaced = certified_edits(model, x), certified_replacements(model, x)
        yield rows_of(f"least squares, {steps} steps", numbers, edits, replaced, _predicted(model, x) == y)


def partitions(settings: DictConfig, error: float, datamodule: FrozenFeatures) -> Iterator[pd.DataFrame]:
    """Yield the votes of the nearest samples of each part, for each number of parts."""
    (features, labels), (numbers, x, y) = datamodule.splits["train"], _some(settings, datamodule)
    for parts in settings.parts:
        part = dpa.partition(features, parts)
        counts = dpa.nearest_votes(features, labels, part, parts, datamodule.classes, x)
        edits = dpa.certified_flips(counts)  # one vote for each edit, as for each label
        replaced = edits.div(2, rounding_mode="floor")
        yield rows_of(f"partitions, k = {parts}", numbers, edits, replaced, dpa.predicted(counts) == y)


KINDS = {
    "radius_votes": radius_votes,
    "other_radii": radius_votes,
    "signs": radius_votes,
    "class_sums": class_sums,
    "least_squares": least_squares,
    "partitions": partitions,
}
"""The defenses by their names in the configuration."""


def _some(settings: DictConfig, datamodule: FrozenFeatures) -> tuple[Tensor, Tensor, Tensor]:
    """Return numbers, features and classes of the test samples of one defense."""
    x, y = datamodule.splits["test"]
    numbers = torch.arange(len(x))[:: settings.every]
    return numbers, x[numbers], y[numbers]


def _predicted(model: KernelSums | LeastSquaresSteps, x: Tensor) -> Tensor:
    return torch.cat([model.outputs(chunk).argmax(dim=1) for chunk in x.split(_CHUNK)])


@hydra.main(config_path="../conf", config_name="compare_edits", version_base="1.3")
def main(config: DictConfig) -> None:
    """Entry point of ``python -m recipes.compare_edits``."""
    run_experiment(compare, config)


if __name__ == "__main__":
    main()
