"""What poisoned samples add to a step of a network with one hidden layer: suprema over ball, features and labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.domains.ball.hidden.reach import HiddenReach
from agt_lightning.domains.ball.kinks import knapsack
from agt_lightning.domains.ball.losses import HeadLoss
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.poison_sizes import PoisonSizes
from agt_lightning.domains.ball.samples import Poison
from agt_lightning.interval import Interval


def poison_sizes(reach: HiddenReach, poison: Poison, loss: HeadLoss) -> PoisonSizes:
    """How far poisoned gradients can be from clean ones at the same parameters anywhere in the ball.

    Args:
        reach: the samples that can be poisoned.
        poison: what the adversary can do to them.
        loss: of one sample.
    """
    radius = reach.layer.radius
    labels = loss.label_change(poison.labels, reach.samples.outputs.shape[1])
    if poison.moves is not None:
        return _moved(reach, poison, poison.moves, loss, labels)
    return PoisonSizes(
        plain=labels * (reach.slope + radius * reach.input_norm),
        energy=loss.energy(torch.zeros_like(labels), reach.outputs, poison.labels),
        rest=labels * _mismatch(reach),
    )


def _mismatch(reach: HiddenReach) -> Tensor:
    """``‖J̃ - J̄‖`` for each sample: half a movement, and units that switch on the way, as many as the ball can pay."""
    radius = reach.layer.radius
    near = reach.distance <= radius
    cost = torch.where(near, reach.distance, torch.zeros_like(reach.distance)).square()
    switched = knapsack(
        near * reach.layer.columns.square(), cost, torch.full_like(reach.input_norm, radius * radius)
    ).sqrt()
    return reach.input_norm * (switched.clamp(max=reach.layer.second_norm) + radius / 2 * (1 + near.any(dim=1)))


@dataclass(frozen=True)
class _Movement:
    """How far hidden units and outputs of poisoned samples move with their features, anywhere in the ball.

    Args:
        length: ``‖Δx‖``, (m,).
        activation: ``‖Δz‖``, (m,).
        output: ``‖Δf‖``, (m,).
        weight_on: ``‖W₂‖`` on units that may be active before or after, (m,).
        frobenius_on: its Frobenius norm, (m,).
        switched: ``‖W₂ diag(T)‖_F`` on units that switch with the features, as many as these can pay, (m,). Not the
            spectral norm: units that turn on meet the gradient after, units that turn off the one before.
        any_switch: whether there is such a unit, (m,).
    """

    length: Tensor
    activation: Tensor
    output: Tensor
    weight_on: Tensor
    frobenius_on: Tensor
    switched: Tensor
    any_switch: Tensor

    def rows(self, steady: Tensor, switching: Tensor, radius: float) -> Tensor:
        """Norm of the first layer's part if each active unit adds ``steady``, and each that switches ``switching``.

        In units of ``‖W̃₂ e_j‖``; ``steady <= switching``, all (m,).
        """
        apart = torch.hypot(self.weight_on * steady, self.switched * switching)
        more = self.switched.square() * (switching.square() - steady.square())
        joint = ((self.frobenius_on * steady).square() + more).sqrt()
        return torch.minimum(apart, joint) + radius * torch.where(self.any_switch, switching, steady)


def _movement(reach: HiddenReach, moves: Perturbation, hidden_box: Interval | None) -> _Movement:
    layer, radius, hidden = reach.layer, reach.layer.radius, reach.hidden
    length, along = moves.norm(), moves.along(layer.first)
    budget = (radius * (reach.input_norm + length))[:, None] + along + reach.doubt
    unsure, on = hidden.abs() <= budget, hidden >= -budget
    if hidden_box is not None and reach.hidden_box is not None:
        before = reach.hidden_box
        unsure &= ~((before.lower > 0) & (hidden_box.lower > 0) | (before.upper < 0) & (hidden_box.upper < 0))
        on &= (before.upper >= 0) | (hidden_box.upper >= 0)
    step = torch.minimum((on * along.square()).sum(dim=1).sqrt(), layer.first_norm * length)
    weight_on, frobenius_on = layer.on(on), layer.frobenius(on)
    # A unit that switches is nearer to zero than its preactivation moves, and together these move by no more than W₁Δx.
    affordable = (step + radius * (reach.input_norm + length)).square() * (1 + reach.slack)
    near = (hidden.abs() - reach.doubt).clamp(min=0) * unsure
    switched = knapsack(unsure * layer.columns.square(), near.square(), affordable).sqrt()
    half = torch.where(unsure, 0.5, on.to(hidden.dtype))
    sure = torch.stack([moves.along_own((half * row) @ layer.first) for row in layer.second], dim=1).norm(dim=1)
    either = torch.minimum((unsure * along) @ layer.columns, layer.on(unsure) * step) / 2
    first_order = torch.minimum(sure + either, weight_on * step)
    output = first_order + radius * torch.hypot(step, weight_on * length) + radius * radius / 2 * length
    return _Movement(length, step + radius * length, output, weight_on, frobenius_on, switched, unsure.any(dim=1))


def _moved(reach: HiddenReach, poison: Poison, moves: Perturbation, loss: HeadLoss, labels: Tensor) -> PoisonSizes:
    """Features move, and labels may."""
    radius, norm = reach.layer.radius, reach.input_norm
    movement = _movement(reach, moves, None if poison.boxes is None else poison.boxes[0])
    length, activation = movement.length, movement.activation
    target = poison.labels.clean
    steepest = loss.largest_gradient(poison.labels, reach.samples.outputs.shape[1])
    gradient = loss.gradient(reach.samples.outputs, target).norm(dim=1)
    before = (gradient + loss.gradient_change(reach.outputs, target)).clamp(max=steepest)
    _, curvature = loss.curvature(reach.outputs.grown(movement.output), target)
    moved = (curvature * movement.output).clamp(max=2 * steepest)
    change = (moved + labels).clamp(max=2 * steepest)
    after = (before + change).clamp(max=steepest)

    same = change * norm + (before + change) * length
    switched = torch.maximum(after * (norm + length), torch.maximum(before * norm, same))
    first = movement.rows(same, switched, radius)
    second = change * (reach.activation_norm + radius * norm) + (before + change) * activation
    tilt = movement.rows(length, norm + length, radius)
    return PoisonSizes(
        plain=torch.hypot(first, second),
        energy=loss.energy(moved, reach.outputs, poison.labels),
        rest=change * _mismatch(reach) + after * torch.hypot(tilt, activation),
    )
