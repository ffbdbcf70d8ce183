"""Bounds on the values of a head for every parameter in a ball and every input in a box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.arithmetic import product
from agt_lightning.domains.ball.norms import spectral_norm, with_one
from agt_lightning.interval import Interval
from agt_lightning.rounding import accumulated_roundoff


@dataclass(frozen=True)
class Layer:
    """A linear layer at the nominal parameters.

    Args:
        weight: (o, k).
        bias: (o,); None without one.
        trains_bias: whether there is a bias and it is trained.
    """

    weight: Tensor
    bias: Tensor | None
    trains_bias: bool

    def nominal(self, inputs: Interval) -> Interval:
        """Bounds on ``W z + β`` over a box of inputs, widened by the rounding of this computation."""
        weight = Interval.point(self.weight)
        result = product(inputs, weight.mT)
        offset = torch.zeros_like(self.weight[:, 0]) if self.bias is None else self.bias
        size = inputs.magnitude @ self.weight.abs().T + offset.abs()
        slack = accumulated_roundoff(self.weight.shape[1] + 2, self.weight.dtype) * size
        return Interval.trusted(result.lower + offset - slack, result.upper + offset + slack)


def enclosures(layers: Sequence[Layer], radius: float, inputs: Interval) -> tuple[Interval, ...]:
    """Bounds on the result of each layer, for all parameters within ``radius`` of the nominal ones.

    Args:
        layers: linear layers with a ReLU between.
        radius: R, Euclidean, over all trained parameters of all layers together.
        inputs: features that enter the head, (b, d).

    Returns:
        One interval (b, o) per layer.

    Reference:
        Theory, "The ball domain", deviation of values.
    """
    results, entering = [], _HiddenOutputs.features(inputs, layers[0])
    for number, layer in enumerate(layers):
        moved = entering.deviation(layer.weight, radius, movers=1)
        results.append(_widened(layer.nominal(entering.values), moved))
        if number + 1 < len(layers):
            entering = entering.behind(layer, layers[number + 1], radius, results[-1])
    return tuple(results)


def margin_enclosure(layers: Sequence[Layer], radius: float, inputs: Interval, target: Tensor) -> Interval:
    """Bounds on ``f_target - f_k`` for every output k, for all parameters within ``radius`` of the nominal ones.

    Two rows of the last weight move against each other, by up to √2 times what one moves.

    Args:
        layers: as for `enclosures`; the last has at least two outputs.
        radius: R.
        inputs: features that enter the head, (b, d).
        target: output of each sample, integers (b,).

    Returns:
        Interval (b, K), zero for the target itself.
    """
    entering, last = _HiddenOutputs.features(inputs, layers[0]), layers[-1]
    hidden = enclosures(layers[:-1], radius, inputs) if len(layers) > 1 else ()
    for layer, following, result in zip(layers, layers[1:], hidden, strict=False):
        entering = entering.behind(layer, following, radius, result)
    lower = entering.norm.new_zeros(len(target), len(last.weight))
    upper = torch.zeros_like(lower)
    for label in target.unique().tolist():
        rows = (target == label).nonzero().squeeze(1)
        differences = last.weight[label] - last.weight
        offsets = None if last.bias is None else last.bias[label] - last.bias
        own = entering[rows]
        moved = own.deviation(differences, radius, movers=2)
        margin = _widened(Layer(differences, offsets, last.trains_bias).nominal(own.values), moved)
        lower[rows], upper[rows] = margin.lower, margin.upper
    same = torch.nn.functional.one_hot(target, len(last.weight)).bool()
    return Interval.trusted(lower.masked_fill(same, 0), upper.masked_fill(same, 0))


@dataclass(frozen=True)
class _HiddenOutputs:
    """What enters a layer from the units before it, and how it moves with the parameters of the layers before.

    Args:
        values: bounds at the nominal parameters, (b, k).
        norm: largest ``‖ẑ‖`` among them, (b,).
        possibly_on: one for values that may be active anywhere in the ball, (b, k); features are.
        slope: c with ``‖Δz‖ <= c ‖δ‖`` within the ball, (b,).
    """

    values: Interval
    norm: Tensor
    possibly_on: Tensor
    slope: Tensor

    @classmethod
    def features(cls, inputs: Interval, first: Layer) -> _HiddenOutputs:
        """What enters the first layer does not move."""
        length = inputs.magnitude.norm(dim=1)
        return cls(inputs, with_one(length, first.trains_bias), torch.ones_like(inputs.lower), torch.zeros_like(length))

    def __getitem__(self, rows: Tensor) -> _HiddenOutputs:
        return _HiddenOutputs(self.values[rows], self.norm[rows], self.possibly_on[rows], self.slope[rows])

    def deviation(self, rows: Tensor, radius: float, movers: int) -> Tensor:
        """``R (movers ‖ẑ‖² + (‖row on active units‖ c)²)^½ + √movers R²/2 c``: the layers share the radius; (b, K).

        Args:
            rows: of the layer's weight, or differences of two of its rows, (K, k).
            radius: R.
            movers: number of rows of the weight that move.
        """
        active = (self.possibly_on @ rows.square().T).sqrt()
        first_order = torch.hypot(movers**0.5 * self.norm[:, None], active * self.slope[:, None])
        deviation: Tensor = radius * first_order + (movers**0.5 * radius * radius / 2) * self.slope[:, None]
        return deviation

    def behind(self, layer: Layer, following: Layer, radius: float, results: Interval) -> _HiddenOutputs:
        """What enters the next layer.

        Args:
            layer: the one that this enters.
            following: the next one.
            radius: R.
            results: bounds on the layer's results over the ball.
        """
        values = _relu(layer.nominal(self.values))
        norm = with_one(values.upper.norm(dim=1), following.trains_bias)
        matrix = spectral_norm(layer.weight) if bool(self.slope.any()) else 0.0
        slope = torch.hypot(self.norm, matrix * self.slope) + radius / 2 * self.slope
        return _HiddenOutputs(values, norm, (results.upper >= 0).to(norm.dtype), slope)


def _relu(values: Interval) -> Interval:
    return Interval.trusted(values.lower.clamp(min=0), values.upper.clamp(min=0), nonnegative=True)


def _widened(values: Interval, by: Tensor) -> Interval:
    return Interval.trusted(values.lower - by, values.upper + by)
