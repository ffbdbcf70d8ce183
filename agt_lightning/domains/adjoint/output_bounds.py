"""Bounds on outputs of a head from bounds along their gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.domains.adjoint.directions import Directions, hidden_values
from agt_lightning.domains.ball.layers import REAL, Layer, LayerBall
from agt_lightning.domains.ball.norms import with_one
from agt_lightning.domains.ball.roundoff import largest_row_errors, result_errors
from agt_lightning.interval import Interval

_PRICES = 24
"""Lagrange multipliers that are tried, each half of the one before."""


def output_combinations(
    layers: tuple[Layer, ...], radius: float, arithmetic: Arithmetic, inputs: Interval, rows: Tensor
) -> OutputCombinations:
    """Return combinations of the outputs of a head of one layer or two; arguments as for `OutputCombinations`."""
    kind = LinearCombinations if len(layers) == 1 else OneHiddenCombinations
    return kind(layers, radius, arithmetic, inputs, rows)


@dataclass(frozen=True, eq=False)
class OutputCombinations(ABC):
    """Combinations ``v · f(x)`` of outputs after the last step; a subclass for each depth of the head.

    Args:
        layers: after the last step.
        radius: R of the ball around them.
        arithmetic: of the runs; bounds are computed in float64.
        inputs: features, as runs compute them, (Q, d).
        rows: v, (Q, K).
    """

    layers: tuple[Layer, ...]
    radius: float
    arithmetic: Arithmetic
    inputs: Interval
    rows: Tensor

    @cached_property
    def directions(self) -> Directions:
        """Gradients of the combinations, as they are computed."""
        return Directions.of_outputs(self.layers, self.center, self.rows)

    @property
    def center(self) -> Tensor:
        """Features at which gradients are taken, (Q, d)."""
        return self.inputs.center

    @cached_property
    def upward(self) -> float:
        """Above the rounding of sums of numbers that are not negative."""
        return 1 + self._gamma

    @cached_property
    def _norm(self) -> Tensor:
        """``‖x̂‖``, (Q,)."""
        return self.upward * with_one(euclidean_norm(self.center, dim=1), self.layers[0].trains_bias)

    @cached_property
    def _size(self) -> Tensor:
        """``‖v‖``, (Q,)."""
        norms: Tensor = euclidean_norm(self.rows, dim=1)
        return norms * self.upward

    @cached_property
    def _gamma(self) -> float:
        return REAL.own_relative(sum(sum(layer.weight.shape) for layer in self.layers) + 32)

    @property
    @abstractmethod
    def nominal(self) -> Tensor:
        """``v f``, (Q,)."""

    @abstractmethod
    def _second_order(self, sign: float) -> Tensor:
        """Bound ``s (ṽf - vf - c·δ)``, (Q,)."""

    @property
    @abstractmethod
    def slack(self) -> Tensor:
        """What rounding changes here and in the forward pass of a run, and features off the center, (Q,)."""

    def bounds(self, displacements: Interval) -> Interval:
        """Bound the combinations over all runs, as runs compute them, (Q,).

        Args:
            displacements: bounds on ``c · δ`` along `directions`, (Q,).

        Reference:
            docs/theory.md, eq. (13.18) and (13.19).
        """
        nominal, slack = self.nominal, self.slack
        up = displacements.upper + self._second_order(1.0) + slack
        down = -displacements.lower + self._second_order(-1.0) + slack
        rounding = (self.upward - 1) * (nominal.abs() + up + down)
        return Interval.checked(nominal - down - rounding, nominal + up + rounding)


@dataclass(frozen=True, eq=False)
class LinearCombinations(OutputCombinations):
    """Combinations of the outputs of one layer, which are linear in its parameters."""

    @cached_property
    @override
    def nominal(self) -> Tensor:
        return (self.rows * hidden_values(self.layers[0], self.center)).sum(dim=1)

    @override
    def _second_order(self, sign: float) -> Tensor:
        return torch.zeros_like(self._norm)

    @cached_property
    @override
    def slack(self) -> Tensor:
        (layer,) = self.layers
        off = self.upward * euclidean_norm(self.inputs.radius, dim=1)
        ball = LayerBall(self.layers, self.radius, self.arithmetic)
        run = result_errors(ball, layer, self._norm + off, torch.zeros_like(off))
        # The gradient as it is computed, along δ, and the nominal outputs.
        gradient = 4 * self._gamma * ((layer.frobenius + self.radius) * self._norm + float(layer.offsets.norm()))
        combined = (run + (layer.norm + self.radius) * off + gradient) * self._size
        return self.upward * combined * 2


@dataclass(frozen=True, eq=False)
class OneHiddenCombinations(OutputCombinations):
    """Combinations of the outputs of two layers."""

    @cached_property
    def _hidden(self) -> Tensor:
        return hidden_values(self.layers[0], self.center)

    @cached_property
    def doubt(self) -> Tensor:
        """What rounding leaves open of h as it is computed here, (Q,)."""
        ball = LayerBall(self.layers, 0.0, REAL)
        return self.upward * largest_row_errors(ball, self.layers[0], self._norm, torch.zeros_like(self._norm))

    @cached_property
    @override
    def nominal(self) -> Tensor:
        return (self.rows * hidden_values(self.layers[1], self._hidden.clamp(min=0))).sum(dim=1)

    @override
    def _second_order(self, sign: float) -> Tensor:
        """Both layers together, and units that switch on."""
        back = (self.rows @ self.layers[1].weight).mul(sign).clamp(min=0)
        reach = self.radius * self._norm + self.doubt
        near = self._hidden.abs() <= (self.upward * reach)[:, None]
        gain = torch.where(near, back, 0.0) * (self._norm * self.upward)[:, None]
        least = torch.finfo(torch.float64).tiny
        distance = (self._hidden.abs() - self.doubt[:, None]).clamp(min=0) / self._norm.clamp(min=least)[:, None]
        both = self._size * self.radius**2 / 2 * self._norm
        return self.upward * (both + _largest_ramps(gain, distance * (2 - self.upward), self.radius))

    @cached_property
    @override
    def slack(self) -> Tensor:
        first, second = self.layers
        zero, off = torch.zeros_like(self._norm), self.upward * euclidean_norm(self.inputs.radius, dim=1)
        ball = LayerBall(self.layers, self.radius, self.arithmetic)
        reached = self._norm + off
        values = (first.frobenius + self.radius) * reached + float(first.offsets.norm()) + self.radius + 1
        hidden_error = result_errors(ball, first, reached, zero)
        run = result_errors(ball, second, values, hidden_error)
        steepest = (first.norm + self.radius) * (second.norm + self.radius)
        # The gradient as it is computed, along δ; and slips of units whose sign is open.
        gradient = 4 * self._gamma * (second.frobenius + 1) * (values + self._norm) * (self.radius + 1)
        count = (self._hidden.abs() <= self.doubt[:, None]).sum(dim=1)
        slips = count * self.doubt * (second.frobenius + self.radius)
        combined = (run + steepest * off + gradient + slips + self._gamma * float(second.offsets.norm())) * self._size
        return self.upward * combined * 2


def _largest_ramps(gain: Tensor, distance: Tensor, radius: float) -> Tensor:
    """Bound ``Σ_j gain_j (r_j - t_j)⁺`` over ``Σ_j r_j² <= R²``, by weak duality with any ρ > 0, (Q,).

    ``gain (r - t) - ρ r²`` is at most ``gain²/(4ρ) - gain t``.

    Reference:
        docs/theory.md, eq. (13.19).
    """
    if radius == 0:
        return gain.new_zeros(len(gain))
    size = gain.amax(dim=1)
    size = torch.where(size > 0, size, 1.0)
    gain = gain / size[:, None]  # squares of small ones would underflow
    best = radius * euclidean_norm(gain, dim=1)
    largest = best / (2 * radius**2)
    for power in range(_PRICES):
        price = largest[:, None] * 2 * 0.5 ** (power / 2)
        positive = price > 0
        worth = gain.square() / torch.where(positive, 4 * price, 1.0) - gain * distance
        total = price[:, 0] * radius**2 + worth.clamp(min=0).sum(dim=1)
        best = torch.where(positive[:, 0], torch.minimum(best, total), best)
    return best * size
