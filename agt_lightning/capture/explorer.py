"""The recording of code on every path that it can take, and with all numbers that it can read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from agt_lightning.capture.data_reads import depends_on_numbers
from agt_lightning.capture.draws import DRAWS_DIFFER
from agt_lightning.capture.graph import Graph
from agt_lightning.capture.numbers import probes
from agt_lightning.capture.paths import Path, raises_by_itself
from agt_lightning.capture.recording import Recording, UnprovenCheckError
from agt_lightning.capture.remembered import Memory
from agt_lightning.capture.sameness import same_graph
from agt_lightning.capture.source import line_of
from agt_lightning.capture.withheld import WithheldError
from agt_lightning.capture.written import written_by_data
from agt_lightning.errors import CaptureError

_MOST_RECORDINGS = 50
"""Recordings of one step, of all paths and numbers; five branches that do not end the run have 32 paths."""

_WITH_OTHERS = 2
"""Recordings of each path with stand-ins for what earlier steps have written, of which comparisons are branches."""


class TooManyPathsError(CaptureError):
    """Code has more paths than can be followed."""


class Explorer:
    """An explorer of the paths through one piece of code.

    Args:
        record: records the code once, along a path; raises a `CaptureError` if that is impossible.
    """

    def __init__(self, record: Callable[[Recording], Graph]) -> None:
        self._record = record
        self._unproven: frozenset[str] = frozenset()
        self._count = 0
        self._places = ""

    def graph(self) -> Graph:
        """Return the graph to which all paths lead that do not end the run, with the lines that end it.

        Raises:
            CaptureError: if two paths lead to different graphs, all of them end the run, or one cannot be recorded.
        """
        while True:
            try:
                return self._agreed()
            except UnprovenCheckError as error:
                if error.lines <= self._unproven:
                    raise
                self._unproven |= error.lines

    def _agreed(self) -> Graph:
        agreed: Graph | None = None
        reached: list[Graph] = []
        recordings: list[Recording] = []
        ended: dict[str, CaptureError] = {}
        reads: Recording = Recording()
        probe, needed = 0, 1
        self._count = 0
        while probe < needed:
            for recording, result in self._paths(Recording(probe, unproven=self._unproven), first=agreed is None):
                needed = max(needed, probes(recording))
                reads = recording if recording.reads else reads
                if isinstance(result, CaptureError):
                    ended[line_of(result.__cause__ or result)] = result
                    continue
                reached.append(result)
                recordings.append(recording)
                if agreed is None:
                    agreed = result
                elif not same_graph(agreed, result):
                    raise CaptureError(_disagreement(recording, reads))
                elif recording.draws != recordings[0].draws:
                    raise CaptureError(DRAWS_DIFFER)
            probe += 1
        if agreed is None:
            raise next(iter(ended.values()))
        values = written_by_data([each.before for each in recordings], [each.after for each in recordings])
        if values:
            plain = any(recording.conversions for recording in recordings)
            self._require_forgotten(agreed, Memory(values), needed if plain else _WITH_OTHERS)
        unread = frozenset(name for path, name in values if not path)
        raising = dict.fromkeys(line for each in recordings for line in each.raising)
        return agreed.along(reached, {**ended, **raising}, unread)

    def _require_forgotten(self, agreed: Graph, memory: Memory, needed: int) -> None:
        """Require that the code does the same whatever earlier steps have written to attributes.

        Args:
            agreed: the graph to which the code leads.
            memory: these attributes.
            needed: how often the code is recorded, at least, each time with other numbers.

        Raises:
            CaptureError: naming an attribute on which it depends.
        """
        looks: list[str] = []
        start = Recording(unproven=self._unproven, memory=memory, looks=looks)
        probe, self._count = 0, 0
        try:
            while probe < needed and not looks:
                for recording, result in self._paths(replace(start, probe=probe), first=False):
                    needed = max(needed, probes(recording)) if recording.conversions else needed
                    if not isinstance(result, CaptureError) and not same_graph(agreed, result):
                        raise CaptureError(_remembers(looks, memory))
                probe += 1
        except TooManyPathsError:
            raise
        except (CaptureError, WithheldError) as error:
            raise CaptureError(_remembers(looks, memory)) from error
        if looks:
            raise CaptureError(_remembers(looks, memory))

    def _paths(self, start: Recording, *, first: bool) -> Iterator[tuple[Recording, Graph | CaptureError]]:
        """Yield each path with the graph it leads to, or the error by which it ends the run.

        Args:
            start: with the settings of all recordings.
            first: whether no path has led to a graph yet.
        """
        waiting: list[tuple[bool, ...]] = [()]
        while waiting:
            path = Path(waiting.pop())
            recording = Recording(start.probe, path, start.unproven, start.memory, start.looks)
            result = self._recorded(recording, first=first)
            first = first and isinstance(result, CaptureError)
            self._places = recording.path.places or self._places
            yield recording, result
            waiting += recording.path.others()

    def _recorded(self, recording: Recording, *, first: bool) -> Graph | CaptureError:
        self._count += 1
        if self._count > _MOST_RECORDINGS:
            raise TooManyPathsError(
                f"The code has more paths than can be followed: it reads data at {self._places}. Remove some of that."
            )
        try:
            return self._record(recording)
        except UnprovenCheckError:
            raise
        except CaptureError as error:
            if _ends_run(error, recording):
                return error
            if first or not recording.path.given:
                raise
            raise CaptureError(recording.path.message) from error


def _remembers(looks: Sequence[str], memory: Memory) -> str:
    """Return why code is refused that reads what it has written."""
    name = looks[0] if looks else min(name for _, name in memory.values)
    return (
        f"The code writes to `{name}` what data decide, and reads it in a later step, so the data of one step reach "
        "the loss of another. Write it from the clock alone, in every step alike, or do not read it."
    )


def _ends_run(error: CaptureError, recording: Recording) -> bool:
    """Return whether code ended its run, so that no bounds are needed."""
    cause = error.__cause__
    if cause is None or isinstance(cause, CaptureError) or recording.refused:
        return False
    return raises_by_itself(cause) or recording.probe > 0 and isinstance(cause, ArithmeticError | ValueError)


def _disagreement(recording: Recording, reads: Recording) -> str:
    """Return why a path is refused that leads to another graph: because of its numbers, or of its last branch."""
    if recording.probe or not recording.path.given:
        return depends_on_numbers(reads)
    return recording.path.message
