"""What poisoned samples add to a step of a deep head: suprema over ball, features and labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.domains.ball.deep.difference import bent_signals, joined, mismatch
from agt_lightning.domains.ball.deep.reach import DeepReach
from agt_lightning.domains.ball.deep.switching import Switching
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.poison_sizes import PoisonSizes
from agt_lightning.domains.ball.samples import Poison
from agt_lightning.domains.losses import HeadLoss
from agt_lightning.interval import Interval


def poison_sizes(reach: DeepReach, poison: Poison, loss: HeadLoss) -> PoisonSizes:
    """How far poisoned gradients can be from clean ones at the same parameters anywhere in the ball.

    Args:
        reach: the samples that can be poisoned.
        poison: what the adversary can do to them.
        loss: of one sample.
    """
    labels = loss.label_change(poison.labels, reach.samples.outputs.shape[1])
    if poison.moves is not None:
        return _moved(reach, poison, poison.moves, loss, labels)
    return PoisonSizes(
        plain=labels * reach.steepest,
        energy=loss.energy(torch.zeros_like(labels), reach.outputs, poison.labels),
        rest=labels * mismatch(reach).norm(dim=0),
    )


def _moved(reach: DeepReach, poison: Poison, moves: Perturbation, loss: HeadLoss, labels: Tensor) -> PoisonSizes:
    """Features move, and labels may: ``J(x̃)ᵀ g̃' - J(x)ᵀ g̃ = J(x)ᵀ (g̃' - g̃) + (J(x̃) - J(x))ᵀ g̃'``."""
    movement = _movement(reach, moves, poison.boxes)
    target = poison.labels.clean
    steepest = loss.largest_gradient(poison.labels, reach.samples.outputs.shape[1])
    gradient = loss.gradient(reach.samples.outputs, target).norm(dim=1)
    before = (gradient + loss.gradient_change(reach.outputs, target)).clamp(max=steepest)
    _, curvature = loss.curvature(reach.outputs.grown(movement.output), target)
    moved = (curvature * movement.output).clamp(max=2 * steepest)
    change = (moved + labels).clamp(max=2 * steepest)
    after = (before + change).clamp(max=steepest)
    turned = after * movement.derivative
    return PoisonSizes(
        plain=change * reach.steepest + turned,
        energy=loss.energy(moved, reach.outputs, poison.labels),
        rest=change * mismatch(reach).norm(dim=0) + turned,
    )


@dataclass(frozen=True)
class _Movement:
    """How far outputs and their derivative move with the features of poisoned samples, anywhere in the ball.

    Args:
        output: ``‖Δf‖``, (m,).
        derivative: ``‖Δ∂f/∂θ‖``, (m,).
    """

    output: Tensor
    derivative: Tensor


def _movement(reach: DeepReach, moves: Perturbation, boxes: tuple[Interval, ...] | None) -> _Movement:
    head, radius = reach.head, reach.head.radius
    length = moves.norm().expand_as(reach.entering[0])
    along = moves.along(head.layers[0].weight)
    first = along.norm(dim=1).clamp(max=head.norms[0] * moves.norm()).expand_as(length)
    moved = [length, first + radius * length]
    for norm in head.norms[1:]:
        moved.append((norm + radius) * moved[-1])
    switching = _switching(reach, moved, along, boxes)
    bent = bent_signals(reach, 0.0, switching)
    *entering, output = moved
    after = [values + more for values, more in zip(reach.largest_entering, entering, strict=True)]
    derivative = joined(bent, after, reach.largest_sent, entering).norm(dim=0)
    return _Movement(torch.minimum(output, _output(reach, moves, first, bent[0])), derivative)


def _switching(
    reach: DeepReach, moved: list[Tensor], along: Tensor, boxes: tuple[Interval, ...] | None
) -> list[Switching]:
    """Units that can have different signs with and without the movement of features."""
    head, radius = reach.head, reach.head.radius
    switching = []
    for number, units in enumerate(reach.units):
        if number == 0:
            more = along + radius * moved[0][:, None]
        else:
            more = (head.layers[number].weight.norm(dim=1) + radius) * moved[number][:, None]
        known = [] if boxes is None or reach.samples.boxes is None else [reach.samples.boxes[number], boxes[number]]
        switching.append(units.within(more, radius * units.slope + moved[number + 1], known))
    return switching


def _output(reach: DeepReach, moves: Perturbation, first: Tensor, bent: Tensor) -> Tensor:
    """``‖f(x + Δx) - f(x)‖`` as ``∫ B̃₁ W̃₁ Δx`` along the way, where nominal ``B₁ W₁ Δx`` cancels among units, (m,)."""
    rows = reach.signals[0] @ reach.head.layers[0].weight
    nominal = torch.stack([moves.along_own(row) for row in rows.unbind(dim=1)], dim=1).norm(dim=1)
    length = moves.norm().expand_as(first)
    moved: Tensor = (
        nominal + (reach.bent[0] + bent) * first + (reach.largest_sent[0] + bent) * reach.head.radius * length
    )
    return moved
