"""What a verification finds: for each thing that is checked, whether it holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """The outcome of one check."""

    HOLDS = "holds"
    CONTRADICTED = "contradicted"
    UNCHECKED = "not checked"


@dataclass(frozen=True)
class Finding:
    """One check and its outcome.

    Args:
        about: what was checked, in one or two words.
        verdict: the outcome.
        message: what was expected and found.
    """

    about: str
    verdict: Verdict
    message: str

    @classmethod
    def holds(cls, about: str, message: str) -> Finding:
        """Return that something was checked and holds."""
        return cls(about, Verdict.HOLDS, message)

    @classmethod
    def contradicted(cls, about: str, message: str) -> Finding:
        """Return that something contradicts the certificate."""
        return cls(about, Verdict.CONTRADICTED, message)

    @classmethod
    def unchecked(cls, about: str, message: str) -> Finding:
        """Return that something could not be checked."""
        return cls(about, Verdict.UNCHECKED, message)

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.verdict.value}: {self.about}: {self.message}"


def status(findings: Iterable[Finding]) -> int:
    """Return the exit status of findings: 1 if something is contradicted, else 2 if something is unchecked, else 0.

    Example:
        >>> status([Finding.holds("weights", "as certified"), Finding.unchecked("results", "no data")])
        2
    """
    verdicts = {finding.verdict for finding in findings}
    if Verdict.CONTRADICTED in verdicts:
        return 1
    return 2 if Verdict.UNCHECKED in verdicts or not verdicts else 0
