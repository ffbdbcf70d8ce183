"""Each law and oracle notices when one piece is broken.

A fault replaces one rule of the table, or one function, by a plausible mistake; the check that covers it must fail.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from agt_lightning.aggregation import NormClipping, SampleSet, bounded_descent, top_n_sum, unbounded_descent
from agt_lightning.arithmetic import multiply, products
from agt_lightning.interval import Interval
from agt_lightning.optimizers import AbstractSGD
from agt_lightning.rules import RULES, loss
from agt_lightning.rules.activation import relu
from agt_lightning.rules.arithmetic import (
    Absolute,
    Negation,
    Product,
    Quotient,
    Reduction,
    ReverseDifference,
    Square,
    Sum,
    scaled,
)
from agt_lightning.rules.base import as_interval, map_bounds
from agt_lightning.rules.linear import Linear
from agt_lightning.rules.loss import BinaryCrossEntropy, CrossEntropy, ResidualLoss, squared_error
from agt_lightning.rules.shape import Cast, Detach, OneHot, Reshape
from tests.aggregation import oracles as aggregation
from tests.arithmetic.oracles import check_matmul
from tests.gradients import oracles as gradients
from tests.optimizers.oracles import check_sgd
from tests.rules.laws import LAWS, bounds_are_attained
from tests.rules.settings import SETTINGS

aten = torch.ops.aten


def check_rule(op, table=RULES):
    """Every law of every setting of one op."""
    for setting in SETTINGS:
        if setting.op is op:
            for law in LAWS:
                law(setting, torch.float64, table)


def check_exactness(op, table=RULES):
    """Attained bounds of every setting of one op."""
    for setting in SETTINGS:
        if setting.op is op and setting.exact:
            bounds_are_attained(setting, torch.float64, table)


# --- faults of rules -------------------------------------------------------------------------------------------------


class LinearBackwardByLowerWeight(Linear):
    def backward(self, site, grad, inputs, output):
        return super().backward(site, grad, [inputs[0], Interval.point(inputs[1].lower), *inputs[2:]], output)


class LinearGradientByLowerInput(Linear):
    def parameter_gradient(self, site, position, grad, inputs):
        return super().parameter_gradient(
            site, position, grad, [Interval.point(as_interval(inputs[0]).lower), *inputs[1:]]
        )


class LinearWithoutBias(Linear):
    def forward(self, site, inputs):
        return super().forward(site, inputs[:2])


class SumIgnoresAlpha(Sum):
    def backward(self, site, grad, inputs, output):
        return [scaled(part, 1.0 / abs(site.number("alpha"))) for part in super().backward(site, grad, inputs, output)]


class NegationKeepsOrder(Negation):
    def forward(self, site, inputs):
        value = as_interval(inputs[0])
        return Interval.trusted(-value.lower, -value.upper)


class ReverseDifferenceWithoutSign(ReverseDifference):
    def backward(self, site, grad, inputs, output):
        return [scaled(grad, site.number("alpha"))]


class ProductOfLikeEnds(Product):
    def forward(self, site, inputs):
        if len(inputs) == 1:
            return super().forward(site, inputs)
        x, y = map(as_interval, inputs)
        return Interval.trusted(x.lower * y.lower, x.upper * y.upper)


class QuotientGradientWithoutSign(Quotient):
    def backward(self, site, grad, inputs, output):
        first, *second = super().backward(site, grad, inputs, output)
        return [first, *[-part for part in second]]


class QuotientBySwappedReciprocal(Quotient):
    def _reciprocal(self, site, inputs):
        reciprocal = super()._reciprocal(site, inputs)
        return Interval.trusted(reciprocal.upper, reciprocal.lower)


class SquareOfEnds(Square):
    def forward(self, site, inputs):
        value = as_interval(inputs[0])
        ends = value.lower.square(), value.upper.square()
        return Interval.trusted(torch.minimum(*ends), torch.maximum(*ends))


class AbsoluteSlopeAtLower(Absolute):
    def backward(self, site, grad, inputs, output):
        return [multiply(grad, Interval.point(torch.sign(as_interval(inputs[0]).lower)))]


class MeanGradientOfSum(Reduction):
    def backward(self, site, grad, inputs, output):
        return Reduction(torch.sum).backward(site, grad, inputs, output)


class TransposedReshape(Reshape):
    def backward(self, site, grad, inputs, output):
        shape = as_interval(inputs[0]).shape
        return [map_bounds(grad, lambda bound: bound.flatten(1).flip(1).reshape(shape))]


class CastToLower(Cast):
    def forward(self, site, inputs):
        value = super().forward(site, inputs)
        return Interval.point(value.lower) if isinstance(value, Interval) else value


class DetachWithGradient(Detach):
    def backward(self, site, grad, inputs, output):
        return [grad]


class OneHotWithoutFlips(OneHot):
    def forward(self, site, inputs):
        return super().forward(site, [inputs[0] if isinstance(inputs[0], torch.Tensor) else inputs[0].index])


class CrossEntropyWithoutFlips(CrossEntropy):
    def backward(self, site, grad, inputs, output):
        labels = inputs[1] if isinstance(inputs[1], Interval) else replace(inputs[1], flippable=False)
        return super().backward(site, grad, [inputs[0], labels], output)


class CrossEntropyWithoutLabel(CrossEntropy):
    def backward(self, site, grad, inputs, output):
        towards = map_bounds(grad, lambda bound: bound.unsqueeze(1))
        return [multiply(towards, loss.softmax(as_interval(inputs[0]))), None]


class CrossEntropyWithoutSmoothing(CrossEntropy):
    def _target(self, site, logits, target):
        arguments = {**site.call.arguments, "label_smoothing": 0.0}
        return super()._target(replace(site, call=replace(site.call, arguments=arguments)), logits, target)


class BinaryCrossEntropyAtLowerLabel(BinaryCrossEntropy):
    def backward(self, site, grad, inputs, output):
        return super().backward(site, grad, [inputs[0], Interval.point(inputs[1].lower), *inputs[2:]], output)


class BinaryCrossEntropyWithoutWeight(BinaryCrossEntropy):
    def _positive_weight(self, site, inputs):
        return torch.ones((), dtype=torch.float64)


class ResidualGradientOfTargetUnsigned(ResidualLoss):
    def backward(self, site, grad, inputs, output):
        towards = super().backward(site, grad, inputs, output)[0]
        return [towards, towards]


class ResidualWithoutInterior(ResidualLoss):
    def forward(self, site, inputs):
        residual = self._residual(inputs)
        ends = self.value(site, residual.lower), self.value(site, residual.upper)
        return Interval.trusted(torch.minimum(*ends), torch.maximum(*ends), nonnegative=True)


RULE_FAULTS = {
    "relu: sign of the derivative": (aten.relu.default, replace(relu, product=lambda grad, x: -grad * (x > 0))),
    "relu: derivative switched": (aten.relu.default, replace(relu, product=lambda grad, x: grad * (x < 0))),
    "relu: gradient of every point passes": (aten.relu.default, replace(relu, product=lambda gradient, x: gradient)),
    "relu: identity": (aten.relu.default, replace(relu, function=lambda site, x: x)),
    "linear: lower weight in the backward pass": (aten.linear.default, LinearBackwardByLowerWeight()),
    "linear: lower input in the weight gradient": (aten.linear.default, LinearGradientByLowerInput()),
    "linear: no bias": (aten.linear.default, LinearWithoutBias()),
    "add: as sub": (aten.add.Tensor, Sum(sign=-1.0)),
    "sub: gradient without alpha": (aten.sub.Tensor, SumIgnoresAlpha(sign=-1.0)),
    "neg: ends not exchanged": (aten.neg.default, NegationKeepsOrder()),
    "rsub: sign of the gradient": (aten.rsub.Scalar, ReverseDifferenceWithoutSign()),
    "mul: like ends only": (aten.mul.Tensor, ProductOfLikeEnds()),
    "div: sign of the divisor's gradient": (aten.div.Tensor, QuotientGradientWithoutSign()),
    "div: reciprocal of swapped ends": (aten.div.Tensor, QuotientBySwappedReciprocal()),
    "square: interior minimum missed": (aten.square.default, SquareOfEnds()),
    "abs: slope at one end": (aten.abs.default, AbsoluteSlopeAtLower()),
    "mean: gradient not divided": (aten.mean.dim, MeanGradientOfSum(torch.mean)),
    "reshape: gradient in another order": (aten.view.default, TransposedReshape()),
    "cast: lower end": (aten._to_copy.default, CastToLower()),
    "detach: gradient passes": (aten.detach.default, DetachWithGradient()),
    "one_hot: flips forgotten": (aten.one_hot.default, OneHotWithoutFlips()),
    "cross-entropy: flips forgotten": (aten.cross_entropy_loss.default, CrossEntropyWithoutFlips()),
    "cross-entropy: label term dropped": (aten.cross_entropy_loss.default, CrossEntropyWithoutLabel()),
    "cross-entropy: smoothing forgotten": (aten.cross_entropy_loss.default, CrossEntropyWithoutSmoothing()),
    "binary cross-entropy: one label": (
        aten.binary_cross_entropy_with_logits.default,
        BinaryCrossEntropyAtLowerLabel(),
    ),
    "binary cross-entropy: weight forgotten": (
        aten.binary_cross_entropy_with_logits.default,
        BinaryCrossEntropyWithoutWeight(),
    ),
    "mse: factor two dropped": (aten.mse_loss.default, replace(squared_error, slope=lambda site, r: r)),
    "mse: sign of the label's gradient": (
        aten.mse_loss.default,
        ResidualGradientOfTargetUnsigned(squared_error.value, squared_error.slope),
    ),
    "mse: interior minimum missed": (
        aten.mse_loss.default,
        ResidualWithoutInterior(squared_error.value, squared_error.slope),
    ),
    "huber: slope not cut": (
        aten.huber_loss.default,
        replace(RULES[aten.huber_loss.default], slope=lambda site, r: r),
    ),
    "smooth l1: beta forgotten": (
        aten.smooth_l1_loss.default,
        replace(RULES[aten.smooth_l1_loss.default], slope=lambda site, r: r.clamp(-1, 1)),
    ),
    "l1: slope of the square": (
        aten.l1_loss.default,
        replace(RULES[aten.l1_loss.default], slope=lambda site, r: 2 * r),
    ),
}


@pytest.mark.parametrize("name", RULE_FAULTS)
def test_laws_notice_a_broken_rule(name):
    op, broken = RULE_FAULTS[name]
    with pytest.raises(AssertionError, match="leaves its bounds|has width"):
        check_rule(op, {**RULES, op: broken})


# Sound but loose: only the exactness law can tell.
class LooseRelu(type(relu)):
    def backward(self, site, grad, inputs, output):
        return [multiply(grad, Interval(torch.zeros_like(grad.lower), torch.ones_like(grad.lower)))]


class LooseSquare(Square):
    def backward(self, site, grad, inputs, output):
        (gradient,) = super().backward(site, grad, inputs, output)
        return [gradient.hull(-gradient)]


LOOSE = {
    "relu: derivative always [0, 1]": (aten.relu.default, LooseRelu(relu.function, relu.derivative, nonnegative=True)),
    "square: symmetric gradient": (aten.square.default, LooseSquare()),
}


@pytest.mark.parametrize("name", LOOSE)
def test_exactness_notices_a_loose_rule(name):
    op, loose = LOOSE[name]
    with pytest.raises(AssertionError, match="is loose by"):
        check_exactness(op, {**RULES, op: loose})


# --- faults of shared arithmetic, found through the rules that use it ------------------------------------------------


def softmax_of_own_ends(logits):
    """All logits at one end: not the extremes."""
    return Interval.trusted(logits.lower.softmax(dim=1), logits.upper.softmax(dim=1), nonnegative=True)


def softmax_with_printed_own_term(logits):
    """The paper's printed upper bound, with exp(l - u) as own term: loose."""
    others = products_of_others(logits)
    upper = 1 / (torch.exp(logits.lower - logits.upper) + others)
    return Interval.trusted(loss_softmax(logits).lower, upper, nonnegative=True)


def products_of_others(logits):
    """``Σ_{j≠k} exp(l_j - u_k)``."""
    terms = torch.exp(logits.lower[:, None] - logits.upper[:, :, None])
    diagonal = torch.eye(logits.shape[1], dtype=torch.bool)
    return torch.where(diagonal, 0.0, terms).sum(dim=2)


loss_softmax = loss.softmax


def test_laws_notice_a_wrong_softmax(monkeypatch):
    monkeypatch.setattr(loss, "softmax", softmax_of_own_ends)
    with pytest.raises(AssertionError, match="leaves its bounds"):
        check_rule(aten.cross_entropy_loss.default)


def test_laws_notice_the_printed_softmax(monkeypatch):
    monkeypatch.setattr(loss, "softmax", softmax_with_printed_own_term)
    labels = [setting for setting in SETTINGS if setting.op is aten.cross_entropy_loss.default and setting.exact][0]
    with pytest.raises(AssertionError, match="is loose by"):
        bounds_are_attained(labels, torch.float64, RULES)


def test_laws_notice_a_wrong_surprisal(monkeypatch):
    monkeypatch.setattr(loss, "surprisal", lambda logits: Interval.point(-logits.upper.log_softmax(dim=1)))
    with pytest.raises(AssertionError, match="leaves its bounds"):
        check_rule(aten.cross_entropy_loss.default)


def straddling_pair():
    return Interval(-torch.ones(2, 3).double(), 2 * torch.ones(2, 3).double()), Interval(
        -3 * torch.ones(4, 3).double(), torch.ones(4, 3).double()
    )


def without_falling_product(a, b):
    """Products of two negative ends forgotten: too small wherever they are the largest."""
    return a.upper.clamp(min=0) @ b.upper.clamp(min=0).T + _mixed(a, b)


def without_correction(a, b):
    """Both products added where only the larger counts: sound but loose."""
    return a.upper.clamp(min=0) @ b.upper.clamp(min=0).T + a.lower.clamp(max=0) @ b.lower.clamp(max=0).T + _mixed(a, b)


def with_double_correction(a, b):
    """The smaller product taken off twice: unsound."""
    exact = largest_products(a, b)
    return exact - (without_correction(a, b) - exact)


def without_mixed_signs(a, b):
    """Negative products forgotten."""
    return largest_products(a, b) - _mixed(a, b)


def _mixed(a, b):
    low = a.lower.clamp(min=0) @ b.upper.clamp(max=0).T
    return low + a.upper.clamp(max=0) @ b.lower.clamp(min=0).T


largest_products = products._largest_products


@pytest.mark.parametrize("fault", [without_falling_product, without_correction, with_double_correction])
def test_product_oracle_notices_a_wrong_straddling_product(fault, monkeypatch):
    monkeypatch.setattr(products, "_largest_products", fault)
    with pytest.raises(AssertionError, match="differs from the oracle"):
        check_matmul(products.matmul, *straddling_pair())


def test_product_oracle_notices_forgotten_mixed_signs(monkeypatch):
    monkeypatch.setattr(products, "_largest_products", without_mixed_signs)
    a = Interval(torch.full((1, 1), 1.0).double(), torch.full((1, 1), 2.0).double())
    with pytest.raises(AssertionError, match="differs from the oracle"):
        check_matmul(products.matmul, a, -a)


def test_laws_notice_a_wrong_product_in_linear_layers(monkeypatch):
    monkeypatch.setattr(products, "_largest_products", without_falling_product)
    with pytest.raises(AssertionError, match="leaves its bounds|has width"):
        check_rule(aten.linear.default)


# --- faults of aggregation, gradients and optimizers -----------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A check and the broken piece it gets."""

    check: Callable[[object], object]
    broken: object


def all_bounded(descent):
    for case in aggregation.cases():
        aggregation.check_bounded_descent(descent, case)


def all_unbounded(descent):
    for case in aggregation.cases():
        for clipping in aggregation.clippings(case.clean):
            aggregation.check_unbounded_descent(descent, case, clipping)


def all_blocks(block):
    for case in gradients.cases():
        gradients.check_blocks(case, block)


def all_totals(total):
    for case in gradients.cases():
        weights = torch.linspace(0.1, 1.0, case.gradient.samples, dtype=torch.float64)
        gradients.check_total(case, total, weights)


def one_sample_less(clean, poisoned, samples, n, budget):
    return bounded_descent(clean, poisoned, samples, max(0, n - 1), budget)


def without_poisoned_pass(clean, poisoned, samples, n, budget):
    return bounded_descent(clean, None, samples, n, budget)


def everyone_at_unit_weight(clean, poisoned, samples, n, budget):
    return bounded_descent(clean, poisoned, SampleSet(torch.ones_like(samples.weights), samples.poisonable), n, budget)


def without_mirror(clean, poisoned, samples, n, budget):
    plain = bounded_descent(clean, None, samples, 0, budget)
    return Interval.trusted(plain.lower, bounded_descent(clean, poisoned, samples, n, budget).upper)


def trusted_samples_forgotten(clean, poisoned, samples, n, budget):
    rows = samples.poisonable
    weights = (
        samples.weights if rows is None else torch.zeros_like(samples.weights).scatter(0, rows, samples.weights[rows])
    )
    return bounded_descent(clean, poisoned, SampleSet(weights, rows), n, budget)


def negative_kappa(gradient, samples, n, clipping, budget):
    bounds = unbounded_descent(gradient, samples, n, clipping, budget)
    plain = unbounded_descent(gradient, samples, 0, clipping, budget)
    return Interval.trusted(bounds.lower, plain.upper)


def substitution_of_all_samples(gradient, samples, n, clipping, budget):
    return unbounded_descent(gradient, SampleSet(samples.weights), n, clipping, budget)


def without_clamp(gains, n):
    return gains.sort(dim=1, descending=True).values[:, :n].sum(dim=1)


def clip_by_largest_norm(kappa, gradients_box):
    largest = gradients_box.magnitude.norm(dim=1, keepdim=True)
    factor = (kappa / largest).clamp(max=1.0)
    return Interval.trusted(gradients_box.lower * factor, gradients_box.upper * factor)


def clip_with_others_exchanged(kappa, gradients_box):
    factored = gradients.Elementwise(gradients_box)
    clipping = NormClipping.of(kappa, [factored])
    swapped = Interval.trusted(clipping.square_norms.upper, clipping.square_norms.lower)
    block = NormClipping(kappa, swapped)(factored.block(0, factored.elements))
    return Interval.trusted(block.lower.T, block.upper.T)


def shifted_block(gradient, start, stop):
    block = gradient.block(start, stop)
    return Interval.trusted(block.lower.roll(1, dims=0), block.upper.roll(1, dims=0))


def first_half_of_the_total(gradient, weights):
    half = torch.where(torch.arange(len(weights)) < len(weights) // 2, weights, 0.0)
    return gradient.total(half)


def total_of_lower_ends(gradient, weights):
    total = gradient.total(weights)
    return None if total is None else Interval.point(total.lower)


def sgd_without_decay(group, box, gradient):
    return AbstractSGD().update({**group, "weight_decay": 0.0}, box, gradient)


def sgd_with_like_ends(group, box, gradient):
    rate = group["lr"]
    return Interval.trusted(box.lower - rate * gradient.lower, box.upper - rate * gradient.upper)


def sgd_without_sign_of_shrinkage(group, box, gradient):
    factor = 1 - group["lr"] * group["weight_decay"]
    shrunk = Interval.trusted(factor * box.lower, factor * box.upper)
    return shrunk - scaled(gradient, group["lr"])


def sgd_with_separate_decay(group, box, gradient):
    """Decay added to the gradient as if it were independent of the parameter: sound but loose."""
    return box - scaled(gradient + scaled(box, group["weight_decay"]), group["lr"])


FAULTS = {
    "SEMax of n - 1": Fault(all_bounded, one_sample_less),
    "poisoned pass forgotten": Fault(all_bounded, without_poisoned_pass),
    "weights forgotten": Fault(all_bounded, everyone_at_unit_weight),
    "lower bound not mirrored": Fault(all_bounded, without_mirror),
    "trusted samples left out of the sum": Fault(all_bounded, trusted_samples_forgotten),
    "substitution only downwards": Fault(all_unbounded, negative_kappa),
    "trusted samples substituted": Fault(all_unbounded, substitution_of_all_samples),
    "negative gains taken": Fault(aggregation.check_top_n, without_clamp),
    "top n - 1": Fault(aggregation.check_top_n, lambda gains, n: top_n_sum(gains, max(0, n - 1))),
    "all gains taken": Fault(aggregation.check_top_n, lambda gains, n: gains.clamp(min=0).sum(dim=1)),
    "clipping by the largest norm": Fault(aggregation.check_norm_clipping, clip_by_largest_norm),
    "clipping with the others exchanged": Fault(aggregation.check_norm_clipping, clip_with_others_exchanged),
    "block shifted by one element": Fault(all_blocks, shifted_block),
    "half of the samples in the total": Fault(all_totals, first_half_of_the_total),
    "total of lower ends": Fault(all_totals, total_of_lower_ends),
    "weight decay forgotten": Fault(check_sgd, sgd_without_decay),
    "step with like ends": Fault(check_sgd, sgd_with_like_ends),
    "negative shrinkage not exchanged": Fault(check_sgd, sgd_without_sign_of_shrinkage),
    "decay apart from the parameter": Fault(check_sgd, sgd_with_separate_decay),
}


@pytest.mark.parametrize("name", FAULTS)
def test_oracles_notice_a_broken_piece(name):
    fault = FAULTS[name]
    with pytest.raises(AssertionError, match="differs from"):
        fault.check(fault.broken)
