"""Names of before that still work: each warns for one minor version and goes with the next."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Former:
    """A public name, keyword or value that is about to go.

    Args:
        advice: what to write instead, a sentence.
        since: the minor version that warns first.
        gone_in: the next one, in which it is gone.

    Example:
        >>> Former("Write `bound_gradient`.", since="0.2", gone_in="0.3").sentence
        'Write `bound_gradient`. What was before is gone in version 0.3.'
    """

    advice: str
    since: str
    gone_in: str

    @property
    def sentence(self) -> str:
        """What to do, and until when."""
        return f"{self.advice} What was before is gone in version {self.gone_in}."


FORMER: Mapping[str, Former] = {
    "aggregation=": Former("Delete `aggregation=`.", since="0.2", gone_in="0.3"),
    "engine.descend": Former("Write `engine.bound_gradient`.", since="0.2", gone_in="0.3"),
    "rules.Pieces": Former("Write `rules.PiecewiseMonotoneFunction`.", since="0.2", gone_in="0.3"),
}
"""All that is deprecated, by its name; `CONTRIBUTING.md` has the rule."""


def warn_of_former(name: str, reason: str, *, stacklevel: int) -> None:
    """Warn that a name still works, and say until when.

    Args:
        name: its key in `FORMER`.
        reason: what has changed, a sentence.
        stacklevel: calls from the user's line to `warnings.warn`, as that counts them.

    Warns:
        FutureWarning: always; Python shows it to users, other than a `DeprecationWarning`.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as said:
        ...     warnings.simplefilter("always")
        ...     warn_of_former("rules.Pieces", "`Pieces` has another name.", stacklevel=2)
        >>> print(said[0].message)
        `Pieces` has another name. Write `rules.PiecewiseMonotoneFunction`. What was before is gone in version 0.3.
    """
    warnings.warn(f"{reason} {FORMER[name].sentence}", FutureWarning, stacklevel=stacklevel)
