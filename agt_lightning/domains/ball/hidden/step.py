"""One step of a network with one hidden layer."""

from torch import Tensor

from agt_lightning.domains.ball.hidden.poison import poison_sizes
from agt_lightning.domains.ball.hidden.reach import HiddenLayer, HiddenReach
from agt_lightning.domains.ball.hidden.remainder import curvature_norm, remainder
from agt_lightning.domains.ball.poison_sizes import PoisonSizes, poison_sums
from agt_lightning.domains.ball.radius import StepConstants
from agt_lightning.domains.ball.samples import Poison, Samples
from agt_lightning.domains.losses import HeadLoss, Target


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
    moves = poison.moves if poison is not None and poison.reaches_all(len(weights)) else None
    reach = HiddenReach(layer, samples, moves)
    _, steepest = loss.curvature(reach.outputs, target)
    gradient, change = loss.gradient(samples.outputs, target), loss.gradient_change(reach.outputs, target)
    sensitivity = (reach.slope + layer.radius / 2 * reach.input_norm).square()
    other, monotone = remainder(reach, gradient, change, weights)
    size = layer.second_norm * reach.activation_norm + samples.outputs.norm(dim=1)
    rounding = reach.rounding(len(weights)) * float(weights @ ((gradient.norm(dim=1) + steepest * size) * reach.slope))

    def sizes(known: Poison, rows: Tensor | None) -> PoisonSizes:
        return poison_sizes(reach if rows is None else HiddenReach(layer, samples[rows], known.moves), known, loss)

    plain, energy, rest = poison_sums(poison, weights, sizes)
    return StepConstants(
        trace=float(weights @ (steepest * sensitivity)),
        norm=lambda: curvature_norm(reach, weights * steepest),
        remainder=other + rounding,
        monotone=monotone,
        poison=plain,
        energy=energy,
        rest=rest,
    )
