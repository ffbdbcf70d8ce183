"""How many flipped labels the predictions of one model withstand."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

COLUMNS = ("test_sample", "certified_flips", "correct")


@dataclass(frozen=True)
class CertifiedFlips:
    """How many flipped labels each prediction withstands, of one trained model.

    Args:
        label: name in legends.
        flips: certified flips of each test sample, integers ``(samples,)``: so many flipped training labels provably
            do not change its prediction, be it right or wrong. Negative where nothing is certified.
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
        """Fraction of samples whose prediction is right and withstands ``n`` flips."""
        return (self.correct & (self.flips >= n)).double().mean().item()

    def steps(self) -> tuple[list[float], list[float]]:
        """Corners of certified accuracy as a function of n: it has each value up to and including its n."""
        n, counts = np.unique(self.flips[self.correct & (self.flips >= 0)].numpy(), return_counts=True)
        values = np.concatenate([counts[::-1].cumsum()[::-1], [0]]) / len(self.flips)
        return [0.0, *map(float, n)], [float(values[0]), *map(float, values[:-1])]

    def save(self, path: Path, numbers: Tensor) -> Path:
        """Write a row for each sample: its number, the flips, and whether the prediction is right (1) or not (0).

        Args:
            path: the file; missing folders are made.
            numbers: which samples these are, integers ``(samples,)``.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(zip(numbers.tolist(), self.flips.tolist(), self.correct.int().tolist(), strict=True))
        return path

    @classmethod
    def load(cls, path: Path, label: str) -> "CertifiedFlips":
        """Read what `save` wrote."""
        with path.open(newline="") as file:
            rows = [{name: int(row[name]) for name in COLUMNS} for row in csv.DictReader(file)]
        flips, correct = (torch.tensor([row[name] for row in rows]) for name in COLUMNS[1:])
        return cls(label, flips, correct.bool())
