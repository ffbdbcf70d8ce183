"""What a loss compares: the one label that meets the one prediction, and the metric that suits their loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import torch

from agt_lightning.capture import Call, Graph, LabelKind, LossRoles, reached
from agt_lightning.errors import AgtError

_aten = torch.ops.aten

_ERRORS = frozenset(
    {
        _aten.huber_loss.default,
        _aten.l1_loss.default,
        _aten.mse_loss.default,
        _aten.smooth_l1_loss.default,
        _aten.sub.Tensor,
    }
)
"""Calls that compare a prediction and a label by their difference."""

_SUMS = frozenset({_aten.add.Tensor, _aten.sub.Tensor})


class MetricUndefinedError(AgtError):
    """A loss or a batch has no metric; the message is the reason."""


class Metric(Enum):
    """A metric that a loss suggests."""

    ACCURACY = "the class of the largest output"
    BINARY_ACCURACY = "the sign of the only output"
    SQUARED_ERROR = "the squared difference"


@dataclass(frozen=True)
class Comparison:
    """A label and the prediction that a loss compares it with.

    Args:
        prediction: name of the prediction's value.
        target: name of the label's value, as the loss compares it.
        metric: how they are compared.
    """

    prediction: str
    target: str
    metric: Metric


@dataclass(frozen=True)
class _Meeting:
    """A call that combines a value of batch entries alone with predictions.

    Args:
        call: the call.
        leaf: name of one of these entries.
        target: name of the value of these entries.
        predictions: names of the values that depend on parameters and samples.
    """

    call: Call
    leaf: str
    target: str
    predictions: tuple[str, ...]


def comparison(roles: LossRoles) -> Comparison:
    """Return what a loss compares, if it is one label with one prediction.

    Args:
        roles: a captured loss.

    Raises:
        MetricUndefinedError: if it is anything else, such as predictions that are masked or weighted, several heads, or
            a loss without a metric of its own.
    """
    graph = roles.graph
    meetings = list(_meetings(roles))
    leaves = {meeting.leaf for meeting in meetings}
    if len(leaves) != 1:
        raise MetricUndefinedError(
            "The loss compares no batch entry with a prediction."
            if not leaves
            else f"{len(leaves)} batch entries meet predictions (weights and masks are such entries too), and a metric "
            "needs exactly one label."
        )
    if len({(meeting.predictions, meeting.target) for meeting in meetings}) != 1:
        raise MetricUndefinedError("The label meets several predictions, and a metric needs exactly one.")
    kind = roles.label_kinds.get(meetings[0].leaf)
    metrics = {_metric(graph, kind, meeting) for meeting in meetings}
    if len(metrics) != 1:
        raise MetricUndefinedError("Two losses with different metrics compare the same prediction and label.")
    return Comparison(meetings[0].predictions[0], meetings[0].target, metrics.pop())


def _meetings(roles: LossRoles) -> Iterator[_Meeting]:
    """Yield each pair of a call and a batch entry that meets predictions there and does not enter the network."""
    graph = roles.graph
    rows = {name for name, has_samples in graph.given.items() if has_samples}  # of a part that is evaluated as it is
    parameters, data = reached(graph, set(graph.parameters)), reached(graph, {*graph.leaves, *rows})
    origins: dict[str, frozenset[str]] = {leaf: frozenset({leaf}) for leaf in graph.leaves}
    found, inputs = [], set(roles.features)
    for call in graph.calls:
        if call.name not in parameters:
            origins[call.name] = frozenset[str]().union(*(origins.get(name, frozenset()) for name in call.inputs))
            continue
        partners = tuple(name for name in call.inputs if name in parameters)
        for target in (name for name in call.inputs if name not in parameters and origins.get(name)):
            if data.isdisjoint(partners):
                inputs |= origins[target]
            elif not _goes_on(graph, call, parameters):
                found.append((call, target, partners))
    for call, target, partners in found:
        if not origins[target] <= inputs:
            yield from (_Meeting(call, leaf, target, partners) for leaf in sorted(origins[target]))


def _goes_on(graph: Graph, meeting: Call, parameters: frozenset[str]) -> bool:
    """Return whether the network goes on after a call: other values of parameters meet its result, except in a sum."""
    after = reached(graph, {meeting.name})
    return any(
        call.op not in _SUMS and any(name in parameters and name not in after for name in call.inputs)
        for call in graph.calls
        if call.name in after and call.name != meeting.name
    )


def _metric(graph: Graph, kind: LabelKind | None, meeting: _Meeting) -> Metric:
    """Return the metric of one loss.

    Raises:
        MetricUndefinedError: if it has none.
    """
    op, prediction, target = meeting.call.op, meeting.predictions[0], graph.shapes[meeting.target]
    shape = graph.shapes[prediction]
    of_classes = len(shape) == 2 and shape[1] > 1
    if op is _aten.cross_entropy_loss.default and meeting.call.inputs[0] == prediction:
        if not of_classes:
            raise MetricUndefinedError("Cross entropy has a metric for predictions of shape (batch, classes) alone.")
        if len(target) == 2 and kind is not LabelKind.CLASS:
            raise MetricUndefinedError("The labels of the cross entropy are probabilities, not classes.")
        return Metric.ACCURACY
    if op is _aten.binary_cross_entropy_with_logits.default and meeting.call.inputs[0] == prediction:
        if torch.Size(shape[1:]).numel() != 1:
            raise MetricUndefinedError("Several labels of zero or one for each sample have no one accuracy.")
        return Metric.BINARY_ACCURACY
    if op in _ERRORS and len(shape) == len(target):
        if kind is not LabelKind.CLASS:
            return Metric.SQUARED_ERROR
        if of_classes and target == shape:
            return Metric.ACCURACY
    raise MetricUndefinedError(f"`{str(op).rsplit('.', 1)[0]}` at {meeting.call.source} is no loss with a metric.")
