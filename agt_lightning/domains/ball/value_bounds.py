"""Bounds on the values of a head for every parameter in a ball and every input in a box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.domains.ball.layers import Layer
from agt_lightning.domains.ball.norms import with_one
from agt_lightning.interval import Interval


def layer_bounds(layers: Sequence[Layer], radius: float, inputs: Interval) -> tuple[Interval, ...]:
    """Bound the result of each layer for all parameters within ``radius`` of the nominal ones.

    Args:
        layers: linear layers with a ReLU between.
        radius: R, Euclidean, over all trained parameters of all layers together.
        inputs: features that enter the head, (b, d).

    Returns:
        One interval (b, o) per layer.

    Reference:
        docs/theory.md, eq. (10.24) and (10.29).
    """
    results, values = [], _LayerInput.features(inputs, layers[0])
    for number, layer in enumerate(layers):
        change = values.output_change(layer.weight, radius, changed_rows=1)
        results.append(layer.nominal(values.nominal).widened(change))
        if number + 1 < len(layers):
            values = values.behind(layer, layers[number + 1], radius, results[-1])
    return tuple(results)


def margin_bounds(layers: Sequence[Layer], radius: float, inputs: Interval, target: Tensor) -> Interval:
    """Bound ``f_target - f_k`` for every output k, for all parameters within ``radius`` of the nominal ones.

    Two rows of the last weight change against each other, by up to √2 times the change of one.

    Args:
        layers: as for `layer_bounds`; the last has at least two outputs.
        radius: R.
        inputs: features that enter the head, (b, d).
        target: output of each sample, integers (b,).

    Returns:
        Interval (b, K), zero for the target itself.

    Reference:
        docs/theory.md, eq. (10.30).
    """
    values, last = _LayerInput.features(inputs, layers[0]), layers[-1]
    hidden = layer_bounds(layers[:-1], radius, inputs) if len(layers) > 1 else ()
    for layer, following, result in zip(layers, layers[1:], hidden, strict=False):
        values = values.behind(layer, following, radius, result)
    lower = values.norm.new_zeros(len(target), len(last.weight))
    upper = torch.zeros_like(lower)
    for label in target.unique().tolist():
        rows = (target == label).nonzero().squeeze(1)
        differences = last.weight[label] - last.weight
        offsets = None if last.bias is None else last.bias[label] - last.bias
        chosen = values[rows]
        change = chosen.output_change(differences, radius, changed_rows=2)
        margin = Layer(differences, offsets, last.trains_bias).nominal(chosen.nominal).widened(change)
        lower[rows], upper[rows] = margin.lower, margin.upper
    same = torch.nn.functional.one_hot(target, len(last.weight)).bool()
    return Interval.trusted(lower.masked_fill(same, 0), upper.masked_fill(same, 0))


@dataclass(frozen=True)
class _LayerInput:
    """The input z of a layer, and how it changes with the parameters of the layers before.

    Args:
        nominal: bounds on z at the nominal parameters, (b, k).
        norm: largest ``‖ẑ‖`` among them, (b,).
        possibly_active: one for units that may be active anywhere in the ball, (b, k); features count as active.
        lipschitz: c with ``‖Δz‖ <= c ‖δ‖`` for every change δ of the parameters within the ball, (b,).
    """

    nominal: Interval
    norm: Tensor
    possibly_active: Tensor
    lipschitz: Tensor

    @classmethod
    def features(cls, inputs: Interval, first: Layer) -> _LayerInput:
        """Return the input of the first layer, which depends on no parameter."""
        norm = inputs.magnitude.norm(dim=1)
        return cls(inputs, with_one(norm, first.trains_bias), torch.ones_like(inputs.lower), torch.zeros_like(norm))

    def __getitem__(self, rows: Tensor) -> _LayerInput:
        return _LayerInput(self.nominal[rows], self.norm[rows], self.possibly_active[rows], self.lipschitz[rows])

    def output_change(self, rows: Tensor, radius: float, changed_rows: int) -> Tensor:
        """Bound ``|Δ(row · z)| <= R (r ‖ẑ‖² + (‖row on active units‖ c)²)^½ + √r R²/2 c``, (b, K).

        The layers share the radius.

        Args:
            rows: of the layer's weight, or differences of two of its rows, (K, k).
            radius: R.
            changed_rows: r, the number of rows of the weight in each of ``rows``.
        """
        active = (self.possibly_active @ rows.square().T).sqrt()
        first_order = torch.hypot(changed_rows**0.5 * self.norm[:, None], active * self.lipschitz[:, None])
        second_order = (changed_rows**0.5 * radius * radius / 2) * self.lipschitz[:, None]
        change: Tensor = radius * first_order + second_order
        return change

    def behind(self, layer: Layer, following: Layer, radius: float, results: Interval) -> _LayerInput:
        """Return the input of the next layer: ``c⁺ = (‖ẑ‖² + (‖W‖ c)²)^½ + R/2 c``.

        Args:
            layer: the layer W that this enters.
            following: the next one.
            radius: R.
            results: bounds on the layer's results over the ball.
        """
        values = layer.nominal(self.nominal).mapped(torch.relu, nonnegative=True)
        norm = with_one(values.upper.norm(dim=1), following.trains_bias)
        matrix = layer.norm if bool(self.lipschitz.any()) else 0.0
        lipschitz = torch.hypot(self.norm, matrix * self.lipschitz) + radius / 2 * self.lipschitz
        return _LayerInput(values, norm, (results.upper >= 0).to(norm.dtype), lipschitz)
