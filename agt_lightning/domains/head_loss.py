"""The loss at the end of a head, matched in the captured graph of training."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from agt_lightning.capture import Call, Graph
from agt_lightning.capture.graph import SATURATING
from agt_lightning.domains.head import Head, HeadError, match_head, unshaped
from agt_lightning.domains.losses import HeadLoss, HuberError, LogisticLoss, SoftmaxLoss, SquaredError
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.rules.base import name_of
from agt_lightning.rules.shape import CASTS, RESHAPES

_aten = torch.ops.aten

_LOSSES = frozenset(
    {
        _aten.mse_loss.default,
        _aten.huber_loss.default,
        _aten.smooth_l1_loss.default,
        _aten.binary_cross_entropy_with_logits.default,
        _aten.cross_entropy_loss.default,
    }
)


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


def match_head_loss(bounded: BoundedObjective) -> HeadLossPattern:
    """Match head, loss and target of a captured objective.

    Raises:
        HeadError: if the loss has another form; the message names the obstacle.
    """
    graph, terms = bounded.program.graph, bounded.objective.terms
    producers = {call.name: call for call in graph.calls}
    term = unshaped(graph, terms[0].value) if len(terms) == 1 else None
    call = producers.get(term) if term is not None else None
    if call is None or call.op not in _LOSSES:
        raise HeadError(
            "the loss is not one call of mse_loss, huber_loss, smooth_l1_loss, binary_cross_entropy_with_logits or "
            "cross_entropy"
        )
    if terms[0].coefficient < 0:
        raise HeadError("the loss has a negative factor and is not convex")
    prediction, target, *_ = call.inputs
    if target in bounded.dependent:
        raise HeadError("the targets depend on trained parameters")
    head = match_head(graph, prediction, bounded.parameters, bounded.dependent)
    outputs = producers[head.output].shape[1]
    _require_same_elements(call, graph.shapes[prediction], graph.shapes[target], outputs)
    loss = _loss(call, 1.0 / outputs if terms[0].mean and call.op is not _aten.cross_entropy_loss.default else 1.0)
    source = _unrounded(graph, target)
    label = producers.get(source)
    return HeadLossPattern(
        head, loss, target, source in bounded.objective.labels, label is not None and label.op is _aten.one_hot.default
    )


def _unrounded(graph: Graph, target: str) -> str:
    """Return the value that a target is a reshaped copy of, in some type; its rounding is one of those of the loss."""
    call = graph.producer(target)
    while call is not None and (call.op in RESHAPES or call.op in CASTS and call.dtype.is_floating_point):
        target = call.inputs[0]
        call = graph.producer(target)
    return target


def _loss(call: Call, scale: float) -> HeadLoss:
    arguments = call.arguments
    if any(arguments.get(name) is not None for name in ("weight", "pos_weight")):
        raise HeadError(f"`{name_of(call)}` at {call.source} has weights; leave them out")
    if call.op is _aten.mse_loss.default:
        return SquaredError(scale)
    if call.op is _aten.huber_loss.default:
        return HuberError(scale, _float(arguments["delta"]))
    if call.op is _aten.smooth_l1_loss.default:
        if _float(arguments["beta"]) <= 0:
            raise HeadError(f"`{name_of(call)}` at {call.source} with beta=0 has no curvature bound; use beta > 0")
        return HuberError(scale, _float(arguments["beta"]), 1 / _float(arguments["beta"]))
    if call.op is _aten.binary_cross_entropy_with_logits.default:
        if arguments.get(SATURATING):
            raise HeadError("binary_cross_entropy of a sigmoid is cut off at large logits; use the form with logits")
        return LogisticLoss(scale)
    if arguments["label_smoothing"] != 0:
        raise HeadError(f"`{name_of(call)}` at {call.source} smooths labels; set `label_smoothing=0`")
    return SoftmaxLoss(scale)


def _require_same_elements(call: Call, prediction: tuple[int, ...], target: tuple[int, ...], outputs: int) -> None:
    """Raise `HeadError` unless the loss reads each output of the head once, with a target of its own."""
    if call.op is _aten.cross_entropy_loss.default:
        if len(prediction) != 2 or len(target) != 1:
            raise HeadError(f"cross_entropy at {call.source} needs logits (batch, classes) and class labels (batch,)")
        return
    if torch.Size(prediction[1:]).numel() != outputs or target != prediction:
        raise HeadError(
            f"`{name_of(call)}` at {call.source} reads predictions {prediction} and targets {target}; give both one "
            "shape"
        )


def _float(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)
