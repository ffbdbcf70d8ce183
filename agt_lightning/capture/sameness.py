"""Comparison of two recordings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from agt_lightning.capture.graph import Call, Graph, Reference, map_references


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


def difference_besides_size(
    first: Graph,
    second: Graph,
    sizes: tuple[int, int],
    reduced: tuple[frozenset[str], frozenset[str]],
    reshapes: frozenset[object],
) -> str | None:
    """Return the first place where graphs of batches of two sizes do something else with a sample; None if nowhere.

    Shapes may differ in their first axis, and in numbers that change with the size of the batch among the arguments of
    calls that only change shapes. What comes after the reduction over samples is not compared.

    Args:
        first: recorded on one batch.
        second: recorded on the other.
        sizes: numbers of samples of both.
        reduced: names of the values after the reduction in both.
        reshapes: overloads that only change shapes.
    """
    mine, theirs = (
        [call for call in graph.calls if call.name not in names]
        for graph, names in zip((first, second), reduced, strict=True)
    )
    numbers = _numbering(first), _numbering(second)
    for one, other in zip(mine, theirs, strict=False):
        if not _same_call(one, other, numbers, sizes, reshapes):
            return f"what {one.source} computes"
    if len(mine) != len(theirs):
        return f"what {max(mine, theirs, key=len)[min(len(mine), len(theirs))].source} computes"
    if _inputs(first, numbers[0]) != _inputs(second, numbers[1]):
        return "which tensors are read"
    for (name, value), (_, again) in zip(_constants(first, numbers[0]), _constants(second, numbers[1]), strict=True):
        if not same_bits(value, again):
            return f"the tensor that {first.users(name)[0].source} reads"
    return None


def _same_call(
    one: Call,
    other: Call,
    numbers: tuple[Mapping[str, int], Mapping[str, int]],
    sizes: tuple[int, int],
    reshapes: frozenset[object],
) -> bool:
    """Return whether two calls do the same with each sample."""
    if (one.op, one.dtype, numbers[0][one.name]) != (other.op, other.dtype, numbers[1][other.name]):
        return False
    if not _same_shape(one.shape, other.shape, sizes) or one.arguments.keys() != other.arguments.keys():
        return False
    arguments = (
        (_renamed(one.arguments[name], numbers[0]), _renamed(other.arguments[name], numbers[1]))
        for name in one.arguments
    )
    if one.op in reshapes:
        return all(_same_sizes(mine, theirs, sizes) for mine, theirs in arguments)
    return all(repr(mine) == repr(theirs) for mine, theirs in arguments)


def _same_shape(mine: tuple[int, ...], theirs: tuple[int, ...], sizes: tuple[int, int]) -> bool:
    return mine == theirs or (mine[1:] == theirs[1:] and mine[:1] == sizes[:1] and theirs[:1] == sizes[1:])


def _same_sizes(mine: object, theirs: object, sizes: tuple[int, int]) -> bool:
    """Return whether two arguments are the same, but for multiples of the sizes."""
    if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple):
        return len(mine) == len(theirs) and all(map(_same_sizes, mine, theirs, [sizes] * len(mine)))
    if isinstance(mine, int) and isinstance(theirs, int) and mine != theirs:
        return mine % sizes[0] == 0 and mine // sizes[0] * sizes[1] == theirs
    return repr(mine) == repr(theirs)


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
