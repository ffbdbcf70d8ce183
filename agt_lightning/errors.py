"""Errors, sorted by what the user can do about them."""

from collections.abc import Collection, Sequence


class AgtError(Exception):
    """Base of every error this package raises on purpose; the message says what to do."""


class UnsoundBoundError(AgtError):
    """A bound was broken: a value left its interval, or a bound became NaN, infinite or empty.

    No certificate may be built on this run. Report it with the message; it names the tensor, the worst violation and
    its index. Only numerical overflow of vacuous bounds is not a bug: there, train for fewer steps or with a weaker
    adversary. `agt_lightning.propagation.diagnose.diagnose` finds the call where it begins.
    """


class UncertifiableError(AgtError):
    r"""The setting cannot be certified as it stands. Raised before the first step, with every reason at once.

    Args:
        problems: one line per reason, each with its way out.

    Example:
        >>> str(UncertifiableError(["`momentum` is not supported. Set `momentum=0`."]))
        'This training cannot be certified:\n  1. `momentum` is not supported. Set `momentum=0`.'
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        lines = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(self.problems, start=1))
        super().__init__(f"This training cannot be certified:\n{lines}")


class CaptureError(AgtError):
    """The computation graph of a module could not be captured.

    Remove the call that the message names, or mix in `CertifiedModule` and write `certified_objective(batch)`, which
    returns the same loss without it.
    """


class BoundsMismatchError(AgtError):
    """Bounds and module do not belong together (names, shapes or values differ). Use the bounds of this very run."""


def require_one_of(name: str, value: object, allowed: Collection[object]) -> None:
    """Refuse a setting with an unknown value.

    Raises:
        ValueError: naming the known ones.

    Example:
        >>> require_one_of("method", "fast", ("ibp", "crown"))
        Traceback (most recent call last):
        ...
        ValueError: Expected `method` to be one of ('ibp', 'crown'), but got 'fast'.
    """
    if value not in allowed:
        raise ValueError(f"Expected `{name}` to be one of {allowed}, but got {value!r}.")


NOT_WHAT_IS_TRAINED = (
    "What is certified is not what is trained: `training_step` depends on something besides the batch and the "
    "parameters (epoch, step, random numbers, a hook that changes gradients). Remove that, or mix in `CertifiedModule` "
    "and write `certified_objective(batch)`."
)
"""Advice where training left bounds that prove the captured loss to be the trained one."""
