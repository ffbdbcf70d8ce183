"""The loss at the end of a head, recognised as a function of outputs and targets in the captured graph of training."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from fractions import Fraction
from weakref import WeakKeyDictionary

import torch

from agt_lightning.capture import Call, Graph
from agt_lightning.domains.head import Head, HeadError, match_head
from agt_lightning.domains.loss_check import require_same_function
from agt_lightning.domains.loss_formula import (
    ACCEPTED_FORMS,
    Formula,
    ResidualPart,
    Weight,
    keeps_order,
    read_formula,
)
from agt_lightning.domains.losses import (
    HeadLoss,
    HuberError,
    LogisticLoss,
    LogitLimit,
    SoftmaxLoss,
    SquaredError,
)
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.rules.base import name_of
from agt_lightning.rules.shape import CASTS

_aten = torch.ops.aten

_MOST_FACTORS = {SquaredError: 5, HuberError: 5, LogisticLoss: 6, SoftmaxLoss: 12}
"""Factors and sums on the way from a loss to its outputs, two roundings each, that `HeadLoss.rounding` covers."""

_MOST_PARTS = {LogisticLoss: 2, SoftmaxLoss: 3}
"""Summands of the gradient, which are rounded one by one and added."""


@dataclass(frozen=True)
class HeadLossPattern:
    """A loss of the form ``Σ_i w_i ℓ(head(x_i), y_i)``.

    Args:
        head: the trained layers.
        loss: ℓ.
        target: name of the value that holds y, (b, ...).
        target_is_label: whether y is the batch's label itself, up to its shape and type.
        one_hot: whether y is a one-hot encoding of class labels.
    """

    head: Head
    loss: HeadLoss
    target: str
    target_is_label: bool
    one_hot: bool


@dataclass(frozen=True)
class _LossOfTarget:
    """A loss of one sample, with the name of the value that holds its target."""

    loss: HeadLoss
    target: str


_matched: MutableMapping[BoundedObjective, HeadLossPattern] = WeakKeyDictionary()
"""Patterns of the captured losses in use: each is read and compared with its graph once."""


def match_head_loss(bounded: BoundedObjective) -> HeadLossPattern:
    """Match head, loss and target of a captured objective.

    The loss is recognised by what it computes, not by the calls that compute it, and compared with the captured graph
    in value, first and second derivatives at random points.

    Raises:
        HeadError: if the loss has another form; the message names the obstacle.
        UnsoundBoundError: if the graph computes something else than what was recognised.
    """
    pattern = _matched.get(bounded)
    if pattern is None:
        pattern = _match(bounded)
        require_same_function(bounded, pattern.head.output, pattern.loss, pattern.target)
        _matched[bounded] = pattern
    return pattern


def _match(bounded: BoundedObjective) -> HeadLossPattern:
    graph = bounded.program.graph
    if not bounded.objective.terms:
        raise HeadError(f"the loss is none of {ACCEPTED_FORMS}")
    if bounded.objective.penalties:
        raise HeadError(
            "the loss has a penalty of parameters alone; use the optimizer's `weight_decay`, which is known"
        )
    formula = read_formula(graph, bounded.objective.terms, bounded.dependent)
    head = match_head(graph, formula.output, bounded.parameters, bounded.dependent)
    found = _recognised(formula)
    _require_target(bounded, found)
    source = _unrounded(graph, found.target)
    label = graph.producer(source)
    one_hot = label is not None and label.op is _aten.one_hot.default
    return HeadLossPattern(head, found.loss, found.target, source in bounded.objective.labels, one_hot)


def _unrounded(graph: Graph, target: str) -> str:
    """Return the value that a target is a reshaped copy of, in some type; its rounding is one of those of the loss."""
    call = graph.producer(target)
    while call is not None and (keeps_order(graph, call) or call.op in CASTS and call.dtype.is_floating_point):
        target = call.inputs[0]
        call = graph.producer(target)
    return target


def _require_target(bounded: BoundedObjective, found: _LossOfTarget) -> None:
    """Raise unless the target has one row per sample and is known where a domain reads it."""
    graph, target = bounded.program.graph, found.target
    if target not in bounded.program.samples:
        raise HeadError("the targets are the same for all samples; give each sample its own")
    if target in bounded.inside_frozen_layers:
        raise HeadError("the targets come from inside a frozen layer; use its result itself")
    call = graph.producer(target)
    kind = graph.types[target] if call is None else call.dtype
    one_hot = call is not None and call.op is _aten.one_hot.default
    if not isinstance(found.loss, SoftmaxLoss) and not kind.is_floating_point and not one_hot:
        raise HeadError("the targets are integers; convert them by `.to(outputs.dtype)`")


def _recognised(formula: Formula) -> _LossOfTarget:
    """Return the loss that a formula is.

    Raises:
        HeadError: if it is none that is known.
    """
    if len(formula.residuals) == 1 and not formula.logits:
        return _residual_loss(formula.residuals[0])
    if formula.residuals:
        raise HeadError("the loss adds up several losses; use one")
    softplus, lse, linear = Weight(), Weight(), Weight()
    for part in formula.logits:
        softplus, lse, linear = softplus + part.softplus, lse + part.lse, linear + part.linear
    if lse == Weight():
        return _logistic_loss(formula, softplus, linear)
    if softplus == Weight():
        return _softmax_loss(formula, lse, linear)
    raise HeadError(f"the loss is none of {ACCEPTED_FORMS}, but mixes several")


def _residual_loss(part: ResidualPart) -> _LossOfTarget:
    scale = _positive(part.coefficient)
    loss: HeadLoss = SquaredError(scale) if part.call is None else _huber(part.call, scale)
    _require_few_factors(type(loss), part.factors)
    return _LossOfTarget(loss, part.target)


def _huber(call: Call, scale: float) -> HuberError:
    if call.op is _aten.huber_loss.default:
        return HuberError(scale, _float(call.arguments["delta"]))
    beta = _float(call.arguments["beta"])
    if beta <= 0:
        raise HeadError(f"`{name_of(call)}` at {call.source} with beta=0 has no curvature bound; use beta > 0")
    return HuberError(scale, beta, 1 / beta)


def _logistic_loss(formula: Formula, softplus: Weight, linear: Weight) -> _LossOfTarget:
    """Match ``s Σ_k (softplus(f_k) - y_k f_k)``."""
    if softplus.target is not None or softplus.constant == 0:
        raise HeadError(f"the loss is none of {ACCEPTED_FORMS}: its curvature depends on the targets, or is zero")
    scale = _positive(softplus.constant)
    target = (-1 / softplus.constant) * linear
    names = [name for name, weight in formula.frozen.items() if weight == target]
    if target.target is None or not names:
        raise HeadError(f"the loss is none of {ACCEPTED_FORMS}: no value has the targets that it implies")
    _require_plain(LogisticLoss, formula)
    # The last one is what the loss reads; those before are what it is a copy of, such as a comparison.
    return _LossOfTarget(LogisticLoss(scale, _limits(formula), len(formula.logits)), names[-1])


def _softmax_loss(formula: Formula, lse: Weight, linear: Weight) -> _LossOfTarget:
    """Match ``s (lse(f) - Σ_k ((1 - ε) e_y + ε / K)_k f_k)``."""
    label = linear.target
    if lse.target is not None or label is None or label.classes != formula.outputs:
        raise HeadError(
            "cross entropy is covered for class labels, also smoothed, and not for probabilities from the batch; use "
            "cross_entropy with class labels, or `one_hot`"
        )
    scale = _positive(lse.constant)
    uniform, own = -linear.constant / lse.constant, -linear.slope / lse.constant
    if formula.outputs * uniform + own != 1 or uniform < 0 or own <= 0:
        raise HeadError("the targets of the cross entropy are no probabilities that add up to one")
    _require_plain(SoftmaxLoss, formula)
    if any(part.lse.constant < 0 or part.linear.constant > 0 or part.linear.slope > 0 for part in formula.logits):
        raise HeadError("the loss subtracts a cross entropy from another one; add up their factors")
    smoothing = 0.0 if own == 1 else float(1 - own)
    return _LossOfTarget(SoftmaxLoss(scale, _limits(formula), smoothing), label.source)


def _positive(scale: Fraction) -> float:
    if scale <= 0:
        raise HeadError("the loss has a negative factor and is not convex")
    return float(scale)


def _require_plain(kind: type[HeadLoss], formula: Formula) -> None:
    """Raise if a run rounds the gradient more often than is accounted for."""
    if len(formula.logits) > _MOST_PARTS[kind]:
        raise HeadError(f"the loss is a sum of {len(formula.logits)} functions of the outputs; collect them")
    _require_few_factors(kind, max(part.factors for part in formula.logits))


def _require_few_factors(kind: type[HeadLoss], factors: int) -> None:
    if factors > _MOST_FACTORS[kind]:
        raise HeadError(f"the loss or its target is scaled {factors} times; multiply the factors")


def _limits(formula: Formula) -> tuple[LogitLimit, ...]:
    """Return the limits of all parts, each once, in an order that does not depend on that of the parts."""
    limits = {limit for part in formula.logits for limit in part.limits}
    return tuple(sorted(limits, key=lambda limit: limit.__name__))


def _float(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)
