"""The number of flipped labels that the predictions of one model withstand, and their tables."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recipes.runs.run import Run

PREDICTIONS = "predictions.csv"
COLUMNS = ("test_sample", "certified_flips", "correct")


@dataclass(frozen=True)
class CertifiedFlips:
    """Certified flips of the predictions of one trained model.

    Args:
        label: name in legends.
        flips: certified flips of each test sample, integers ``(samples,)``: the number of training labels whose flip
            provably does not change its prediction, be it right or wrong. Negative if nothing is certified.
        correct: whether the prediction is right, ``(samples,)``.
    """

    label: str
    flips: Tensor
    correct: Tensor

    def __post_init__(self) -> None:
        if self.flips.ndim != 1 or len(self.flips) == 0 or self.flips.shape != self.correct.shape:
            raise ValueError(
                f"Expected certified flips and correctness of the same samples, at least one, for {self.label!r}, but "
                f"got the shapes {tuple(self.flips.shape)} and {tuple(self.correct.shape)}."
            )

    @property
    def accuracy(self) -> float:
        """Accuracy without any flip."""
        return self.correct.double().mean().item()

    @property
    def median(self) -> float:
        """Median over all predictions; of two middle ones their mean."""
        return self.flips.double().quantile(0.5).item()

    def certified_accuracy(self, n: float) -> float:
        """Return the fraction of samples whose prediction is right and withstands ``n`` flips."""
        return (self.correct & (self.flips >= n)).double().mean().item()

    def steps(self) -> tuple[list[float], list[float]]:
        """Return the corners of certified accuracy over n, which has each value up to and including its n."""
        n, counts = np.unique(self.flips[self.correct & (self.flips >= 0)].numpy(), return_counts=True)
        values = np.concatenate([counts[::-1].cumsum()[::-1], [0]]) / len(self.flips)
        return [0.0, *map(float, n)], [float(values[0]), *map(float, values[:-1])]

    def save(self, path: Path, numbers: Tensor) -> Path:
        """Write a row for each sample: its number, the flips, and 1 if the prediction is right, else 0.

        Args:
            path: the file; missing folders are made.
            numbers: of the samples, integers ``(samples,)``.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = (numbers, self.flips, self.correct.int())
        pd.DataFrame(dict(zip(COLUMNS, map(Tensor.numpy, columns), strict=True))).to_csv(path, index=False)
        return path

    @classmethod
    def load(cls, path: Path, label: str) -> "CertifiedFlips":
        """Read what `save` wrote."""
        flips, correct = (torch.tensor(column.to_numpy()) for _, column in pd.read_csv(path)[[*COLUMNS[1:]]].items())
        return cls(label, flips, correct.bool())


def record_predictions(run: Run) -> Path:
    """Write ``predictions.csv`` to the folder of a run: for each test sample, if it is right and if it is certified."""
    x, y = (torch.cat(parts) for parts in zip(*run.datamodule.test_dataloader(), strict=True))
    certification = run.model.certify(x.to(run.module.device))
    columns = {"correct": certification.label.cpu() == y, "certified": certification.certified.cpu()}
    path = run.output_dir / PREDICTIONS
    table = pd.DataFrame({name: values.int().numpy() for name, values in columns.items()})
    table.rename_axis("test_sample").to_csv(path)
    return path
