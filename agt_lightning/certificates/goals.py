"""Bounds on an adversary's goals, sample by sample, from bounds on the outputs (paper, appendices B and C.3).

Logits have the shape ``(batch, classes)`` with two classes or more, or ``(batch,)`` or ``(batch, 1)`` with one logit a
sample, whose sign decides between class 0 and class 1. Every function assumes ``lower <= upper``; NaN and infinite
bounds are allowed and never make a certificate stronger.

Rounding: the bounds are those of exact arithmetic, evaluated in the dtype of the outputs. Squared error and the sets of
classes keep their order under rounding, so they also contain what the same dtype computes; the cross-entropies are
within a few units in the last place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agt_lightning.arithmetic import softplus
from agt_lightning.interval import Interval


def squared_error_bounds(outputs: Interval, target: Tensor) -> Interval:
    r"""Return tight bounds on the squared error of every output.

    With the residual ``r = f - y``, from ``f^L - y`` to ``f^U - y``, its square is at most the larger one of
    ``(f^L - y)²`` and ``(f^U - y)²``, and at least the smaller one, or 0 if the residual can be 0.

    Args:
        outputs: bounds on the outputs, of any shape, in units of the target.
        target: the values to predict, of the outputs' shape.

    Returns:
        Interval of the outputs' shape, in squared units of the target; not averaged.

    Raises:
        ValueError: if the shapes differ, or an integer target has too many digits for the outputs' type.

    Reference:
        Paper, appendix C.3, equation 22.

    Example:
        >>> outputs = Interval(torch.tensor([-1.0, 2.0]), torch.tensor([2.0, 3.0]))
        >>> squared_error_bounds(outputs, torch.tensor([0.0, 1.0]))
        Interval(lower=tensor([0., 1.]), upper=tensor([4., 4.]))
    """
    if target.shape != outputs.shape:
        raise ValueError(
            f"Expected `target` of the outputs' shape {tuple(outputs.shape)}, but got {tuple(target.shape)}. Reshape "
            "one to the other, as with `target.reshape(lower.shape)`: broadcasting would compare outputs with the "
            "targets of other samples."
        )
    return outputs.mapped(lambda bound: bound - _as_real(target, outputs.dtype)).square()


def _as_real(target: Tensor, dtype: torch.dtype) -> Tensor:
    """Return targets as they are, and integers in a floating point type that holds them."""
    if target.is_floating_point():
        return target
    real = target.to(dtype)
    if not bool((real.to(target.dtype) == target).all()):
        raise ValueError(
            f"Expected integer targets that {dtype} holds exactly, but got {int(target.abs().max())}. Give bounds and "
            "targets in a wider type, or in another unit."
        )
    return real


def cross_entropy_bounds(logits: Interval, target: Tensor) -> Interval:
    r"""Return tight bounds on the softmax cross-entropy over a box of logits.

    .. math::
        \log\Big(1 + \sum_{j \ne y} e^{f_j^L - f_y^U}\Big) \le -\log \mathrm{softmax}(f)_y
        \le \log\Big(1 + \sum_{j \ne y} e^{f_j^U - f_y^L}\Big)

    The loss falls with the logit of the true class and rises with every other, so two corners of the box attain it. The
    paper's sums give the true class a term ``exp(± (f_y^U - f_y^L))``, where the difference of a logit with itself
    is 0: its bounds are looser, and the lower one can be negative.

    Args:
        logits: bounds of shape ``(batch, classes)``, with two classes or more.
        target: integer classes of shape ``(batch,)``.

    Returns:
        Bounds on the loss of each sample in nats, of shape ``(batch,)``.

    Raises:
        ValueError: if shapes do not match, there is only one logit, or a class is out of range.
        TypeError: if the target is not of an integer type.

    Reference:
        Paper, appendix C.3, with the term of the true class corrected.

    Example:
        >>> logits = Interval(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
        >>> cross_entropy_bounds(logits, torch.tensor([0]))
        Interval(lower=tensor([0.3133]), upper=tensor([0.6931]))
    """
    if is_single_logit(logits):
        raise ValueError(
            f"Expected logits of shape (batch, classes) with two classes or more, but got {tuple(logits.shape)}. Use "
            "`binary_cross_entropy_bounds` for one logit a sample."
        )
    index = class_indices(logits, target)
    lower = _cross_entropy(true_logits=logits.upper, other_logits=logits.lower, index=index)
    upper = _cross_entropy(true_logits=logits.lower, other_logits=logits.upper, index=index)
    # At nearly equal corners, rounding can put the upper bound below the lower one.
    return Interval.trusted(lower, torch.maximum(lower, upper), nonnegative=True)


def binary_cross_entropy_bounds(logits: Interval, target: Tensor) -> Interval:
    r"""Return tight bounds on the logistic loss of one logit.

    The loss is ``log(1 + exp(-f))`` for class 1 and ``log(1 + exp(f))`` for class 0, so it is monotone in the logit.

    Args:
        logits: bounds of shape ``(batch,)`` or ``(batch, 1)``.
        target: classes 0 and 1 of any real type, shape ``(batch,)`` or ``(batch, 1)``.

    Returns:
        Bounds on the loss of each sample in nats, of shape ``(batch,)``.

    Raises:
        ValueError: if shapes do not match, there are several logits a sample, or a target is neither 0 nor 1.

    Reference:
        Paper, appendix C.3; the cross-entropy of the two logits ``(0, f)``.

    Example:
        >>> logits = Interval(torch.tensor([-1.0, 0.0]), torch.tensor([0.0, 0.0]))
        >>> binary_cross_entropy_bounds(logits, torch.tensor([0.0, 1.0]))
        Interval(lower=tensor([0.3133, 0.6931]), upper=tensor([0.6931, 0.6931]))
    """
    if not is_single_logit(logits):
        raise ValueError(
            f"Expected one logit a sample, of shape (batch,) or (batch, 1), but got {tuple(logits.shape)}. Use "
            "`cross_entropy_bounds` for several."
        )
    is_one = class_indices(logits, target) == 1
    low, high = logits.lower.reshape(-1), logits.upper.reshape(-1)
    lower = softplus(torch.where(is_one, -high, low))
    upper = softplus(torch.where(is_one, -low, high))
    return Interval.trusted(lower, torch.maximum(lower, upper), nonnegative=True)


def possible_classes(logits: Interval, gap: Tensor | float = 0.0) -> Tensor:
    r"""Return the classes that some logits in the box predict, or a superset of them.

    Class i is impossible if another logit is larger everywhere: ``f_i^U < f_j^L`` for some ``j ≠ i``. With one
    logit, class 1 is impossible if ``f^U < 0`` and class 0 if ``f^L > 0``. If two logits can tie, both
    classes are possible. If a bound of a sample is NaN or infinite, all its classes are. The prediction is the largest
    logit, or the sign of the only one, and not a rounded probability: these can be equal for different logits.

    Args:
        logits: bounds of shape ``(batch, classes)``, ``(batch,)`` or ``(batch, 1)``.
        gap: by how much logits must differ so that predictions differ, a number or of shape ``(batch, 1)``.

    Returns:
        Boolean tensor of shape ``(batch, classes)``, or ``(batch, 2)`` for one logit.

    Raises:
        ValueError: if the logits have another shape.

    Reference:
        Paper, equation 18, whose printed form lacks ``j ≠ i`` and the strict inequality: as printed, a box of
        width zero excludes its own prediction, and the empty set that remains is inside every safe set.
        Corrected in docs/theory.md, eq. (9.1).

    Example:
        >>> logits = Interval(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([[1.0, 3.0, 2.0]]))
        >>> possible_classes(logits)
        tensor([[False,  True,  True]])
        >>> possible_classes(Interval.point(torch.tensor([-0.5, 0.0])))
        tensor([[ True, False],
                [ True,  True]])
    """
    several = _as_several_logits(logits)
    # The maximum may include j = i: since lower <= upper, it excludes no class by its own lower bound.
    possible = several.upper >= several.lower.amax(dim=1, keepdim=True) - gap
    return possible | ~finite_samples(several).unsqueeze(1)


def targeted_attack_reachable(possible: Tensor, safe: Tensor) -> Tensor:
    r"""Return whether a prediction may leave its safe set, which it can if some possible class is not safe.

    False proves that no attack within the adversary's limits succeeds on the sample; true proves nothing.

    Args:
        possible: boolean ``(batch, classes)``, from `possible_classes`.
        safe: boolean ``(batch, classes)``, the safe set S of each sample.

    Returns:
        Boolean tensor of shape ``(batch,)``.

    Raises:
        TypeError: if an argument is not boolean.
        ValueError: if the shapes differ or are not two-dimensional.

    Reference:
        Paper, equations 12 and 17.

    Example:
        >>> possible = torch.tensor([[True, True, False], [True, True, False]])
        >>> safe = torch.tensor([[True, True, False], [True, False, False]])
        >>> targeted_attack_reachable(possible, safe)
        tensor([False,  True])
    """
    if possible.dtype != torch.bool or safe.dtype != torch.bool:
        raise TypeError(f"Expected boolean `possible` and `safe`, but got {possible.dtype} and {safe.dtype}.")
    if possible.ndim != 2 or possible.shape != safe.shape:
        raise ValueError(
            "Expected `possible` and `safe` of one shape (batch, classes), but got "
            f"{tuple(possible.shape)} and {tuple(safe.shape)}."
        )
    return (possible & ~safe).any(dim=1)


def is_single_logit(logits: Interval) -> bool:
    """Return whether a sample has one logit, whose sign is the prediction.

    Raises:
        ValueError: if the shape is none of ``(batch, classes)``, ``(batch,)`` and ``(batch, 1)``.

    Example:
        >>> is_single_logit(Interval.point(torch.zeros(5, 1))), is_single_logit(Interval.point(torch.zeros(5, 3)))
        (True, False)
    """
    if len(logits.shape) not in (1, 2) or logits.shape[1:] == (0,):
        raise ValueError(
            "Expected logits of shape (batch, classes), or (batch,) or (batch, 1) for two classes, but got "
            f"{tuple(logits.shape)}. Move further axes, such as positions, into the batch."
        )
    return logits.shape[1:] in ((), (1,))


def class_indices(logits: Interval, target: Tensor) -> Tensor:
    """Return class targets as indices, after checking them against their logits.

    Args:
        logits: bounds of shape ``(batch, classes)``, ``(batch,)`` or ``(batch, 1)``.
        target: integer classes of shape ``(batch,)``; with one logit a sample also ``(batch, 1)`` and any real type.

    Returns:
        The classes as ``torch.long``, of shape ``(batch,)``.

    Raises:
        ValueError: if the shape does not match or a class is out of range.
        TypeError: if the target is not of an integer type, with several logits.

    Example:
        >>> class_indices(Interval.point(torch.zeros(2, 1)), torch.tensor([[0.0], [1.0]]))
        tensor([0, 1])
    """
    single = is_single_logit(logits)
    batch, classes = logits.shape[0], 2 if single else logits.shape[1]
    if target.shape != (batch,) and not (single and target.shape == (batch, 1)):
        raise ValueError(
            f"Expected `target` of shape ({batch},), one class a sample, but got {tuple(target.shape)} for logits of "
            f"shape {tuple(logits.shape)}."
        )
    if not single and (target.is_floating_point() or target.dtype == torch.bool):
        raise TypeError(
            f"Expected `target` of an integer type, but got {target.dtype}. Use `target.long()`, or "
            "`target.argmax(dim=1)` of one-hot targets."
        )
    index = target.reshape(-1).long()
    valid = (index == target.reshape(-1)) & (index >= 0) & (index < classes)
    if not bool(valid.all()):
        worst = target.reshape(-1)[~valid][0].item()
        raise ValueError(
            f"Expected `target` to hold classes 0 to {classes - 1}, but got {worst}. Leave out samples without a class."
        )
    return index


def finite_samples(bounds: Interval) -> Tensor:
    """Return whether all bounds of a sample are finite.

    Args:
        bounds: an interval of shape ``(batch, ...)``.

    Returns:
        Boolean tensor of shape ``(batch,)``.

    Example:
        >>> finite_samples(Interval.point(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]])))
        tensor([ True, False])
    """
    finite = bounds.lower.isfinite() & bounds.upper.isfinite()
    return finite.reshape(bounds.shape[0], bounds.shape[1:].numel()).all(dim=1)


def _as_several_logits(logits: Interval) -> Interval:
    """Return one logit f as the two logits (0, f), whose largest is the prediction; several as they are."""
    if not is_single_logit(logits):
        return logits
    lower, upper = logits.lower.reshape(-1), logits.upper.reshape(-1)
    zeros = torch.zeros_like(lower)
    return Interval.trusted(torch.stack([zeros, lower], dim=1), torch.stack([zeros, upper], dim=1))


def _cross_entropy(*, true_logits: Tensor, other_logits: Tensor, index: Tensor) -> Tensor:
    """Return the cross-entropy at the corner of the box with one bound for the true class, the other for all others."""
    column = index.unsqueeze(1)
    excess = other_logits - true_logits.gather(1, column)
    return softplus(excess.scatter(1, column, -torch.inf).logsumexp(dim=1))
