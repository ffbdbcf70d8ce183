"""One step of a network with one hidden layer."""

import torch
from torch import Tensor

from agt_lightning.domains.ball.hidden.poison import poison_sizes
from agt_lightning.domains.ball.hidden.reach import HiddenLayer, HiddenReach
from agt_lightning.domains.ball.hidden.remainder import curvature_norm, remainder
from agt_lightning.domains.ball.losses import HeadLoss, Target
from agt_lightning.domains.ball.radius import StepConstants
from agt_lightning.domains.ball.samples import Poison, Samples


def hidden_constants(
    layer: HiddenLayer, samples: Samples, target: Target, weights: Tensor, loss: HeadLoss, poison: Poison | None
) -> StepConstants:
    """Everything that one step of the radius needs.

    Args:
        layer: the layers and the ball.
        samples: all samples of the step.
        target: their targets.
        weights: weight of each sample in the loss, (b,).
        loss: of one sample.
        poison: what the adversary can do; None if nothing.
    """
    reach = HiddenReach(layer, samples)
    _, steepest = loss.curvature(reach.outputs, target)
    gradient, change = loss.gradient(samples.outputs, target), loss.gradient_change(reach.outputs, target)
    sensitivity = (reach.slope + layer.radius / 2 * reach.input_norm).square()
    other, monotone = remainder(reach, gradient, change, weights)
    size = layer.second_norm * reach.activation_norm + samples.outputs.norm(dim=1)
    rounding = reach.rounding(len(weights)) * float(weights @ ((gradient.norm(dim=1) + steepest * size) * reach.slope))
    plain, energy, rest = 0.0, 0.0, 0.0
    if poison is not None:
        every = torch.equal(poison.rows, torch.arange(len(weights), device=weights.device))
        sizes = poison_sizes(reach if every else HiddenReach(layer, samples[poison.rows]), poison, loss)
        plain, energy, rest = sizes.worst(weights[poison.rows], poison.n)
    return StepConstants(
        trace=float(weights @ (steepest * sensitivity)),
        norm=lambda: curvature_norm(reach, weights * steepest),
        remainder=other + rounding,
        monotone=monotone,
        poison=plain,
        energy=energy,
        rest=rest,
    )
