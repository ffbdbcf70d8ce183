"""One cell of the matrix: a module under an adversary, certified and poisoned, or refused."""

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from agt_lightning.errors import AgtError
from tests.trust.harness import Refused, certify, measured, parameters, plain
from tests.wild.attacks import poisoned_runs
from tests.wild.registry import Threat, Wild


@dataclass
class Clock:
    """Notes when each batch is asked for: between two of them lies one step."""

    batches: Iterable[object] | None = None
    times: list[float] = field(default_factory=list)

    def __call__(self, batches: Iterable[object]) -> "Clock":
        self.batches = batches
        return self

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[object]:
        for batch in self.batches:
            self.times.append(time.perf_counter())
            yield batch
        self.times.append(time.perf_counter())

    @property
    def last(self) -> float:
        """Seconds of the last step, in which nothing is recorded for the first time."""
        return self.times[-1] - self.times[-2] if len(self.times) > 1 else float("nan")


@dataclass(frozen=True)
class Outcome:
    """What came of one cell.

    Args:
        error: what the certified training raised, or None.
        early: whether no parameter had moved by then.
        outside: how far a run leaves the bounds at most.
        reach: the largest share of an interval that an attack uses.
        width: mean width of the bounds of the trained parameters.
        seconds: of the last certified step.
        plain: of the last step without certificate.
    """

    error: Exception | None = None
    early: bool = True
    outside: float = 0.0
    reach: float = 0.0
    width: float = float("nan")
    seconds: float = float("nan")
    plain: float = float("nan")

    @property
    def refused(self) -> bool:
        return isinstance(self.error, AgtError)


def outcome(wild: Wild, threat: Threat) -> Outcome:
    """Train with certificate on clean data, and attack."""
    case, clock = wild.case(threat), Clock()
    result = certify(case.but(wrap=clock))
    if isinstance(result, Refused):
        return Outcome(result.error, result.before_first_step)
    slow, clock = clock, Clock()
    clean = plain(case.but(wrap=clock))
    found = measured(result.certified.bounds, clean, [clean, parameters(result.module), *poisoned_runs(case)])
    return Outcome(
        outside=found["outside"],
        reach=found["reach"],
        width=result.certified.bounds.mean_width(),
        seconds=slow.last,
        plain=clock.last,
    )


def complaint(wild: Wild, threat: Threat, found: Outcome) -> str | None:
    """Say what is not as the collection expects, or nothing."""
    expected = wild.refused.get(threat.name)
    if found.error is None:
        if expected is not None:
            return f"accepted, but {expected.cause} was expected to be refused"
        if found.outside > 0:
            return f"a poisoned run is outside by {found.outside:.3g}"
        if not found.width < float("inf"):
            return "the bounds are not finite"
        return None if found.reach > 0 else "no attack moves a parameter"
    if not found.refused:
        return f"a crash: {found.error!r}"
    if expected is None:
        return f"refused: {found.error}"
    if not found.early and not expected.late:
        return f"refused too late: {found.error}"
    if not re.search(expected.fragment, str(found.error), re.IGNORECASE):
        return f"another reason: {found.error}"
    if expected.located and not re.search(rf"{wild.family}\.py:\d+", str(found.error)):
        return f"no line of the module: {found.error}"
    return None
