"""Run recorded steps backward for many directions at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agt_lightning.arithmetic.threads import one_core_each
from agt_lightning.domains.adjoint.directions import Directions
from agt_lightning.domains.adjoint.step import StepAnalysis
from agt_lightning.errors import UnsoundBoundError
from agt_lightning.interval import Interval
from agt_lightning.rounding import accumulated_roundoff

_CHUNK = 16
"""Directions that one thread takes through a step together."""

_UNDERFLOW = 2.0**-300
"""Above what underflow can lose in a step, for directions of norm one; far below what changes a bound."""


@dataclass(frozen=True, eq=False)
class RecordedStep:
    """One step of the training.

    Args:
        analysis: the step at its nominal parameters.
        rate: α.
        decay: μ.
        rounding: upper bound on how far roundings move a run in this step beside the step in real arithmetic.
    """

    analysis: StepAnalysis
    rate: float
    decay: float
    rounding: float

    def before(self, directions: Directions, curved: Directions) -> Directions:
        """Return ``((1 - αμ) - αH) c``, the directions before the step.

        Args:
            directions: c.
            curved: ``Hc``.
        """
        return directions.less(curved, kept=1 - self.rate * self.decay, rate=self.rate)


def displacements(
    steps: Iterable[RecordedStep],
    directions: Directions,
    *,
    progress: Callable[[int], None] | None = None,
    threads: int | None = None,
) -> Interval:
    """Bound ``c · δ`` for the distance δ of the parameters of any run from the nominal ones after the last step, (Q,).

    Args:
        steps: last step first.
        directions: c, exact as they are.
        progress: called after each step with the number of steps so far.
        threads: that share the directions; None for as many as torch uses.

    Raises:
        UnsoundBoundError: if a number is NaN or infinite.

    Reference:
        docs/theory.md, eq. (13.4), (13.8) and (13.20).
    """
    total, count = torch.zeros(len(directions), 2, dtype=torch.float64), 0
    size = _powers_of_two(directions.norms)
    directions = directions.scaled(1 / size)  # so that squares of what matters do not underflow
    threads = threads or torch.get_num_threads()
    # Torch's own threads would spin between the products of a step's preparation, on cores that these threads need.
    with one_core_each(), ThreadPoolExecutor(threads) as pool:
        for step in steps:
            added, directions = _step(step, directions, pool)
            total += added
            count += 1
            if progress is not None:
                progress(count)
    upward = size[:, None] * total * (1 + accumulated_roundoff(count + 8, torch.float64))
    return Interval.trusted(-upward[:, 0], upward[:, 1])


def _step(step: RecordedStep, directions: Directions, pool: ThreadPoolExecutor) -> tuple[Tensor, Directions]:
    analysis, rate = step.analysis, step.rate
    rounding = analysis.roundings(rate, step.decay)
    analysis.prepare()
    chunks = [directions[start : start + _CHUNK] for start in range(0, len(directions), _CHUNK)]
    results = list(pool.map(analysis.back, chunks))
    bound = torch.from_numpy(np.concatenate([made.total for made, _ in results]))
    norms = directions.norms * analysis.upward
    off = rate * rounding.bound + step.rounding + rounding.direction * analysis.radius
    added = analysis.upward * rate * bound + (off * norms + _UNDERFLOW)[:, None]
    before = step.before(directions, Directions.cat([curved for _, curved in results]))
    if not bool(added.isfinite().all() and before.norms.isfinite().all()):
        raise UnsoundBoundError(
            "Expected finite bounds along every direction, but one is NaN or infinite. If steps are so large that "
            "the adjoint recursion grows without limit, use a smaller learning rate; else report it."
        )
    return added, before


def _powers_of_two(norms: Tensor) -> Tensor:
    """Return the power of two next to each norm, one for zero: scaling by it is exact."""
    exponents = torch.frexp(norms).exponent
    return torch.where(norms > 0, torch.ldexp(torch.ones_like(norms), exponents), 1.0)
