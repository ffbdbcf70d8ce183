"""Sound bounds for each operation: the table of rules, keyed by ATen overload.

An overload that is not in the table has no rule, however similar its name; it is refused before training starts.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch._ops import OpOverload

from agt_lightning.rules.activation import relu
from agt_lightning.rules.arithmetic import (
    Absolute,
    Negation,
    Power,
    Product,
    Quotient,
    Reduction,
    ReverseDifference,
    Square,
    Sum,
)
from agt_lightning.rules.base import Rule, Site, Value
from agt_lightning.rules.dropout import InactiveDropout
from agt_lightning.rules.elementwise import Monotone
from agt_lightning.rules.linear import Linear, MatrixProduct
from agt_lightning.rules.loss import (
    BinaryCrossEntropy,
    CrossEntropy,
    LogSoftmax,
    ResidualLoss,
    absolute_error,
    huber,
    smooth_absolute_error,
    squared_error,
)
from agt_lightning.rules.shape import Cast, Detach, OneHot, Reshape

__all__ = ["RULES", "Monotone", "ResidualLoss", "Rule", "RuleTable", "Site", "Value", "register_rule"]

RuleTable = Mapping[OpOverload, Rule]

_aten = torch.ops.aten

_rules: dict[OpOverload, Rule] = {
    # linear
    _aten.linear.default: Linear(),
    _aten.matmul.default: MatrixProduct(),
    _aten.mm.default: MatrixProduct(),
    # activation
    _aten.relu.default: relu,
    _aten.dropout.default: InactiveDropout(),
    # shape
    _aten.flatten.using_ints: Reshape(),
    _aten.reshape.default: Reshape(),
    _aten.squeeze.default: Reshape(),
    _aten.squeeze.dim: Reshape(),
    _aten.squeeze.dims: Reshape(),
    _aten.unflatten.int: Reshape(),
    _aten.unsqueeze.default: Reshape(),
    _aten.view.default: Reshape(),
    _aten._unsafe_view.default: Reshape(),
    # type
    _aten.to.dtype: Cast(),
    _aten.to.dtype_layout: Cast(),
    _aten._to_copy.default: Cast(),
    _aten.detach.default: Detach(),
    _aten.one_hot.default: OneHot(),
    # arithmetic
    _aten.abs.default: Absolute(),
    _aten.add.Tensor: Sum(sign=1.0),
    _aten.div.Tensor: Quotient(),
    _aten.mean.default: Reduction(torch.mean),
    _aten.mean.dim: Reduction(torch.mean),
    _aten.mul.Tensor: Product(),
    _aten.neg.default: Negation(),
    _aten.pow.Tensor_Scalar: Power(),
    _aten.rsub.Scalar: ReverseDifference(),
    _aten.square.default: Square(),
    _aten.sub.Tensor: Sum(sign=-1.0),
    _aten.sum.default: Reduction(torch.sum),
    _aten.sum.dim_IntList: Reduction(torch.sum),
    # loss
    _aten.binary_cross_entropy_with_logits.default: BinaryCrossEntropy(),
    _aten.cross_entropy_loss.default: CrossEntropy(),
    _aten.huber_loss.default: huber,
    _aten.log_softmax.int: LogSoftmax(),
    _aten.l1_loss.default: absolute_error,
    _aten.mse_loss.default: squared_error,
    _aten.smooth_l1_loss.default: smooth_absolute_error,
}

RULES: RuleTable = MappingProxyType(_rules)
"""All rules by ATen overload; read-only. `register_rule` adds to it."""


def register_rule(op: OpOverload) -> Callable[[Rule], Rule]:
    """Add a rule for an operation of your own.

    The rule must be sound: a wrong one voids every certificate. Give it the law tests of ``tests/rules``.

    Args:
        op: the overload, such as ``torch.ops.aten.softplus.default``.

    Returns:
        A function that takes the rule, enters it and returns it.

    Raises:
        ValueError: if the overload has a rule already.

    Example:
        >>> import torch
        >>> from agt_lightning.rules import Monotone, RULES, register_rule
        >>> exponential = Monotone(function=lambda site, x: x.exp(), derivative=lambda site, x: x.exp())
        >>> rule = register_rule(torch.ops.aten.exp.default)(exponential)
        >>> RULES[torch.ops.aten.exp.default] is rule
        True
    """

    def register(rule: Rule) -> Rule:
        if op in _rules:
            raise ValueError(f"Expected an overload without a rule, but {op} has one ({type(_rules[op]).__name__}).")
        _rules[op] = rule
        return rule

    return register
