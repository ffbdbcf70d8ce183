"""Success rate of targeted attacks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from agt_lightning.certificates.goals import class_indices, possible_classes, targeted_attack_reachable
from agt_lightning.metrics.functional.averages import count_samples, rate_from_above
from agt_lightning.metrics.functional.bounds import checked_bounds


def targeted_attack_success(
    lower: Tensor, upper: Tensor, target: Tensor, safe_classes: Sequence[Sequence[int]] | None = None
) -> Tensor:
    r"""Compute an upper bound on the rate of predictions that an attacker can move out of their safe sets.

    .. math::
        \frac{1}{N} \sum_{i=1}^N \mathbb{1}\big(S'(x_i) \not\subseteq S(y_i)\big)

    where S' is the set of possible classes and S(y) the set of predictions that are safe for true class y. A sample
    that is predicted wrongly without any attack counts too. Ties and NaN or infinite bounds count as success.

    One logit decides by its sign. Subtract 1/2 from bounds on one probability: as they are, all mean class 1.

    Args:
        lower: lower bounds of the logits, ``(N, C)``, or ``(N,)`` or ``(N, 1)`` for two classes.
        upper: upper bounds, of the same shape and dtype.
        target: integer classes ``(N,)``; with one logit also ``(N, 1)`` and any real type.
        safe_classes: for each true class, the predictions that are safe; by default only the true class itself.

    Returns:
        Scalar in [0, 1], rounded up; 1 for no samples.

    Raises:
        TypeError: if a bound is not of a floating point type, or the target not of an integer type.
        ValueError: if shapes do not match, or a class is out of range or has no safe set.
        UnsoundBoundError: if a lower bound exceeds its upper bound.

    Reference:
        Paper, equations 12 and 17.

    Example:
        >>> lower = torch.tensor([[1.0, 0.5, -1.0], [1.0, 0.5, -1.0]])
        >>> upper = torch.tensor([[2.0, 1.5, 0.0], [2.0, 1.5, 0.0]])
        >>> targeted_attack_success(lower, upper, torch.tensor([0, 2]))
        tensor(1.)
        >>> targeted_attack_success(lower, upper, torch.tensor([0, 2]), safe_classes=[[0, 1], [1], [2]])
        tensor(0.5000)
    """
    return _targeted_attack_success_compute(*_targeted_attack_success_update(lower, upper, target, safe_classes))


def checked_safe_classes(safe_classes: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Check safe sets and return them sorted and without repetition.

    Raises:
        ValueError: if a safe prediction is none of the classes 0 to ``len(safe_classes) - 1``.

    Example:
        >>> checked_safe_classes([[1, 0, 1], [1]])
        ((0, 1), (1,))
    """
    classes = range(len(safe_classes))
    for true_class, safe in enumerate(safe_classes):
        unknown = [prediction for prediction in safe if prediction not in classes]
        if unknown:
            raise ValueError(
                f"Expected `safe_classes[{true_class}]` to hold classes 0 to {len(classes) - 1}, but got {unknown}. "
                "Give one safe set for every class."
            )
    return tuple(tuple(sorted({int(prediction) for prediction in safe})) for safe in safe_classes)


def _targeted_attack_success_update(
    lower: Tensor, upper: Tensor, target: Tensor, safe_classes: Sequence[Sequence[int]] | None
) -> tuple[Tensor, Tensor]:
    """Count the samples whose prediction can leave its safe set, and all samples."""
    logits = checked_bounds(lower, upper)
    possible = possible_classes(logits)
    index = class_indices(logits, target)
    if safe_classes is None:
        safe = F.one_hot(index, possible.shape[1]).bool()
    else:
        safe = _safe_table(safe_classes, possible.shape[1]).to(index.device)[index]
    return count_samples(targeted_attack_reachable(possible, safe))


def _targeted_attack_success_compute(hits: Tensor, total: Tensor) -> Tensor:
    return rate_from_above(hits, total)


def _safe_table(safe_classes: Sequence[Sequence[int]], classes: int) -> Tensor:
    """Return a boolean matrix ``(true class, prediction)`` that is true if the prediction is safe."""
    checked = checked_safe_classes(safe_classes)
    if len(checked) != classes:
        raise ValueError(
            f"Expected one safe set for each of {classes} classes, but got `safe_classes` of length {len(checked)}."
        )
    table = torch.zeros(classes, classes, dtype=torch.bool)
    for true_class, safe in enumerate(checked):
        table[true_class, list(safe)] = True
    return table
