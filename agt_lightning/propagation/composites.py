"""Functions of one number among the calls of a graph: of quadratics and of sigmoids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from agt_lightning.capture import Call, Graph
from agt_lightning.capture.graph import Reference
from agt_lightning.rules.composite import Composite, FunctionOfQuadratic, LogSigmoid, Swish

_aten = torch.ops.aten

_OF_QUADRATICS = {
    _aten.sqrt.default: (1.0, 0.5),
    _aten.log.default: (2.0, 1.0),
    _aten.reciprocal.default: (-2.0, 2.0),
    _aten.rsqrt.default: (-1.0, 1.5),
}
"""Factor f and exponent k of the derivative ``f a x s⁻ᵏ`` by the outer function of ``s = a x² + c``."""

_SMALLEST, _LARGEST = 1e-15, 1e15
"""Constants of quadratics that keep what an underflow can change finite in every type."""

_MOST_STEPS = 3
"""Calls between a square and a function of it whose roundings are counted: four each, those of a constant included."""


@dataclass(frozen=True)
class CompositeCalls:
    """Calls that compute one function of one value.

    Args:
        function: what they compute together.
        argument: name of the value.
        calls: in the order of the program; the last one has the result, and nothing else reads those before.
    """

    function: Composite
    argument: str
    calls: tuple[Call, ...]


def composites(graph: Graph, moving: frozenset[str]) -> dict[str, CompositeCalls]:
    """Return the composite functions of a graph by the name of their results.

    Args:
        graph: the captured graph.
        moving: names of the values that have samples and depend on a trainable parameter.
    """
    finder = _Finder(graph, {call.name: call for call in graph.calls})
    found = (match for call in graph.calls if call.name in moving for match in finder.at(call))
    return {match.calls[-1].name: match for match in found if match.argument in moving and finder.private(match)}


@dataclass(frozen=True)
class _Affine:
    """A value that is ``scale`` times another one, plus ``shift``; computed by some calls.

    Args:
        base: name of the other value.
        scale: a.
        shift: c.
        calls: first to last.
        before: what all calls but the last one compute; None without calls.
    """

    base: str
    scale: float = 1.0
    shift: float = 0.0
    calls: tuple[Call, ...] = ()
    before: _Affine | None = None

    @property
    def is_steady(self) -> bool:
        """Whether a x² + c, for a, c > 0, is right up to a few roundings of itself, and gradients on their way back.

        An error on the way counts ``a / a'`` times, where a' x² + c' is computed so far, and is relative to
        ``a x² + |c' a / a'|``: nothing may cancel, and no factor undo another one, between which numbers underflow.
        """
        largest, step = 1 + self.scale, self.before
        while step is not None:
            factor = self.scale / (step.scale or float("nan"))
            if not (max(abs(factor), abs(step.scale)) <= largest and abs(factor * step.shift) <= self.shift):
                return False
            step = step.before
        return len(self.calls) <= _MOST_STEPS


@dataclass(frozen=True)
class _Finder:
    graph: Graph
    producers: Mapping[str, Call]

    def at(self, call: Call) -> Iterator[CompositeCalls]:
        """Yield the composite function whose last call is this one, if there is one."""
        if call.op in _OF_QUADRATICS:
            yield from self._of_quadratic(call)
        if call.op is _aten.log.default:
            yield from self._log_sigmoid(call)
        if call.op is _aten.mul.Tensor and len(call.inputs) == 2:
            yield from self._swish(call)

    def _of_quadratic(self, call: Call) -> Iterator[CompositeCalls]:
        inner = self._affine(call.inputs[0])
        square = self.producers.get(inner.base)
        if square is None or not _is_square(square):
            return
        constants = (inner.scale, inner.shift)
        if all(_SMALLEST <= constant <= _LARGEST for constant in constants) and inner.is_steady:
            function = FunctionOfQuadratic(inner.scale, inner.shift, *_OF_QUADRATICS[call.op])
            yield CompositeCalls(function, square.inputs[0], (square, *inner.calls, call))

    def _log_sigmoid(self, call: Call) -> Iterator[CompositeCalls]:
        inner = self._affine(call.inputs[0])
        sigmoid = self.producers.get(inner.base)
        signs = {(1.0, 0.0): 1, (-1.0, 1.0): -1}
        sign = signs.get((inner.scale, inner.shift))
        if sigmoid is not None and sigmoid.op is _aten.sigmoid.default and sign is not None and len(inner.calls) < 2:
            yield CompositeCalls(LogSigmoid(sign), sigmoid.inputs[0], (sigmoid, *inner.calls, call))

    def _swish(self, call: Call) -> Iterator[CompositeCalls]:
        for argument, other in (call.inputs, call.inputs[::-1]):
            sigmoid = self.producers.get(other)
            if sigmoid is not None and sigmoid.op is _aten.sigmoid.default and sigmoid.inputs == (argument,):
                yield CompositeCalls(Swish(), argument, (sigmoid, call))

    def _affine(self, name: str) -> _Affine:
        """Return a value as a multiple of another one plus a constant, as far back as there are such calls."""
        call = self.producers.get(name)
        step = _AFFINE.get(call.op) if call is not None and len(call.inputs) == 1 else None
        if call is None or step is None:
            return _Affine(name)
        scale, shift = step(call)
        inner = self._affine(call.inputs[0])
        return _Affine(inner.base, scale * inner.scale, scale * inner.shift + shift, (*inner.calls, call), inner)

    def private(self, match: CompositeCalls) -> bool:
        """Return whether nothing but the calls themselves reads a value between the first and the last one."""
        own = {call.name for call in match.calls}
        between = own - {match.calls[-1].name}
        return self.graph.output not in between and not any(
            between & set(call.inputs) for call in self.graph.calls if call.name not in own
        )


def _is_square(call: Call) -> bool:
    if call.op is _aten.pow.Tensor_Scalar:
        return call.arguments["exponent"] == 2
    product = call.op is _aten.mul.Tensor and len(call.inputs) == 2 and call.inputs[0] == call.inputs[1]
    return product or call.op is _aten.square.default


def _number(value: object) -> float:
    """Return a setting of a call as a number; NaN, which fits no function, if it is none."""
    return float(value) if isinstance(value, int | float) else float("nan")


def _sum(call: Call) -> tuple[float, float]:
    left, alpha = isinstance(call.arguments["self"], Reference), _number(call.arguments.get("alpha", 1))
    return (1.0, alpha * _number(call.arguments["other"])) if left else (alpha, _number(call.arguments["self"]))


def _difference(call: Call) -> tuple[float, float]:
    return 1.0, -_number(call.arguments.get("alpha", 1)) * _number(call.arguments["other"])


def _reverse_difference(call: Call) -> tuple[float, float]:
    return -_number(call.arguments.get("alpha", 1)), _number(call.arguments["other"])


_AFFINE: Mapping[object, Callable[[Call], tuple[float, float]]] = {
    _aten.add.Tensor: _sum,
    _aten.add.Scalar: _sum,
    _aten.sub.Tensor: _difference,
    _aten.sub.Scalar: _difference,
    _aten.rsub.Scalar: _reverse_difference,
    _aten.mul.Tensor: lambda call: (_number(call.arguments["other"]), 0.0),
    _aten.mul.Scalar: lambda call: (_number(call.arguments["other"]), 0.0),
    _aten.div.Tensor: lambda call: (1 / (_number(call.arguments["other"]) or float("nan")), 0.0),
    _aten.div.Scalar: lambda call: (1 / (_number(call.arguments["other"]) or float("nan")), 0.0),
}
"""Scale and shift of calls on one value and a number."""
