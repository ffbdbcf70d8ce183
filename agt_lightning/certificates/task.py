"""What a training taught a network: the kind of label that each of its predictions was compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from agt_lightning.capture import Graph, LabelKind, LossRoles, reached
from agt_lightning.capture.reductions import LOSSES
from agt_lightning.certificates.origin import origin
from agt_lightning.certificates.probabilities import before_probabilities
from agt_lightning.rules.shape import CASTS, RESHAPES

_aten = torch.ops.aten

_KEEP_LARGEST = frozenset(
    {
        *RESHAPES,
        *CASTS,
        _aten.add.Tensor,
        _aten.sub.Tensor,
        _aten.mul.Tensor,
        _aten.div.Tensor,
    }
)
"""Calls that, with a number or alone, can leave the largest entry of a one-hot vector the largest."""

_COMPARE = frozenset({_aten.sub.Tensor, _aten.mul.Tensor})
"""Calls by which a loss that is written by hand compares scores, or log-probabilities, with one-hot vectors."""


@dataclass(frozen=True)
class Task:
    """The predictions that the loss of a training compared with labels.

    Args:
        predictions: origins of these predictions, see `origin`, each with the kind of its label. `LabelKind.CLASS`
            means that the largest of several outputs is the class, `LabelKind.BINARY` that outputs are logits.

    Example:
        >>> classes, numbers = Task(frozenset({("a", LabelKind.CLASS)})), Task(frozenset({("b", LabelKind.NUMBER)}))
        >>> sorted(kind.name for kind in (classes | numbers).kinds("a"))
        ['CLASS']
    """

    predictions: frozenset[tuple[str, LabelKind]]

    @classmethod
    def of(cls, roles: LossRoles, parameters: Mapping[str, str]) -> Task:
        """Read the task off a captured loss.

        Args:
            roles: the captured loss.
            parameters: names of parameters in the module by value name.
        """
        graph = roles.graph
        return cls(
            frozenset(
                (origin(graph, parameters, _score(graph, prediction, kind)), kind)
                for prediction, kind in _comparisons(roles)
            )
        )

    def __or__(self, other: Task) -> Task:
        return Task(self.predictions | other.predictions)

    def kinds(self, value: str) -> frozenset[LabelKind]:
        """Return the kinds of labels that values of this origin were compared with; empty if with none."""
        return frozenset(kind for known, kind in self.predictions if known == value)


def _score(graph: Graph, prediction: str, kind: LabelKind) -> str:
    return before_probabilities(graph, prediction) if kind is LabelKind.CLASS else prediction


def _comparisons(roles: LossRoles) -> Iterator[tuple[str, LabelKind]]:
    """Yield each prediction that is compared with batch entries, and the kind of the label."""
    graph, found = roles.graph, False
    predicted, data = reached(graph, set(graph.parameters)), reached(graph, set(graph.leaves))
    for call in graph.calls:
        if call.op not in LOSSES:
            continue
        predictions = [name for name in call.inputs[:2] if name in predicted]
        targets = [name for name in call.inputs[:2] if name not in predicted and name in data]
        if len(predictions) == len(targets) == 1:
            found = True
            yield predictions[0], _kind(graph, call.op, predictions[0], targets[0])
    if not found and roles.prediction is not None and roles.target is not None:
        yield roles.prediction, _kind_by_hand(roles, roles.prediction, roles.target)


def _kind_by_hand(roles: LossRoles, prediction: str, target: str) -> LabelKind:
    """Return the kind of the label of a loss without a loss function: one-hot vectors subtracted or multiplied."""
    graph = roles.graph
    meets = any({prediction, target} <= set(call.inputs) and call.op in _COMPARE for call in graph.calls)
    if roles.label_kind is not LabelKind.CLASS:
        return roles.label_kind
    classes = meets and _is_wide(graph, prediction) and _is_one_hot(graph, target)
    return LabelKind.CLASS if classes else LabelKind.NUMBER


def _kind(graph: Graph, loss: object, prediction: str, target: str) -> LabelKind:
    if loss is _aten.cross_entropy_loss.default or _is_wide(graph, prediction) and _is_one_hot(graph, target):
        return LabelKind.CLASS
    return LabelKind.BINARY if loss is _aten.binary_cross_entropy_with_logits.default else LabelKind.NUMBER


def _is_wide(graph: Graph, name: str) -> bool:
    return torch.Size(graph.shapes[name][1:]).numel() > 1


def _is_one_hot(graph: Graph, name: str) -> bool:
    """Return whether a value is one-hot vectors of classes, with any two numbers for cold and hot."""
    call = graph.producer(name)
    while call is not None and call.op in _KEEP_LARGEST and len(call.inputs) == 1:
        scales = call.op in (_aten.mul.Tensor, _aten.div.Tensor)
        factor = call.arguments.get("other", 1)
        if scales and not (isinstance(factor, int | float) and factor > 0):
            return False
        call = graph.producer(call.inputs[0])
    return call is not None and call.op is _aten.one_hot.default
