"""How classes are written as numbers, and how the outputs are read as a class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Comparison(NamedTuple):
    """The margin of one class against a rival, for the queries that predict the class.

    Args:
        queries: which queries, int64 (q,).
        rival: k.
        direction: w, (K,): the margin is ``w·f`` less a threshold.
    """

    queries: Tensor
    rival: int
    direction: Tensor


@dataclass(frozen=True, eq=False)
class ClassCodes:
    """The target vector of each class. The class whose code is nearest to the outputs is predicted.

    For one-hot codes, of any two values, this is the largest output; for one output the side of the midpoint: its
    sign with codes -1 and 1, ``f > 1/2`` with codes 0 and 1.

    Args:
        codes: E, (C, K) in float64, all different.

    Example:
        >>> ClassCodes.one_hot(3).predicted(torch.tensor([[0.2, 0.7, 0.1]]))
        tensor([1])
        >>> ClassCodes.binary(low=0.0).predicted(torch.tensor([[0.4], [0.6]]))
        tensor([0, 1])
    """

    codes: Tensor

    @classmethod
    def one_hot(cls, classes: int, *, low: float = 0.0, high: float = 1.0) -> ClassCodes:
        """One output per class, ``high`` for the class and ``low`` for all others."""
        _check_values(low, high)
        own = torch.eye(classes, dtype=torch.float64)
        return cls(own * high + (1 - own) * low)  # the two values themselves, without rounding

    @classmethod
    def binary(cls, *, low: float = -1.0, high: float = 1.0) -> ClassCodes:
        """One output, ``low`` for class 0 and ``high`` for class 1."""
        _check_values(low, high)
        return cls(torch.tensor([[low], [high]], dtype=torch.float64))

    @classmethod
    def of_targets(cls, targets: Tensor) -> ClassCodes:
        """Read the codes off targets (N, K), which must hold two values, and one high one in a row if K > 1.

        Raises:
            ValueError: if the targets are not codes of classes.

        Example:
            >>> ClassCodes.of_targets(torch.tensor([[-1.0], [1.0], [1.0]])).codes.tolist()
            [[-1.0], [1.0]]
        """
        values = targets.unique()
        if len(values) != 2:
            raise ValueError(
                f"Expected targets of two values, such as 0 and 1, but got {len(values)}. Give the codes explicitly, "
                "or use `LabelBall` for real-valued labels."
            )
        low, high = values.tolist()
        if targets.shape[1] == 1:
            return cls.binary(low=low, high=high)
        if not bool(((targets == high).sum(dim=1) == 1).all()):
            raise ValueError(f"Expected one entry {high} in each row of the targets, but some rows have none or more.")
        return cls.one_hot(targets.shape[1], low=low, high=high)

    def to(self, device: torch.device) -> ClassCodes:
        """The same codes on a device."""
        return ClassCodes(self.codes.to(device))

    def classes_of(self, targets: Tensor) -> Tensor:
        """The class of each target, int64 (N,).

        Raises:
            ValueError: if a target is not the code of a class.
        """
        if targets.shape[1:] != self.codes.shape[1:]:
            raise ValueError(f"Expected targets of {self.codes.shape[1]} outputs, but got {tuple(targets.shape)}.")
        equal = torch.stack([(targets == code).all(dim=1) for code in self.codes.to(targets)], dim=1)
        if not bool(equal.any(dim=1).all()):
            wrong = targets[~equal.any(dim=1)][0].tolist()
            raise ValueError(
                f"Expected every target to be the code of a class, but got {wrong}, while the codes are "
                f"{self.codes.tolist()}. Use `LabelBall` for real-valued labels."
            )
        return equal.int().argmax(dim=1)

    def predicted(self, outputs: Tensor) -> Tensor:
        """The class of outputs (Q, K), int64 (Q,)."""
        codes = self.codes.to(outputs)
        return (outputs @ codes.T - codes.square().sum(dim=1) / 2).argmax(dim=1)

    def margins(self, outputs: Tensor, classes: Tensor) -> Tensor:
        """``f_c - f_k`` for the given class c of each query and every k; positive where c is nearer. (Q, C).

        With one output, the distance of f from the midpoint of the codes. The class itself has margin 0.
        """
        margins = outputs.new_zeros(len(outputs), len(self.codes))
        for queries, rival, direction in self.comparisons(classes):
            midpoints = (self.codes[classes[queries]] + self.codes[rival]).to(outputs) / 2
            margins[queries, rival] = (outputs[queries] - midpoints) @ direction
        return margins

    def comparisons(self, classes: Tensor) -> Iterator[Comparison]:
        """Every pair of a class that occurs among ``classes`` (Q,) and a rival, with the queries it is for."""
        codes = self.codes.to(classes.device)
        for own in classes.unique().tolist():
            queries = (classes == own).nonzero().squeeze(1)
            for rival in range(len(codes)):
                if rival != own:
                    difference = codes[own] - codes[rival]
                    yield Comparison(queries, rival, difference / difference.abs().max())


def _check_values(low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"Expected `low` < `high`, but got {low} and {high}.")
