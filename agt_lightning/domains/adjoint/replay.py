"""Run recorded steps backward for many directions at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agt_lightning.domains.adjoint.directions import Directions
from agt_lightning.domains.adjoint.geometry import StepGeometry
from agt_lightning.domains.adjoint.roundings import step_roundings
from agt_lightning.domains.adjoint.step_bound import StepBound, step_back
from agt_lightning.errors import UnsoundBoundError
from agt_lightning.interval import Interval

_CHUNK = 16
"""Directions that one thread takes through a step together."""

_UPWARD = 1 + 2.0**-40
"""Above the rounding of sums over steps."""

_UNDERFLOW = 2.0**-300
"""Above what underflow can lose in a step, for directions of norm one; far below what changes a bound."""


@dataclass(frozen=True, eq=False)
class RecordedStep:
    """One step of the training.

    Args:
        geometry: the step at its nominal parameters.
        rate: α.
        decay: μ.
        rounding: upper bound on how far roundings move a run in this step beside the step in real arithmetic.
    """

    geometry: StepGeometry
    rate: float
    decay: float
    rounding: float


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
    total = torch.zeros(len(directions), 2, dtype=torch.float64)
    size = _powers_of_two(directions.norms)
    directions = directions.scaled(1 / size)  # so that squares of what matters do not underflow
    with ThreadPoolExecutor(threads or torch.get_num_threads()) as pool:
        for number, step in enumerate(steps):
            added, directions = _step(step, directions, pool)
            total += added
            if progress is not None:
                progress(number + 1)
    upward = size[:, None] * total * _UPWARD
    return Interval.trusted(-upward[:, 0], upward[:, 1])


def _step(step: RecordedStep, directions: Directions, pool: ThreadPoolExecutor) -> tuple[Tensor, Directions]:
    geometry, rate = step.geometry, step.rate
    rounding = step_roundings(geometry, rate, step.decay)
    _prepare(geometry)
    chunks = [directions[start : start + _CHUNK] for start in range(0, len(directions), _CHUNK)]
    results: list[tuple[StepBound, Directions]] = list(pool.map(lambda chunk: step_back(geometry, chunk), chunks))
    bound = torch.from_numpy(np.concatenate([made.total for made, _ in results]))
    norms = directions.norms * geometry.upward
    off = rate * rounding.bound + step.rounding + rounding.direction * geometry.radius
    added = geometry.upward * rate * bound + (off * norms + _UNDERFLOW)[:, None]
    before = _moved_back(step, directions, [curved for _, curved in results])
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


def _prepare(geometry: StepGeometry) -> None:
    """Compute what all threads read."""
    for name in ("sample_arrays", "pair_arrays", "label_arrays", "feature_arrays", "coupling", "curvature_norm"):
        getattr(geometry, name)


def _moved_back(step: RecordedStep, directions: Directions, curved: list[Directions]) -> Directions:
    """``((1 - αμ) - αH) c``."""
    first, second = (torch.cat([getattr(each, name) for each in curved]) for name in ("first", "second"))
    kept = 1 - step.rate * step.decay
    return Directions(kept * directions.first - step.rate * first, kept * directions.second - step.rate * second)
