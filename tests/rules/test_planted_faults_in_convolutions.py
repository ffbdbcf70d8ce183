"""The laws notice when a rule for convolutions, pooling or normalization is broken, or only loose."""

from dataclasses import replace

import pytest
import torch

from agt_lightning.arithmetic import convolution, products
from agt_lightning.arithmetic.convolution import Windows
from agt_lightning.gradients import PatchProduct
from agt_lightning.interval import Interval
from agt_lightning.rules import convolution as convolution_rules
from agt_lightning.rules import normalization, pooling
from agt_lightning.rules.convolution import Convolution
from agt_lightning.rules.normalization import BatchNormalization, LayerNormalization, Standardized
from agt_lightning.rules.pooling import AdaptiveAveragePool, AveragePool, MaxPool
from agt_lightning.rules.values import as_interval
from tests.faults import Fault
from tests.rules.faults import LOOSE, UNSOUND, Exactness, Laws, broken_rules

aten = torch.ops.aten


class LowerWeightBackward(Convolution):
    def backward(self, site, grad, inputs, output):
        return super().backward(
            site, grad, [inputs[0], Interval.point(as_interval(inputs[1]).lower), *inputs[2:]], output
        )


class LowerInputGradient(Convolution):
    def parameter_gradient(self, site, position, grad, inputs):
        return super().parameter_gradient(
            site, position, grad, [Interval.point(as_interval(inputs[0]).lower), *inputs[1:]]
        )


class WithoutBias(Convolution):
    def forward(self, site, inputs):
        return super().forward(site, inputs[:2])


class WithoutDilation(Convolution):
    def parameter_gradient(self, site, position, grad, inputs):
        gradient = super().parameter_gradient(site, position, grad, inputs)
        if not isinstance(gradient, PatchProduct):
            return gradient
        windows = replace(gradient.windows, dilation=(1,) * len(gradient.windows.kernel))
        return PatchProduct(gradient.outputs, gradient.image, windows)


class BiasOfOnePosition(Convolution):
    def parameter_gradient(self, site, position, grad, inputs):
        if position == 2:
            grad = grad.mapped(lambda bound: bound.flatten(2)[:, :, :1])
        return super().parameter_gradient(site, position, grad, inputs)


class SamePaddingInFront(Convolution):
    def _windows(self, site):
        windows = super()._windows(site)
        return replace(windows, before=tuple(w - 1 - b for w, b in zip(windows.spans, windows.before, strict=True)))


class FactorsNotExchanged(Convolution):
    def parameter_gradient(self, site, position, grad, inputs):
        windows = self._windows(site)
        if position == 2:
            return super().parameter_gradient(site, position, grad, inputs)
        flipped = as_interval(inputs[0]).mapped(lambda bound: bound.flip(1))
        return PatchProduct(flipped, grad, windows)


class AverageGradientOfSum(AveragePool):
    def backward(self, site, grad, inputs, output):
        return [part.mapped(lambda bound: 2 * bound) for part in super().backward(site, grad, inputs, output)]


class AdaptiveGradientToOne(AdaptiveAveragePool):
    def backward(self, site, grad, inputs, output):
        value = as_interval(inputs[0])
        return [part.mapped(lambda b: torch.zeros_like(b)) for part in [value]]


class MaximumOfUpperEnds(MaxPool):
    def backward(self, site, grad, inputs, output):
        return super().backward(site, grad, [Interval.point(as_interval(inputs[0]).upper)], output)


class UnchangedByVariance(BatchNormalization):
    def towards_input(self, site, grad, inputs):
        return grad


class GainWithoutNormalization(BatchNormalization):
    def parameter_gradient(self, site, position, grad, inputs):
        return super().parameter_gradient(site, 2 if position == 1 and len(inputs) == 5 else position, grad, inputs)


class LayerNormalizationWithFixedStatistics(LayerNormalization):
    def towards_input(self, site, grad, inputs):
        standardized = normalization.standardize(self._grouped(site, as_interval(inputs[0])), site.number("eps"))
        product = normalization.multiply(self._grouped(site, grad), standardized.inverse)
        return product.mapped(lambda bound: bound.reshape(grad.shape))

    def rounded_towards_input(self, site, grad, inputs, arithmetic):
        return self.towards_input(site, grad, inputs), torch.zeros(())


BROKEN_RULES = {
    "convolution: lower weight in the backward pass": (aten.conv2d.default, LowerWeightBackward()),
    "convolution: lower input in the weight gradient": (aten.conv2d.default, LowerInputGradient()),
    "convolution: no bias": (aten.conv1d.default, WithoutBias()),
    "convolution: dilation forgotten in the weight gradient": (aten.conv1d.default, WithoutDilation()),
    "convolution: bias gradient of one position": (aten.conv3d.default, BiasOfOnePosition()),
    "convolution: odd padding in front": (aten.conv1d.padding, SamePaddingInFront()),
    "transposed convolution: channels exchanged": (aten.conv_transpose2d.input, FactorsNotExchanged(True)),
    "average: gradient doubled": (aten.avg_pool2d.default, AverageGradientOfSum(2)),
    "adaptive average: no gradient": (aten.adaptive_avg_pool2d.default, AdaptiveGradientToOne(2)),
    "maximum: winners at one end": (aten.max_pool2d.default, MaximumOfUpperEnds(2)),
    "batch norm: factor dropped": (aten.batch_norm.default, UnchangedByVariance()),
    "batch norm: gain's gradient is the bias's": (aten.batch_norm.default, GainWithoutNormalization()),
    "layer norm: statistics held fixed": (aten.layer_norm.default, LayerNormalizationWithFixedStatistics()),
}


@pytest.mark.parametrize("fault", broken_rules(BROKEN_RULES), ids=str)
def test_laws_notice_a_broken_rule(fault):
    fault.require_noticed(UNSOUND)


# --- faults of the pieces --------------------------------------------------------------------------------------------


def last_winner(lower, upper):
    """Ties go to the last entry."""
    wins, may_win = winners(lower.flip(-1), upper.flip(-1))
    return wins.flip(-1), may_win.flip(-1)


def always_winners(lower, upper):
    """Whoever may win is taken to win."""
    _, may_win = winners(lower, upper)
    return may_win, may_win


winners = pooling._winners
standardize = normalization.standardize
closest_constant = normalization._closest_constant


def variance_of_centers(x):
    """The variance taken at the middle of the box."""
    return Interval.point(x.center.var(dim=-1, keepdim=True, correction=0))


def standardized_at_ends(x, epsilon):
    """Both ends of the box normalized: not the extremes."""
    low, high = (standardize(Interval.point(bound), epsilon) for bound in (x.lower, x.upper))
    ends = low.values.hull(high.values)
    return Standardized(ends, low.inverse.hull(high.inverse))


def fold_without_overlap(windows, columns):
    """Overlapping contributions halved."""
    return fold(windows, columns) / 2


fold = Windows.fold

BROKEN_PIECES = [
    Fault("ties go to the last entry", Laws(aten.max_pool2d.default), last_winner, (pooling, "_winners")),
    Fault("possible winners always win", Laws(aten.max_pool2d.default), always_winners, (pooling, "_winners")),
    Fault("fold halved", Laws(aten.conv2d.default), fold_without_overlap, (Windows, "fold")),
    Fault(
        "variance of the center",
        Laws(aten.layer_norm.default),
        variance_of_centers,
        (normalization, "variance_bounds"),
    ),
    Fault("normalized ends", Laws(aten.group_norm.default), standardized_at_ends, (normalization, "standardize")),
    Fault(
        "alignment forgotten",
        Laws(aten.layer_norm.default),
        lambda h, n: torch.zeros_like(n.lower[..., :1]),
        (normalization, "_largest_mean_product"),
    ),
    Fault(
        "least variance around a wrong constant",
        Laws(aten.layer_norm.default),
        lambda low, high: closest_constant(low, high) + 0.5,
        (normalization, "_closest_constant"),
    ),
]


@pytest.mark.parametrize("fault", BROKEN_PIECES, ids=str)
def test_laws_notice_a_broken_piece(fault):
    fault.require_noticed(UNSOUND)


# Sound but loose: only the exactness law can tell.
def sum_of_both_products(a, b):
    """Straddling factors: both products added where only the larger counts."""
    exact = largest_products(a, b)
    high = (a.upper.clamp(min=0)[..., None] * b.upper.clamp(min=0)[..., None, :, :]).sum(dim=-2)
    low = (a.lower.clamp(max=0)[..., None] * b.lower.clamp(max=0)[..., None, :, :]).sum(dim=-2)
    return torch.maximum(exact, high + low)


largest_products = products._largest_products


def any_winner(lower, upper):
    """Every entry may win, none always does."""
    return torch.zeros_like(lower, dtype=torch.bool), torch.ones_like(lower, dtype=torch.bool)


def center_and_radius(image, weight, windows):
    """Rump's product of midpoints and radii."""
    points = Interval.point(image.center), Interval.point(weight.center)
    sizes = [Interval.point(bound, nonnegative=True) for bound in (image.magnitude, weight.magnitude)]
    center = exact_convolve(*points, windows).lower
    radius = exact_convolve(*sizes, windows).lower
    radius = (
        radius
        - exact_convolve(Interval.point(points[0].lower.abs()), Interval.point(points[1].lower.abs()), windows).lower
    )
    return Interval.trusted(center - radius, center + radius)


exact_convolve = convolution.convolve

LOOSE_PIECES = [
    Fault(
        "straddling products added",
        Exactness(aten.conv1d.default),
        sum_of_both_products,
        (products, "_largest_products"),
    ),
    Fault("every entry may be the largest", Exactness(aten.max_pool2d.default), any_winner, (pooling, "_winners")),
    Fault("midpoint and radius", Exactness(aten.conv1d.default), center_and_radius, (convolution_rules, "convolve")),
]


@pytest.mark.parametrize("fault", LOOSE_PIECES, ids=str)
def test_exactness_notices_a_loose_piece(fault):
    fault.require_noticed(LOOSE)
