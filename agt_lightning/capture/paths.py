"""Paths of the user's code: every outcome of every branch on data.

A branch on data does no harm if both sides lead to the same loss, as in ``if count > 0: self.log(...)``, or if one of
them ends the run, as an assertion does: only runs that end without an error are bounded. So the code is recorded once
for each combination of outcomes, whether or not data exist that lead there, and all recordings must be equal.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType

from agt_lightning.capture.raising import DataError

_MOST_BRANCHES = 64
"""Branches on data that one path may have; more are a loop that data end."""

_NOT_ENDING = (StopIteration, StopAsyncIteration)
"""Errors that Lightning takes for the end of an epoch."""

_OF_RECORDING = ("torch", "agt_lightning.capture")
"""Code whose own errors can be those of recording alone."""

_OF_TRAINING = ("torch.distributions", "torch.utils.data", "agt_lightning.capture.likelihoods")
"""Parts of it whose errors come in training too."""

_HOSTS = ("lightning", "pytorch_lightning", "lightning_fabric")
"""Libraries whose own errors may end a run in good order."""


@dataclass
class Path:
    """One path through the user's code.

    Args:
        given: outcomes of the first branches; later ones come out as False, by which a loop ends.

    Attributes:
        taken: outcomes of all branches so far.
        messages: for each of them, why a difference behind it is refused.
    """

    given: tuple[bool, ...] = ()
    taken: list[bool] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def decide(self, message: str) -> bool | None:
        """Return the outcome of the next branch; None if there are too many."""
        position = len(self.taken)
        if position >= _MOST_BRANCHES:
            return None
        self.taken.append(position < len(self.given) and self.given[position])
        self.messages.append(message)
        return self.taken[-1]

    def restart(self) -> None:
        """Begin again, with the same given outcomes."""
        self.taken.clear()
        self.messages.clear()

    def others(self) -> Iterator[tuple[bool, ...]]:
        """Yield the beginnings of the paths that leave this one behind the given outcomes.

        Example:
            >>> path = Path((True,))
            >>> [path.decide("first"), path.decide("second"), path.decide("third")]
            [True, False, False]
            >>> list(path.others())
            [(True, True), (True, False, True)]
        """
        for position in range(len(self.given), len(self.taken)):
            yield (*self.taken[:position], not self.taken[position])

    @property
    def places(self) -> str:
        """The lines of the branches on it, without repetition."""
        return ", ".join(dict.fromkeys(message.partition(" lets Python")[0] for message in self.messages))

    @property
    def message(self) -> str:
        """Why the path is refused if it leads to another loss: because of the last branch that was given."""
        return self.messages[len(self.given) - 1]


def raises_by_itself(error: BaseException) -> bool:
    r"""Return whether code ends the run by a ``raise`` or ``assert`` of its own.

    An error of a call may be one of recording alone, and so may what torch itself raises. Code that catches the error
    does not get here.

    Example:
        >>> exec("def check(size):\n    assert size > 0", users := {"__name__": "users_file"})
        >>> check = users["check"]
        >>> try:
        ...     check(0)
        ... except AssertionError as error:
        ...     print(raises_by_itself(error))
        True
    """
    if isinstance(error, DataError):
        return True
    if isinstance(error, _NOT_ENDING) or type(error).__module__.partition(".")[0] in _HOSTS:
        return False
    frame: TracebackType | None = error.__traceback__
    if frame is None or not isinstance(error, Exception):
        return False
    while frame.tb_next is not None:
        frame = frame.tb_next
    if _within(frame, _OF_RECORDING) and not _within(frame, _OF_TRAINING):
        return False
    return dis.opname[frame.tb_frame.f_code.co_code[frame.tb_lasti]] == "RAISE_VARARGS"


def _within(frame: TracebackType, modules: tuple[str, ...]) -> bool:
    name = str(frame.tb_frame.f_globals.get("__name__"))
    return any(name == module or name.startswith(f"{module}.") for module in modules)
