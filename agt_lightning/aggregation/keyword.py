"""The keyword ``aggregation=``, which chose between exact sums and wider ones; it is accepted for one more release."""

from agt_lightning.deprecation import warn_of_former
from agt_lightning.errors import require_one_of

_FORMER = ("exact", "moment", "auto")


def check_aggregation(aggregation: str, stacklevel: int) -> None:
    """Accept a value that the keyword once had; sums are exact whichever it is.

    Args:
        aggregation: what the user wrote.
        stacklevel: calls from the user's line to `warnings.warn`, as that counts them.

    Warns:
        FutureWarning: for any value but ``"exact"``.

    Raises:
        ValueError: for a value that the keyword never had.

    Example:
        >>> check_aggregation("exact", stacklevel=2)
    """
    require_one_of("aggregation", aggregation, _FORMER)
    if aggregation != "exact":
        reason = f"Sums are exact now, with tighter bounds than `aggregation={aggregation!r}` gave."
        warn_of_former("aggregation=", reason, stacklevel=stacklevel + 1)
