"""One recording of the user's code: what Python read of its data, and what makes the recording worthless."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from agt_lightning.capture.finite_checks import FiniteChecks
from agt_lightning.capture.made_numbers import MadeNumbers
from agt_lightning.capture.paths import Path
from agt_lightning.capture.raising import DataError, is_caught
from agt_lightning.capture.source import current_line
from agt_lightning.errors import CaptureError

if TYPE_CHECKING:
    from agt_lightning.capture.remembered import Memory
    from agt_lightning.capture.written import State, Watch

BRANCH = "a poisoned run can take the other branch, so no bound exists. Write it with `torch.where`, or remove it."
"""Why control flow that depends on data is refused, and the way out."""


class UnprovenCheckError(CaptureError):
    """Code branches on whether a tensor is finite that need not be; it is recorded again, with both outcomes.

    Args:
        lines: of the code.
    """

    def __init__(self, lines: frozenset[str]) -> None:
        super().__init__(f"{min(lines)} lets Python read data (whether a tensor is finite): {BRANCH}")
        self.lines = lines


@dataclass
class Recording:
    """The state of one run of the user's code under `torch.export`.

    Args:
        probe: which set of stand-in numbers the code reads; see `agt_lightning.capture.numbers`.
        path: the outcomes of branches on data.
        unproven: lines that check tensors for NaN that are not part of the loss, so that both outcomes are possible.
        memory: attributes in whose place the code finds stand-ins; None if there are none.
        looks: to which the names of those of them are appended that it looks at.

    Attributes:
        reads: lines that read numbers of data, such as ``loss.item()``.
        refusals: what was refused, also where the user's code has caught the error.
        failures: errors of torch, which can be those of recording alone; the user's code may not catch them.
        finite_checks: branches on whether tensors are finite.
        made_numbers: tensors of known numbers.
        conversions: plain numbers that the code made of numbers of data by ``float()``, each with the stand-in that it
            was made of, by `id`; and the stand-ins of which it made integers.
        calls: number of torch's functions that the code called.
        before: the module's attributes before the code ran.
        after: the same afterwards.
        replaced_buffers: names of the buffers in whose place the code has put other tensors.
        draws: the random numbers that the code has drawn; see `agt_lightning.capture.draws`.
        watch: looks at what the code writes, while it runs.
        raising: lines with calls of torch that raise an error for some data.
    """

    probe: int = 0
    path: Path = field(default_factory=Path)
    unproven: frozenset[str] = frozenset()
    memory: Memory | None = None
    looks: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    finite_checks: FiniteChecks = field(default_factory=FiniteChecks)
    made_numbers: MadeNumbers = field(default_factory=MadeNumbers)
    conversions: dict[int, tuple[object, object]] = field(default_factory=dict)
    calls: int = 0
    before: State = field(default_factory=dict)
    after: State = field(default_factory=dict)
    replaced_buffers: frozenset[str] = frozenset()
    draws: Hashable = None
    watch: Watch | None = None
    raising: list[str] = field(default_factory=list)

    @property
    def refused(self) -> bool:
        """Whether the recording is worthless."""
        return bool(self.refusals or self.failures)

    def refuse(self, message: str) -> NoReturn:
        """Note a refusal and raise it.

        Raises:
            CaptureError: always.
        """
        self.refusals.append(message)
        raise CaptureError(message)

    def note_writes(self) -> None:
        """Note what the code has written to its module, and to what else it was watched for."""
        assert self.watch is not None
        self.before, self.after = self.watch.before, self.watch.after()
        self.replaced_buffers = self.watch.replaced_buffers()

    def require_proven(self, checks: frozenset[str]) -> None:
        """Raise if the code has taken checks for NaN as passed that need not be.

        Args:
            checks: their lines.

        Raises:
            UnprovenCheckError: if there are any.
        """
        if checks:
            raise UnprovenCheckError(checks)

    def require_accepted(self) -> None:
        """Raise the first refusal if there is any, or the first error that the user's code has caught.

        Raises:
            CaptureError: with its message.
        """
        if self.refusals:
            raise CaptureError(self.refusals[0])
        if self.failures:
            raise CaptureError(
                f"{self.failures[0]}\nThe code catches that error, but it can come in other runs or while recording "
                "alone. Remove that call, or the `try`."
            )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Make this the recording of the code that runs inside."""
        self.reads.clear()
        self.conversions.clear()
        self.raising.clear()
        self.calls = 0
        self.path.restart()
        self.finite_checks = FiniteChecks()
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)


_CURRENT: ContextVar[Recording | None] = ContextVar("recording", default=None)


def current() -> Recording | None:
    """Return the recording in which the code runs; None outside of recordings."""
    return _CURRENT.get()


def branch(what: str) -> bool:
    """Return the outcome of a branch on data at the current line, on the path that is recorded.

    Args:
        what: the operation, such as ``bool()`` of a tensor.

    Raises:
        CaptureError: outside of recordings, and if there are too many branches.
    """
    recording = current()
    outcome = None if recording is None else recording.path.decide(_branch_message(what))
    if outcome is None:
        refuse_branch(what)
    return outcome


def raise_on_another_path() -> None:
    """Note that the current line can raise an error for some data; on another path of the recording, raise it.

    Raises:
        DataError: on that path, which is there only if the user's code may catch it.
    """
    recording, line = current(), current_line()
    if recording is None:
        return
    recording.raising.append(line)
    message = (
        f"{line} can raise an error in a poisoned run, and the code then goes on another way. Remove the `try`, so "
        "that the error ends the run."
    )
    if is_caught(_is_recorded) and recording.path.decide(message):
        raise DataError(f"{line} raises an error for some data")


def _is_recorded(frame: FrameType) -> bool:
    """Return whether a frame is the one in which a recording runs the user's code."""
    return frame.f_globals.get("__name__") == _RECORDER


_RECORDER = "agt_lightning.capture.export"
"""Module that runs the user's code."""


def refuse_branch(what: str) -> NoReturn:
    """Refuse control flow on data at the current line.

    Args:
        what: the operation, such as ``bool()`` of a tensor.

    Raises:
        CaptureError: always.
    """
    refuse(_branch_message(what))


def _branch_message(what: str) -> str:
    return f"{current_line()} lets Python read data ({what}): {BRANCH}"


def watch_also(holder: object) -> None:
    """Let the recording that is being made, if there is one, look at what the code writes to an object.

    Args:
        holder: the object; one without attributes of its own is left out.
    """
    recording = current()
    if recording is not None and recording.watch is not None and hasattr(holder, "__dict__"):
        recording.watch.add(vars(holder))


def refuse(message: str) -> NoReturn:
    """Refuse the code that runs, and note that in its recording, if there is one.

    Raises:
        CaptureError: always.
    """
    recording = current()
    if recording is None:
        raise CaptureError(message)
    recording.refuse(message)
