"""Recordings of a training loss, each for all steps that look at the same things.

A recorded graph stands for the code only as long as the code does the same. So a recording is kept under everything
that the code has looked at besides tensors: shapes, modes, entries of the batch that are no tensors, attributes, the
clock. If any of it changes, the code is recorded anew, even if the gradient of clean data would be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from torch import nn

from agt_lightning.capture.batch import FlatBatch
from agt_lightning.capture.clock import Clock, Reads
from agt_lightning.capture.counted_labels import ignored_labels
from agt_lightning.capture.sameness import same_graph
from agt_lightning.capture.state import StateReader, attributes, setting_of_class
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.propagation.recorder import Recorder

_KEPT = 4096

_KEPT_OF_STEPS = 64
"""Recordings that are kept in a group if they hold for one step each; accumulated batches can share one."""

_COMPARED = 8

_CHECKED_EVERY = 64
"""Uses of a recording after which it is made again, to see that the code still does the same."""

_IN_ANOTHER_EPOCH = 4
"""The same if another epoch has begun: what code reads unnoticed, such as globals, mostly changes between epochs."""


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
class _Recording:
    """A recorded loss, with the time since the code was seen to do it.

    Args:
        bounded: the loss.
        epoch: in which it was recorded, for the first time or again.
        uses: since then.
    """

    bounded: BoundedObjective
    epoch: int
    uses: int = 0

    def is_due(self, clock: Clock) -> bool:
        """Count a use, and return whether the loss is to be recorded again."""
        self.uses += 1
        due = self.uses >= (_CHECKED_EVERY if clock.epoch == self.epoch else _IN_ANOTHER_EPOCH)
        if due:
            self.epoch, self.uses = clock.epoch, 0
        return due


@dataclass
class _Group:
    """The recordings of one kind of batch and module that depend on values of the same names."""

    schema: _Schema
    live: Mapping[str, Callable[[], object]]
    attributes: Mapping[str, Hashable]
    by_values: dict[Hashable, _Recording] = field(default_factory=dict)

    def make_room(self) -> None:
        """Drop the oldest recording if there are many; one for a single step is never used again."""
        most = _KEPT_OF_STEPS if "step" in self.schema.clock else _KEPT
        if len(self.by_values) >= most:
            del self.by_values[next(iter(self.by_values))]


class Recordings:
    """The recordings of a loss in one training.

    Args:
        recorder: of the loss.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._module = recorder.module
        self._reader: StateReader | None = None
        self._kinds: dict[Hashable, list[_Group]] = {}
        self._last: tuple[FlatBatch, Clock] | None = None

    @property
    def start(self) -> nn.Module:
        """A replica of the module as it was when training began."""
        if self._reader is None:
            self._reader = StateReader(self._module)
        return self.recorder.start

    def __call__(self, batch: object, clock: Clock) -> BoundedObjective:
        """Return the recording for a batch at a time, made if there is none.

        Raises:
            CaptureError: if the loss cannot be recorded.
            UnsoundBoundError: if the code depends on something that data may have changed.
        """
        _ = self.start
        entries = FlatBatch.of(batch)
        self._last = (entries, clock)
        found = self._found(entries, clock)
        if found is None:
            return self._new(entries, clock)
        if found.is_due(clock):
            self._require(found, entries, clock)
        return found.bounded

    def require_last(self) -> None:
        """Raise if the code of the last step does something else now.

        Raises:
            UnsoundBoundError: naming the place.
        """
        if self._last is not None:
            found = self._found(*self._last)
            if found is not None:
                self._require(found, *self._last)

    def _require(self, recording: _Recording, entries: FlatBatch, clock: Clock) -> None:
        self.recorder.require(recording.bounded.graph, self._module, entries, clock, Reads(entries=True))

    def _kind(self, entries: FlatBatch) -> Hashable:
        """Return all that every recording depends on."""
        assert self._reader is not None
        leaves = tuple(
            (tuple(leaf.shape), leaf.dtype, leaf.device, leaf.requires_grad, ignored_labels(leaf))
            for leaf in entries.tensors
        )
        always = tuple(entry for entry in entries.others if entry is None or isinstance(entry, bool))
        trained = tuple(parameter.requires_grad for parameter in self._module.parameters())
        return leaves, entries.structure, always, self._reader.of_parts(), trained

    def _groups(self, entries: FlatBatch) -> list[_Group]:
        return self._kinds.setdefault(self._kind(entries), [])

    def _found(self, entries: FlatBatch, clock: Clock) -> _Recording | None:
        found = (group.by_values.get(self._values(group, entries, clock)) for group in self._groups(entries))
        return next((recording for recording in found if recording is not None), None)

    def _values(self, group: _Group, entries: FlatBatch, clock: Clock) -> Hashable:
        """Return the present values of all that the recordings of a group depend on."""
        assert self._reader is not None
        token, schema = self._reader.token, group.schema
        return (
            tuple(getattr(clock, name) for name in schema.clock),
            tuple(self._tokens(schema.attributes).values()),
            tuple(token(entry) for entry in entries.others) if schema.entries else None,
            tuple(token(group.live[name]()) for name in schema.live),
        )

    def _tokens(self, names: tuple[str, ...]) -> dict[str, Hashable]:
        assert self._reader is not None
        own, kind = attributes(self._module), type(self._module)
        return {
            name: (name in own, self._reader.token(own[name] if name in own else setting_of_class(kind, name)))
            for name in names
        }

    def _new(self, entries: FlatBatch, clock: Clock) -> BoundedObjective:
        """Record the loss, and file it under what it has looked at."""
        reads = Reads()
        bounded = self.recorder.record(entries, clock, reads)
        groups = self._groups(entries)
        group = next((each for each in groups if each.schema == _Schema.of(reads)), None)
        if group is not None:
            reads.attributes -= set(self._unused(group, entries, clock, bounded))
            group = next((each for each in groups if each.schema == _Schema.of(reads)), None)
        if group is None:
            schema = _Schema.of(reads)
            group = _Group(schema, dict(reads.live), self._tokens(schema.attributes))
            groups.append(group)
        same = (each.bounded for each in _latest(groups) if same_graph(each.bounded.graph, bounded.graph))
        recording = _Recording(next(same, bounded), clock.epoch)
        group.make_room()
        return group.by_values.setdefault(self._values(group, entries, clock), recording).bounded

    def _unused(self, group: _Group, entries: FlatBatch, clock: Clock, bounded: BoundedObjective) -> Iterator[str]:
        """Yield attributes that have changed since a group's first recording, and are written to but not looked at."""
        for name, token in self._tokens(group.schema.attributes).items():
            if token != group.attributes[name] and not self.recorder.uses(name, entries, clock, bounded.graph):
                yield name


def _latest(groups: list[_Group]) -> Iterator[_Recording]:
    """Yield the latest recordings of each group, one of which often has the same graph."""
    for group in groups:
        yield from islice(reversed(group.by_values.values()), _COMPARED)
