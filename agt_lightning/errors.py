"""Errors, one class for each remedy that the user has."""

import re
from collections.abc import Collection, Sequence


class AgtError(Exception):
    """An error that this package raises on purpose; its message contains a remedy.

    Example:
        >>> issubclass(UncertifiableError, AgtError)
        True
    """


class UnsoundBoundError(AgtError):
    """A bound was broken: a value left its interval, or a bound became NaN, infinite or empty.

    No certificate may be built on this run. Report it with the message; it names the tensor, the worst violation and
    its index. Only numerical overflow of vacuous bounds is not a bug: then train for fewer steps or with a weaker
    adversary. `agt_lightning.propagation.diagnose.diagnose` finds the call where it begins.

    Example:
        >>> import torch
        >>> from agt_lightning import Interval
        >>> Interval(torch.ones(2), torch.zeros(2))
        Traceback (most recent call last):
        ...
        agt_lightning.errors.UnsoundBoundError: Expected finite bounds with lower <= upper for interval, but got ...
    """


class UncertifiableError(AgtError):
    r"""The setting cannot be certified. Raised before the first step, with all reasons at once.

    Args:
        problems: one line per reason, each with a remedy.
        subject: what cannot be certified.

    Example:
        >>> str(UncertifiableError(["`momentum` is not supported. Set `momentum=0`."]))
        'This training cannot be certified:\n  1. `momentum` is not supported. Set `momentum=0`.'
    """

    def __init__(self, problems: Sequence[str], subject: str = "This training") -> None:
        self.problems = tuple(grouped(problems))
        lines = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(self.problems, start=1))
        super().__init__(f"{subject} cannot be certified:\n{lines}")


_AT_A_LINE = re.compile(r"(`[^`]+`) at (\S+:\d+ `[^`]*`)(.*)", re.DOTALL)
"""A problem of a call: the operation, the line, and what is wrong with it."""

_MOST_PLACES = 4


def grouped(problems: Sequence[str]) -> list[str]:
    r"""Return problems with each reason once: those that differ in the line of code alone name all their lines.

    Args:
        problems: each begins with an operation and its line if it is about one.

    Example:
        >>> grouped(["`aten.sin` at a.py:1 `sin(x)` is odd.", "Set `n=1`.", "`aten.sin` at a.py:2 `sin(y)` is odd."])
        ['`aten.sin` at a.py:1 `sin(x)`, a.py:2 `sin(y)` is odd.', 'Set `n=1`.']
    """
    places: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        match = _AT_A_LINE.fullmatch(problem)
        operation, line, rest = match.groups() if match else ("", "", problem)
        lines = places.setdefault((operation, rest), [])
        lines += [line] if line not in lines else []
    return [
        f"{operation} at {_listed(lines)}{rest}" if operation else rest for (operation, rest), lines in places.items()
    ]


def _listed(lines: Sequence[str]) -> str:
    more = len(lines) - _MOST_PLACES
    return ", ".join(lines[:_MOST_PLACES]) + (f" and {more} more lines" if more > 0 else "")


class CaptureError(AgtError):
    """The computation graph of a module could not be captured.

    If the message names control flow or numbers that depend on data, no bound exists: change that line. If it names a
    call that cannot be recorded, remove it, or mix in `CertifiedModule` and write `certified_objective(batch)`, which
    returns the same loss without it.

    Example:
        >>> import torch
        >>> from agt_lightning import AbstractGradientEngine, BoundedAdversary
        >>> def loss(module, batch):
        ...     outputs = module(batch[0])
        ...     return outputs.square().mean() if outputs.sum() > 0 else outputs.mean()
        >>> engine = AbstractGradientEngine(torch.nn.Linear(2, 1), loss, BoundedAdversary(n=1, epsilon=0.1))
        >>> engine.objective((torch.ones(4, 2),))
        Traceback (most recent call last):
        ...
        agt_lightning.errors.CaptureError: ... lets Python read data (`bool()` of a tensor): a poisoned run can take ...
    """


class BoundsMismatchError(AgtError):
    """Bounds and module do not match (names, shapes or values differ). Use the bounds of the same run.

    Example:
        >>> from torch import nn
        >>> from agt_lightning import CertifiedModel, ParameterBounds
        >>> CertifiedModel(nn.Linear(2, 1), ParameterBounds.point(nn.Linear(3, 1)))
        Traceback (most recent call last):
        ...
        agt_lightning.errors.BoundsMismatchError: Expected `weight` of shape (1, 3), as its bounds have, but got (1, 2).
    """


def require_one_of(name: str, value: object, allowed: Collection[object]) -> None:
    """Require a setting to have one of the allowed values.

    Raises:
        ValueError: if it has another one; the message names those allowed.

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
"""Advice if training leaves the bounds by which the captured loss is checked against the trained one."""
