"""The loss as a sum of per-sample terms, found by a walk back from the loss to its reductions over samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.capture.graph import Call, Graph, Reference, map_references
from agt_lightning.capture.reached import reached

_aten = torch.ops.aten

_MEANS = frozenset({_aten.mean.default, _aten.mean.dim})
_SUMS = frozenset({_aten.sum.default, _aten.sum.dim_IntList})
_MOVES = frozenset(
    {
        _aten.atleast_1d.default,
        _aten.cat.default,
        _aten.concat.default,
        _aten.expand.default,
        _aten.hstack.default,
        _aten.select.int,
        _aten.slice.Tensor,
        _aten.stack.default,
    }
)
"""Calls whose elements are those of their inputs, dropped, repeated or in other places."""

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
        penalties: numbers that depend on parameters alone and are added to the loss, with the coefficient of each.
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
        self.penalties: dict[str, float] = {}
        self.problems: list[str] = []
        self._found: list[LossTerm] = []
        if graph.shapes[graph.output] != ():
            self.problems.append(
                f"`training_step` returns a loss of shape {graph.shapes[graph.output]}. Reduce it with `.mean()`."
            )
        self._visit(graph.output, torch.ones(graph.shapes[graph.output], dtype=torch.float64))
        self.problems += self._couplings()
        if self.penalties and not self.terms and not self.problems:
            self.problems.append(
                "The loss is a term of parameters alone: no entry of the batch reaches it. Return the loss of the "
                "network's outputs."
            )

    @property
    def terms(self) -> tuple[LossTerm, ...]:
        """The terms, see above."""
        ordered = sorted(self._found, key=lambda term: term.coefficient == 0.0)
        return tuple(ordered) if ordered and ordered[0].coefficient != 0.0 else ()

    def _visit(self, name: str, coefficients: Tensor) -> None:
        """Enter the summand ``Σ_j coefficients_j · value_j`` over the elements of a value."""
        call = self.producers.get(name)
        if name not in self.samples:
            return self._visit_shared(name, call, coefficients)
        if call is None:
            return self.problems.append("The loss is a batch entry itself; it does not depend on any prediction.")
        self.reduced.add(name)
        if name not in self.spread and call.inputs[0] in self.spread and call.op in _MEANS | _SUMS:
            return self._visit_reduction(call, coefficients)
        shares = None if name in self.spread else self._shares(call, coefficients)
        if shares is None:
            return self.problems.append(_not_a_sum(call))
        for value, share in shares.items():
            self._visit(value, share)
        return None

    def _visit_reduction(self, call: Call, coefficients: Tensor) -> None:
        """Enter the mean or sum over the samples of a value."""
        first = coefficients.flatten()[0]
        if not bool((coefficients == first).all()):
            return self.problems.append(
                f"`{str(call.op).rsplit('.', 1)[0]}` at {call.source} reduces over samples elements that later have "
                "different factors. Multiply them by their factors before that."
            )
        mean = call.op in _MEANS
        self._found.append(LossTerm(call.inputs[0], float(first) * (coefficients.numel() if mean else 1), mean))
        return None

    def _shares(self, call: Call, coefficients: Tensor) -> dict[str, Tensor] | None:
        """Return what a summand is in terms of each tensor input of its call; None if it is not linear in them."""
        arguments = call.arguments
        if call.op in (_aten.add.Tensor, _aten.sub.Tensor):
            sign = 1.0 if call.op is _aten.add.Tensor else -1.0
            alpha = _number(arguments["alpha"])
            second = sign * (alpha if alpha is not None else 1.0)
            return self._added([(arguments["self"], coefficients), (arguments["other"], second * coefficients)])
        if call.op is _aten.neg.default:
            return {call.inputs[0]: -coefficients}
        if call.op is _aten.rsub.Scalar:
            alpha = _number(arguments["alpha"])
            return {call.inputs[0]: -alpha * coefficients} if alpha is not None else None
        if call.op in _UNCHANGED:
            return {call.inputs[0]: coefficients.reshape(self.graph.shapes[call.inputs[0]])}
        if call.op in _MEANS | _SUMS | _MOVES:
            return self._carried(call, coefficients)
        if call.op in (_aten.mul.Tensor, _aten.div.Tensor):
            return self._scaled(call, coefficients)
        return None

    def _added(self, pairs: list[tuple[object, Tensor]]) -> dict[str, Tensor]:
        """Return the shares of broadcast values, each summed over its copies."""
        shares: dict[str, Tensor] = {}
        for value, share in pairs:
            if isinstance(value, Reference):
                summed = share.sum_to_size(self.graph.shapes[value.name])
                shares[value.name] = shares[value.name] + summed if value.name in shares else summed
        return shares

    def _scaled(self, call: Call, coefficients: Tensor) -> dict[str, Tensor] | None:
        divides = call.op is _aten.div.Tensor
        operands = [(call.arguments["self"], call.arguments["other"])]
        if not divides:
            operands.append((call.arguments["other"], call.arguments["self"]))
        for value, factor in operands:
            constant = self._constant(factor)
            if isinstance(value, Reference) and constant is not None:
                return self._added([(value, coefficients * (1.0 / constant if divides else constant))])
        return None

    def _constant(self, argument: object) -> Tensor | float | None:
        if isinstance(argument, Reference):
            constant = self.graph.constants.get(argument.name)
            return None if constant is None else constant.detach().to("cpu", torch.float64)
        return _number(argument)

    def _carried(self, call: Call, coefficients: Tensor) -> dict[str, Tensor]:
        """Return the shares of the inputs of a linear call: its transpose."""
        shapes = self.graph.shapes
        with torch.enable_grad():
            zeros = {name: torch.zeros(shapes[name], dtype=torch.float64, requires_grad=True) for name in call.inputs}
            result = call.op(
                **{
                    name: None if name == "dtype" else map_references(argument, lambda value: zeros[value.name])
                    for name, argument in call.arguments.items()
                }
            )
            shares = torch.autograd.grad(result, list(zeros.values()), coefficients)
        return dict(zip(zeros, shares, strict=True))

    def _visit_shared(self, name: str, call: Call | None, coefficients: Tensor) -> None:
        """Enter a summand without samples: harmless if constant or times zero, else a penalty of parameters."""
        if not bool(coefficients.any()) or call is not None and self._is_times_zero(call):
            self.reduced |= self._computed_from(name)
        elif name in self.parameters and self.graph.shapes[name] == ():
            self.penalties[name] = self.penalties.get(name, 0.0) + float(coefficients)
        elif name in self.parameters:
            source = call.source if call else "the loss"
            self.problems.append(
                f"The loss has a term of parameters alone ({source}) that is no number, for which there are no bounds. "
                "Add up its elements first, as by `.sum()`."
            )

    def _is_times_zero(self, call: Call) -> bool:
        shares = self._shares(call, torch.ones(self.graph.shapes[call.name], dtype=torch.float64))
        return bool(shares) and not any(bool(share.any()) for share in (shares or {}).values())

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
    if call.op in (_aten.mean.default, _aten.sum.default) or _reduces_itself(call):
        return True
    if call.op not in (_aten.mean.dim, _aten.sum.dim_IntList):
        return False
    dims, rank = call.arguments["dim"], len(graph.shapes[call.inputs[0]])
    return not dims or isinstance(dims, list) and any(int(dim) % max(rank, 1) == 0 for dim in dims)


def _reduces_itself(call: Call) -> bool:
    """Return whether a call is a loss that has not been split into losses of samples and a reduction."""
    return call.arguments.get("reduction") in (1, 2)


def _not_a_sum(call: Call) -> str:
    place = f"`{str(call.op).rsplit('.', 1)[0]}` at {call.source}"
    if _reduces_itself(call):
        return (
            f"{place} is a loss that has no bound rule. Use one of those in docs/support.md, or write it out with "
            "operations that are there, ending in `.mean()`."
        )
    return (
        f"{place} combines samples in a way that is not a mean or sum of per-sample terms. Write the loss as "
        "`per_sample_loss.mean()`."
    )


def _number(argument: object) -> float | None:
    return float(argument) if isinstance(argument, int | float) and not isinstance(argument, bool) else None
