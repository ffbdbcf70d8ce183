"""What is known of a value of a program: an interval, class labels, or a tensor that nothing changes."""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval, LpBall
from agt_lightning.labels import ClassLabels

Value = Interval | ClassLabels | Tensor
"""An interval, class labels, or a discrete tensor that no adversary can change."""


def as_interval(value: Value) -> Interval:
    """Return the value as an interval; discrete data become a point in double precision.

    Raises:
        UncertifiableError: for class labels that an adversary can flip to any class: there is no largest one.
    """
    if isinstance(value, Interval):
        return value
    if isinstance(value, ClassLabels):
        hull = value.numbers
        if hull is None:
            raise UncertifiableError(
                [
                    "Class labels that can be flipped are used as numbers. Name the classes that a flip can write by "
                    "`target_classes`; or use labels through `cross_entropy`, `nll_loss`, `one_hot` or "
                    "`(labels == k).float()` only, or set `nu=0`."
                ]
            )
        return hull
    return Interval.point(value if value.is_floating_point() else value.double())


def same_values(first: Mapping[str, Value], second: Mapping[str, Value]) -> bool:
    """Return whether all values are the same, by name, and all that is known of them.

    Example:
        >>> point = Interval.point(torch.zeros(2))
        >>> same_values({"x": point}, {"x": Interval.point(torch.zeros(2))}), same_values({"x": point}, {})
        (True, False)
    """
    return first.keys() == second.keys() and all(_same(first[name], second[name]) for name in first)


def _same(first: object, second: object) -> bool:
    if first is second:
        return True
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, Interval | ClassLabels | LpBall) and type(first) is type(second):
        marks = (getattr(each, "is_point", None) for each in (first, second))
        facts = (field.name for field in dataclasses.fields(first))
        return len(set(marks)) == 1 and all(_same(getattr(first, name), getattr(second, name)) for name in facts)
    return type(first) is type(second) and first == second


def select(value: Value, rows: Tensor | slice | None) -> Value:
    """Return the given samples of a value, of its ball too; all of them for None.

    Args:
        value: with samples along axis 0.
        rows: positions of samples, or a range of them.

    Example:
        >>> select(torch.tensor([1, 2, 3]), slice(1, 3))
        tensor([2, 3])
    """
    if rows is None:
        return value
    if isinstance(value, ClassLabels):
        return value.map(lambda index: index[rows])
    if isinstance(value, Tensor) or value.ball is None:
        return value[rows]
    part, ball = value[rows], LpBall(value.ball.nominal[rows], value.ball.scale, value.ball.p)
    return Interval.trusted(part.lower, part.upper, nonnegative=part.nonnegative, ball=ball)


def concatenate(parts: Sequence[Value]) -> Value:
    """Return all samples of a value that was computed part by part; facts about balls are dropped.

    Args:
        parts: at least one, all of one kind.

    Example:
        >>> concatenate([torch.tensor([1]), torch.tensor([2, 3])])
        tensor([1, 2, 3])
    """
    intervals = [part for part in parts if isinstance(part, Interval)]
    if intervals:
        return Interval.cat(intervals)
    labels = [part for part in parts if isinstance(part, ClassLabels)]
    if labels:
        return labels[0].map(lambda _: torch.cat([part.index for part in labels]))
    return torch.cat([part for part in parts if isinstance(part, Tensor)])
