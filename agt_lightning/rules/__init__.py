"""Sound bounds for each operation: the table of rules, keyed by ATen overload.

An overload that is not in the table has no rule, however similar its name; it is refused before training starts.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch._ops import OpOverload

from agt_lightning.deprecation import warn_of_former
from agt_lightning.rules.activation import (
    celu,
    clamp,
    elu,
    error_function,
    exponential,
    gelu,
    hardshrink,
    hardsigmoid,
    hardswish,
    hardtanh,
    leaky_relu,
    log_sigmoid,
    logarithm,
    mish,
    reciprocal,
    reciprocal_root,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    softplus,
    softshrink,
    square_root,
    tanh,
)
from agt_lightning.rules.arithmetic import (
    Absolute,
    Extremum,
    Negation,
    Product,
    Quotient,
    Reduction,
    ReverseDifference,
    Sum,
)
from agt_lightning.rules.attention import Attention
from agt_lightning.rules.base import Rule, Site
from agt_lightning.rules.bilinear import BatchedProduct, Matmul
from agt_lightning.rules.choice import Where
from agt_lightning.rules.comparison import COMPARISONS
from agt_lightning.rules.convolution import Convolution
from agt_lightning.rules.dropout import InactiveDropout
from agt_lightning.rules.elementwise import Monotone, PiecewiseMonotone, PiecewiseMonotoneFunction
from agt_lightning.rules.embedding import Embedding
from agt_lightning.rules.extremes import ExtremeEntry
from agt_lightning.rules.gated import GatedLinearUnit
from agt_lightning.rules.interpolation import LinearUpsampling
from agt_lightning.rules.likeness import Like
from agt_lightning.rules.linear import Linear, MatrixProduct
from agt_lightning.rules.loss import (
    BinaryCrossEntropy,
    CrossEntropy,
    ResidualLoss,
    absolute_error,
    huber,
    smooth_absolute_error,
    squared_error,
)
from agt_lightning.rules.norm import VectorNorm
from agt_lightning.rules.normalization import (
    BatchNormalization,
    GroupNormalization,
    InstanceNormalization,
    LayerNormalization,
)
from agt_lightning.rules.pooling import AdaptiveAveragePool, AveragePool, MaxPool
from agt_lightning.rules.power import Power, Square
from agt_lightning.rules.prelu import ParametricReLU
from agt_lightning.rules.selection import Expansion, Join, NearestUpsampling, Padding, Selection
from agt_lightning.rules.shape import RESHAPES, Cast, Detach, OneHot, Reshape
from agt_lightning.rules.softmax import LogSoftmax, LogSumExp, Softmax
from agt_lightning.rules.transcendental import (
    arctangent,
    binary_logarithm,
    complementary_error_function,
    cosine,
    decimal_logarithm,
    exponential_minus_one,
    hyperbolic_cosine,
    hyperbolic_sine,
    inverse_hyperbolic_sine,
    logarithm_of_successor,
    power_of_two,
    sine,
)
from agt_lightning.rules.values import Value
from agt_lightning.rules.variance import Variance

__all__ = [
    "RULES",
    "Monotone",
    "PiecewiseMonotoneFunction",
    "PiecewiseMonotone",
    "ResidualLoss",
    "Rule",
    "RuleTable",
    "Site",
    "Value",
    "register_rule",
]

RuleTable = Mapping[OpOverload, Rule]

_aten = torch.ops.aten

_rules: dict[OpOverload, Rule] = {
    # linear
    _aten.linear.default: Linear(),
    _aten.bmm.default: BatchedProduct(),
    _aten.embedding.default: Embedding(),
    _aten.matmul.default: Matmul(),
    _aten.mm.default: MatrixProduct(),
    # convolution
    _aten.conv1d.default: Convolution(),
    _aten.conv1d.padding: Convolution(),
    _aten.conv2d.default: Convolution(),
    _aten.conv2d.padding: Convolution(),
    _aten.conv3d.default: Convolution(),
    _aten.conv3d.padding: Convolution(),
    _aten.conv_transpose1d.default: Convolution(transposed=True),
    _aten.conv_transpose2d.input: Convolution(transposed=True),
    _aten.conv_transpose3d.input: Convolution(transposed=True),
    _aten.convolution.default: Convolution(transposed=None),
    # pooling
    _aten.avg_pool1d.default: AveragePool(1),
    _aten.avg_pool2d.default: AveragePool(2),
    _aten.avg_pool3d.default: AveragePool(3),
    _aten.adaptive_avg_pool1d.default: AdaptiveAveragePool(1),
    _aten.adaptive_avg_pool2d.default: AdaptiveAveragePool(2),
    _aten.adaptive_avg_pool3d.default: AdaptiveAveragePool(3),
    _aten._adaptive_avg_pool2d.default: AdaptiveAveragePool(2),
    _aten._adaptive_avg_pool3d.default: AdaptiveAveragePool(3),
    _aten.max_pool1d.default: MaxPool(1),
    _aten.max_pool2d.default: MaxPool(2),
    _aten.max_pool2d_with_indices.default: MaxPool(2),
    _aten.max_pool3d.default: MaxPool(3),
    _aten.max_pool3d_with_indices.default: MaxPool(3),
    # normalization
    _aten.batch_norm.default: BatchNormalization(),
    _aten._native_batch_norm_legit_no_training.default: BatchNormalization(),
    _aten.group_norm.default: GroupNormalization(),
    _aten.native_group_norm.default: GroupNormalization("group"),
    _aten.instance_norm.default: InstanceNormalization(),
    _aten.layer_norm.default: LayerNormalization(),
    _aten.native_layer_norm.default: LayerNormalization(),
    # activation
    _aten.celu.default: celu,
    _aten.clamp.default: clamp,
    _aten.clamp_max.default: clamp,
    _aten.clamp_min.default: clamp,
    _aten.elu.default: elu,
    _aten.erf.default: error_function,
    _aten.exp.default: exponential,
    _aten.gelu.default: gelu,
    _aten.hardshrink.default: hardshrink,
    _aten.hardsigmoid.default: hardsigmoid,
    _aten.hardswish.default: hardswish,
    _aten.hardtanh.default: hardtanh,
    _aten.leaky_relu.default: leaky_relu,
    _aten.log.default: logarithm,
    _aten.log_sigmoid.default: log_sigmoid,
    _aten.mish.default: mish,
    _aten.prelu.default: ParametricReLU(),
    _aten.glu.default: GatedLinearUnit(),
    _aten.reciprocal.default: reciprocal,
    _aten.relu.default: relu,
    _aten.relu6.default: relu6,
    _aten.rsqrt.default: reciprocal_root,
    _aten.selu.default: selu,
    _aten.sigmoid.default: sigmoid,
    _aten.silu.default: silu,
    _aten.softplus.default: softplus,
    _aten.softshrink.default: softshrink,
    _aten.sqrt.default: square_root,
    _aten.tanh.default: tanh,
    _aten.log_softmax.int: LogSoftmax(),
    _aten.logsumexp.default: LogSumExp(),
    _aten._scaled_dot_product_attention_math.default: Attention(),
    _aten.scaled_dot_product_attention.default: Attention(),
    _aten.softmax.int: Softmax(),
    _aten.dropout.default: InactiveDropout(),
    _aten.feature_dropout.default: InactiveDropout(),
    # comparisons of data
    **COMPARISONS,
    # elementary functions
    _aten.asinh.default: inverse_hyperbolic_sine,
    _aten.atan.default: arctangent,
    _aten.cos.default: cosine,
    _aten.cosh.default: hyperbolic_cosine,
    _aten.erfc.default: complementary_error_function,
    _aten.exp2.default: power_of_two,
    _aten.expm1.default: exponential_minus_one,
    _aten.log10.default: decimal_logarithm,
    _aten.log1p.default: logarithm_of_successor,
    _aten.log2.default: binary_logarithm,
    _aten.sin.default: sine,
    _aten.sinh.default: hyperbolic_sine,
    # shape
    **dict.fromkeys(RESHAPES, Reshape()),
    _aten.reshape_as.default: Like(Reshape()),
    _aten.view_as.default: Like(Reshape()),
    # selection
    _aten.expand.default: Expansion(),
    _aten.expand_as.default: Like(Expansion(), _aten.expand.default),
    _aten.cat.default: Join(),
    _aten.concat.default: Join(),
    _aten.concatenate.default: Join(),
    _aten.hstack.default: Join(),
    _aten.stack.default: Join(),
    _aten.chunk.default: Selection(),
    _aten.flip.default: Selection(),
    _aten.index.Tensor: Selection(),
    _aten.index_select.default: Selection(),
    _aten.mT.default: Selection(),
    _aten.numpy_T.default: Selection(),
    _aten.movedim.int: Selection(),
    _aten.movedim.intlist: Selection(),
    _aten.narrow.default: Selection(),
    _aten.constant_pad_nd.default: Padding(),
    _aten.pad.default: Padding(),
    _aten.permute.default: Selection(),
    _aten.pixel_shuffle.default: Selection(),
    _aten.pixel_unshuffle.default: Selection(),
    _aten.repeat.default: Selection(),
    _aten.repeat_interleave.self_int: Selection(),
    _aten.roll.default: Selection(),
    _aten.select.int: Selection(),
    _aten.slice.Tensor: Selection(),
    _aten.split.Tensor: Selection(),
    _aten.split_with_sizes.default: Selection(),
    _aten.swapaxes.default: Selection(),
    _aten.swapdims.default: Selection(),
    _aten.t.default: Selection(),
    _aten.tensor_split.sections: Selection(),
    _aten.tensor_split.indices: Selection(),
    _aten.tile.default: Selection(),
    _aten.transpose.int: Selection(),
    _aten.unbind.int: Selection(),
    _aten.upsample_nearest1d.vec: NearestUpsampling(),
    _aten.upsample_nearest2d.vec: NearestUpsampling(),
    _aten.upsample_nearest3d.vec: NearestUpsampling(),
    _aten.masked_fill.Scalar: Where(),
    _aten.masked_fill.Tensor: Where(),
    _aten.where.ScalarOther: Where(),
    _aten.where.ScalarSelf: Where(),
    _aten.where.self: Where(),
    _aten.upsample_bilinear2d.vec: LinearUpsampling(),
    _aten.upsample_linear1d.vec: LinearUpsampling(),
    _aten.upsample_trilinear3d.vec: LinearUpsampling(),
    # type
    _aten.to.dtype: Cast(),
    _aten.to.dtype_layout: Cast(),
    _aten._to_copy.default: Cast(),
    _aten.type_as.default: Like(Cast()),
    _aten.detach.default: Detach(),
    _aten.one_hot.default: OneHot(),
    # arithmetic
    _aten.abs.default: Absolute(),
    _aten.add.Tensor: Sum(sign=1.0),
    _aten.div.Tensor: Quotient(),
    _aten.amax.default: ExtremeEntry(sign=1.0),
    _aten.amin.default: ExtremeEntry(sign=-1.0),
    _aten.linalg_vector_norm.default: VectorNorm(),
    _aten.max.dim: ExtremeEntry(sign=1.0),
    _aten.max.other: Extremum(sign=1.0),
    _aten.maximum.default: Extremum(sign=1.0),
    _aten.mean.default: Reduction(torch.mean),
    _aten.mean.dim: Reduction(torch.mean),
    _aten.min.dim: ExtremeEntry(sign=-1.0),
    _aten.min.other: Extremum(sign=-1.0),
    _aten.minimum.default: Extremum(sign=-1.0),
    _aten.mul.Tensor: Product(),
    _aten.neg.default: Negation(),
    _aten.norm.ScalarOpt_dim: VectorNorm(),
    _aten.pow.Tensor_Scalar: Power(),
    _aten.rsub.Scalar: ReverseDifference(),
    _aten.square.default: Square(),
    _aten.sub.Tensor: Sum(sign=-1.0),
    _aten.sum.default: Reduction(torch.sum),
    _aten.sum.dim_IntList: Reduction(torch.sum),
    _aten.var.correction: Variance(),
    # loss
    _aten.binary_cross_entropy_with_logits.default: BinaryCrossEntropy(),
    _aten.cross_entropy_loss.default: CrossEntropy(),
    _aten.huber_loss.default: huber,
    _aten.l1_loss.default: absolute_error,
    _aten.mse_loss.default: squared_error,
    _aten.smooth_l1_loss.default: smooth_absolute_error,
}

RULES: RuleTable = MappingProxyType(_rules)
"""All rules by ATen overload; read-only. `register_rule` adds to it."""


def register_rule(op: OpOverload) -> Callable[[Rule], Rule]:
    """Add a rule for an operation of your own to `RULES`.

    The rule must be sound: a wrong one voids every certificate. Give it the law tests of ``tests/rules``.

    Args:
        op: the overload, such as ``torch.ops.aten.special_expm1.default``.

    Returns:
        A function that adds a rule and returns it.

    Raises:
        ValueError: if the overload has a rule already.

    Example:
        >>> import torch
        >>> from agt_lightning.rules import Monotone, RULES, register_rule
        >>> power = Monotone(torch.expm1, torch.exp)
        >>> rule = register_rule(torch.ops.aten.special_expm1.default)(power)
        >>> RULES[torch.ops.aten.special_expm1.default] is rule
        True
    """

    def register(rule: Rule) -> Rule:
        if op in _rules:
            raise ValueError(f"Expected an overload without a rule, but {op} has one ({type(_rules[op]).__name__}).")
        _rules[op] = rule
        return rule

    return register


if not TYPE_CHECKING:  # a type checker would take any name for one of this module

    def __getattr__(name: str) -> object:
        """Return `PiecewiseMonotoneFunction` by its name of before version 0.2, with a warning."""
        if name == "Pieces":
            warn_of_former("rules.Pieces", "`rules.Pieces` has another name.", stacklevel=3)
            return PiecewiseMonotoneFunction
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
