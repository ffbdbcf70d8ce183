"""Roles in a captured training step: the features and labels of the batch, and the per-sample terms of the loss.

The user need not name them: they follow from where a batch entry first *meets* parameters. Follow an entry through the
calls whose inputs depend on no parameter. A call that combines its value with one that depends on parameters is a
meeting. If no such value depends on samples too, the entry meets parameters alone and is a *feature*: it enters the
model. Otherwise it meets a prediction and is a *label*: it is compared with the model's output. An entry with meetings
of both kinds is a feature.

The loss must be a sum, or mean, over samples of per-sample terms, possibly scaled and added. Then the gradient is a
weighted sum of per-sample gradients, and a poisoned sample changes its own only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import torch

from agt_lightning.capture.graph import Call, Graph, Reference

_aten = torch.ops.aten


class LabelKind(Enum):
    """A kind of label, determined by the loss that uses it."""

    NONE = "no label"
    CLASS = "one of several classes"
    BINARY = "zero or one"
    NUMBER = "real numbers"


@dataclass(frozen=True)
class LossTerm:
    """A term ``coefficient · Σ_i (sum of value_i)`` of the loss, or the mean over all elements.

    Args:
        value: name of the value, whose axis 0 counts samples.
        coefficient: factor in front of the reduction, not zero.
        mean: whether the reduction is a mean.
    """

    value: str
    coefficient: float
    mean: bool


@dataclass(frozen=True)
class LossRoles:
    """A captured loss and the roles of its inputs.

    Args:
        graph: the captured graph, whose output is the scalar loss.
        samples: names of values whose axis 0 counts samples.
        trainable: names of values that depend on a trainable parameter.
        features: leaf names that meet parameters.
        labels: leaf names that meet predictions only.
        label_kinds: kind of each label.
        prediction: name of the value that the label meets first; None if there is no label.
        target: name of the label's value where it meets the prediction.
        terms: the loss as a sum of terms.
        reduced: names of values after the reduction over samples.
        problems: reasons why this loss cannot be certified.
    """

    graph: Graph
    samples: frozenset[str]
    trainable: frozenset[str]
    features: tuple[str, ...]
    labels: tuple[str, ...]
    label_kinds: Mapping[str, LabelKind]
    prediction: str | None
    target: str | None
    terms: tuple[LossTerm, ...]
    reduced: frozenset[str]
    problems: tuple[str, ...]

    @property
    def label_kind(self) -> LabelKind:
        """The kind of the label that meets the predictions first."""
        return next(iter(self.label_kinds.values()), LabelKind.NONE)


def analyze(graph: Graph, batch_size: int, is_trainable: Callable[[str], bool]) -> LossRoles:
    """Find the roles of the inputs and the terms of the loss.

    Args:
        graph: a captured loss.
        batch_size: number of samples of the captured batch.
        is_trainable: whether a parameter, by its name in the module, is trained.
    """
    leaves = {leaf for leaf in (*graph.leaves, *graph.masks) if graph.shapes[leaf][:1] == (batch_size,)}
    samples = reached(graph, leaves)
    parameters = reached(graph, set(graph.parameters))
    sources = {name for name, target in graph.parameters.items() if is_trainable(target)}
    trainable = reached(graph, sources, through_detach=False)
    meetings = _meetings(graph, samples, parameters)
    features = tuple(leaf for leaf in graph.leaves if any(m.leaf == leaf and m.feature for m in meetings))
    label_meetings: dict[str, _Meeting] = {}
    for meeting in meetings:
        if meeting.leaf not in features:
            label_meetings.setdefault(meeting.leaf, meeting)
    first = next(iter(label_meetings.values()), None)
    reduction = _Terms(graph, samples)
    return LossRoles(
        graph=graph,
        samples=samples - reduction.reduced,
        trainable=trainable,
        features=features,
        labels=tuple(label_meetings),
        label_kinds={leaf: _label_kind(graph, meeting) for leaf, meeting in label_meetings.items()},
        prediction=first.prediction if first else None,
        target=first.target if first else None,
        terms=tuple(reduction.terms),
        reduced=frozenset(reduction.reduced),
        problems=tuple(reduction.problems),
    )


def reached(graph: Graph, sources: set[str], *, through_detach: bool = True) -> frozenset[str]:
    """Return all values that depend on one of the sources, including the sources.

    Args:
        graph: the graph.
        sources: value names.
        through_detach: whether a detached value counts as dependent: its value does, its gradient does not.
    """
    names = set(sources)
    for call in graph.calls:
        if names.intersection(call.inputs) and (through_detach or call.op is not _aten.detach.default):
            names.add(call.name)
    return frozenset(names)


@dataclass(frozen=True)
class _Meeting:
    """A call in which a leaf, possibly transformed, first meets a value that depends on parameters.

    Args:
        leaf: name of the leaf.
        feature: whether none of the call's values that depend on parameters depends on samples.
        call: the call.
        prediction: name of the first of these values.
        target: name of the leaf's value in the call.
    """

    leaf: str
    feature: bool
    call: Call
    prediction: str
    target: str


def _meetings(graph: Graph, samples: frozenset[str], parameters: frozenset[str]) -> list[_Meeting]:
    """Find the calls in which values of leaves alone meet values that depend on parameters."""
    origins: dict[str, set[str]] = {leaf: {leaf} for leaf in graph.leaves}
    meetings: list[_Meeting] = []
    for call in graph.calls:
        if call.name not in parameters:
            origins[call.name] = set().union(*(origins.get(name, set()) for name in call.inputs))
            continue
        partners = [name for name in call.inputs if name in parameters]
        for name in call.inputs:
            if name in parameters:
                continue
            feature = not any(partner in samples for partner in partners)
            meetings += [_Meeting(leaf, feature, call, partners[0], name) for leaf in sorted(origins.get(name, set()))]
    return meetings


def _label_kind(graph: Graph, meeting: _Meeting) -> LabelKind:
    if meeting.call.op is _aten.binary_cross_entropy_with_logits.default:
        return LabelKind.BINARY
    from_leaf = reached(graph, {meeting.leaf})
    if any(call.op is _aten.one_hot.default and call.inputs[0] in from_leaf for call in graph.calls):
        return LabelKind.CLASS
    if meeting.call.op is _aten.cross_entropy_loss.default:
        rank_of_classes = len(graph.shapes[meeting.prediction])
        return LabelKind.CLASS if len(graph.shapes[meeting.target]) < rank_of_classes else LabelKind.NUMBER
    return LabelKind.NUMBER


class _Terms:
    """The terms of a loss, found by a walk back to the reductions over samples, with the coefficient of each."""

    def __init__(self, graph: Graph, samples: frozenset[str]) -> None:
        self.graph = graph
        self.samples = samples
        self.producers: Mapping[str, Call] = {call.name: call for call in graph.calls}
        self.terms: list[LossTerm] = []
        self.reduced: set[str] = set()
        self.problems: list[str] = []
        if graph.shapes[graph.output] != ():
            self.problems.append(
                f"`training_step` returns a loss of shape {graph.shapes[graph.output]}. Reduce it with `.mean()`."
            )
        self._visit(graph.output, 1.0)

    def _visit(self, name: str, coefficient: float) -> None:
        if coefficient == 0.0:
            return None
        call = self.producers.get(name)
        if name not in self.samples:
            return self._visit_shared(name, call)
        if call is None:
            return self.problems.append("The loss is a batch entry itself; it does not depend on any prediction.")
        self.reduced.add(name)
        if self._is_reduction(call):
            mean = call.op in (_aten.mean.default, _aten.mean.dim)
            self.terms.append(LossTerm(call.inputs[0], coefficient, mean))
            return None
        return self._visit_inputs(call, coefficient)

    def _is_reduction(self, call: Call) -> bool:
        """Return whether the call is a mean or sum over all axes."""
        if call.op in (_aten.mean.default, _aten.sum.default):
            return call.inputs[0] not in self.reduced and self.graph.shapes[call.inputs[0]] != ()
        if call.op in (_aten.mean.dim, _aten.sum.dim_IntList):
            dims, rank = call.arguments["dim"], len(self.graph.shapes[call.inputs[0]])
            return not dims or isinstance(dims, list) and len({int(dim) % rank for dim in dims}) == rank > 0
        return False

    def _visit_inputs(self, call: Call, coefficient: float) -> None:
        factors = self._factors(call)
        if factors is None:
            self.problems.append(
                f"`{str(call.op).rsplit('.', 1)[0]}` at {call.source} combines samples in a way that is not a mean or "
                "sum of per-sample terms. Write the loss as `per_sample_loss.mean()`."
            )
            return
        for name, factor in factors:
            self._visit(name, coefficient * factor)

    def _factors(self, call: Call) -> list[tuple[str, float]] | None:
        """Return the factors of the call as a linear function of its tensor inputs; None if it is not linear."""
        arguments = call.arguments
        first = arguments.get("self")
        if call.op in (_aten.add.Tensor, _aten.sub.Tensor):
            sign = 1.0 if call.op is _aten.add.Tensor else -1.0
            alpha = _number(arguments["alpha"])
            pairs = ((first, 1.0), (arguments["other"], sign * (alpha if alpha is not None else 1.0)))
            return [(value.name, factor) for value, factor in pairs if isinstance(value, Reference)]
        if call.op is _aten.neg.default:
            return [(call.inputs[0], -1.0)]
        if call.op is _aten.rsub.Scalar:
            alpha = _number(arguments["alpha"])
            return [(call.inputs[0], -alpha)] if alpha is not None else None
        if call.op in _CASTS:
            return [(call.inputs[0], 1.0)]
        if call.op in (_aten.mul.Tensor, _aten.div.Tensor):
            return self._scaling(call)
        return None

    def _scaling(self, call: Call) -> list[tuple[str, float]] | None:
        divides = call.op is _aten.div.Tensor
        operands = [(call.arguments["self"], call.arguments["other"])]
        if not divides:
            operands.append((call.arguments["other"], call.arguments["self"]))
        for value, factor in operands:
            number = self._constant(factor)
            if isinstance(value, Reference) and number is not None:
                return [(value.name, 1.0 / number if divides else number)]
        return None

    def _constant(self, argument: object) -> float | None:
        if isinstance(argument, Reference):
            constant = self.graph.constants.get(argument.name)
            return float(constant) if constant is not None and constant.numel() == 1 else None
        return _number(argument)

    def _visit_shared(self, name: str, call: Call | None) -> None:
        """Visit a summand without samples: harmless if constant, else a regularizer without bounds."""
        if name in reached(self.graph, set(self.graph.parameters)):
            source = call.source if call else "the loss"
            self.problems.append(
                f"The loss has a term of parameters alone ({source}). Use the optimizer's `weight_decay` instead."
            )


_CASTS = frozenset(
    {
        _aten._to_copy.default,
        _aten.to.dtype,
        _aten.to.dtype_layout,
        _aten.squeeze.default,
        _aten.view.default,
        _aten.reshape.default,
    }
)


def _number(argument: object) -> float | None:
    return float(argument) if isinstance(argument, int | float) and not isinstance(argument, bool) else None
