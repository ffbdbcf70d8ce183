"""Bounds on perturbed features: a ball around each sample, cut to the range of features."""

import math

import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.interval import Interval, LpBall
from agt_lightning.rounding import round_down, round_up, unit_roundoff


def perturbed(
    features: Tensor, epsilon: float | Tensor, p: float = math.inf, bounds: tuple[float, float] | None = None
) -> Interval:
    """Bound the features within the ball ``{x + ε ∘ u : ‖u‖_p <= 1}`` and within ``bounds``.

    Args:
        features: x, (batch, ...).
        epsilon: radius ε, a number or a tensor that broadcasts to the shape of one sample.
        p: 1, 2 or infinity.
        bounds: smallest and largest possible value of a feature; None if there are none.

    Returns:
        The enclosing interval, with the ball itself attached for p below infinity.

    Raises:
        ValueError: if ``epsilon`` does not fit one sample, or a feature lies outside ``bounds``.

    Example:
        >>> pixels = perturbed(torch.tensor([[0.0, 0.5]]), epsilon=0.1, bounds=(0, 1))
        >>> pixels.lower, pixels.nonnegative
        (tensor([[0.0000, 0.4000]]), True)
    """
    scale = radius_of_sample(features, epsilon)
    lower, upper = moved_down(features, scale), moved_up(features, scale)
    ball = None if p == math.inf else LpBall(features, scale, p)
    if bounds is None:
        return Interval.trusted(lower, upper, ball=ball)
    low, high = bounds
    if not bool(((features >= low) & (features <= high)).all()):
        raise ValueError(
            f"Expected features within `bounds={bounds}`, but got values from {float(features.min())} to "
            f"{float(features.max())}. Give the range of the features as they enter `training_step`."
        )
    least, most = (torch.tensor(end, dtype=torch.float64) for end in bounds)
    lower = lower.clamp(min=round_down(least, features.dtype).item())
    upper = upper.clamp(max=round_up(most, features.dtype).item())
    return Interval.trusted(lower, upper, nonnegative=low >= 0, ball=ball)


def moved_up(values: Tensor, by: Tensor) -> Tensor:
    """Return ``values + by``, rounded up; the error of a rounded sum is a floating point number (Knuth's TwoSum).

    Example:
        >>> moved_up(torch.ones(2), torch.tensor([0.25, 1e-9])) - 1
        tensor([2.5000e-01, 1.1921e-07])
    """
    total = values + by
    added = total - values
    error = (values - (total - added)) + (by - added)
    return torch.where(error > 0, torch.nextafter(total, torch.full_like(total, torch.inf)), total)


def moved_down(values: Tensor, by: Tensor) -> Tensor:
    """Return ``values - by``, rounded down."""
    return -moved_up(-values, by)


def as_stored(moved: Interval, clean: Tensor, dtype: torch.dtype) -> Interval:
    """Return bounds on perturbed numbers that are rounded to the type in which the data are stored.

    Rounding keeps order, so a number below ``u`` is stored as one below ``u`` rounded up. A perturbation in a ball can
    leave it by rounding, by u |x̃_k| in coordinate k; the scale grows by the factor 1 + τ with τ the largest norm of
    ``u |x̃| / scale`` over the samples, which is enough by the triangle inequality.

    Args:
        moved: bounds in the type of the computation, (b, ...).
        clean: the data as they are, of the same shape.
        dtype: of the data.

    Example:
        >>> moved = perturbed(torch.ones(1, 1, dtype=torch.float64), 0.1)
        >>> bool(as_stored(moved, torch.ones(1, 1), torch.float32).upper >= torch.tensor(1.1))
        True
    """
    stored = moved.to(dtype=dtype).to(dtype=moved.dtype)
    same = (moved.lower == clean) & (moved.upper == clean)
    lower, upper = torch.where(same, moved.lower, stored.lower), torch.where(same, moved.upper, stored.upper)
    ball = None if moved.ball is None else _stored_ball(moved.ball, moved.magnitude, dtype)
    return Interval.trusted(lower, upper, nonnegative=moved.nonnegative, ball=ball)


def _stored_ball(ball: LpBall, magnitude: Tensor, dtype: torch.dtype) -> LpBall:
    """Enlarge a ball by what rounding to a type can add to a perturbation."""
    errors = torch.where(ball.scale > 0, 2 * unit_roundoff(dtype) * magnitude / ball.scale, 0.0).flatten(1)
    norms = euclidean_norm(errors, dim=1) if ball.p == 2 else torch.linalg.vector_norm(errors, ord=ball.p, dim=1)
    growth = norms.max() if len(errors) else 0.0
    return LpBall(ball.nominal, ball.scale * (1 + 2 * growth), ball.p)


def radius_of_sample(features: Tensor, epsilon: float | Tensor) -> Tensor:
    """Return ε of each feature, of the shape of one sample.

    Raises:
        ValueError: if ``epsilon`` does not broadcast to that shape.
    """
    exact = torch.as_tensor(epsilon, dtype=torch.float64, device=features.device)
    radius = round_up(exact, features.dtype)
    try:
        return radius.expand(features.shape[1:])
    except RuntimeError as error:
        raise ValueError(
            f"Expected `epsilon` to broadcast to the shape of one sample, {tuple(features.shape[1:])}, but got shape "
            f"{tuple(radius.shape)}. If several batch entries are features, name those that it is for by `features=`."
        ) from error
