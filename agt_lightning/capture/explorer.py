"""The recording of code on every path that it can take, and with all numbers that it can read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from agt_lightning.capture.data_reads import depends_on_numbers
from agt_lightning.capture.graph import Graph
from agt_lightning.capture.numbers import probes
from agt_lightning.capture.paths import Path, raises_by_itself
from agt_lightning.capture.recording import Recording, UnprovenCheckError
from agt_lightning.capture.sameness import same_graph
from agt_lightning.capture.source import line_of
from agt_lightning.capture.withheld import WithheldError
from agt_lightning.capture.written import changes
from agt_lightning.errors import CaptureError

_MOST_RECORDINGS = 50
"""Recordings of one step, of all paths and numbers; five branches that do not end the run have 32 paths."""


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
        while probe < needed:
            for recording, result in self._paths(probe, first=agreed is None):
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
            probe += 1
        if agreed is None:
            raise next(iter(ended.values()))
        self._require_unread(agreed, _written_on_some(recordings))
        return agreed.along(reached, ended)

    def _require_unread(self, agreed: Graph, names: frozenset[tuple[str, str]]) -> None:
        """Require that the code does not look at attributes that it writes to on some paths only.

        Raises:
            CaptureError: naming one that it looks at.
        """
        if not names:
            return
        recording = Recording(path=Path(), unproven=self._unproven, withheld=names)
        try:
            same = same_graph(agreed, self._record(recording))
        except (CaptureError, WithheldError):
            same = False
        if recording.looks or not same:
            name = recording.looks[0] if recording.looks else min(names)[1]
            raise CaptureError(
                f"The code writes to `{name}` where data decide, and reads it later, so the data of one step reach the "
                "loss of another. Write it in every step alike, from the clock alone, or not at all."
            )

    def _paths(self, probe: int, *, first: bool) -> Iterator[tuple[Recording, Graph | CaptureError]]:
        """Yield each path with the graph it leads to, or the error by which it ends the run.

        Args:
            probe: which numbers the code reads.
            first: whether no path has led to a graph yet.
        """
        waiting: list[tuple[bool, ...]] = [()]
        while waiting:
            recording = Recording(probe, Path(waiting.pop()), self._unproven)
            result = self._recorded(recording, first=first)
            first = first and isinstance(result, CaptureError)
            self._places = recording.path.places or self._places
            yield recording, result
            waiting += recording.path.others()

    def _recorded(self, recording: Recording, *, first: bool) -> Graph | CaptureError:
        self._count += 1
        if self._count > _MOST_RECORDINGS:
            raise CaptureError(
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


def _written_on_some(recordings: Sequence[Recording]) -> frozenset[tuple[str, str]]:
    """Return the attributes that some recordings change and others do not, or change to something else on one path."""
    changed = [changes(recording.before, recording.after) for recording in recordings]
    some = frozenset[tuple[str, str]]().union(*changed) - frozenset.intersection(*changed)
    first = {recording.probe: recording for recording in reversed(recordings)}
    return some.union(*(changes(first[recording.probe].after, recording.after) for recording in recordings))


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
