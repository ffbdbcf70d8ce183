"""Poisoned trainings in rational numbers: every operation is exact, so bounds can be compared exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor, nn

Matrix = list[list[Fraction]]
"""Rows of rational numbers."""


def rational(values: Tensor) -> Matrix:
    """Return a matrix, or a vector as one row, without rounding."""
    rows = values.detach().double().reshape(-1, values.shape[-1]).tolist()
    return [[Fraction(entry) for entry in row] for row in rows]


@dataclass
class RationalNetwork:
    """Linear layers with ReLUs between them, trained by SGD on the mean squared error.

    Args:
        weights: one matrix for each layer.
        biases: one row for each layer.
        momentum: of the optimizer.
        decay: weight decay.
    """

    weights: list[Matrix]
    biases: list[Matrix]
    momentum: Fraction
    decay: Fraction

    @classmethod
    def of(cls, module: nn.Sequential, momentum: float, decay: float) -> RationalNetwork:
        """Return a module's layers."""
        layers = [layer for layer in module if isinstance(layer, nn.Linear)]
        weights, biases = ([rational(getattr(layer, name)) for layer in layers] for name in ("weight", "bias"))
        network = cls(weights, biases, Fraction(momentum), Fraction(decay))
        network._buffers = [None] * (2 * len(layers))
        return network

    def step(self, x: Matrix, y: Matrix, rate: Fraction) -> None:
        """Make one step on a batch."""
        gradients = self._gradients(x, y)
        parameters = [matrix for pair in zip(self.weights, self.biases, strict=True) for matrix in pair]
        for number, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            direction = [
                [g + self.decay * p for g, p in zip(*rows, strict=True)]
                for rows in zip(gradient, parameter, strict=True)
            ]
            before = self._buffers[number]
            if self.momentum and before is not None:
                direction = [
                    [self.momentum * b + d for b, d in zip(*rows, strict=True)]
                    for rows in zip(before, direction, strict=True)
                ]
            self._buffers[number] = direction
            for row, moves in zip(parameter, direction, strict=True):
                for column, move in enumerate(moves):
                    row[column] -= rate * move

    def parameters(self) -> list[Matrix]:
        """Return weight and bias of each layer, in order."""
        return [matrix for pair in zip(self.weights, self.biases, strict=True) for matrix in pair]

    def _gradients(self, x: Matrix, y: Matrix) -> list[Matrix]:
        totals = [[[Fraction(0)] * len(row) for row in matrix] for matrix in self.parameters()]
        scale = Fraction(2, len(x) * len(y[0]))
        for sample, target in zip(x, y, strict=True):
            values, z = [], sample
            for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                values.append(z)
                z = [
                    sum((w * v for w, v in zip(row, z, strict=True)), b) for row, b in zip(weight, bias[0], strict=True)
                ]
                if number < len(self.weights) - 1:
                    z = [max(v, Fraction(0)) for v in z]
            d = [scale * (v - t) for v, t in zip(z, target, strict=True)]
            for number in reversed(range(len(self.weights))):
                for row, slope in enumerate(d):
                    totals[2 * number + 1][0][row] += slope
                    for column, value in enumerate(values[number]):
                        totals[2 * number][row][column] += slope * value
                d = [
                    sum((self.weights[number][row][column] * d[row] for row in range(len(d))), Fraction(0))
                    * (1 if number == 0 or values[number][column] > 0 else 0)
                    for column in range(len(values[number]))
                ]
        return totals


def outside(bounds: Sequence[tuple[Tensor, Tensor]], parameters: Sequence[Matrix]) -> int:
    """Return how many parameters lie outside their bounds, compared exactly."""
    count = 0
    for (lower, upper), matrix in zip(bounds, parameters, strict=True):
        for low, high, row in zip(rational(lower), rational(upper), matrix, strict=True):
            count += sum(not a <= value <= b for a, value, b in zip(low, row, high, strict=True))
    return count
