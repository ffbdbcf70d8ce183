"""The laws notice broken rules of activations, selections, products of activations and embeddings."""

from dataclasses import replace

import pytest
import torch

from agt_lightning.arithmetic import multiply, product, products
from agt_lightning.gradients import RowGradient
from agt_lightning.interval import Interval
from agt_lightning.rules import RULES, softmax
from agt_lightning.rules.arithmetic import Extremum
from agt_lightning.rules.attention import Attention
from agt_lightning.rules.bilinear import BatchedProduct, Matmul
from agt_lightning.rules.elementwise import PiecewiseMonotoneFunction
from agt_lightning.rules.embedding import Embedding
from agt_lightning.rules.linear import MatrixProduct
from agt_lightning.rules.selection import Expansion, Join, Padding, Selection
from agt_lightning.rules.softmax import LogSoftmax, Softmax
from agt_lightning.rules.values import as_interval
from agt_lightning.rules.variance import Variance
from tests.faults import Fault
from tests.rules.faults import LOOSE, UNSOUND, Exactness, Laws, broken_rules

aten = torch.ops.aten


def without_turns(op, part):
    """Only the ends count."""
    rule = RULES[op]
    pieces = getattr(rule, part)
    return replace(rule, **{part: PiecewiseMonotoneFunction(pieces.function, nonnegative=pieces.nonnegative)})


def with_slope(op, function):
    return replace(RULES[op], slope=replace(RULES[op].slope, function=function))


class SelectionWithoutTranspose(Selection):
    def backward(self, site, grad, inputs, output):
        first, *others = super().backward(site, grad, inputs, output)
        return [first.mapped(lambda bound: bound.flip(-1)), *others]


class ExpansionOfOneCopy(Expansion):
    def backward(self, site, grad, inputs, output):
        (gradient,) = super().backward(site, grad, inputs, output)
        copies = grad.lower.numel() // gradient.lower.numel()
        return [gradient.mapped(lambda bound: bound / copies)]


class JoinInAnotherOrder(Join):
    def backward(self, site, grad, inputs, output):
        gradients = super().backward(site, grad, inputs, output)
        return [gradients[1], gradients[0], *gradients[2:]]


class FirstItem(Selection):
    def _call(self, site, tensors):
        return site.call.op(tensors[0], *[site.call.arguments[a.name] for a in site.call.op._schema.arguments[1:]])[0]


class PaddingThatKeepsItsSign(Padding):
    def forward(self, site, inputs):
        return Selection.forward(self, site, inputs)


class SoftmaxByTotal(Softmax):
    """``p (g - Σ p g)`` with the total at one end."""

    def backward(self, site, grad, inputs, output):
        p = self.forward(site, inputs)
        mean = (p.lower * grad.lower).sum(dim=site.integer("dim"), keepdim=True)
        return [multiply(p, grad.mapped(lambda bound: bound - mean))]


class LogSoftmaxWithoutTotal(LogSoftmax):
    def backward(self, site, grad, inputs, output):
        return [grad]


class ProductGradientsExchanged(BatchedProduct):
    def backward(self, site, grad, inputs, output):
        left, right = map(as_interval, inputs)
        return [
            product(grad, Interval.point(right.lower.mT)),
            product(Interval.point(left.lower.mT), grad),
        ]


class MatrixProductByLowerEnds(MatrixProduct):
    def parameter_gradient(self, site, position, grad, inputs):
        lower = [Interval.point(as_interval(value).lower) for value in inputs]
        return super().parameter_gradient(site, position, grad, lower)


class MatmulByLowerEnds(Matmul):
    _weight = MatrixProductByLowerEnds()


class AttentionWithoutScale(Attention):
    def scale(self, site):
        return 1.0


class AttentionWithoutDropout(Attention):
    def kept(self, site, weights, inputs):
        return weights


class VarianceByEntries(Variance):
    def _divisor(self, site):
        return self._entries(site)


class ExtremumOfFirst(Extremum):
    def backward(self, site, grad, inputs, output):
        return [grad, grad.mapped(torch.zeros_like)]


class EmbeddingWithPadding(Embedding):
    def parameter_gradient(self, site, position, grad, inputs):
        rows = inputs[1]
        values = grad.mapped(lambda bound: bound.reshape(len(rows), -1, bound.shape[-1]))
        return RowGradient(rows.reshape(len(rows), -1), values, inputs[0].shape[0])


class EmbeddingOfNextRow(Embedding):
    def forward(self, site, inputs):
        return super().forward(site, [inputs[0], (inputs[1] + 1) % 3])


BROKEN_RULES = {
    "gelu: minimum missed": (aten.gelu.default, without_turns(aten.gelu.default, "value")),
    "gelu: turns of the slope missed": (aten.gelu.default, without_turns(aten.gelu.default, "slope")),
    "silu: minimum missed": (aten.silu.default, without_turns(aten.silu.default, "value")),
    "silu: turns of the slope missed": (aten.silu.default, without_turns(aten.silu.default, "slope")),
    "tanh: steepest point missed": (aten.tanh.default, without_turns(aten.tanh.default, "slope")),
    "sigmoid: steepest point missed": (aten.sigmoid.default, without_turns(aten.sigmoid.default, "slope")),
    "elu: alpha forgotten in the slope": (
        aten.elu.default,
        with_slope(aten.elu.default, lambda site, x: x.clamp(max=0).exp()),
    ),
    "leaky relu: slope of relu": (
        aten.leaky_relu.default,
        with_slope(aten.leaky_relu.default, lambda site, x: (x > 0).to(x.dtype)),
    ),
    "softplus: beta forgotten": (
        aten.softplus.default,
        with_slope(aten.softplus.default, lambda site, x: x.sigmoid()),
    ),
    "hardtanh: slope one in the middle missed": (aten.hardtanh.default, without_turns(aten.hardtanh.default, "slope")),
    "hardswish: jump missed": (aten.hardswish.default, without_turns(aten.hardswish.default, "slope")),
    "pad: nonnegative in a negative frame": (aten.pad.default, PaddingThatKeepsItsSign()),
    "softmax: total at one end": (aten.softmax.int, SoftmaxByTotal()),
    "log softmax: no total": (aten.log_softmax.int, LogSoftmaxWithoutTotal()),
    "slice: gradient in another place": (aten.slice.Tensor, SelectionWithoutTranspose()),
    "index: gradient in another place": (aten.index.Tensor, SelectionWithoutTranspose()),
    "expand: one copy's gradient": (aten.expand.default, ExpansionOfOneCopy()),
    "cat: parts exchanged": (aten.stack.default, JoinInAnotherOrder()),
    "chunk: always the first": (aten.chunk.default, FirstItem()),
    "bmm: lower ends in the backward pass": (aten.bmm.default, ProductGradientsExchanged()),
    "matmul: weight gradient by lower ends": (aten.matmul.default, MatmulByLowerEnds()),
    "attention: scale forgotten": (aten.scaled_dot_product_attention.default, AttentionWithoutScale()),
    "attention: dropout forgotten": (
        aten._scaled_dot_product_attention_math.default,
        AttentionWithoutDropout(),
    ),
    "var: correction forgotten": (aten.var.correction, VarianceByEntries()),
    "maximum: all gradient to the first": (aten.maximum.default, ExtremumOfFirst(sign=1.0)),
    "minimum: as maximum": (aten.minimum.default, Extremum(sign=1.0)),
    "embedding: padding row trained": (aten.embedding.default, EmbeddingWithPadding()),
    "embedding: next row": (aten.embedding.default, EmbeddingOfNextRow()),
}


@pytest.mark.parametrize("fault", broken_rules(BROKEN_RULES), ids=str)
def test_laws_notice_a_broken_rule(fault):
    fault.require_noticed(UNSOUND)


def without_correction(a, b):
    """Both like products added where only the larger counts: sound but loose."""
    total = a.upper.clamp(min=0) @ b.upper.clamp(min=0) + a.lower.clamp(max=0) @ b.lower.clamp(max=0)
    return total + a.lower.clamp(min=0) @ b.upper.clamp(max=0) + a.upper.clamp(max=0) @ b.lower.clamp(min=0)


def totals_apart(probabilities, grad):
    """Total and entry bounded one by one."""
    total = grad.mapped(lambda bound: bound.sum(dim=1, keepdim=True))
    return grad - multiply(probabilities, total)


LOOSE_PIECES = [
    Fault(
        "products without correction",
        Exactness(aten.bmm.default),
        without_correction,
        (products, "_largest_products"),
    ),
    Fault("totals bounded apart", Exactness(aten.log_softmax.int), totals_apart, (softmax, "log_softmax_gradient")),
]


@pytest.mark.parametrize("fault", LOOSE_PIECES, ids=str)
def test_exactness_notices_a_loose_piece(fault):
    fault.require_noticed(LOOSE)


def test_laws_notice_a_wrong_hull_of_the_others():
    place = (softmax, "_largest_of_others")
    Fault("an entry among the others", Laws(aten.softmax.int), lambda values: values, place).require_noticed(UNSOUND)
