"""A recorder of a training loss, which shows that what it records depends on nothing that data may have changed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from types import NoneType
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from agt_lightning.capture.batch import FlatBatch
from agt_lightning.capture.clock import Clock, Reads
from agt_lightning.capture.graph import Graph
from agt_lightning.capture.replica import replica
from agt_lightning.capture.sameness import difference, same_graph
from agt_lightning.capture.state import attributes
from agt_lightning.capture.withheld import Unknown, Withheld, WithheldError
from agt_lightning.errors import CaptureError, UnsoundBoundError
from agt_lightning.propagation.objective import BoundedObjective, Loss

_OTHER_TIMES = (1, 2, 1_000_003)
"""Differences to the present at which a step is recorded to see whether compiled code uses a value of the clock."""


@runtime_checkable
class TimedLoss(Protocol):
    """A loss whose code may read a clock and attributes, and notes what it reads.

    A loss without these methods has no clock, and is recorded anew if any attribute of its module changes.
    """

    def __call__(self, module: nn.Module, batch: object) -> Tensor:
        """Return the scalar loss of a batch."""
        ...

    def at(self, clock: Clock, reads: Reads) -> AbstractContextManager[None]:
        """Return a context in which the loss runs at a time, and notes what it reads."""
        ...

    def without_data(self, start: nn.Module) -> nn.Module:
        """Return the module as it would be now if it had never seen data, from a copy of it at the start."""
        ...


@dataclass(frozen=True)
class _Example:
    """The first recording of all, with what is needed to make it again."""

    module: nn.Module
    entries: FlatBatch
    clock: Clock
    reads_entries: bool
    graph: Graph


class Recorder:
    """A recorder of the loss of one training.

    Args:
        module: the module in training.
        loss: maps a module and a batch to the scalar loss.
        record: captures the loss on a batch, on a replica of the module that it is given.
        start: returns a replica of the module as it was when training began; None means as it is at the first batch.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        record: Callable[[nn.Module, object], BoundedObjective],
        start: Callable[[], nn.Module] | None = None,
    ) -> None:
        self.module = module
        self.loss = loss
        self._record = record
        self._make_start = start
        self._start: nn.Module | None = None
        self._example: _Example | None = None

    @property
    def start(self) -> nn.Module:
        """A replica of the module as it was when training began: its attributes and buffers are those of then."""
        if self._start is None:
            self._start = replica(self.module) if self._make_start is None else self._make_start()
        return self._start

    def record(self, entries: FlatBatch, clock: Clock, reads: Reads) -> BoundedObjective:
        """Record the loss on the module, on one that has seen no data, and at the time of the first recording again.

        Args:
            entries: of the batch.
            clock: the time of the step.
            reads: where it is noted what the recording depends on besides the kind of batch and module.

        Raises:
            CaptureError: if the loss cannot be recorded.
            UnsoundBoundError: if the recordings do not agree, so that the code depends on something else.
        """
        if not isinstance(self.loss, TimedLoss):
            reads.attributes.update(attributes(self.module))
        bounded = self.at(clock, self.module, entries, reads)
        clean = self._without_data()
        self.require(bounded.graph, clean, entries, clock, reads)
        first = self._example
        if first is not None and not same_graph(first.graph, bounded.graph):  # else nothing has changed
            self.require(first.graph, first.module, first.entries, first.clock, Reads(entries=first.reads_entries))
        reads.attributes -= bounded.graph.unread
        self._note_uses_by_compiled_code(clean, entries, clock, reads, bounded.graph)
        if self._example is None and not reads.live:
            self._example = _Example(replica(clean), entries, clock, reads.entries, bounded.graph)
        return bounded

    def require(self, graph: Graph, module: nn.Module, entries: FlatBatch, clock: Clock, reads: Reads) -> None:
        """Raise unless a module gives a graph at a time.

        Raises:
            UnsoundBoundError: naming the place where the graphs differ.
        """
        try:
            changed = difference(graph, self.at(clock, module, entries, reads).graph)
        except CaptureError as error:
            changed = str(error)
        if changed is not None:
            raise UnsoundBoundError(
                "Expected a training step that does the same in every run, but it depends on something besides the "
                f"clock that changed during training: {changed}. Data may have changed it, and poisoned data would "
                "change it otherwise. Compute it in `training_step` from the batch, `self.current_epoch`, "
                "`self.global_step` or `batch_idx`, or set it in a hook of the module that uses nothing else."
            )

    def at(self, clock: Clock, module: nn.Module, entries: FlatBatch, reads: Reads) -> BoundedObjective:
        """Record the loss at a time.

        FlatBatch of the batch that are no tensors are withheld at first, to see whether the code looks at them.
        """
        with self.loss.at(clock, reads) if isinstance(self.loss, TimedLoss) else nullcontext():
            if not reads.entries and any(_withholdable(entry) for entry in entries.others):
                blind = self._without_entries(module, entries)
                whole = self._record(module, entries.rebuild(entries.tensors))
                reads.entries = blind is None or not same_graph(blind.graph, whole.graph)
                return whole
            return self._record(module, entries.rebuild(entries.tensors))

    def uses(self, name: str, entries: FlatBatch, clock: Clock, graph: Graph) -> bool:
        """Return whether a recording may depend on an attribute that it reads.

        It does not if the same is recorded with a stand-in, which can be written to, computed with and logged, such as
        a counter or a list of outputs. A stand-in cannot see ``is``, so members of an Enum, booleans and None are
        always used, and so is what the code records otherwise with None.

        Args:
            name: of the attribute.
            entries: of the batch.
            clock: the time of the step.
            graph: recorded at that time.
        """
        if isinstance(vars(self.module).get(name), bool | Enum | NoneType):
            return True
        looks: list[int] = []
        unknown = self._with(name, Unknown(f"`{name}`", lambda: looks.append(1)), entries, clock)
        if unknown is None or looks or not same_graph(unknown.graph, graph):
            return True
        nothing = self._with(name, None, entries, clock)
        return nothing is not None and not same_graph(nothing.graph, graph)

    def _with(self, name: str, value: object, entries: FlatBatch, clock: Clock) -> BoundedObjective | None:
        """Record the loss with another value of an attribute; None if that fails."""
        module = replica(self.module)
        vars(module)[name] = value
        try:
            return self.at(clock, module, entries, Reads(entries=True))
        except (CaptureError, WithheldError):
            return None

    def _without_data(self) -> nn.Module:
        """Return the module without data, in the modes of the module, and with the same parameters trained."""
        clean = self.loss.without_data(self.start) if isinstance(self.loss, TimedLoss) else self.start
        for mine, theirs in zip(clean.modules(), self.module.modules(), strict=False):
            mine.training = theirs.training
        trained = dict(self.module.named_parameters(remove_duplicate=False))
        for name, parameter in clean.named_parameters(remove_duplicate=False):
            if name in trained:
                parameter.requires_grad_(trained[name].requires_grad)
        return clean

    def _without_entries(self, module: nn.Module, entries: FlatBatch) -> BoundedObjective | None:
        """Record the loss with stand-ins for entries that are no tensors; None if the code looks at one."""
        looks: list[int] = []
        withheld = [
            Withheld("a batch entry", lambda: looks.append(1)) if _withholdable(entry) else entry
            for entry in entries.others
        ]
        try:
            bounded = self._record(module, entries.make(entries.tensors, withheld))
        except CaptureError:
            return None
        return None if looks else bounded

    def _note_uses_by_compiled_code(
        self, clean: nn.Module, entries: FlatBatch, clock: Clock, reads: Reads, graph: Graph
    ) -> None:
        """Note fields of the clock on which the recording depends although Python code has not used them."""
        for name in sorted(reads.offered - reads.clock):
            now = getattr(clock, name)
            times = {0, *(now + later for later in _OTHER_TIMES)} - {now}
            if any(self._differs_at(clock.moved(name, time), clean, entries, graph) for time in sorted(times)):
                reads.clock.add(name)

    def _differs_at(self, clock: Clock, module: nn.Module, entries: FlatBatch, graph: Graph) -> bool:
        try:
            return not same_graph(self.at(clock, module, entries, Reads(entries=True)).graph, graph)
        except CaptureError:
            return True


def _withholdable(entry: object) -> bool:
    """Return whether an entry can be replaced by a stand-in; None and booleans are compared by identity."""
    return entry is not None and not isinstance(entry, bool)
