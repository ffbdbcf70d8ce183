"""A linear head: suprema over the ball for ``f(x) = W x̂`` (theory, "The ball domain", linear heads)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.domains.ball.losses import HeadLoss, Reach, Target
from agt_lightning.domains.ball.norms import append_one, gram_norm, with_one
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.poison_sizes import PoisonSizes, poison_sums
from agt_lightning.domains.ball.radius import StepConstants
from agt_lightning.domains.ball.samples import Poison, Samples
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

    def input_norm(self, inputs: Tensor) -> Tensor:
        """``‖x̂‖``, (b,)."""
        return with_one(inputs.norm(dim=1), self.trains_bias)

    def outputs(self, samples: Samples) -> Reach:
        """Reachable outputs: ``‖f̃ - f‖ <= R ‖x̂‖``."""
        slack = accumulated_roundoff(samples.inputs.shape[1] + 2, samples.inputs.dtype)
        doubt = slack * (samples.inputs.norm(dim=1) * self.weight.norm() + samples.outputs.norm(dim=1))
        moved = self.radius * self.input_norm(samples.inputs)
        return Reach.around(samples.outputs, moved + 2 * doubt, samples.output_box)


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
    _, steepest = loss.curvature(layer.outputs(samples), target)
    steepness = weights * steepest
    inputs = append_one(samples.inputs, layer.trains_bias)
    gradient = loss.gradient(samples.outputs, target).norm(dim=1)
    size = layer.weight.norm() * samples.inputs.norm(dim=1) + samples.outputs.norm(dim=1)
    slack = accumulated_roundoff(len(weights) + inputs.shape[1] + 4, inputs.dtype)
    rounding = slack * float(weights @ ((gradient + steepest * size) * layer.input_norm(samples.inputs)))

    def sizes(known: Poison, rows: Tensor | None) -> PoisonSizes:
        return _poison_sizes(layer, samples if rows is None else samples[rows], known, loss)

    plain, energy, rest = poison_sums(poison, weights, sizes)
    return StepConstants(
        trace=float(steepness @ inputs.square().sum(dim=1)),
        norm=lambda: gram_norm(inputs, steepness),
        remainder=rounding,
        monotone=0.0,
        poison=plain,
        energy=energy,
        rest=rest,
    )


def _poison_sizes(layer: LinearLayer, samples: Samples, poison: Poison, loss: HeadLoss) -> PoisonSizes:
    """``q x̂ᵀ + g̃' Δxᵀ``: the first part has energy, the second is there only if features move."""
    norm, reach = layer.input_norm(samples.inputs), layer.outputs(samples)
    labels = loss.label_change(poison.labels, samples.outputs.shape[1])
    if poison.moves is None:
        nothing = torch.zeros_like(norm)
        return PoisonSizes(labels * norm, loss.energy(nothing, reach, poison.labels), nothing)
    length, moved, after = _moved(layer, samples, reach, poison.moves, poison, loss)
    steepest = loss.largest_gradient(poison.labels, samples.outputs.shape[1])
    change = (moved + labels).clamp(max=2 * steepest)
    return PoisonSizes(change * norm + after * length, loss.energy(moved, reach, poison.labels), after * length)


def _moved(
    layer: LinearLayer, samples: Samples, reach: Reach, moves: Perturbation, poison: Poison, loss: HeadLoss
) -> tuple[Tensor, Tensor, Tensor]:
    """``‖Δx‖``, the change of the gradient in the outputs that it causes, and that gradient's size after it, (m,)."""
    target, classes = poison.labels.clean, samples.outputs.shape[1]
    steepest = loss.largest_gradient(poison.labels, classes)
    length = moves.norm().expand(len(samples.outputs))
    output = moves.along(layer.weight).norm(dim=1) + layer.radius * length
    _, curvature = loss.curvature(reach.grown(output), target)
    moved = (curvature * output).clamp(max=2 * steepest)
    before = loss.gradient(samples.outputs, target).norm(dim=1) + loss.gradient_change(reach, target)
    after = (before.clamp(max=steepest) + moved + loss.label_change(poison.labels, classes)).clamp(max=steepest)
    return length, moved, after
