"""How far what runs compute of a head in floating point is from the same in real arithmetic, over the ball."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.ball.layers import Layer, LayerBall


def result_errors(ball: LayerBall, layer: Layer, input_norm: Tensor, input_error: Tensor) -> Tensor:
    """Bound ``‖fl(h) - h‖`` for ``h = W̃ z̃ + β̃`` anywhere in the ball, (b,).

    ``(‖W‖ + R) e + γ_{k+2} ((‖W‖_F + R)(‖z̃‖ + e) + ‖β‖ + R)`` with ``‖fl(z) - z‖ <= e``.

    Args:
        ball: the layers and the ball.
        layer: one of them.
        input_norm: largest ``‖z̃‖``, (b,).
        input_error: e, (b,).

    Reference:
        docs/floats.md, eq. (B.2).
    """
    relative, absolute = _roundings(ball, layer.weight.shape[1])
    magnitude = (
        (layer.frobenius + ball.radius) * (input_norm + input_error)
        + float(euclidean_norm(layer.offsets))
        + ball.radius
    )
    underflow = math.sqrt(len(layer.weight)) * absolute
    return (layer.norm + ball.radius) * input_error + relative * magnitude + underflow


def row_errors(ball: LayerBall, layer: Layer, input_norm: Tensor, input_error: Tensor) -> Tensor:
    """Bound ``|fl(h_j) - h_j|`` for each row likewise, (b, o); arguments as for `result_errors`."""
    return _row_errors(ball, layer, layer.row_norms, layer.offsets, input_norm[:, None], input_error[:, None])


def largest_row_errors(ball: LayerBall, layer: Layer, input_norm: Tensor, input_error: Tensor) -> Tensor:
    """Bound the largest ``|fl(h_j) - h_j|`` of all rows likewise, (b,); arguments as for `result_errors`.

    A unit this close to zero may be on in one run and off in another, and in the nominal run.
    """
    return _row_errors(ball, layer, layer.row_norms.max(), layer.offsets.max(), input_norm, input_error)


def _row_errors(
    ball: LayerBall, layer: Layer, row_norms: Tensor, offsets: Tensor, input_norm: Tensor, input_error: Tensor
) -> Tensor:
    relative, absolute = _roundings(ball, layer.weight.shape[1])
    rows = row_norms + ball.radius
    return rows * input_error + relative * (rows * (input_norm + input_error) + offsets + ball.radius) + absolute


def _roundings(ball: LayerBall, products: int) -> tuple[float, float]:
    """Return the relative error of a sum of so many products and a bias, and that of underflow."""
    return ball.arithmetic.relative(products + 2), ball.arithmetic.absolute(products + 2)


def value_errors(ball: LayerBall, value_norms: Sequence[Tensor], input_error: Tensor) -> list[Tensor]:
    """Bound ``‖fl(z_l) - z_l‖`` of each layer's input, and last of the outputs, (b,) each.

    Args:
        ball: the layers and the ball.
        value_norms: largest norm of each layer's input over the ball, (b,) each.
        input_error: how far features as runs compute them are from those at which bounds are centered, (b,).
    """
    errors = [input_error]
    for layer, norm in zip(ball.layers, value_norms, strict=True):
        errors.append(result_errors(ball, layer, norm, errors[-1]))
    return errors


@dataclass(frozen=True)
class GradientRoundoff:
    """Bounds on the rounding of the gradient of each sample, (b,) each.

    Args:
        error: on ``‖fl(∇ℓ_i) - ∇ℓ_i‖``, the gradient before it is summed over samples, with the units that are on in
            floating point.
        magnitude: on ``‖fl(∇ℓ_i)‖``, to which the rounding of the sum over samples is relative.
    """

    error: Tensor
    magnitude: Tensor

    def with_sum(self, relative: float) -> Tensor:
        """Return the share of each sample in the error of the sum: ``error + γ_N magnitude``.

        Args:
            relative: γ_N, of a sum over samples, micro-batches and processes.
        """
        return self.error + relative * self.magnitude


@dataclass(frozen=True)
class HeadRoundoff:
    """Bounds on the size of everything that a run computes of some samples, from which its rounding follows.

    Theorem. Let θ̃ be in the ball, and G the weighted sum of ``∇ℓ_i(θ̃)`` in real arithmetic, but with the units that
    are on in the floating point run. Then what the run computes is at most ``Σ_i w_i (error_i + γ_N magnitude_i)`` away
    from G, in any order of summation; `gradient` returns both. The units that are on differ from those of real
    arithmetic only where ``|h_j|`` is at most `largest_row_errors`.

    Args:
        ball: the layers, the ball, and the roundings of runs.
        values: largest ``‖ẑ̃_l‖`` of the input of each layer, (b,) each.
        errors: of each layer's input, and last of the outputs, by `value_errors`.
        derivatives: largest ``‖∂f/∂h_l‖`` of each layer's results, (b,) each.

    Reference:
        docs/floats.md, eq. (B.1) to (B.5).
    """

    ball: LayerBall
    values: Sequence[Tensor]
    errors: Sequence[Tensor]
    derivatives: Sequence[Tensor]

    @classmethod
    def poisoned(cls, ball: LayerBall, values: Sequence[Tensor], input_error: Tensor, moved: Tensor) -> HeadRoundoff:
        """Return the bounds for samples whose features move, by the norms of the layers alone.

        Args:
            ball: the layers and the ball.
            values: largest ``‖ẑ̃_l‖`` of the clean samples, (m,) each.
            input_error: as for `value_errors`, (m,).
            moved: ``‖Δx‖``, (m,).
        """
        norms = [layer.norm + ball.radius for layer in ball.layers]
        behind = [math.prod(norms[number + 1 :]) for number in range(len(norms))]
        before = [math.prod(norms[:number]) for number in range(len(norms))]
        largest = [value + factor * moved for value, factor in zip(values, before, strict=True)]
        derivatives = [torch.full_like(values[0], factor) for factor in behind]
        return cls(ball, largest, value_errors(ball, largest, input_error), derivatives)

    @property
    def output_error(self) -> Tensor:
        """``‖fl(f) - f‖``, (b,)."""
        return self.errors[-1]

    def gradient(self, signal: Tensor, signal_error: Tensor) -> GradientRoundoff:
        """Bound the rounding of the gradient of each sample, by layers from the last to the first.

        Args:
            signal: largest ``‖∂ℓ/∂f‖``, (b,).
            signal_error: its rounding, with that of the outputs, (b,).
        """
        errors, magnitudes = [], []
        for number, error in enumerate(self.backward_errors(signal, signal_error)):
            backward, value, value_error = self.derivatives[number] * signal, self.values[number], self.errors[number]
            errors.append(backward * value_error + error * (value + value_error))
            magnitudes.append((backward + error) * (value + value_error))
        count = sum(layer.weight.numel() + len(layer.weight) for layer in self.ball.layers)
        underflow = math.sqrt(count) * self.ball.arithmetic.absolute(4)
        return GradientRoundoff(reduce(torch.hypot, errors) + underflow, reduce(torch.hypot, magnitudes))

    def backward_errors(self, signal: Tensor, signal_error: Tensor) -> list[Tensor]:
        """Bound ``‖fl(e_l) - e_l‖`` for ``e_l = (∂f/∂h_l)ᵀ ∂ℓ/∂f`` of each layer's results, (b,) each.

        Args:
            signal: largest ``‖∂ℓ/∂f‖``, (b,).
            signal_error: its rounding, (b,).
        """
        radius, errors = self.ball.radius, [signal_error]
        for layer, derivative in zip(self.ball.layers[:0:-1], self.derivatives[:0:-1], strict=True):
            relative, absolute = _roundings(self.ball, len(layer.weight))
            rounded = relative * (layer.frobenius + radius) * (derivative * signal + errors[-1])
            underflow = math.sqrt(layer.weight.shape[1]) * absolute
            errors.append((layer.norm + radius) * errors[-1] + rounded + underflow)
        return errors[::-1]
