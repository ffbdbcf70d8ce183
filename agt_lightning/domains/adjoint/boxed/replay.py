"""Run recorded steps backward for many directions at once, with a box of parameters before each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.adjoint.boxed.geometry import BoxedGeometry
from agt_lightning.domains.adjoint.boxed.kernel import accumulate
from agt_lightning.domains.adjoint.one_hidden.roundings import jacobian_size, step_roundings
from agt_lightning.errors import UnsoundBoundError
from agt_lightning.interval import Interval
from agt_lightning.rounding import accumulated_roundoff

_CHUNK = 16
"""Directions that one thread takes through a step together."""

_UNDERFLOW = 2.0**-300
"""Above what underflow can lose in a step, for directions of norm one; far below what changes a bound."""

_TERMS = 16
"""More than the summands of docs/theory.md, eq. (15.5) to (15.13), beside those of the ball."""


@dataclass(frozen=True)
class ScalarDirections:
    """Directions ``c = (C₁, c₂)`` in the parameters of a head with one output.

    Args:
        first: C₁, (Q, h, d + 1).
        second: c₂, (Q, h + 1).
    """

    first: Tensor
    second: Tensor

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, rows: slice) -> ScalarDirections:
        return ScalarDirections(self.first[rows], self.second[rows])

    @property
    def norms(self) -> Tensor:
        """``‖c‖``, (Q,)."""
        first: Tensor = euclidean_norm(self.first.flatten(1), dim=1)
        return torch.hypot(first, euclidean_norm(self.second, dim=1))


@dataclass(frozen=True, eq=False)
class BoxedStep:
    """One step of the training.

    Args:
        geometry: the step at its nominal parameters.
        rate: α.
        decay: μ.
        rounding: upper bound on how far roundings move a run in this step beside the step in real arithmetic.
    """

    geometry: BoxedGeometry
    rate: float
    decay: float
    rounding: float

    def bounds(self, directions: ScalarDirections) -> tuple[Tensor, ScalarDirections]:
        """Bound ``s D c · (r + p)`` in real arithmetic for s = +1 and -1, (Q, 2), and move the directions back.

        The displacement ``c · δ`` grows by the negative of it.

        Reference:
            docs/theory.md, eq. (15.2) and (15.5) to (15.13).
        """
        geometry = self.geometry
        first, second = (rate * self.rate for rate in geometry.head.moving)
        rated = ScalarDirections(directions.first * first, directions.second * second)
        found = accumulate(
            geometry.sample_arrays,
            geometry.unit_arrays,
            geometry.pair_arrays,
            np.ascontiguousarray(rated.first.transpose(1, 2).numpy()),
            np.ascontiguousarray(rated.second.numpy()),
            geometry.whole.features is not None,
        )
        outer = torch.from_numpy(found.outer).transpose(1, 2)
        coupled = (geometry.box.second[:-1] * geometry.box.along(outer)).sum(dim=1)
        total = (
            torch.from_numpy(geometry.whole.of_the_worst(found.poison))
            + torch.from_numpy(found.sums).sum(dim=2)
            + coupled[:, None]
        )
        rows = geometry.head.second[:-1, None] * outer + rated.second[:, :-1, None] * geometry.coupling
        kept = 1 - self.rate * self.decay
        last = torch.from_numpy(found.last)
        return total, ScalarDirections(kept * directions.first - rows, kept * directions.second - last)

    @cached_property
    def off(self) -> float:
        """What roundings add for a direction of norm one after the step.

        Reference:
            docs/theory.md, section 15.5.
        """
        whole, head = self.geometry.whole, self.geometry.head
        own = step_roundings(whole, self.rate, self.decay)
        size = 2 * head.speed
        off = _TERMS * size * (self.rate * own.bound + own.direction * whole.radius) + size * self.rounding
        if head.speed != 1:
            steep = jacobian_size(whole)
            pull = float(whole.weights @ ((whole.curvature * steep + whole.gradient_norm) * steep))
            off += 8 * head.rounded * (1 + self.rate * pull)
        return whole.upward * off

    def prepare(self) -> None:
        """Compute what all threads read."""
        self.geometry.prepare()
        _ = self.off


def displacements(
    steps: Sequence[BoxedStep],
    directions: ScalarDirections,
    *,
    progress: Callable[[int], None] | None = None,
    threads: int | None = None,
) -> Interval:
    """Bound ``c · δ`` for the distance δ of the parameters of any run from the nominal ones after the last step, (Q,).

    Args:
        steps: first step first.
        directions: c, exact as they are.
        progress: called after each step with the number of steps so far.
        threads: that share the directions; None for as many as torch uses.

    Raises:
        UnsoundBoundError: if a number is NaN or infinite.

    Reference:
        docs/theory.md, eq. (15.3).
    """
    total = torch.zeros(len(directions), 2, dtype=torch.float64)
    with ThreadPoolExecutor(threads or torch.get_num_threads()) as pool:
        for number, step in enumerate(reversed(steps)):
            step.prepare()
            chunks = [directions[start : start + _CHUNK] for start in range(0, len(directions), _CHUNK)]
            results = list(pool.map(step.bounds, chunks))
            norms = directions.norms
            directions = ScalarDirections(
                torch.cat([moved.first for _, moved in results]), torch.cat([moved.second for _, moved in results])
            )
            bound = torch.cat([made for made, _ in results])
            start = 2 * step.geometry.head.rounded * directions.norms
            off = step.off * norms + _UNDERFLOW * (1 + norms) + start
            total += step.geometry.upward * bound + off[:, None]
            if not bool(total.isfinite().all() and directions.norms.isfinite().all()):
                raise UnsoundBoundError(
                    "Expected finite bounds along every direction, but one is NaN or infinite. If steps are so large "
                    "that the adjoint recursion grows without limit, use a smaller learning rate; else report it."
                )
            if progress is not None:
                progress(number + 1)
    upward = total * (1 + accumulated_roundoff(len(steps) + 8, torch.float64))
    return Interval.trusted(-upward[:, 0], upward[:, 1])
