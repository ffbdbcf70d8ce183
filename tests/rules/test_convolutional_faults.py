"""The laws notice when a rule for convolutions, pooling or normalization is broken, or only loose."""

from dataclasses import replace

import pytest
import torch

from agt_lightning.arithmetic import convolution
from agt_lightning.arithmetic.convolution import Windows
from agt_lightning.gradients import PatchProduct, outer_product
from agt_lightning.interval import Interval
from agt_lightning.rules import RULES, normalization, pooling
from agt_lightning.rules import convolution as convolution_rules
from agt_lightning.rules.base import as_interval, map_bounds
from agt_lightning.rules.convolution import Convolution
from agt_lightning.rules.normalization import BatchNormalization, LayerNormalization, Standardized
from agt_lightning.rules.pooling import AdaptiveAveragePool, AveragePool, MaxPool
from tests.rules.laws import LAWS, bounds_are_attained
from tests.rules.settings import SETTINGS

aten = torch.ops.aten


def check_rule(op, table=RULES):
    """Every law of every setting of one op."""
    for setting in SETTINGS:
        if setting.op is op:
            for law in LAWS:
                law(setting, torch.float64, table)


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
            grad = map_bounds(grad, lambda bound: bound.flatten(2)[:, :, :1])
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
        flipped = map_bounds(as_interval(inputs[0]), lambda bound: bound.flip(1))
        return PatchProduct(flipped, grad, windows)


class AverageGradientOfSum(AveragePool):
    def backward(self, site, grad, inputs, output):
        return [map_bounds(part, lambda bound: 2 * bound) for part in super().backward(site, grad, inputs, output)]


class AdaptiveGradientToOne(AdaptiveAveragePool):
    def backward(self, site, grad, inputs, output):
        value = as_interval(inputs[0])
        return [map_bounds(part, lambda b: torch.zeros_like(b)) for part in [value]]


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
        return map_bounds(product, lambda bound: bound.reshape(grad.shape))


FAULTS = {
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


@pytest.mark.parametrize("name", FAULTS)
def test_laws_notice_a_broken_rule(name):
    op, broken = FAULTS[name]
    with pytest.raises(AssertionError, match="leaves its bounds|has width"):
        check_rule(op, {**RULES, op: broken})


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

PIECES = {
    "ties go to the last entry": (aten.max_pool2d.default, pooling, "_winners", last_winner),
    "possible winners always win": (aten.max_pool2d.default, pooling, "_winners", always_winners),
    "fold halved": (aten.conv2d.default, Windows, "fold", fold_without_overlap),
    "variance of the center": (aten.layer_norm.default, normalization, "variance_bounds", variance_of_centers),
    "normalized ends": (aten.group_norm.default, normalization, "standardize", standardized_at_ends),
    "alignment forgotten": (
        aten.layer_norm.default,
        normalization,
        "_largest_mean_product",
        lambda h, n: torch.zeros_like(n.lower[..., :1]),
    ),
    "least variance around a wrong constant": (
        aten.layer_norm.default,
        normalization,
        "_closest_constant",
        lambda low, high: closest_constant(low, high) + 0.5,
    ),
}


@pytest.mark.parametrize("name", PIECES)
def test_laws_notice_a_broken_piece(name, monkeypatch):
    op, owner, attribute, broken = PIECES[name]
    monkeypatch.setattr(owner, attribute, broken)
    with pytest.raises(AssertionError, match="leaves its bounds|has width"):
        check_rule(op)


# Sound but loose: only the exactness law can tell.
def sum_of_both_products(a, b):
    """Straddling factors: both products added where only the larger counts."""
    exact = largest_sums(a, b)
    high = (a.upper.clamp(min=0)[:, :, :, None] * b.upper.clamp(min=0)[:, None]).sum(dim=2)
    low = (a.lower.clamp(max=0)[:, :, :, None] * b.lower.clamp(max=0)[:, None]).sum(dim=2)
    return torch.maximum(exact, high + low)


largest_sums = outer_product._largest_sums


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

LOOSE = {
    "straddling products added": (aten.conv1d.default, outer_product, "_largest_sums", sum_of_both_products),
    "every entry may be the largest": (aten.max_pool2d.default, pooling, "_winners", any_winner),
    "midpoint and radius": (aten.conv1d.default, convolution_rules, "convolve", center_and_radius),
}


def check_exactness(op):
    """Attained bounds of every setting of one op."""
    for setting in SETTINGS:
        if setting.op is op and setting.exact:
            bounds_are_attained(setting, torch.float64, RULES)


@pytest.mark.parametrize("name", LOOSE)
def test_exactness_notices_a_loose_piece(name, monkeypatch):
    op, owner, attribute, loose = LOOSE[name]
    monkeypatch.setattr(owner, attribute, loose)
    with pytest.raises(AssertionError, match="is loose by"):
        check_exactness(op)
