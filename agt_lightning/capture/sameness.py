"""Comparison of two recordings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from agt_lightning.capture.graph import Graph, Reference, map_references


def same_graph(first: Graph, second: Graph) -> bool:
    """Return whether two graphs compute the same: calls, arguments, and constants to the last bit.

    Names of values and lines of code may differ.
    """
    return difference(first, second) is None


def difference(first: Graph, second: Graph) -> str | None:
    """Return the first place where two graphs compute something else, for messages; None if they compute the same."""
    names, others = _numbering(first), _numbering(second)
    for call, mine, theirs in zip(first.calls, _calls(first, names), _calls(second, others), strict=False):
        if mine != theirs:
            return f"what {call.source} computes"
    if len(first.calls) != len(second.calls):
        longer = max(first, second, key=lambda graph: len(graph.calls))
        return f"what {longer.calls[min(len(first.calls), len(second.calls))].source} computes"
    if _inputs(first, names) != _inputs(second, others) or names[first.output] != others[second.output]:
        return "which tensors are read"
    for (name, mine), theirs in zip(_constants(first, names), _constants(second, others), strict=True):
        if not same_bits(mine, theirs[1]):
            return f"the tensor that {first.users(name)[0].source} reads"
    return None


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors have the same shape, type and bits.

    Example:
        >>> nan = torch.tensor(float("nan"))
        >>> same_bits(nan, nan.clone()), same_bits(torch.tensor(0.0), torch.tensor(-0.0))
        (True, False)
    """
    if first is second:
        return True
    if first.shape != second.shape or first.dtype != second.dtype or first.device != second.device:
        return False
    return torch.equal(_bits(first), _bits(second))


def _numbering(graph: Graph) -> dict[str, int]:
    """Number all values in the order in which the calls first use or make them."""
    numbers: dict[str, int] = {}
    for call in graph.calls:
        for name in (*call.inputs, call.name):
            numbers.setdefault(name, len(numbers))
    numbers.setdefault(graph.output, len(numbers))
    return numbers


def _inputs(graph: Graph, numbers: Mapping[str, int]) -> list[object]:
    """Return what each input is, by number, without the values of constants."""
    kinds: tuple[Mapping[str, object], ...] = (
        graph.parameters,
        graph.buffers,
        dict.fromkeys(graph.constants),
        graph.leaves,
        graph.masks,
        graph.given,
    )
    return [sorted(((numbers[name], repr(value)) for name, value in kind.items() if name in numbers)) for kind in kinds]


def _calls(graph: Graph, numbers: Mapping[str, int]) -> list[object]:
    return [
        (
            call.op,
            numbers[call.name],
            call.shape,
            call.dtype,
            repr({name: _renamed(argument, numbers) for name, argument in call.arguments.items()}),
        )
        for call in graph.calls
    ]


def _renamed(argument: object, numbers: Mapping[str, int]) -> object:
    return map_references(argument, lambda reference: Reference(str(numbers[reference.name])))


def _constants(graph: Graph, numbers: Mapping[str, int]) -> Iterator[tuple[str, Tensor]]:
    for name in sorted((name for name in graph.constants if name in numbers), key=lambda name: numbers[name]):
        yield name, graph.constants[name]


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
