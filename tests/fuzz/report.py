"""What a fuzzer has done: trainings, violations, and the share of the width that attacks attained."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.fuzz.trainings import Training


@dataclass
class Report:
    """Counts and shares of one run.

    Args:
        counts: of trainings, by what became of them.
        shares: attained shares of the width, by a kind of part ("operation", "loss", ...) and its name.
        violations: descriptions of what left its bounds.
        stopped: descriptions of trainings that could not be certified.
        operations: how many certified trainings had each operation.
    """

    counts: Counter[str] = field(default_factory=Counter)
    shares: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    violations: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    operations: Counter[str] = field(default_factory=Counter)

    def add(self, case: Training, operations: Iterable[str], share: float | None) -> None:
        """Count a certified training and its attained share."""
        self.operations.update(operations)
        if share is None:
            return
        parts = {("operation", name) for name in operations} | {
            ("loss", case.loss_name),
            ("optimizer", case.optimizer.__name__),
            ("adversary", _adversary(case)),
            ("method", case.engine["method"]),
            ("steps", str(len(case.steps))),
            ("all", "all"),
        }
        for part in parts:
            self.shares[part].append(share)

    def note(self, kind: str, violation: str) -> None:
        """Count what is wrong, keep it, and print it."""
        self.counts[kind] += 1
        self.violations.append(violation)
        say(violation)

    def merge(self, other: Report) -> None:
        """Add what another process has done."""
        self.counts += other.counts
        self.operations += other.operations
        for part, shares in other.shares.items():
            self.shares[part] += shares
        self.violations += other.violations
        self.stopped += other.stopped

    def table(self, kind: str) -> str:
        """Return the mean shares of one kind of part, lowest first, as a Markdown table."""
        rows = sorted((sum(s) / len(s), name, len(s)) for (of, name), s in self.shares.items() if of == kind)
        head = f"| {kind} | trainings | attained share of the width |\n|---|---|---|\n"
        return head + "".join(f"| {name} | {count} | {share:.2f} |\n" for share, name, count in rows)


def _adversary(case: Training) -> str:
    a = case.adversary
    if not hasattr(a, "epsilon"):
        return f"unbounded, {a.clip}"  # type: ignore[attr-defined]
    moved = ["features"] * bool(a.perturbs_features) + ["labels"] * bool(a.perturbs_labels)  # type: ignore[attr-defined]
    return " and ".join(moved) or "nothing"


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
