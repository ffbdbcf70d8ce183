"""The largest n that an adversary can be granted before a certified value leaves its limit, by bisection."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

from agt_lightning.adversaries import Adversary
from agt_lightning.adversaries.base import check_count
from agt_lightning.adversaries.several import settings_that_differ
from agt_lightning.bounds import atomic_path
from agt_lightning.certificates.acceptance import Acceptance

_log = logging.getLogger(__name__)

_FORMAT = "agt_lightning budget 1"

_NOISE = 1e-6
"""By what part values may differ that are sums in float32, in another order."""


@dataclass(frozen=True)
class Budget:
    """What a search for the largest n has found.

    Args:
        n: the largest one tried whose value is within the limit; None if there is none.
        value: the certified value there; None if there is none.
        fails_at: the smallest one tried above it whose value is not; None if there is none.
        tried: all values by n, in order of n.
        trainings: how many trainings this search ran; the other values were known before.
        out_of_order: pairs of n, one behind the other among those tried, of which the larger one has the better value.
            The certificate at `n` holds all the same, but a larger n between two that were tried can be within the
            limit too.

    Example:
        >>> found = Budget.of({4: 0.5, 1: 0.9, 2: 0.8}, Acceptance("val_certified_accuracy", at_least=0.7))
        >>> found.n, found.value, found.fails_at           # 3 was not tried
        (2, 0.8, 4)
    """

    n: int | None
    value: float | None
    fails_at: int | None
    tried: Mapping[int, float]
    trainings: int
    out_of_order: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, tried: Mapping[int, float], limit: Acceptance, trainings: int = 0) -> Budget:
        """Return what values say about a limit.

        Args:
            tried: certified values by n.
            limit: with which they are compared.
            trainings: how many were run for them.

        Example:
            >>> found = Budget.of({4: 0.5, 1: 0.9, 2: 0.8}, Acceptance("accuracy", at_least=0.7))
            >>> found.n, found.fails_at, found.out_of_order
            (2, 4, ())
        """
        ordered = dict(sorted(tried.items()))
        within = [n for n, value in ordered.items() if limit.met_by({limit.metric: value})]
        n = max(within, default=None)
        above = [other for other in ordered if other not in within and (n is None or other > n)]
        return cls(
            n=n,
            value=None if n is None else ordered[n],
            fails_at=min(above, default=None),
            tried=ordered,
            trainings=trainings,
            out_of_order=tuple(
                (less, more) for less, more in pairwise(ordered) if _is_better(ordered[more], ordered[less], limit)
            ),
        )

    def next_n(self, largest: int) -> int | None:
        """Return the n that halves what is left to search; None if nothing is.

        Args:
            largest: beyond which nothing is searched.
        """
        low = -1 if self.n is None else self.n
        high = largest + 1 if self.fails_at is None else min(self.fails_at, largest + 1)
        return (low + high) // 2 if high - low > 1 else None


def budget(
    train: Callable[[int], float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    largest: int,
    results: str | os.PathLike[str] | None = None,
    about: str = "",
) -> Budget:
    """Search the largest n whose certified value is within a limit, with one training for each n that is tried.

    An adversary with a larger n can do more, so the certified value gets worse with n, and bisection finds the place
    where it leaves the limit after at most ``log2(largest + 2)`` trainings, rounded up. That it gets worse is not
    relied upon: what was tried is compared, and `Budget.out_of_order` names what contradicts it. The certificate at the
    n that is returned holds in any case.

    One training for several adversaries, `CertifiedTraining([BoundedAdversary(n=n, ...) for n in ...])`, has a whole
    curve; ``agt budget`` reads it off the certificate.

    Args:
        train: trains for an adversary with this n, and returns a certified value, such as
            ``trainer.callback_metrics["agt/val_certified_accuracy"]``. All but n must be the same in each call, seeds
            among it. Where bounds become infinite, nothing is certified: return 0.0 for an accuracy, ``math.inf`` for
            an error.
        at_least: smallest value that is accepted; either this or `at_most`.
        at_most: largest value that is accepted.
        largest: the largest n to consider, such as the number of samples of a batch, beyond which n changes nothing.
        results: JSON file that has the values of a search that was interrupted, and gets each new one; None for none.
        about: what is trained, in words of your own, which `results` keep, so that values of another training are not
            taken for those of this one.

    Raises:
        TypeError: if `largest`, a limit or a value is no number.
        ValueError: if it is out of range, not exactly one limit is given, a value is NaN, or `results` is no file of
            such values or about something else.

    Example:
        >>> found = budget(lambda n: 0.975 - 0.01 * n, at_least=0.9, largest=100)
        >>> found.n, found.fails_at, found.trainings
        (7, 8, 7)
    """
    check_count("largest", largest)
    limit = Acceptance("the certified value", at_least=at_least, at_most=at_most)
    known = {} if results is None else _read(Path(results), about)
    found = Budget.of({n: value for n, value in known.items() if n <= largest}, limit)
    with tqdm(total=_most_trainings(found, largest), desc="budget", unit="training", disable=None) as bar:
        while (n := found.next_n(largest)) is not None:
            value = _number(train(n), n)
            _log.info("n=%d: %s, trained %d times", n, value, found.trainings + 1)
            found = Budget.of({**found.tried, n: value}, limit, found.trainings + 1)
            if results is not None:
                _write(Path(results), {**known, **found.tried}, about)
            bar.set_postfix_str(f"n={n}: {value:.6g}")
            bar.update()
    return found


def read_off(adversaries: Sequence[Adversary], results: Sequence[Mapping[str, float]], limit: Acceptance) -> Budget:
    """Return the largest n within a limit from the results of one training for several adversaries.

    Args:
        adversaries: that differ in n alone.
        results: certified values by name, of each adversary.
        limit: with which one of them is compared.

    Raises:
        ValueError: if the adversaries differ in something else, or a result is missing.

    Example:
        >>> from agt_lightning import BoundedAdversary
        >>> curve = [BoundedAdversary(n=n, epsilon=0.1) for n in (1, 2, 5)]
        >>> values = [{"val_certified_accuracy": value} for value in (0.97, 0.92, 0.7)]
        >>> found = read_off(curve, values, Acceptance("val_certified_accuracy", at_least=0.9))
        >>> found.n, found.fails_at
        (2, 5)
    """
    others = sorted({name for settings in settings_that_differ(adversaries) for name in settings} - {"n"})
    if others:
        raise ValueError(
            f"Expected adversaries that differ in n alone, but they differ in {', '.join(others)}. Train for those "
            "of one question together."
        )
    names = sorted({name for each in results for name in each})
    if any(limit.metric not in each for each in results):
        there = f"they are {', '.join(names)}" if names else "there are none. Validate after the last step"
        raise ValueError(f"Expected a result {limit.metric!r} of the last step, but {there}.")
    tried = {int(each.n): float(values[limit.metric]) for each, values in zip(adversaries, results, strict=True)}
    return Budget.of(tried, limit)


def _is_better(more: float, less: float, limit: Acceptance) -> bool:
    sign = 1.0 if limit.at_least is not None else -1.0
    return sign * more > sign * less and not math.isclose(more, less, rel_tol=_NOISE)


def _most_trainings(found: Budget, largest: int) -> int:
    low = -1 if found.n is None else found.n
    high = largest + 1 if found.fails_at is None else found.fails_at
    return math.ceil(math.log2(max(1, high - low)))


def _number(value: object, n: int) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]  # a tensor of one element, too
    except (TypeError, ValueError) as error:
        raise TypeError(f"Expected `train({n})` to return a certified value, but got {value!r}.") from error
    if math.isnan(number):
        raise ValueError(
            f"Expected `train({n})` to return a certified value, but got NaN. If nothing is certified, return 0.0 "
            "for an accuracy or `math.inf` for an error."
        )
    return number


def _read(path: Path, about: str) -> dict[int, float]:
    """Return the values in a file; none if there is no file."""
    if not path.exists():
        return {}
    try:
        stated = json.loads(path.read_text("utf-8"))
        if stated["format"] != _FORMAT:
            raise ValueError(f"its format is {stated['format']!r}")
        found = {int(n): _number(value, int(n)) for n, value in stated["values"].items()}
        of = stated["about"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"Expected values of a search by `budget` in {path}, but got something else: {error}."
        ) from error
    if of != about:
        raise ValueError(
            f"Expected {path} to be about {about!r}, but it is about {of!r}. Give another file as `results`, or the "
            "`about` of that search if it is the same training."
        )
    return found


def _write(path: Path, values: Mapping[int, float], about: str) -> None:
    stated = {
        "format": _FORMAT,
        "about": about,
        "values": {str(n): value if math.isfinite(value) else str(value) for n, value in sorted(values.items())},
    }
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(stated, indent=2, allow_nan=False) + "\n", encoding="utf-8")
