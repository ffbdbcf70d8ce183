"""Directions in the space of a head's parameters, and those along which outputs move."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.ball.layers import Layer


@dataclass(frozen=True)
class Directions:
    """Directions ``c = (C₁, C₂)``; the last input of each layer is the one of its bias, zero if that is not trained.

    Args:
        first: C₁, (Q, h, d + 1).
        second: C₂, (Q, K, h + 1).
    """

    first: Tensor
    second: Tensor

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, rows: slice) -> Directions:
        return Directions(self.first[rows], self.second[rows])

    def scaled(self, factors: Tensor) -> Directions:
        """Return multiples of the directions, by factors (Q,)."""
        return Directions(self.first * factors[:, None, None], self.second * factors[:, None, None])

    @property
    def norms(self) -> Tensor:
        """``‖c‖``, (Q,)."""
        norms: Tensor = torch.hypot(
            euclidean_norm(self.first.flatten(1), dim=1), euclidean_norm(self.second.flatten(1), dim=1)
        )
        return norms

    @classmethod
    def of_outputs(cls, layers: tuple[Layer, ...], inputs: Tensor, rows: Tensor) -> Directions:
        """Return the gradients of combinations of outputs, ``rows · f(x)``.

        Args:
            layers: two layers.
            inputs: x, (Q, d).
            rows: a combination for each, (Q, K).
        """
        first, second = layers
        hidden = hidden_values(first, inputs)
        values = torch.nn.functional.pad(hidden.clamp(min=0), (0, 1), value=float(second.trains_bias))
        padded = torch.nn.functional.pad(inputs, (0, 1), value=float(first.trains_bias))
        back = (rows @ second.weight) * (hidden > 0)
        return cls(back[:, :, None] * padded[:, None, :], rows[:, :, None] * values[:, None, :])


def hidden_values(layer: Layer, inputs: Tensor) -> Tensor:
    """``W x + β``, (b, o)."""
    result = inputs @ layer.weight.T
    return result if layer.bias is None else result + layer.bias
