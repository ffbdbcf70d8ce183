"""The laws notice broken rules of powers, norms, extreme entries, choices, gates and interpolation."""

import math
from dataclasses import replace

import pytest
import torch

from agt_lightning.arithmetic import multiply
from agt_lightning.interval import Interval
from agt_lightning.rules import RULES
from agt_lightning.rules.choice import Where
from agt_lightning.rules.elementwise import PiecewiseMonotoneFunction
from agt_lightning.rules.extremes import ExtremeEntry
from agt_lightning.rules.gated import GatedLinearUnit
from agt_lightning.rules.interpolation import LinearUpsampling
from agt_lightning.rules.likeness import Like
from agt_lightning.rules.norm import VectorNorm
from agt_lightning.rules.power import Power
from agt_lightning.rules.prelu import ParametricReLU
from agt_lightning.rules.softmax import LogSumExp
from agt_lightning.rules.transcendental import Sinusoid
from agt_lightning.rules.values import as_interval
from tests.rules.faults import LOOSE, UNSOUND, broken_rules, loose_rules
from tests.rules.test_planted_faults_in_networks import without_turns

aten = torch.ops.aten


def by_ends(sinusoid: Sinusoid) -> PiecewiseMonotoneFunction:
    return PiecewiseMonotoneFunction(sinusoid.function)


class CubeOfSquares(Power):
    """The derivative without its exponent."""

    def backward(self, site, grad, inputs, output):
        (gradient,) = super().backward(site, grad, inputs, output)
        return [gradient.scaled(1 / site.number("exponent"))]


class SlopeAtLowerEnd(ParametricReLU):
    def backward(self, site, grad, inputs, output):
        return super().backward(site, grad, [Interval.point(as_interval(inputs[0]).lower), inputs[1]], output)


class BranchAboveZero(ParametricReLU):
    """Values below zero are forgotten where x can be above."""

    def forward(self, site, inputs):
        exact, x = super().forward(site, inputs), as_interval(inputs[0])
        return Interval.trusted(
            torch.where(x.upper > 0, x.lower.clamp(min=0), exact.lower).minimum(exact.upper), exact.upper
        )


class SlopeOfAllChannels(ParametricReLU):
    def backward(self, site, grad, inputs, output):
        towards, slope = super().backward(site, grad, inputs, output)
        return [towards, slope.mapped(lambda bound: bound.flip(-1))]


class FirstIsLargest(ExtremeEntry):
    """Entries that may be the largest count as if they never were."""

    def _winners(self, site, value):
        always, _ = super()._winners(site, value)
        return always, always


class SureWinners(ExtremeEntry):
    """The entry with the largest lower bound has all of the gradient."""

    def _winners(self, site, value):
        _, possible = super()._winners(site, value)
        return value.lower == value.lower.amax(dim=self._dims(site), keepdim=True), possible


class WholeGradient(LogSumExp):
    def backward(self, site, grad, inputs, output):
        value = as_interval(inputs[0])
        return [
            self.back(
                site,
                multiply(
                    Interval.point(torch.full_like(self.to_front(site, value).lower, 1.0)),
                    self.over_classes(site, grad),
                ),
                value.shape,
            )
        ]


class OtherOrder(LogSumExp):
    """Positions of several axes are mixed up on the way back."""

    def back(self, site, value, shape):
        return value.rearranged(lambda bound: bound.reshape(shape))


class GateOfValue(GatedLinearUnit):
    def halves(self, site, value):
        first, second = super().halves(site, value)
        return second, first


class GateWithoutItsGradient(GatedLinearUnit):
    def backward(self, site, grad, inputs, output):
        (gradient,) = super().backward(site, grad, inputs, output)
        value, _ = self.halves(site, gradient)
        return [Interval.cat([value, value.mapped(torch.zeros_like)], dim=self.axis(site))]


class OthersAtTheirLargest(VectorNorm):
    def _others(self, site, squares):
        return super()._others(site, squares) * 1.5


class NormByEnds(VectorNorm):
    def forward(self, site, inputs):
        value, keepdim = as_interval(inputs[0]), bool(site.call.arguments.get("keepdim", False))
        ends = [self._norm(site, bound, keepdim=keepdim) for bound in (value.lower, value.upper)]
        return Interval.trusted(torch.minimum(*ends), torch.maximum(*ends), nonnegative=True)


class ExchangedChoice(Where):
    def _values(self, site):
        return super()._values(site)[::-1]


class CertainChoice(Where):
    """Flips are forgotten."""

    def _operands(self, site, inputs):
        true, _, first, second = super()._operands(site, inputs)
        return true, None, first, second


class FlippedImage(LinearUpsampling):
    def backward(self, site, grad, inputs, output):
        (gradient,) = super().backward(site, grad, inputs, output)
        return [gradient.mapped(lambda bound: bound.flip(-1))]


class LikeWithGradient(Like):
    def backward(self, site, grad, inputs, output):
        first, _ = super().backward(site, grad, inputs, output)
        return [first.scaled(2.0), None]


SINE, COSINE = RULES[aten.sin.default], RULES[aten.cos.default]

BROKEN_RULES = {
    "sin: turns missed": (aten.sin.default, replace(SINE, value=by_ends(SINE.value))),
    "sin: turns of the slope missed": (aten.sin.default, replace(SINE, slope=by_ends(SINE.slope))),
    "cos: turns at another place": (aten.cos.default, replace(COSINE, value=Sinusoid(torch.cos, crest=math.pi))),
    "mish: minimum missed": (aten.mish.default, without_turns(aten.mish.default, "value")),
    "mish: turns of the slope missed": (aten.mish.default, without_turns(aten.mish.default, "slope")),
    "atan: steepest point missed": (aten.atan.default, without_turns(aten.atan.default, "slope")),
    "hardshrink: slope zero in the middle missed": (
        aten.hardshrink.default,
        without_turns(aten.hardshrink.default, "slope"),
    ),
    "pow: exponent forgotten": (aten.pow.Tensor_Scalar, CubeOfSquares()),
    "prelu: slope at one end": (aten.prelu.default, SlopeAtLowerEnd()),
    "prelu: branch below zero forgotten": (aten.prelu.default, BranchAboveZero()),
    "prelu: slopes of other channels": (aten.prelu.default, SlopeOfAllChannels()),
    "amax: no gradient while unsure": (aten.amax.default, FirstIsLargest(sign=1.0)),
    "amax: all gradient while unsure": (aten.amax.default, SureWinners(sign=1.0)),
    "min: as max": (aten.min.dim, ExtremeEntry(sign=1.0)),
    "logsumexp: all gradient to all": (aten.logsumexp.default, WholeGradient()),
    "logsumexp: positions mixed up": (aten.logsumexp.default, OtherOrder()),
    "glu: halves exchanged": (aten.glu.default, GateOfValue()),
    "glu: no gradient of the gate": (aten.glu.default, GateWithoutItsGradient()),
    "norm: larger others": (aten.linalg_vector_norm.default, OthersAtTheirLargest()),
    "norm: ends only": (aten.linalg_vector_norm.default, NormByEnds()),
    "where: exchanged": (aten.where.self, ExchangedChoice()),
    "where: flips forgotten": (aten.where.self, CertainChoice()),
    "upsample: gradient in another place": (aten.upsample_bilinear2d.vec, FlippedImage()),
    "expand as: gradient doubled": (
        aten.expand_as.default,
        LikeWithGradient(RULES[aten.expand.default], aten.expand.default),
    ),
}


@pytest.mark.parametrize("fault", broken_rules(BROKEN_RULES), ids=str)
def test_laws_notice_a_broken_rule(fault):
    fault.require_noticed(UNSOUND)


class LooseWinners(ExtremeEntry):
    """No entry is ever sure."""

    def _winners(self, site, value):
        _, possible = super()._winners(site, value)
        return torch.zeros_like(possible), torch.ones_like(possible)


@pytest.mark.parametrize(
    "fault", loose_rules({"amax: all entries may be the largest": (aten.amax.default, LooseWinners(sign=1.0))}), ids=str
)
def test_exactness_notices_a_loose_rule(fault):
    fault.require_noticed(LOOSE)
