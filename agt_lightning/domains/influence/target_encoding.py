"""The target vectors that stand for classes, and the prediction rule they imply."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from agt_lightning.errors import UncertifiableError


class Comparison(NamedTuple):
    """The margin of one class against a rival, for the queries that predict the class.

    Args:
        queries: positions of these queries, int64 (q,).
        rival: k.
        direction: w, (K,): the margin is ``w·f`` less a threshold.
    """

    queries: Tensor
    rival: int
    direction: Tensor


@dataclass(frozen=True, eq=False)
class TargetEncoding:
    """One target vector, or codeword, per class. The class whose codeword is nearest to the outputs is predicted.

    For one-hot codewords, of any two values, this is the class of the largest output. For one output it is the side of
    the midpoint: the sign for codewords -1 and 1, ``f > 1/2`` for 0 and 1.

    Args:
        codewords: E, (C, K) in float64, all different.

    Example:
        >>> TargetEncoding.one_hot(3).predicted(torch.tensor([[0.2, 0.7, 0.1]]))
        tensor([1])
        >>> TargetEncoding.binary(low=0.0).predicted(torch.tensor([[0.4], [0.6]]))
        tensor([0, 1])
    """

    codewords: Tensor

    @classmethod
    def one_hot(cls, classes: int, *, low: float = 0.0, high: float = 1.0) -> TargetEncoding:
        """Return an encoding with one output per class, ``high`` for the class and ``low`` for all others."""
        _check_values(low, high)
        label = torch.eye(classes, dtype=torch.float64)
        return cls(label * high + (1 - label) * low)  # the two values themselves, without rounding

    @classmethod
    def binary(cls, *, low: float = -1.0, high: float = 1.0) -> TargetEncoding:
        """Return an encoding with one output, ``low`` for class 0 and ``high`` for class 1."""
        _check_values(low, high)
        return cls(torch.tensor([[low], [high]], dtype=torch.float64))

    @classmethod
    def of_targets(cls, targets: Tensor) -> TargetEncoding:
        """Infer the encoding from targets (N, K) of two values, with one high value in each row if K > 1.

        Raises:
            ValueError: if the targets are not codewords of that kind.

        Example:
            >>> TargetEncoding.of_targets(torch.tensor([[-1.0], [1.0], [1.0]])).codewords.tolist()
            [[-1.0], [1.0]]
        """
        values = targets.unique()
        if len(values) != 2:
            raise ValueError(
                f"Expected targets of two values, such as 0 and 1, but got {len(values)}. Give the codewords "
                "explicitly, or use `LabelBall` for real-valued labels."
            )
        low, high = values.tolist()
        if targets.shape[1] == 1:
            return cls.binary(low=low, high=high)
        if not bool(((targets == high).sum(dim=1) == 1).all()):
            raise ValueError(f"Expected one entry {high} in each row of the targets, but some rows have none or more.")
        return cls.one_hot(targets.shape[1], low=low, high=high)

    @property
    def largest(self) -> float:
        """Largest magnitude in a codeword."""
        return float(self.codewords.abs().max())

    def to(self, device: torch.device) -> TargetEncoding:
        """Return the same encoding on a device."""
        return TargetEncoding(self.codewords.to(device))

    def classes_of(self, targets: Tensor) -> Tensor:
        """Return the class of each target, int64 (N,).

        Raises:
            ValueError: if a target is not the codeword of a class.
        """
        if targets.shape[1:] != self.codewords.shape[1:]:
            raise ValueError(f"Expected targets of {self.codewords.shape[1]} outputs, but got {tuple(targets.shape)}.")
        equal = torch.stack([(targets == codeword).all(dim=1) for codeword in self.codewords.to(targets)], dim=1)
        if not bool(equal.any(dim=1).all()):
            wrong = targets[~equal.any(dim=1)][0].tolist()
            raise ValueError(
                f"Expected every target to be the codeword of a class, but got {wrong}, while the codewords are "
                f"{self.codewords.tolist()}. Use `LabelBall` for real-valued labels."
            )
        return equal.int().argmax(dim=1)

    def predicted(self, outputs: Tensor) -> Tensor:
        """Return the class of outputs (Q, K), int64 (Q,)."""
        codewords = self.codewords.to(outputs)
        return (outputs @ codewords.T - codewords.square().sum(dim=1) / 2).argmax(dim=1)

    def margins(self, outputs: Tensor, classes: Tensor) -> Tensor:
        """Return ``f_c - f_k`` for the given class c of each query and every k, (Q, C); 0 for ``k = c``.

        It is positive if c is nearer. With one output it is the distance of f from the midpoint of the codewords.
        """
        margins = outputs.new_zeros(len(outputs), len(self.codewords))
        for queries, rival, direction in self.comparisons(classes):
            midpoints = (self.codewords[classes[queries]] + self.codewords[rival]).to(outputs) / 2
            margins[queries, rival] = (outputs[queries] - midpoints) @ direction
        return margins

    def comparisons(self, classes: Tensor) -> Iterator[Comparison]:
        """Yield every pair of a class that occurs among ``classes`` (Q,) and a rival, with the queries of the class."""
        codewords = self.codewords.to(classes.device)
        for label in classes.unique().tolist():
            queries = (classes == label).nonzero().squeeze(1)
            for rival in range(len(codewords)):
                if rival != label:
                    difference = codewords[label] - codewords[rival]
                    yield Comparison(queries, rival, difference / difference.abs().max())

    def require_argmax(self) -> None:
        """Require that the nearest codeword is the largest of several outputs, or the sign of a single one.

        Raises:
            UncertifiableError: if it is not.

        Example:
            >>> TargetEncoding.one_hot(3, low=-1.0).require_argmax()
            >>> TargetEncoding.binary(low=0.0).require_argmax()
            Traceback (most recent call last):
            ...
            agt_lightning.errors.UncertifiableError: This training cannot be certified:
              1. One output is read by its sign, but the targets are 0.0 and 1.0, whose midpoint is not 0. Train on -1
              and 1, or on one-hot vectors of two outputs.
        """
        low, high = float(self.codewords.min()), float(self.codewords.max())
        if self.codewords.shape[1] == 1:
            if self.codewords.tolist() != [[-high], [high]]:
                first, last = float(self.codewords[0]), float(self.codewords[-1])
                raise UncertifiableError(
                    [
                        f"One output is read by its sign, but the targets are {first} and {last}, whose midpoint is "
                        "not 0. Train on -1 and 1, or on one-hot vectors of two outputs."
                    ]
                )
        elif not self.codewords.equal(TargetEncoding.one_hot(self.codewords.shape[1], low=low, high=high).codewords):
            raise UncertifiableError(
                [
                    "Outputs are read by the largest, but targets are not one high value at the class. Use one-hot "
                    "vectors."
                ]
            )


def _check_values(low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"Expected `low` < `high`, but got {low} and {high}.")
