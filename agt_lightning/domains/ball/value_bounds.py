"""Bounds on the values of a head for every parameter in a ball and every input in a box."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.ball.layers import Layer, LayerBall
from agt_lightning.domains.ball.norms import norms_on, with_one
from agt_lightning.domains.ball.roundoff import result_errors, row_errors
from agt_lightning.interval import Interval
from agt_lightning.rounding import accumulated_roundoff


def layer_bounds(ball: LayerBall, inputs: Interval) -> tuple[Interval, ...]:
    """Bound the result of each layer for all parameters in the ball, in real arithmetic and as runs compute it.

    Args:
        ball: linear layers with a ReLU between, and the ball.
        inputs: features that enter the head, (b, d), as runs compute them.

    Returns:
        One interval (b, o) per layer.

    Reference:
        docs/theory.md, eq. (10.24) and (10.29); docs/floats.md, eq. (B.2).
    """
    layers = ball.layers
    results, values = [], _LayerInput.features(ball, inputs)
    for number, layer in enumerate(layers):
        change = values.output_change(layer.weight, changed_rows=1) + values.row_errors(layer)
        results.append(values.around(layer, change))
        if number + 1 < len(layers):
            values = values.behind(layer, layers[number + 1], results[-1])
    return tuple(results)


def margin_bounds(ball: LayerBall, inputs: Interval, target: Tensor) -> Interval:
    """Bound ``f_target - f_k`` for every output k and all parameters in the ball, also of f as runs compute them.

    Two rows of the last weight change against each other, by up to √2 times the change of one.

    Args:
        ball: as for `layer_bounds`; the last layer has at least two outputs.
        inputs: features that enter the head, (b, d).
        target: output of each sample, integers (b,).

    Returns:
        Interval (b, K), zero for the target itself.

    Reference:
        docs/theory.md, eq. (10.30).
    """
    layers = ball.layers
    values, last = _LayerInput.features(ball, inputs), layers[-1]
    hidden = layer_bounds(replace(ball, layers=layers[:-1]), inputs) if len(layers) > 1 else ()
    for layer, following, result in zip(layers, layers[1:], hidden, strict=False):
        values = values.behind(layer, following, result)
    lower = values.norm.new_zeros(len(target), len(last.weight))
    upper = torch.zeros_like(lower)
    for label in target.unique().tolist():
        rows = (target == label).nonzero().squeeze(1)
        differences = last.weight[label] - last.weight
        offsets = None if last.bias is None else last.bias[label] - last.bias
        chosen = values[rows]
        errors = chosen.row_errors(last)
        change = chosen.output_change(differences, changed_rows=2) + errors + errors[:, label, None]
        margin = chosen.around(Layer(differences, offsets, last.trains_bias), change)
        lower[rows], upper[rows] = margin.lower, margin.upper
    same = torch.nn.functional.one_hot(target, len(last.weight)).bool()
    return Interval.trusted(lower.masked_fill(same, 0), upper.masked_fill(same, 0))


@dataclass(frozen=True)
class _LayerInput:
    """The input z of a layer, and how it changes with the parameters of the layers before.

    Args:
        ball: all layers and the ball.
        nominal: bounds on z at the nominal parameters, (b, k).
        norm: largest ``‖ẑ‖`` among them, (b,).
        possibly_active: one for units that may be active anywhere in the ball, (b, k); features count as active.
        lipschitz: c with ``‖Δz‖ <= c ‖δ‖`` for every change δ of the parameters within the ball, (b,).
        error: upper bound on ``‖fl(z) - z‖`` over the ball, (b,).
    """

    ball: LayerBall
    nominal: Interval
    norm: Tensor
    possibly_active: Tensor
    lipschitz: Tensor
    error: Tensor

    @classmethod
    def features(cls, ball: LayerBall, inputs: Interval) -> _LayerInput:
        """Return the input of the first layer, which depends on no parameter."""
        norm = euclidean_norm(inputs.magnitude, dim=1)
        zero = torch.zeros_like(norm)
        return cls(ball, inputs, with_one(norm, ball.layers[0].trains_bias), torch.ones_like(inputs.lower), zero, zero)

    def __getitem__(self, rows: Tensor) -> _LayerInput:
        tensors = (self.norm, self.possibly_active, self.lipschitz, self.error)
        return _LayerInput(self.ball, self.nominal[rows], *(tensor[rows] for tensor in tensors))

    @property
    def largest_norm(self) -> Tensor:
        """Largest ``‖ẑ̃‖`` over the ball, (b,)."""
        return self.norm + self.ball.radius * self.lipschitz

    def row_errors(self, layer: Layer) -> Tensor:
        """Rounding of each result of the layer that this enters, (b, o)."""
        return row_errors(self.ball, layer, self.largest_norm, self.error)

    def around(self, layer: Layer, change: Tensor) -> Interval:
        """Return the layer's nominal results, widened by ``change`` with its rounding, and outward.

        Args:
            layer: the layer that this enters, or differences of its rows.
            change: by how much its results change, (b, o).
        """
        own = self.ball.arithmetic.own_relative(sum(sum(each.weight.shape) + 8 for each in self.ball.layers))
        nominal = layer.nominal(self.nominal)
        return nominal.widened((1 + own) * change + accumulated_roundoff(4, change.dtype) * nominal.magnitude)

    def output_change(self, rows: Tensor, changed_rows: int) -> Tensor:
        """Bound ``|Δ(row · z)| <= R (r ‖ẑ‖² + (‖row on active units‖ c)²)^½ + √r R²/2 c``, (b, K).

        The layers share the radius.

        Args:
            rows: of the layer's weight, or differences of two of its rows, (K, k).
            changed_rows: r, the number of rows of the weight in each of ``rows``.
        """
        radius = self.ball.radius
        active = norms_on(self.possibly_active, rows)
        first_order = torch.hypot(changed_rows**0.5 * self.norm[:, None], active * self.lipschitz[:, None])
        second_order = (changed_rows**0.5 * radius * radius / 2) * self.lipschitz[:, None]
        change: Tensor = radius * first_order + second_order
        return change

    def behind(self, layer: Layer, following: Layer, results: Interval) -> _LayerInput:
        """Return the input of the next layer: ``c⁺ = (‖ẑ‖² + (‖W‖ c)²)^½ + R/2 c``.

        Args:
            layer: the layer W that this enters.
            following: the next one.
            results: bounds on the layer's results over the ball.
        """
        values = layer.nominal(self.nominal).mapped(torch.relu, nonnegative=True)
        norm = with_one(euclidean_norm(values.upper, dim=1), following.trains_bias)
        matrix = layer.norm if bool(self.lipschitz.any()) else 0.0
        lipschitz = torch.hypot(self.norm, matrix * self.lipschitz) + self.ball.radius / 2 * self.lipschitz
        error = result_errors(self.ball, layer, self.largest_norm, self.error)
        return _LayerInput(self.ball, values, norm, (results.upper >= 0).to(norm.dtype), lipschitz, error)
