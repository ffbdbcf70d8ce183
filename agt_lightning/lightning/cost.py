"""What certified steps cost beside plain ones, measured while they are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

_LEARNING = 1
"""Steps at the start of a training that are left out: they record the loss, compile loops, and try the settings."""

_FACTOR = 100.0
"""From how many plain steps on a certified one is remarked on."""

_WORTH_SAYING = 1.0
"""Seconds; nobody waits for shorter steps."""


@dataclass(frozen=True)
class StepCost:
    """Seconds that a step takes, and how many of them are the training's own.

    On a GPU, where work is queued, the seconds of the training's own part are of its calls alone.

    Args:
        certified: from the start of a batch to the end of it.
        plain: without what bounds took of it.

    Example:
        >>> StepCost(certified=3.0, plain=0.5).factor
        6.0
    """

    certified: float
    plain: float

    @property
    def factor(self) -> float:
        """How many plain steps a certified one takes."""
        return self.certified / self.plain if self.plain else float("inf")

    def warning(self) -> str:
        """Return what to tell whoever waits for such steps; empty if there is no need to."""
        if self.factor < _FACTOR or self.certified < _WORTH_SAYING:
            return ""
        return (
            f"A certified step takes {self.certified:.3g} s, {self.factor:.0f} times as long as a plain one "
            f"({self.plain:.2g} s). It is proportional to samples times weights that are trained. Freeze layers "
            "(`requires_grad_(False)`), train on fewer pixels or samples, or name one domain, such as "
            '`domains=["ball"]` where it applies; `certified.plan(module, batch)` measures a setting beforehand.'
        )


class Stopwatch:
    """A stopwatch of steps, which tells the seconds spent on bounds from those of the training.

    Example:
        >>> watch = Stopwatch()
        >>> for _ in range(3):
        ...     watch.start_step()
        ...     with watch.bounding():
        ...         _ = sum(range(100_000))
        ...     watch.end_step()
        >>> watch.cost.certified >= watch.cost.plain > 0
        True
    """

    def __init__(self) -> None:
        self._started: float | None = None
        self._of_bounds = 0.0
        self._steps = 0
        self._certified = 0.0
        self._plain = 0.0

    @property
    def cost(self) -> StepCost | None:
        """The mean of all steps but the first; None until there are two."""
        counted = self._steps - _LEARNING
        return StepCost(self._certified / counted, self._plain / counted) if counted > 0 else None

    def start_step(self) -> None:
        """Start a step; one that was started and has not ended is forgotten."""
        self._started, self._of_bounds = perf_counter(), 0.0

    @contextmanager
    def bounding(self) -> Iterator[None]:
        """Count what is done inside as the work of bounds; not nested."""
        start = perf_counter()
        try:
            yield
        finally:
            self._of_bounds += perf_counter() - start

    def end_step(self) -> None:
        """End the step that was started; without one, nothing."""
        if self._started is None:
            return
        seconds, self._started = perf_counter() - self._started, None
        self._steps += 1
        if self._steps > _LEARNING:
            self._certified += seconds
            self._plain += seconds - self._of_bounds
