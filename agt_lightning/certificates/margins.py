"""Bounds on differences of outputs, through the last linear layer if there is one."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from agt_lightning.arithmetic import product
from agt_lightning.capture import Call
from agt_lightning.certificates.goals import is_single_logit
from agt_lightning.interval import Interval
from agt_lightning.propagation import Program
from agt_lightning.propagation.crown import Substitution
from agt_lightning.rules import Value
from agt_lightning.rules.rounded import Rounded
from agt_lightning.rules.shape import CASTS
from agt_lightning.rules.values import as_interval

_aten = torch.ops.aten

_KEEP_DIFFERENCES = frozenset({_aten.log_softmax.int, _aten.dropout.default, *CASTS})
"""Calls after which two outputs of a sample differ by as much as before, unless they round."""


def output_margins(program: Program, values: Mapping[str, Value], output: str, target: Tensor) -> Interval:
    """Return bounds on ``f_target - f_j`` for the value named ``output``; zero for the target itself.

    Args:
        program: the program that computed ``values``.
        values: bounds on all its values, by name.
        output: name of logits of shape (batch, classes).
        target: class of each sample, integers of shape (batch,).

    Returns:
        Interval of shape (batch, classes).
    """
    outputs = as_interval(values[output])
    last = last_linear(program, output)
    if last is None:
        rows = torch.arange(len(target), device=target.device)
        label = Interval.trusted(outputs.lower[rows, target][:, None], outputs.upper[rows, target][:, None])
        margins = label - outputs
    else:
        z, *parameters = (as_interval(values[name]) for name in last.inputs)
        weight, *bias = _rounded(program, last, parameters)
        margins = _linear_margins(z, weight, bias[0] if bias else None, target).widened(_underflow(program, last))
    is_label = torch.nn.functional.one_hot(target, outputs.shape[1]).bool()
    return Interval.trusted(margins.lower.masked_fill(is_label, 0), margins.upper.masked_fill(is_label, 0))


def predicted_classes(outputs: Tensor) -> Tensor:
    """Return the class of the largest logit, or whether the only logit is positive, integers of shape (batch,)."""
    if is_single_logit(Interval.point(outputs)):
        return (outputs.reshape(-1) > 0).long()
    return outputs.argmax(dim=1)


def substituted_margins(linear: Substitution, values: Mapping[str, Value], logits: str, target: Tensor) -> Interval:
    """Return bounds on ``f_target - f_j`` whose linear forms start at the differences themselves.

    Args:
        linear: bounds linear forms of a program's values.
        values: bounds on all values of that program, by name.
        logits: name of logits of shape (batch, classes).
        target: class of each sample, integers of shape (batch,).

    Returns:
        Interval of shape (batch, classes).
    """
    like = as_interval(values[logits]).lower
    label = torch.nn.functional.one_hot(target, like.shape[1]).to(like.dtype)
    differences = label.unsqueeze(1) - torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
    upper, negative = linear.largest(values, logits, torch.cat([differences, -differences], dim=1)).chunk(2, dim=1)
    return Interval.trusted(-negative, upper)


def single_logit_margins(logit: Interval, target: Tensor) -> Interval:
    """Return the margins of the two logits (0, f) that one logit f stands for.

    Args:
        logit: bounds of shape (batch,) or (batch, 1).
        target: class of each sample, 0 or 1, integers of shape (batch,).

    Returns:
        Interval of shape (batch, 2).
    """
    lower, upper = logit.lower.reshape(-1), logit.upper.reshape(-1)
    zero = torch.zeros_like(lower)
    for_one = Interval.trusted(torch.stack([lower, zero], dim=1), torch.stack([upper, zero], dim=1))
    for_zero = Interval.trusted(torch.stack([zero, -upper], dim=1), torch.stack([zero, -lower], dim=1))
    one = (target == 1)[:, None]
    return Interval.trusted(
        torch.where(one, for_one.lower, for_zero.lower), torch.where(one, for_one.upper, for_zero.upper)
    )


def last_linear(program: Program, output: str) -> Call | None:
    """Return the linear layer whose results differ as the outputs do, since at most a log-softmax follows it.

    What a log-softmax rounds is not counted: the one who asks compares the margin with `Decision.gap`.

    Returns:
        The call; None if the outputs come from another operation.
    """
    call = program.graph.producer(output)
    while call is not None and call.op in _KEEP_DIFFERENCES:
        if call.op is _aten.log_softmax.int and call.arguments["dim"] not in (1, -1):
            return None
        if call.op in CASTS and program.graph.narrows(call):
            return None
        call = program.graph.producer(call.inputs[0])
    return call if call is not None and call.op is _aten.linear.default and len(call.shape) == 2 else None


def _linear_margins(z: Interval, weight: Interval, bias: Interval | None, target: Tensor) -> Interval:
    """Bound ``(W_t - W_j) z + β_t - β_j``; rows of W are independent, so the difference of their boxes is exact.

    Reference:
        docs/theory.md, eq. (9.2).
    """
    lower = z.lower.new_empty(len(target), weight.shape[0])
    upper = torch.empty_like(lower)
    for label in target.unique().tolist():
        rows = (target == label).nonzero().squeeze(1)
        margin = product(z[rows], _row_differences(weight, label).mT)
        if bias is not None:
            margin = margin + _row_differences(bias, label)
        lower[rows], upper[rows] = margin.lower, margin.upper
    return Interval.trusted(lower, upper)


def _rounded(program: Program, layer: Call, parameters: Sequence[Interval]) -> list[Interval]:
    """Return weight and bias, widened so that exact products with them contain the outputs of a run."""
    rule = program.rules[layer.name]
    if not isinstance(rule, Rounded):
        return list(parameters)
    arithmetic = rule.arithmetic(program.sites[layer.name])
    inputs = parameters[0].shape[1]
    return [arithmetic.outward(each, inputs + 4) for each in parameters]


def _underflow(program: Program, layer: Call) -> float:
    """Return what underflow in the products of both outputs can change in a margin."""
    rule, site = program.rules[layer.name], program.sites[layer.name]
    return 2 * rule.arithmetic(site).absolute(site.shapes[0][-1] + 4) if isinstance(rule, Rounded) else 0.0


def _row_differences(rows: Interval, label: int) -> Interval:
    """Return bounds on ``rows[label] - rows``."""
    if rows.is_point:
        return Interval.point(rows.lower[label : label + 1] - rows.lower)
    return Interval.trusted(rows.lower[label : label + 1], rows.upper[label : label + 1]) - rows
