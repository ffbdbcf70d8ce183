"""Laws and oracles notice broken rules, products and gradients."""

from dataclasses import replace

import pytest
import torch

from agt_lightning.arithmetic import multiply, products
from agt_lightning.interval import Interval
from agt_lightning.rules import RULES, loss
from agt_lightning.rules.activation import heaviside_product, relu
from agt_lightning.rules.arithmetic import (
    Absolute,
    Negation,
    Product,
    Quotient,
    Reduction,
    ReverseDifference,
    Sum,
)
from agt_lightning.rules.elementwise import evaluate
from agt_lightning.rules.linear import Linear
from agt_lightning.rules.loss import BinaryCrossEntropy, CrossEntropy, ResidualLoss, squared_error
from agt_lightning.rules.power import Square
from agt_lightning.rules.shape import Cast, Detach, OneHot, Reshape
from agt_lightning.rules.values import as_interval
from tests.arithmetic.oracles import check_product
from tests.faults import Fault, require_checks_pass
from tests.gradients import oracles as gradients
from tests.rules.faults import LOOSE, UNSOUND, Exactness, Laws, broken_rules, loose_rules

aten = torch.ops.aten


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
        return [part.scaled(1.0 / abs(site.number("alpha"))) for part in super().backward(site, grad, inputs, output)]


class NegationKeepsOrder(Negation):
    def forward(self, site, inputs):
        value = as_interval(inputs[0])
        return Interval.trusted(-value.lower, -value.upper)


class ReverseDifferenceWithoutSign(ReverseDifference):
    def backward(self, site, grad, inputs, output):
        return [grad.scaled(site.number("alpha"))]


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
        return [grad.mapped(lambda bound: bound.flatten(1).flip(1).reshape(shape))]


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
        towards = grad.mapped(lambda bound: bound.unsqueeze(1))
        return [multiply(towards, loss.softmax(as_interval(inputs[0]))), None]


class CrossEntropyWithoutSmoothing(CrossEntropy):
    def target(self, site, logits, target):
        arguments = {**site.call.arguments, "label_smoothing": 0.0}
        return super().target(replace(site, call=replace(site.call, arguments=arguments)), logits, target)


class BinaryCrossEntropyAtLowerLabel(BinaryCrossEntropy):
    def backward(self, site, grad, inputs, output):
        return super().backward(site, grad, [inputs[0], Interval.point(inputs[1].lower), *inputs[2:]], output)


class BinaryCrossEntropyWithoutWeight(BinaryCrossEntropy):
    def positive_weight(self, site, inputs):
        return Interval.point(torch.ones((), dtype=torch.float64))


class ResidualGradientOfTargetUnsigned(ResidualLoss):
    def backward(self, site, grad, inputs, output):
        towards = super().backward(site, grad, inputs, output)[0]
        return [towards, towards]


class ResidualWithoutInterior(ResidualLoss):
    def forward(self, site, inputs):
        residual = self._residual(inputs)
        ends = evaluate(self.value, site, residual.lower), evaluate(self.value, site, residual.upper)
        return Interval.trusted(torch.minimum(*ends), torch.maximum(*ends), nonnegative=True)


BROKEN_RULES = {
    "relu: sign of the derivative": (
        aten.relu.default,
        replace(relu, product=lambda grad, x: -heaviside_product(grad, x)),
    ),
    "relu: derivative switched": (
        aten.relu.default,
        replace(relu, product=lambda grad, x: heaviside_product(grad, -x)),
    ),
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


@pytest.mark.parametrize("fault", broken_rules(BROKEN_RULES), ids=str)
def test_laws_notice_a_broken_rule(fault):
    fault.require_noticed(UNSOUND)


# Sound but loose: only the exactness law can tell.
class LooseRelu(type(relu)):
    def backward(self, site, grad, inputs, output):
        return [multiply(grad, Interval(torch.zeros_like(grad.lower), torch.ones_like(grad.lower)))]


class LooseSquare(Square):
    def backward(self, site, grad, inputs, output):
        (gradient,) = super().backward(site, grad, inputs, output)
        return [gradient.hull(-gradient)]


LOOSE_RULES = {
    "relu: derivative always [0, 1]": (aten.relu.default, LooseRelu(relu.function, relu.derivative, nonnegative=True)),
    "square: symmetric gradient": (aten.square.default, LooseSquare()),
}


@pytest.mark.parametrize("fault", loose_rules(LOOSE_RULES), ids=str)
def test_exactness_notices_a_loose_rule(fault):
    fault.require_noticed(LOOSE)


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


def surprisal_of_upper_logits(logits):
    """All logits at one end."""
    return Interval.point(-logits.upper.log_softmax(dim=1))


CROSS_ENTROPY = aten.cross_entropy_loss.default
LOSS_FAULTS = [
    Fault("softmax of own ends", Laws(CROSS_ENTROPY), softmax_of_own_ends, (loss, "softmax")),
    Fault("surprisal of upper logits", Laws(CROSS_ENTROPY), surprisal_of_upper_logits, (loss, "surprisal")),
]


@pytest.mark.parametrize("fault", LOSS_FAULTS, ids=str)
def test_laws_notice_a_broken_piece_of_the_loss(fault):
    fault.require_noticed("leaves its bounds")


def test_exactness_notices_the_printed_softmax():
    check, place = Exactness(CROSS_ENTROPY), (loss, "softmax")
    Fault("printed softmax", check, softmax_with_printed_own_term, place).require_noticed(LOOSE)


def straddling_pair():
    return Interval(-torch.ones(2, 3).double(), 2 * torch.ones(2, 3).double()), Interval(
        -3 * torch.ones(3, 4).double(), torch.ones(3, 4).double()
    )


def without_falling_product(a, b):
    """Products of two negative ends forgotten: too small wherever they are the largest."""
    return a.upper.clamp(min=0) @ b.upper.clamp(min=0) + _mixed(a, b)


def without_correction(a, b):
    """Both products added where only the larger counts: sound but loose."""
    return a.upper.clamp(min=0) @ b.upper.clamp(min=0) + a.lower.clamp(max=0) @ b.lower.clamp(max=0) + _mixed(a, b)


def with_double_correction(a, b):
    """The smaller product taken off twice: unsound."""
    exact = largest_products(a, b)
    return exact - (without_correction(a, b) - exact)


def without_mixed_signs(a, b):
    """Negative products forgotten."""
    return largest_products(a, b) - _mixed(a, b)


def _mixed(a, b):
    low = a.lower.clamp(min=0) @ b.upper.clamp(max=0)
    return low + a.upper.clamp(max=0) @ b.lower.clamp(min=0)


largest_products = products._largest_products


def straddling_product():
    check_product(products.product, *straddling_pair())


def product_of_mixed_signs():
    a = Interval(torch.full((1, 1), 1.0).double(), torch.full((1, 1), 2.0).double())
    check_product(products.product, a, -a)


PRODUCT = (products, "_largest_products")
PRODUCT_FAULTS = [
    Fault("falling products forgotten", straddling_product, without_falling_product, PRODUCT),
    Fault("not corrected", straddling_product, without_correction, PRODUCT),
    Fault("corrected twice", straddling_product, with_double_correction, PRODUCT),
    Fault("mixed signs forgotten", product_of_mixed_signs, without_mixed_signs, PRODUCT),
]


@pytest.mark.parametrize("fault", PRODUCT_FAULTS, ids=str)
def test_product_oracle_notices_a_broken_product(fault):
    fault.require_noticed("differs from the oracle")


def test_laws_notice_a_wrong_product_in_linear_layers():
    check = Laws(aten.linear.default)
    Fault("falling products forgotten", check, without_falling_product, PRODUCT).require_noticed(UNSOUND)


# --- faults of gradients ---------------------------------------------------------------------------------------------


def all_blocks(block=lambda gradient, start, stop: gradient.block(start, stop)):
    for case in gradients.cases():
        gradients.check_blocks(case, block)


def all_totals(total=lambda gradient, weights: gradient.total(weights)):
    for case in gradients.cases():
        weights = torch.linspace(0.1, 1.0, case.gradient.samples, dtype=torch.float64)
        gradients.check_total(case, total, weights)


def shifted_block(gradient, start, stop):
    block = gradient.block(start, stop)
    return Interval.trusted(block.lower.roll(1, dims=0), block.upper.roll(1, dims=0))


def first_half_of_the_total(gradient, weights):
    half = torch.where(torch.arange(len(weights)) < len(weights) // 2, weights, 0.0)
    return gradient.total(half)


def total_of_lower_ends(gradient, weights):
    total = gradient.total(weights)
    return None if total is None else Interval.point(total.lower)


FAULTS = [
    Fault("block shifted by one element", all_blocks, shifted_block),
    Fault("half of the samples in the total", all_totals, first_half_of_the_total),
    Fault("total of lower ends", all_totals, total_of_lower_ends),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_oracles_notice_a_broken_piece(fault):
    fault.require_noticed("differs from")


def test_without_faults_the_checks_pass():
    require_checks_pass([*FAULTS, *PRODUCT_FAULTS])
