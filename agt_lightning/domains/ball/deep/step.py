"""One step of a head with any number of hidden layers."""

from torch import Tensor

from agt_lightning.domains.ball.deep.poison import poison_sizes
from agt_lightning.domains.ball.deep.reach import DeepHead, DeepReach
from agt_lightning.domains.ball.deep.remainder import curvature_norm, remainder
from agt_lightning.domains.ball.poison_sizes import PoisonSizes, poison_sums
from agt_lightning.domains.ball.radius import StepConstants
from agt_lightning.domains.ball.samples import Poison, Samples
from agt_lightning.domains.losses import HeadLoss, Target
from agt_lightning.rounding import accumulated_roundoff


def deep_constants(
    head: DeepHead, samples: Samples, target: Target, weights: Tensor, loss: HeadLoss, poison: Poison | None
) -> StepConstants:
    """Everything that one step of the radius needs.

    Args:
        head: the layers and the ball.
        samples: all samples of the step.
        target: their targets.
        weights: weight of each sample in the loss, (b,).
        loss: of one sample.
        poison: what the adversary can do; None if nothing.
    """
    reach = DeepReach(head, samples)
    _, steepest = loss.curvature(reach.outputs, target)
    gradient, change = loss.gradient(samples.outputs, target), loss.gradient_change(reach.outputs, target)
    other, monotone = remainder(reach, gradient, change, weights)
    slack = accumulated_roundoff(len(weights) + head.roundings, weights.dtype)
    rounding = slack * float(weights @ ((gradient.norm(dim=1) + steepest * reach.output_size) * reach.slope_size))

    def sizes(known: Poison, rows: Tensor | None) -> PoisonSizes:
        return poison_sizes(reach if rows is None else DeepReach(head, samples[rows]), known, loss)

    plain, energy, rest = poison_sums(poison, weights, sizes)
    return StepConstants(
        trace=float(weights @ (steepest * reach.steepest.square())),
        norm=lambda: curvature_norm(reach, weights * steepest),
        remainder=other + rounding,
        monotone=monotone,
        poison=plain,
        energy=energy,
        rest=rest,
    )
