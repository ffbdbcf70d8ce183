"""A linear head: suprema over the ball for ``f(x) = W x̂`` (theory, "The ball domain", linear heads)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.domains.ball.norms import gram_norm, with_one
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.poison_sizes import PoisonSizes, poison_sums
from agt_lightning.domains.ball.radius import StepConstants
from agt_lightning.domains.ball.samples import Poison, Samples
from agt_lightning.domains.losses import HeadLoss, OutputBounds, Target
from agt_lightning.rounding import accumulated_roundoff


@dataclass(frozen=True)
class LinearLayer:
    """The trained layer at the nominal parameters, and the radius of the ball around it.

    Args:
        weight: W without bias, (K, d).
        trains_bias: whether a bias is trained, that is, x̂ = (x, 1).
        radius: R.
    """

    weight: Tensor
    trains_bias: bool
    radius: float


class LinearReach:
    """Where outputs of samples can be while the parameters are in the ball: ``‖f̃ - f‖ <= R ‖x̂‖``.

    Args:
        layer: the layer and the ball.
        samples: at the nominal parameters.

    Attributes:
        input_norm: ``‖x̂‖``, (b,).
        size: of the summands of the outputs, which their rounding is relative to, (b,).
        outputs: reachable outputs.
    """

    def __init__(self, layer: LinearLayer, samples: Samples) -> None:
        self.layer = layer
        self.samples = samples
        length = samples.inputs.norm(dim=1)
        self.input_norm = with_one(length, layer.trains_bias)
        self.size = length * layer.weight.norm() + samples.outputs.norm(dim=1)
        doubt = accumulated_roundoff(samples.inputs.shape[1] + 2, samples.inputs.dtype) * self.size
        moved = layer.radius * self.input_norm
        self.outputs = OutputBounds.around(samples.outputs, moved + 2 * doubt, samples.output_box)


def linear_constants(
    layer: LinearLayer, samples: Samples, target: Target, weights: Tensor, loss: HeadLoss, poison: Poison | None
) -> StepConstants:
    """Everything that one step of the radius needs; the loss is convex in the parameters, so only rounding remains.

    Args:
        layer: the layer and the ball.
        samples: all samples of the step.
        target: their targets.
        weights: weight of each sample in the loss, (b,).
        loss: of one sample.
        poison: what the adversary can do; None if nothing.
    """
    reach = LinearReach(layer, samples)
    _, steepest = loss.curvature(reach.outputs, target)
    steepness = weights * steepest
    gradient = loss.gradient(samples.outputs, target).norm(dim=1)
    slack = accumulated_roundoff(len(weights) + samples.inputs.shape[1] + layer.trains_bias + 4, weights.dtype)
    rounding = slack * float(weights @ ((gradient + steepest * reach.size) * reach.input_norm))

    def sizes(known: Poison, rows: Tensor | None) -> PoisonSizes:
        if rows is None:
            return _poison_sizes(reach, gradient, known, loss)
        return _poison_sizes(LinearReach(layer, samples[rows]), gradient[rows], known, loss)

    plain, energy, rest = poison_sums(poison, weights, sizes)
    return StepConstants(
        trace=float(steepness @ reach.input_norm.square()),
        norm=lambda: gram_norm(samples.inputs, steepness, layer.trains_bias),
        remainder=rounding,
        monotone=0.0,
        poison=plain,
        energy=energy,
        rest=rest,
    )


def _poison_sizes(reach: LinearReach, gradient: Tensor, poison: Poison, loss: HeadLoss) -> PoisonSizes:
    """``q x̂ᵀ + g̃' Δxᵀ``: the first part has energy, the second is there only if features move.

    Args:
        reach: the samples that can be poisoned.
        gradient: ``‖g‖`` of the same at the nominal parameters, (m,).
        poison: what the adversary can do to them.
        loss: of one sample.
    """
    norm, classes = reach.input_norm, reach.samples.outputs.shape[1]
    labels = loss.label_change(poison.labels, classes)
    if poison.moves is None:
        nothing = torch.zeros_like(norm)
        return PoisonSizes(labels * norm, loss.energy(nothing, reach.outputs, poison.labels), nothing)
    steepest = loss.largest_gradient(poison.labels, classes)
    length, moved = _moved(reach, poison.moves, poison.labels.clean, loss, 2 * steepest)
    before = gradient + loss.gradient_change(reach.outputs, poison.labels.clean)
    after = (before.clamp(max=steepest) + moved + labels).clamp(max=steepest)
    change = (moved + labels).clamp(max=2 * steepest)
    return PoisonSizes(change * norm + after * length, loss.energy(moved, reach.outputs, poison.labels), after * length)


def _moved(
    reach: LinearReach, moves: Perturbation, target: Target, loss: HeadLoss, largest: float
) -> tuple[Tensor, Tensor]:
    """``‖Δx‖``, and the change of the gradient in the outputs that it causes, at most ``largest``, (m,)."""
    layer = reach.layer
    length = moves.norm().expand_as(reach.input_norm)
    output = moves.along(layer.weight).norm(dim=1) + layer.radius * length
    _, curvature = loss.curvature(reach.outputs.grown(output), target)
    return length, (curvature * output).clamp(max=largest)
