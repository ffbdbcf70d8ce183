"""Bounds on perturbed features: a ball around each sample, cut to the range of features."""

import math

import torch
from torch import Tensor

from agt_lightning.interval import Interval, LpBall


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
    lower, upper = features - scale, features + scale
    ball = None if p == math.inf else LpBall(features, scale, p)
    if bounds is None:
        return Interval.trusted(lower, upper, ball=ball)
    low, high = bounds
    if not bool(((features >= low) & (features <= high)).all()):
        raise ValueError(
            f"Expected features within `bounds={bounds}`, but got values from {float(features.min())} to "
            f"{float(features.max())}. Give the range of the features as they enter `training_step`."
        )
    return Interval.trusted(lower.clamp(min=low), upper.clamp(max=high), nonnegative=low >= 0, ball=ball)


def radius_of_sample(features: Tensor, epsilon: float | Tensor) -> Tensor:
    """Return ε of each feature, of the shape of one sample.

    Raises:
        ValueError: if ``epsilon`` does not broadcast to that shape.
    """
    radius = torch.as_tensor(epsilon, dtype=features.dtype, device=features.device)
    try:
        return radius.expand(features.shape[1:])
    except RuntimeError as error:
        raise ValueError(
            f"Expected `epsilon` to broadcast to the shape of one sample, {tuple(features.shape[1:])}, but got shape "
            f"{tuple(radius.shape)}. If several batch entries are features, name those that it is for by `features=`."
        ) from error
