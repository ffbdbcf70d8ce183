"""The captured computation: an immutable list of calls from parameters and batch to one result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch._ops import OpOverload

ITEM = "getitem"
"""Extra argument of a call to an op with several results: which of them this value is."""


SATURATING = "saturating"
"""Extra argument of a binary cross entropy that was written with a sigmoid: its gradient fades at large logits."""


@dataclass(frozen=True)
class Reference:
    """The place of a tensor among the arguments of a call, by the name of the value that stands there."""

    name: str


@dataclass(frozen=True)
class Call:
    """One ATen call.

    Args:
        name: unique name of its result.
        op: the ATen overload.
        arguments: every argument of the overload's schema by name, defaults filled in; tensors are `Reference`.
        shape: shape of the result in the captured batch.
        dtype: type of the result.
        source: the line of user code that made the call, for messages.
        module: path of the submodule whose `forward` made the call, such as ``net.0``; empty outside of submodules.
    """

    name: str
    op: OpOverload
    arguments: Mapping[str, object]
    shape: tuple[int, ...]
    dtype: torch.dtype
    source: str
    module: str = ""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensor inputs, in the order of the schema."""
        return tuple(reference.name for argument in self.arguments.values() for reference in _references(argument))


@dataclass(frozen=True)
class Mask:
    """A dropout mask that a training step draws.

    Args:
        p: probability of a zero; entries that stay are 1 / (1 - p).
        shape: shape in the captured batch.
        dtype: type that the program draws it in.
        whole_channels: whether channels drop as a whole (`Dropout1d` to `Dropout3d`).
    """

    p: float
    shape: tuple[int, ...]
    dtype: torch.dtype
    whole_channels: bool = False


@dataclass(frozen=True)
class Graph:
    """A straight-line program.

    Args:
        calls: calls in an order in which each uses only earlier values.
        parameters: value name to parameter name in the module.
        buffers: value name to buffer name in the module.
        constants: value name to a tensor that the code made.
        leaves: value name to the position of the batch tensor.
        shapes: value name to shape, for all values.
        output: name of the result.
        masks: value name to the dropout mask that stands there, in the order in which they are drawn.
    """

    calls: tuple[Call, ...]
    parameters: Mapping[str, str]
    buffers: Mapping[str, str]
    constants: Mapping[str, Tensor]
    leaves: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    output: str
    masks: Mapping[str, Mask] = field(default_factory=dict)

    def producer(self, name: str) -> Call | None:
        """The call whose result is ``name``; None for an input."""
        return next((call for call in self.calls if call.name == name), None)

    def users(self, name: str) -> tuple[Call, ...]:
        """Calls that read ``name``."""
        return tuple(call for call in self.calls if name in call.inputs)


def map_references(argument: object, function: Callable[[Reference], object]) -> object:
    """Replace every `Reference` in an argument, also inside lists."""
    if isinstance(argument, Reference):
        return function(argument)
    if isinstance(argument, list | tuple):
        return [map_references(item, function) for item in argument]
    return argument


def _references(argument: object) -> Iterator[Reference]:
    if isinstance(argument, Reference):
        yield argument
    elif isinstance(argument, list | tuple):
        for item in argument:
            yield from _references(item)
