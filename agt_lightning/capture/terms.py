"""The loss as a sum of per-sample terms, found by a walk back from the loss to its reductions over samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from agt_lightning.capture.graph import Call, Graph, Reference
from agt_lightning.capture.reached import reached

_aten = torch.ops.aten

_MEANS = frozenset({_aten.mean.default, _aten.mean.dim})
_SUMS = frozenset({_aten.sum.default, _aten.sum.dim_IntList})
_JOINS = frozenset({_aten.stack.default, _aten.cat.default, _aten.concat.default, _aten.hstack.default})
_UNCHANGED = frozenset(
    {
        _aten._to_copy.default,
        _aten.flatten.using_ints,
        _aten.reshape.default,
        _aten.squeeze.default,
        _aten.squeeze.dim,
        _aten.squeeze.dims,
        _aten.to.dtype,
        _aten.to.dtype_layout,
        _aten.unsqueeze.default,
        _aten.view.default,
    }
)
"""Calls whose elements are those of their input, in another shape or type."""


@dataclass(frozen=True)
class LossTerm:
    """A term ``coefficient · Σ_i (sum of value_i)`` of the loss, or the mean over all elements.

    Args:
        value: name of the value, whose axis 0 counts samples.
        coefficient: factor in front of the reduction; zero for a term that only becomes part of the loss later.
        mean: whether the reduction is a mean.
    """

    value: str
    coefficient: float
    mean: bool


class Terms:
    """The terms of a loss, with the coefficient of each.

    Args:
        graph: its output is the loss.
        samples: names of all values that depend on samples.
        entries: names of the inputs whose axis 0 counts samples.

    Attributes:
        terms: those with a coefficient other than zero come first; empty if there are none of these.
        reduced: names of the values after the reduction over samples.
        problems: why the loss is no such sum.
    """

    def __init__(self, graph: Graph, samples: frozenset[str], entries: frozenset[str]) -> None:
        self.graph = graph
        self.samples = samples
        self.producers: Mapping[str, Call] = {call.name: call for call in graph.calls}
        self.parameters = reached(graph, set(graph.parameters))
        self.spread = _with_sample_axis(graph, entries)
        self.reduced: set[str] = set()
        self.problems: list[str] = []
        self._found: list[LossTerm] = []
        if graph.shapes[graph.output] != ():
            self.problems.append(
                f"`training_step` returns a loss of shape {graph.shapes[graph.output]}. Reduce it with `.mean()`."
            )
        self._visit(graph.output, 1.0)
        self.problems += self._couplings()

    @property
    def terms(self) -> tuple[LossTerm, ...]:
        """The terms, see above."""
        ordered = sorted(self._found, key=lambda term: term.coefficient == 0.0)
        return tuple(ordered) if ordered and ordered[0].coefficient != 0.0 else ()

    def _visit(self, name: str, coefficient: float) -> None:
        """Enter the summand ``coefficient · Σ (elements of the value)``."""
        call = self.producers.get(name)
        if name not in self.samples:
            return self._visit_shared(name, call, coefficient)
        if call is None:
            return self.problems.append("The loss is a batch entry itself; it does not depend on any prediction.")
        self.reduced.add(name)
        if name not in self.spread and call.inputs[0] in self.spread and call.op in _MEANS | _SUMS:
            mean = call.op in _MEANS
            self._found.append(LossTerm(call.inputs[0], coefficient * (self._size(name) if mean else 1), mean))
            return None
        factors = None if name in self.spread else self._factors(call)
        if factors is None:
            return self.problems.append(
                f"`{str(call.op).rsplit('.', 1)[0]}` at {call.source} combines samples in a way that is not a mean or "
                "sum of per-sample terms. Write the loss as `per_sample_loss.mean()`."
            )
        for value, factor in factors:
            self._visit(value, coefficient * factor)
        return None

    def _factors(self, call: Call) -> list[tuple[str, float]] | None:
        """Return a for each tensor input x with ``Σ result = Σ_x a Σ x + constant``; None if there is no such a."""
        arguments = call.arguments
        if call.op in (_aten.add.Tensor, _aten.sub.Tensor):
            sign = 1.0 if call.op is _aten.add.Tensor else -1.0
            alpha = _number(arguments["alpha"])
            pairs = ((arguments["self"], 1.0), (arguments["other"], sign * (alpha if alpha is not None else 1.0)))
            return [(v.name, factor * self._copies(call, v.name)) for v, factor in pairs if isinstance(v, Reference)]
        if call.op is _aten.neg.default:
            return [(call.inputs[0], -1.0)]
        if call.op is _aten.rsub.Scalar:
            alpha = _number(arguments["alpha"])
            return [(call.inputs[0], -alpha)] if alpha is not None else None
        if call.op in _UNCHANGED | _SUMS | _JOINS:
            return [(name, 1.0) for name in call.inputs]
        if call.op in _MEANS:
            return [(call.inputs[0], self._copies(call, call.inputs[0]))]
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
                return [(value.name, (1.0 / number if divides else number) * self._copies(call, value.name))]
        return None

    def _constant(self, argument: object) -> float | None:
        if isinstance(argument, Reference):
            constant = self.graph.constants.get(argument.name)
            return float(constant) if constant is not None and constant.numel() == 1 else None
        return _number(argument)

    def _copies(self, call: Call, name: str) -> float:
        """Return how often each element of an input is in the result, less than once for a mean."""
        return self._size(call.name) / self._size(name)

    def _size(self, name: str) -> int:
        return math.prod(self.graph.shapes[name])

    def _visit_shared(self, name: str, call: Call | None, coefficient: float) -> None:
        """Enter a summand without samples: harmless if constant or times zero, else a regularizer without bounds."""
        if coefficient == 0.0 or call is not None and self._is_times_zero(call):
            self.reduced |= self._computed_from(name)
        elif name in self.parameters:
            source = call.source if call else "the loss"
            self.problems.append(
                f"The loss has a term of parameters alone ({source}). Use the optimizer's `weight_decay` instead."
            )

    def _is_times_zero(self, call: Call) -> bool:
        factors = self._factors(call)
        return bool(factors) and all(factor == 0.0 for _, factor in factors or ())

    def _computed_from(self, name: str) -> set[str]:
        """Return the calls that a value is computed by."""
        needed = {name}
        for call in reversed(self.graph.calls):
            if call.name in needed:
                needed.update(call.inputs)
        return needed & self.producers.keys()

    def _couplings(self) -> list[str]:
        """Refuse per-sample values that are computed from a mean or sum over samples of the walk."""
        return [
            f"`{str(call.op).rsplit('.', 1)[0]}` at {call.source} uses a mean or sum over samples for each of them, so "
            "that each sample reaches the gradients of all others. Leave it out."
            for call in self.graph.calls
            if call.name not in self.reduced and self.reduced.intersection(call.inputs)
        ]


def _with_sample_axis(graph: Graph, entries: frozenset[str]) -> frozenset[str]:
    """Return the names of values whose axis 0 still counts samples: no mean or sum has run over it."""
    spread = set(entries)
    for call in graph.calls:
        if spread.intersection(call.inputs) and not _reduces_first_axis(call, graph):
            spread.add(call.name)
    return frozenset(spread)


def _reduces_first_axis(call: Call, graph: Graph) -> bool:
    if call.op in (_aten.mean.default, _aten.sum.default):
        return True
    if call.op not in (_aten.mean.dim, _aten.sum.dim_IntList):
        return False
    dims, rank = call.arguments["dim"], len(graph.shapes[call.inputs[0]])
    return not dims or isinstance(dims, list) and any(int(dim) % max(rank, 1) == 0 for dim in dims)


def _number(argument: object) -> float | None:
    return float(argument) if isinstance(argument, int | float) and not isinstance(argument, bool) else None
