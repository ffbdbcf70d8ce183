"""Bounds on the values of a head for every parameter in a ball and every input in a box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.arithmetic import matmul
from agt_lightning.domains.ball.norms import with_one
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
        result = matmul(inputs, weight)
        offset = torch.zeros_like(self.weight[:, 0]) if self.bias is None else self.bias
        size = inputs.magnitude @ self.weight.abs().T + offset.abs()
        slack = accumulated_roundoff(self.weight.shape[1] + 2, self.weight.dtype) * size
        return Interval.trusted(result.lower + offset - slack, result.upper + offset + slack)


def enclosures(layers: Sequence[Layer], radius: float, inputs: Interval) -> tuple[Interval, ...]:
    """Bounds on the result of each layer, for all parameters within ``radius`` of the nominal ones.

    Args:
        layers: one layer, or two with a ReLU between.
        radius: R, Euclidean, over all trained parameters of all layers together.
        inputs: features that enter the head, (b, d).

    Returns:
        One interval (b, o) per layer.

    Reference:
        Theory, "The ball domain", deviation of values.
    """
    first, *others = layers
    length = with_one(inputs.magnitude.norm(dim=1), first.trains_bias)
    preactivation = first.nominal(inputs)
    results = [_widened(preactivation, (radius * length)[:, None])]
    for second in others:
        activation = _relu(preactivation)
        rows = _HiddenOutputs.of(second, results[0], activation, length)
        results.append(_widened(second.nominal(activation), rows.deviation(second.weight, radius, movers=1)))
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
    first, *others = layers
    length = with_one(inputs.magnitude.norm(dim=1), first.trains_bias)
    last = layers[-1]
    hidden = enclosures(layers[:-1], radius, inputs)[0] if others else None
    values = _relu(first.nominal(inputs)) if others else inputs
    lower = values.lower.new_zeros(len(target), len(last.weight))
    upper = torch.zeros_like(lower)
    for label in target.unique().tolist():
        rows = (target == label).nonzero().squeeze(1)
        differences = last.weight[label] - last.weight
        offsets = None if last.bias is None else last.bias[label] - last.bias
        nominal = Layer(differences, offsets, last.trains_bias).nominal(values[rows])
        if hidden is None:
            moved = (2**0.5 * radius * length[rows])[:, None].expand_as(nominal.lower)
        else:
            outputs = _HiddenOutputs.of(last, hidden[rows], values[rows], length[rows])
            moved = outputs.deviation(differences, radius, movers=2)
        margin = _widened(nominal, moved)
        lower[rows], upper[rows] = margin.lower, margin.upper
    own = torch.nn.functional.one_hot(target, len(last.weight)).bool()
    return Interval.trusted(lower.masked_fill(own, 0), upper.masked_fill(own, 0))


@dataclass(frozen=True)
class _HiddenOutputs:
    """What the deviation of outputs behind a hidden layer depends on.

    Args:
        activation_norm: largest ``‖ẑ‖`` at the nominal parameters, (b,).
        possibly_on: units that are active somewhere, (b, h).
        length: largest ``‖x̂‖``, (b,).
    """

    activation_norm: Tensor
    possibly_on: Tensor
    length: Tensor

    @classmethod
    def of(cls, last: Layer, hidden: Interval, activation: Interval, length: Tensor) -> _HiddenOutputs:
        """From bounds on preactivations over the ball and on activations at the nominal parameters."""
        return cls(with_one(activation.upper.norm(dim=1), last.trains_bias), hidden.upper >= 0, length)

    def deviation(self, rows: Tensor, radius: float, movers: int) -> Tensor:
        """``R (movers ‖ẑ‖² + ‖row on active units‖² ‖x̂‖²)^½ + √movers R²/2 ‖x̂‖``, (b, K).

        Args:
            rows: of the last weight, or differences of two of its rows, (K, h).
            radius: R.
            movers: number of rows of the last weight that move.
        """
        active = (self.possibly_on.to(rows.dtype) @ rows.square().T).sqrt()
        first_order = torch.hypot(movers**0.5 * self.activation_norm[:, None], active * self.length[:, None])
        deviation: Tensor = radius * first_order + (movers**0.5 * radius * radius / 2) * self.length[:, None]
        return deviation


def _relu(values: Interval) -> Interval:
    return Interval.trusted(values.lower.clamp(min=0), values.upper.clamp(min=0), nonnegative=True)


def _widened(values: Interval, by: Tensor) -> Interval:
    return Interval.trusted(values.lower - by, values.upper + by)
