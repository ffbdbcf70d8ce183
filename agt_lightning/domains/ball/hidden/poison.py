"""What poisoned samples add to a step of a network with one hidden layer: suprema over ball, features and labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.domains.ball.hidden.reach import HiddenLayer, HiddenReach
from agt_lightning.domains.ball.hidden.signs import NearUnits, rows_of
from agt_lightning.domains.ball.kinks import knapsack
from agt_lightning.domains.ball.pairs import Pairs
from agt_lightning.domains.ball.perturbation import Carried
from agt_lightning.domains.ball.poison_sizes import PoisonSizes
from agt_lightning.domains.ball.samples import Poison
from agt_lightning.domains.losses import HeadLoss
from agt_lightning.interval import Interval


def poison_sizes(reach: HiddenReach, poison: Poison, loss: HeadLoss) -> PoisonSizes:
    """How far poisoned gradients can be from clean ones at the same parameters anywhere in the ball.

    Args:
        reach: the samples that can be poisoned, with the moves of their features.
        poison: what the adversary can do to them.
        loss: of one sample.
    """
    radius = reach.layer.radius
    labels = loss.label_change(poison.labels, reach.samples.outputs.shape[1])
    if poison.moves is not None:
        assert reach.carried is not None
        return _moved(reach, poison, reach.carried, loss, labels)
    return PoisonSizes(
        plain=labels * (reach.slope + radius * reach.input_norm),
        energy=loss.energy(torch.zeros_like(labels), reach.outputs, poison.labels),
        rest=labels * _mismatch(reach),
    )


def _mismatch(reach: HiddenReach) -> Tensor:
    """``‖J̃ - J̄‖`` for each sample: half a movement, and units that switch on the way, as many as the ball can pay."""
    layer, near, norm = reach.layer, reach.near, reach.input_norm
    budget = torch.full_like(norm, layer.radius * layer.radius)
    switched = knapsack(near, near.by_unit(layer.squares), reach.distance.square(), budget).sqrt()
    return norm * (switched.clamp(max=layer.second_norm) + layer.radius / 2 * (1 + _any(near, norm)))


def _any(pairs: Pairs, per_sample: Tensor) -> Tensor:
    """Whether a sample has a pair, as 0 or 1, (b,)."""
    return torch.zeros_like(per_sample).index_fill_(0, pairs.sample, 1.0)


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


def _movement(reach: HiddenReach, carried: Carried, hidden_box: Interval | None) -> _Movement:
    layer, radius, norm = reach.layer, reach.layer.radius, reach.input_norm
    length, unsure = carried.length.expand_as(norm), _unsure(reach, hidden_box)
    frobenius_on = reach.frobenius(unsure)
    weight_on = frobenius_on.clamp(max=layer.second_norm)
    along_unsure = unsure.of(carried.along)
    squares, outputs = _with_slopes(reach, carried, unsure)
    each = squares + unsure.sums(along_unsure.square(), len(norm)) / 2  # of all units that are on or may be
    step = torch.minimum(each.sqrt(), layer.first_norm * length)
    # A unit that switches is nearer to zero than its preactivation moves, and together these move by no more than W₁Δx.
    affordable = (step + radius * (norm + length)).square() * (1 + reach.slack)
    switched = knapsack(unsure, unsure.by_unit(layer.squares), reach.away(unsure).square(), affordable).sqrt()
    output = torch.minimum(outputs.norm(dim=1) + _either(layer, unsure, along_unsure, step), weight_on * step)
    output = output + radius * torch.hypot(step, weight_on * length) + radius * radius / 2 * length
    any_switch = _any(unsure, norm).bool()
    return _Movement(length, step + radius * length, output, weight_on, frobenius_on, switched, any_switch)


def _unsure(reach: HiddenReach, hidden_box: Interval | None) -> NearUnits:
    """Units that can have different signs with and without the movement of features."""
    unsure = reach.unsure
    if hidden_box is None or reach.hidden_box is None:
        return unsure
    lower = torch.minimum(unsure.of(reach.hidden_box.lower), unsure.of(hidden_box.lower))
    upper = torch.maximum(unsure.of(reach.hidden_box.upper), unsure.of(hidden_box.upper))
    return unsure.among((lower <= 0) & (upper >= 0))


def _with_slopes(reach: HiddenReach, carried: Carried, unsure: Pairs) -> tuple[Tensor, Tensor]:
    """``Σ_j s_j along_j²``, (m,), and how far the slopes s carry each output, ``|W₂ diag(s) W₁ Δx|``, (m, K).

    The slope of a unit that is on is one, that of an unsure unit 1/2. Slopes of unsure units are 1/2 ± 1/2: the first
    part cancels among units before the norm, the second cannot.
    """
    layer, squares = reach.layer, carried.along.square()
    matrices = [row[:, None] * layer.first for row in layer.second]
    sums, outputs = [], []
    for rows, slopes in reach.signs.slopes(unsure):
        own, own_squares = carried.moves[rows], rows_of(squares, rows)
        outputs.append(torch.stack([own.along_own(slopes @ matrix) for matrix in matrices], dim=1))
        sums.append(slopes @ own_squares[0] if len(squares) == 1 else (slopes * own_squares).sum(dim=1))
    return torch.cat(sums), torch.cat(outputs)


def _either(layer: HiddenLayer, unsure: Pairs, along: Tensor, step: Tensor) -> Tensor:
    """How far the other part of unsure units' slopes, ± 1/2, carries the outputs, (m,)."""
    spread = unsure.sums(unsure.by_unit(layer.squares), len(step)).sqrt().clamp(max=layer.second_norm) * step
    return torch.minimum(unsure.sums(along * unsure.by_unit(layer.columns), len(step)), spread) / 2


def _moved(reach: HiddenReach, poison: Poison, carried: Carried, loss: HeadLoss, labels: Tensor) -> PoisonSizes:
    """Features move, and labels may."""
    radius, norm = reach.layer.radius, reach.input_norm
    movement = _movement(reach, carried, None if poison.boxes is None else poison.boxes[0])
    length, activation = movement.length, movement.activation
    target = poison.labels.clean
    steepest = loss.largest_gradient(poison.labels, reach.samples.outputs.shape[1])
    gradient = loss.gradient(reach.samples.outputs, target).norm(dim=1)
    before = (gradient + loss.gradient_change(reach.outputs, target)).clamp(max=steepest)
    _, curvature = loss.curvature(reach.outputs.grown(movement.output), target)
    moved = (curvature * movement.output).clamp(max=2 * steepest)
    change = (moved + labels).clamp(max=2 * steepest)
    after = (before + change).clamp(max=steepest)

    same = change * norm + after * length
    switched = torch.maximum(after * (norm + length), torch.maximum(before * norm, same))
    first = movement.rows(same, switched, radius)
    second = change * (reach.activation_norm + radius * norm) + after * activation
    tilt = movement.rows(length, norm + length, radius)
    return PoisonSizes(
        plain=torch.hypot(first, second),
        energy=loss.energy(moved, reach.outputs, poison.labels),
        rest=change * _mismatch(reach) + after * torch.hypot(tilt, activation),
    )
