"""Check what intervals claim of themselves, at every interval that is made while a training is certified."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor

from agt_lightning.interval import Interval


class FactError(AssertionError):
    """An interval claims what its bounds do not show."""


@contextmanager
def checked_facts() -> Iterator[None]:
    """Raise a `FactError` where an interval is crossed, or is called nonnegative and has a negative lower bound.

    Bounds of NaN are left to the package's own checks.
    """
    kept = Interval.trusted.__func__  # type: ignore[attr-defined]

    def trusted(cls: type[Interval], lower: Tensor, upper: Tensor, **facts: Any) -> Interval:
        if bool((lower > upper).any()):
            raise FactError(f"Expected ordered bounds, but {int((lower > upper).sum())} are crossed.")
        if facts.get("nonnegative") and bool((lower < 0).any()):
            raise FactError(f"Expected lower bounds of a nonnegative interval, but the least is {float(lower.min())}.")
        made: Interval = kept(cls, lower, upper, **facts)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Interval, "trusted", classmethod(trusted))
        yield
