"""Criteria that a training's results must meet, fixed before its first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agt_lightning.adversaries.base import check_number


@dataclass(frozen=True)
class Acceptance:
    """A threshold for one result, such as a certified accuracy of at least 0.9.

    Args:
        metric: name of the result in the certificate, such as ``"val_certified_accuracy"`` or ``"mean_width"``.
        at_least: smallest value that is accepted; None if there is none.
        at_most: largest value that is accepted; None if there is none.

    Raises:
        TypeError: if the name is no string or a limit no number.
        ValueError: if the name is empty, or not exactly one limit is given, or it is not finite.

    Example:
        >>> Acceptance("val_certified_accuracy", at_least=0.9).met_by({"val_certified_accuracy": 0.93})
        True
        >>> Acceptance("val_certified_mse", at_most=0.1).met_by({}) is None
        True
    """

    metric: str
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        """Validate the fields."""
        if not isinstance(self.metric, str):
            raise TypeError(f"Expected `metric` to be the name of a result, but got {self.metric!r}.")
        if not self.metric:
            raise ValueError("Expected `metric` to be the name of a result, but it is empty.")
        given = {name: limit for name in ("at_least", "at_most") if (limit := getattr(self, name)) is not None}
        if len(given) != 1:
            raise ValueError(
                f"Expected either `at_least` or `at_most` for `{self.metric}`, but got {'both' if given else 'none'}. "
                "Write one `Acceptance` for each limit."
            )
        for name, limit in given.items():
            check_number(name, limit)

    def met_by(self, results: Mapping[str, float]) -> bool | None:
        """Return whether the result is within the limit; None if there is no such result.

        Args:
            results: by name.
        """
        value = results.get(self.metric)
        if value is None:
            return None
        if self.at_least is not None:
            return value >= self.at_least
        assert self.at_most is not None
        return value <= self.at_most

    def plain(self) -> dict[str, Any]:
        """Return the name and the limit, for JSON and checkpoints."""
        limit = "at_most" if self.at_least is None else "at_least"
        return {"metric": self.metric, limit: getattr(self, limit)}


def criteria(given: Acceptance | Sequence[Acceptance] | None) -> tuple[Acceptance, ...]:
    """Return criteria as a tuple.

    Raises:
        TypeError: if one of them is none.
    """
    every = () if given is None else tuple(given) if isinstance(given, Sequence) else (given,)
    for each in every:
        if not isinstance(each, Acceptance):
            raise TypeError(f"Expected `acceptance` to be an `Acceptance` or several, but got {each!r}.")
    return every


def dated(chosen: Sequence[Acceptance], earlier: Sequence[Mapping[str, Any]], steps: int) -> list[dict[str, Any]]:
    """Return criteria with the number of steps after which each was set: those that were there before keep theirs.

    Args:
        chosen: the criteria of a training that is about to go on.
        earlier: what this function returned for its steps before.
        steps: number of certified steps before.

    Example:
        >>> first = dated([Acceptance("mean_width", at_most=1.0)], [], steps=0)
        >>> both = dated([Acceptance("mean_width", at_most=1.0), Acceptance("mean_width", at_most=2.0)], first, steps=9)
        >>> [each["set_after_step"] for each in both]
        [0, 9]
    """
    before = {(each["metric"], each.get("at_least"), each.get("at_most")): each["set_after_step"] for each in earlier}
    return [
        {
            **each.plain(),
            "set_after_step": before.get((each.metric, each.at_least, each.at_most), steps),
        }
        for each in chosen
    ]


def judged(criteria: Sequence[Mapping[str, Any]], results: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return criteria with the results that they are about, and whether these meet them.

    Args:
        criteria: from `dated`.
        results: by name.
    """
    return [
        {
            **each,
            "set_before_the_first_step": each["set_after_step"] == 0,
            "value": results.get(each["metric"]),
            "met": Acceptance(each["metric"], each.get("at_least"), each.get("at_most")).met_by(results),
        }
        for each in criteria
    ]
