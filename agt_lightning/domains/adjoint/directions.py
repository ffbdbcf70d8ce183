"""Directions in the space of a head's parameters, and those along which outputs move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.ball.layers import Layer


@dataclass(frozen=True)
class Directions:
    """Directions ``c = (C₁, C₂)``, or C₁ alone for one layer.

    Args:
        parts: an array for each layer, (Q, o, k + 1); the last input of each is the one of its bias, zero if that is
            not trained.
    """

    parts: tuple[Tensor, ...]

    @property
    def first(self) -> Tensor:
        """C₁, (Q, o, d + 1)."""
        return self.parts[0]

    @property
    def second(self) -> Tensor:
        """C₂ of two layers, (Q, K, h + 1)."""
        return self.parts[1]

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, rows: slice) -> Directions:
        return Directions(tuple(part[rows] for part in self.parts))

    @classmethod
    def cat(cls, several: Sequence[Directions]) -> Directions:
        """Return all directions of several sets."""
        return cls(tuple(map(torch.cat, zip(*(each.parts for each in several), strict=True))))

    def scaled(self, factors: Tensor) -> Directions:
        """Return multiples of the directions, by factors (Q,)."""
        return Directions(tuple(part * factors[:, None, None] for part in self.parts))

    def less(self, other: Directions, *, kept: float, rate: float) -> Directions:
        """Return ``kept c - rate c'`` for other directions c'."""
        pairs = zip(self.parts, other.parts, strict=True)
        return Directions(tuple(kept * part - rate * moved for part, moved in pairs))

    @property
    def norms(self) -> Tensor:
        """``‖c‖``, (Q,)."""
        return reduce(torch.hypot, (euclidean_norm(part.flatten(1), dim=1) for part in self.parts))

    @classmethod
    def of_outputs(cls, layers: tuple[Layer, ...], inputs: Tensor, rows: Tensor) -> Directions:
        """Return the gradients of combinations of outputs, ``rows · f(x)``.

        Args:
            layers: one layer, or two with a ReLU between.
            inputs: x, (Q, d).
            rows: a combination for each, (Q, K).
        """
        if len(layers) == 1:
            padded = torch.nn.functional.pad(inputs, (0, 1), value=float(layers[0].trains_bias))
            return cls((rows[:, :, None] * padded[:, None, :],))
        first, second = layers
        hidden = hidden_values(first, inputs)
        values = torch.nn.functional.pad(hidden.clamp(min=0), (0, 1), value=float(second.trains_bias))
        padded = torch.nn.functional.pad(inputs, (0, 1), value=float(first.trains_bias))
        back = (rows @ second.weight) * (hidden > 0)
        return cls((back[:, :, None] * padded[:, None, :], rows[:, :, None] * values[:, None, :]))


def hidden_values(layer: Layer, inputs: Tensor) -> Tensor:
    """``W x + β``, (b, o)."""
    result = inputs @ layer.weight.T
    return result if layer.bias is None else result + layer.bias
