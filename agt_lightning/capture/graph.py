"""The captured computation: an immutable list of calls that computes one result from parameters and batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._ops import OpOverload

from agt_lightning.capture.layout import FIRST, Layout

if TYPE_CHECKING:
    from agt_lightning.capture.counted_labels import CountedLabels

ITEM = "getitem"
"""Extra argument of a call to an op with several results: the index of this value among them."""


SATURATING = "saturating"
"""Extra argument of a binary cross-entropy that was written with a sigmoid: its gradient vanishes at large logits."""

JOINT_TERMS = "joint_terms"
"""Extra argument of a product in a recurrent layer: number of terms that a run may add in the same sum."""

JOINT_STEPS = "joint_steps"
"""Extra argument of a call in a recurrent layer: number of time steps whose gradients of a parameter a run may sum."""

STEPS_FIRST = "steps_first"
"""Extra argument of a dropout between recurrent layers, which draw its mask with the time steps first."""

UNDERFLOWING = "underflowing"
"""Extra argument of a log softmax, or cross entropy, that was written as a log of a softmax, which can be zero."""

COUNTED_MEAN = "mean of counted labels"
"""Extra argument of a cross entropy whose mean was split off: it divides by the labels that are not left out."""


NONE_LEFT_OUT = "no label is left out"
"""Extra argument of a cross entropy whose labels all count, or else there are no bounds."""


VALUE_ONLY = "value only"
"""Extra argument of a clamp that code applies under `no_grad` in place: the value is cut, its gradient passes."""


STRIDED = "strided"
"""Extra argument of a draw of random numbers whose result does not lie in memory row by row: the order of its axes by
how far apart their elements lie, the farthest first."""


@dataclass(frozen=True)
class Reference:
    """A tensor among the arguments of a call, given by the name of its value."""

    name: str


@dataclass(frozen=True)
class Call:
    """A call of one ATen op.

    Args:
        name: unique name of its result.
        op: the ATen overload.
        arguments: all arguments of the overload's schema by name, with defaults; tensors are `Reference`.
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
        """The names of the tensor inputs, in the order of the schema."""
        return tuple(reference.name for argument in self.arguments.values() for reference in _references(argument))


@dataclass(frozen=True)
class Mask:
    """A dropout mask that a training step draws.

    Args:
        p: probability of a zero; the other entries are 1 / (1 - p).
        shape: shape in the captured batch.
        dtype: type in which the program draws it.
        whole_channels: whether entire channels are dropped (`Dropout1d` to `Dropout3d`).
        steps_first: whether axes 0 and 1 change places before it is drawn, as inside of a recurrent layer.
        order: axes by how far apart their elements lie in memory, the farthest first; masks are drawn along memory.
        layout: where the samples are in ``shape``; the mask's value in the graph has them first.
    """

    p: float
    shape: tuple[int, ...]
    dtype: torch.dtype
    whole_channels: bool = False
    steps_first: bool = False
    order: tuple[int, ...] | None = None
    layout: Layout = FIRST


@dataclass(frozen=True)
class Draw:
    """Random numbers that a training step draws, from a distribution that depends on no data.

    Args:
        op: the call.
        arguments: all of them; a tensor among them gives shape and type alone, and is one of zeros.
        shape: shape in the captured batch.
        dtype: type of the numbers.
    """

    op: OpOverload
    arguments: Mapping[str, object]
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Graph:
    """A straight-line program: calls without control flow.

    Args:
        calls: calls in an order in which each uses only earlier values.
        parameters: value name to parameter name in the module.
        buffers: value name to buffer name in the module.
        constants: value name to the value, when it was recorded, of a tensor that is neither parameter nor buffer.
        leaves: value name to the position of the batch tensor.
        shapes: value name to shape, for all values.
        output: name of the result.
        masks: value name to dropout mask or other random numbers, in the order of drawing, or to another fixed factor
            of each sample.
        changed: positions of batch tensors that the code changes in place; the graph computes from their values before.
        origins: value name to the tensor itself of which a constant is the value; code outside may change it.
        types: value name to type, for inputs and for values as they were recorded.
        written: names of the buffers that the code changes in place.
        given: names of inputs that are computed from others before the graph begins; each with whether its first axis
            counts samples.
        endings: lines at which the code ends the run, by an error of its own, for some data.
        called: paths of the submodules whose `forward` the code called.
        unread: names of the module's own attributes on which the code has been shown not to depend.
    """

    calls: tuple[Call, ...]
    parameters: Mapping[str, str]
    buffers: Mapping[str, str]
    constants: Mapping[str, Tensor]
    leaves: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    output: str
    masks: Mapping[str, Mask | Draw | CountedLabels] = field(default_factory=dict)
    changed: frozenset[int] = frozenset()
    origins: Mapping[str, Tensor] = field(default_factory=dict)
    types: Mapping[str, torch.dtype] = field(default_factory=dict)
    written: frozenset[str] = frozenset()
    given: Mapping[str, bool] = field(default_factory=dict)
    endings: tuple[str, ...] = ()
    called: frozenset[str] = frozenset()
    unread: frozenset[str] = frozenset()

    def along(self, paths: Iterable[Graph], endings: Iterable[str], unread: frozenset[str]) -> Graph:
        """Return the same graph of code that has other paths to it, can end the run, and depends on no attribute."""
        written = self.written.union(*(graph.written for graph in paths))
        return replace(self, written=written, endings=tuple(endings), unread=unread)

    def producer(self, name: str) -> Call | None:
        """Return the call whose result is ``name``; None if it is an input."""
        return next((call for call in self.calls if call.name == name), None)

    def users(self, name: str) -> tuple[Call, ...]:
        """Return the calls that have ``name`` as an input."""
        return tuple(call for call in self.calls if name in call.inputs)

    def narrows(self, call: Call) -> bool:
        """Return whether a cast can round floating point numbers, so that two of them can become equal."""
        source = self.types.get(call.inputs[0])
        if source is None or not call.dtype.is_floating_point:
            return True
        if not source.is_floating_point:
            return False
        before, after = torch.finfo(source), torch.finfo(call.dtype)
        return after.eps > before.eps or after.max < before.max or after.tiny > before.tiny


def map_references(argument: object, function: Callable[[Reference], object]) -> object:
    """Replace each `Reference` in an argument, also inside lists."""
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
