"""Planted faults: a check is worth something only if it fails as soon as one piece is broken."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest


@dataclass(frozen=True, eq=False)
class Fault:
    """A plausible mistake in one piece of the package, and the check that must notice it.

    Attributes:
        name: what is wrong.
        check: raises `AssertionError` if it notices. Called without arguments it passes, since nothing is broken.
        broken: what stands in for the piece.
        place: a module or class and the name of its attribute that ``broken`` replaces; None if the check takes the
            piece as its argument.
    """

    name: str
    check: Callable[..., object]
    broken: object
    place: tuple[object, str] | None = None

    def __str__(self) -> str:
        return self.name

    def require_noticed(self, message: str) -> None:
        """Raise unless the check fails with such a message, a regular expression, as long as the fault is in place."""
        with pytest.MonkeyPatch.context() as patch:
            pieces = [self.broken]
            if self.place is not None:
                patch.setattr(*self.place, self.broken)
                pieces = []
            with pytest.raises(AssertionError, match=message):
                self.check(*pieces)


def require_checks_pass(faults: Iterable[Fault]) -> None:
    """Run each check of the faults once, with nothing broken."""
    for check in dict.fromkeys(fault.check for fault in faults):
        check()
