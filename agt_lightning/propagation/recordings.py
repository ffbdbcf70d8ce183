"""Recordings of a training loss, each for all steps that look at the same things, none of which remembers data.

A recorded graph stands for the code only as long as the code does the same. So a recording is kept under everything
that the code has looked at besides tensors: shapes, modes, entries of the batch that are no tensors, attributes, the
clock. If any of it changes, the code is recorded anew, even if the gradient of clean data would be the same.

What the code looks at must be the same in every run. So a recording is made twice, on the module as it is and on a
module that has seen no data, and both must agree. The first recording of all is then made again at its own time, to see
that nothing outside of the module has changed what the code does.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from agt_lightning.capture.batch import Entries
from agt_lightning.capture.clock import Clock, Reads
from agt_lightning.capture.graph import Graph, difference
from agt_lightning.capture.replica import replica
from agt_lightning.capture.state import StateReader, attributes
from agt_lightning.capture.withheld import Withheld
from agt_lightning.errors import CaptureError, UnsoundBoundError
from agt_lightning.propagation.objective import BoundedObjective

_OTHER_TIMES = (0, 1, 1_000_003)
"""Differences to the present at which a step is recorded to see if compiled code uses a value of the clock."""


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
    batch: object
    clock: Clock
    reads: Reads
    graph: Graph


@dataclass(frozen=True)
class _Schema:
    """Names of all that a recording depends on besides its kind of batch and module."""

    clock: tuple[str, ...]
    attributes: tuple[str, ...]
    entries: bool
    live: tuple[str, ...]

    @classmethod
    def of(cls, reads: Reads) -> _Schema:
        return cls(
            tuple(sorted(reads.clock)), tuple(sorted(reads.attributes)), reads.entries, tuple(sorted(reads.live))
        )


@dataclass
class _Recorded:
    """The recordings of one kind of batch and module that depend on values of the same names."""

    schema: _Schema
    live: Mapping[str, Callable[[], object]]
    by_values: dict[Hashable, BoundedObjective] = field(default_factory=dict)


class Recordings:
    """The recordings of a loss in one training.

    Args:
        module: the module in training.
        loss: maps a module and a batch to the scalar loss.
        record: captures the loss on a batch, on a replica of the module that it is given.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[nn.Module, object], Tensor],
        record: Callable[[nn.Module, object], BoundedObjective],
    ) -> None:
        self.module = module
        self.loss = loss
        self._record = record
        self._kinds: dict[Hashable, list[_Recorded]] = {}
        self._start: nn.Module | None = None
        self._reader: StateReader | None = None
        self._first_attributes: Mapping[str, Hashable] = {}
        self._example: _Example | None = None

    @property
    def start(self) -> nn.Module:
        """A replica of the module as it was when training began: its attributes and buffers are those of then."""
        if self._start is None:
            self._start = replica(self.module)
            self._reader = StateReader(self.module)
            self._first_attributes = self._reader.of_attributes()
        return self._start

    def __call__(self, batch: object, clock: Clock) -> BoundedObjective:
        """Return the recording for a batch at a time, made if there is none.

        Raises:
            CaptureError: if the loss cannot be recorded.
            UnsoundBoundError: if the code depends on something that data may have changed.
        """
        _ = self.start
        entries = Entries.of(batch)
        group = self._kinds.setdefault(self._kind(entries), [])
        for recorded in group:
            found = recorded.by_values.get(self._values(recorded.schema, recorded.live, entries, clock))
            if found is not None:
                return found
        return self._new(group, entries, clock)

    def _kind(self, entries: Entries) -> Hashable:
        """Return all that every recording depends on."""
        assert self._reader is not None
        leaves = tuple((tuple(leaf.shape), leaf.dtype, leaf.device, leaf.requires_grad) for leaf in entries.tensors)
        always = tuple(entry for entry in entries.others if entry is None or isinstance(entry, bool))
        trained = tuple(parameter.requires_grad for parameter in self.module.parameters())
        return leaves, entries.structure, always, self._reader.of_parts(), trained

    def _values(
        self, schema: _Schema, live: Mapping[str, Callable[[], object]], entries: Entries, clock: Clock
    ) -> Hashable:
        assert self._reader is not None
        token, own = self._reader.token, attributes(self.module)
        return (
            tuple(getattr(clock, name) for name in schema.clock),
            tuple(token(own[name]) if name in own else None for name in schema.attributes),
            tuple(token(entry) for entry in entries.others) if schema.entries else None,
            tuple(token(live[name]()) for name in schema.live),
        )

    def _new(self, group: list[_Recorded], entries: Entries, clock: Clock) -> BoundedObjective:
        """Record the loss, and file it under what it has read."""
        reads = Reads()
        if not isinstance(self.loss, TimedLoss):
            reads.attributes.update(attributes(self.module))
        bounded = self._checked(entries, clock, reads)
        schema = _Schema.of(reads)
        recorded = next((each for each in group if each.schema == schema), None)
        if recorded is None:
            recorded = _Recorded(schema, dict(reads.live))
            group.append(recorded)
        same = (b for each in group for b in each.by_values.values() if difference(b.graph, bounded.graph) is None)
        values = self._values(schema, recorded.live, entries, clock)
        return recorded.by_values.setdefault(values, next(same, bounded))

    def _checked(self, entries: Entries, clock: Clock, reads: Reads) -> BoundedObjective:
        """Record the loss on the module and on one that has seen no data; raise unless they agree."""
        bounded = self._at(self.module, entries, clock, reads)
        clean = self._without_data()
        try:
            remembered = difference(self._at(clean, entries, clock, reads).graph, bounded.graph)
        except CaptureError as error:
            remembered = str(error)
        if remembered is not None:
            raise UnsoundBoundError(self._memory(remembered, reads))
        self._check_example()
        self._note_uses_by_compiled_code(clean, entries, clock, reads, bounded.graph)
        if self._example is None and not reads.live:
            self._example = _Example(replica(clean), entries.rebuild(entries.tensors), clock, reads, bounded.graph)
        return bounded

    def _without_data(self) -> nn.Module:
        clean = self.loss.without_data(self.start) if isinstance(self.loss, TimedLoss) else self.start
        for mine, theirs in zip(clean.modules(), self.module.modules(), strict=False):
            mine.training = theirs.training
        trained = dict(self.module.named_parameters(remove_duplicate=False))
        for name, parameter in clean.named_parameters(remove_duplicate=False):
            if name in trained:
                parameter.requires_grad_(trained[name].requires_grad)
        return clean

    def _at(self, module: nn.Module, entries: Entries, clock: Clock, reads: Reads) -> BoundedObjective:
        """Record the loss at a time; entries that are no tensors are withheld unless the code looks at them."""
        with self.loss.at(clock, reads) if isinstance(self.loss, TimedLoss) else nullcontext():
            if reads.entries or not any(_withholdable(entry) for entry in entries.others):
                return self._record(module, entries.rebuild(entries.tensors))
            bounded = self._without_entries(module, entries, reads)
            whole = self._record(module, entries.rebuild(entries.tensors))
        reads.entries |= bounded is None or difference(bounded.graph, whole.graph) is not None
        return whole

    def _without_entries(self, module: nn.Module, entries: Entries, reads: Reads) -> BoundedObjective | None:
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

    def _check_example(self) -> None:
        """Make the first recording again: what the code does at a time must not have changed since."""
        first = self._example
        if first is None:
            return
        again = self._at(first.module, Entries.of(first.batch), first.clock, Reads(entries=first.reads.entries))
        changed = difference(first.graph, again.graph)
        if changed is not None:
            raise UnsoundBoundError(self._memory(changed, first.reads))

    def _note_uses_by_compiled_code(
        self, clean: nn.Module, entries: Entries, clock: Clock, reads: Reads, graph: Graph
    ) -> None:
        """Note fields of the clock on which the recording depends although Python code has not looked at them."""
        for name in sorted(reads.offered - reads.clock):
            now = getattr(clock, name)
            times = {0, *(now + later for later in _OTHER_TIMES)} - {now}
            if any(self._differs_at(clean, entries, clock.moved(name, time), graph) for time in sorted(times)):
                reads.clock.add(name)

    def _differs_at(self, clean: nn.Module, entries: Entries, clock: Clock, graph: Graph) -> bool:
        try:
            return difference(self._at(clean, entries, clock, Reads(entries=True)).graph, graph) is not None
        except CaptureError:
            return True

    def _memory(self, what: str, reads: Reads) -> str:
        assert self._reader is not None
        now = self._reader.of_attributes()
        changed = [
            f"`{name}`" for name in sorted(reads.attributes) if now.get(name) != self._first_attributes.get(name)
        ]
        names = f" Attributes that have changed: {', '.join(changed)}." if changed else ""
        return (
            "Expected a training step that does the same in every run, but it depends on something that changed during "
            f"training, besides the clock ({what}).{names} Data may have changed it, and poisoned data would change it "
            "otherwise. Compute it in `training_step` from the batch, `self.current_epoch`, `self.global_step` or "
            "`batch_idx`, or set it in a hook of the module that uses nothing else."
        )


def _withholdable(entry: object) -> bool:
    """Return whether an entry can be replaced by a stand-in; None and booleans are compared by identity."""
    return entry is not None and not isinstance(entry, bool)
