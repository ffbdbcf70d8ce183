"""The type of all bounds: one interval per tensor element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from agt_lightning.errors import UnsoundBoundError
from agt_lightning.rounding import round_down, round_up

Index = int | slice | Tensor | None
"""An index along one axis; None adds an axis."""


@dataclass(frozen=True, slots=True, eq=False)
class LpBall:
    """All ``x + scale ∘ u`` with ``‖u‖_p <= 1``, a perturbation in ℓ1 or ℓ2 that no interval represents exactly.

    Args:
        nominal: x, (batch, ...).
        scale: radius of each coordinate, of the shape of one sample.
        p: norm, 1, 2 or infinity.
    """

    nominal: Tensor
    scale: Tensor
    p: float

    def map(self, function: Callable[[Tensor], Tensor]) -> LpBall:
        """Return the same ball after a change of shape that keeps the sample axis."""
        return LpBall(function(self.nominal), function(self.scale.unsqueeze(0)).squeeze(0), self.p)


@dataclass(frozen=True, slots=True, eq=False)
class Interval:
    """An element-wise interval ``[lower, upper]``, which represents every tensor ``x`` with ``lower <= x <= upper``.

    An interval that exists is valid: the constructor checks it, and `Interval.trusted` is for rules whose result is
    valid by proof. ``lower is upper`` (the same tensor) marks a point, on which rules save work.

    Args:
        lower: lower bounds, any shape, floating point.
        upper: upper bounds, of the same shape, dtype and device.
        nonnegative: a fact known by construction (after ReLU, sigmoid, softmax): ``lower >= 0``. Products use it.
        ball: a fact about perturbed inputs: the values lie in this ball as well. The first affine operation uses it.
        balanced: a fact about gradients of cross entropy: the entries along axis 1 add up to zero; with rounding, to at
            most `imbalance`. The backward pass of a linear layer uses it.
        imbalance: largest magnitude of that sum, (b, 1); None if it is zero.

    Raises:
        TypeError: if a bound is not a floating point tensor, or their dtypes or devices differ.
        ValueError: if the shapes differ, or ``nonnegative`` is not true.
        UnsoundBoundError: if a bound is NaN or infinite, or some lower bound exceeds its upper bound.

    Example:
        >>> box = Interval(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 1.5]))
        >>> box.center, box.radius, box.width
        (tensor([1.0000, 1.2500]), tensor([1.0000, 0.2500]), tensor([2.0000, 0.5000]))
        >>> box.contains(torch.tensor([1.0, 2.0]))
        False
        >>> Interval.point(torch.ones(2)).is_point
        True
    """

    lower: Tensor
    upper: Tensor
    nonnegative: bool = field(default=False, kw_only=True)
    ball: LpBall | None = field(default=None, kw_only=True)
    balanced: bool = field(default=False, kw_only=True)
    imbalance: Tensor | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the facts that every rule relies on."""
        _check_compatible(self.lower, self.upper)
        check_finite_and_ordered(self, "interval")
        if self.nonnegative and not bool((self.lower >= 0).all()):
            raise ValueError(f"Expected lower bounds >= 0 with `nonnegative=True`, but got {float(self.lower.min())}.")

    @classmethod
    def trusted(
        cls,
        lower: Tensor,
        upper: Tensor,
        *,
        nonnegative: bool = False,
        ball: LpBall | None = None,
        balanced: bool = False,
        imbalance: Tensor | None = None,
    ) -> Interval:
        """Build an interval whose validity is proved by its rule, without checking it again."""
        interval = object.__new__(cls)
        object.__setattr__(interval, "lower", lower)
        object.__setattr__(interval, "upper", upper)
        object.__setattr__(interval, "nonnegative", nonnegative)
        object.__setattr__(interval, "ball", ball)
        object.__setattr__(interval, "balanced", balanced)
        object.__setattr__(interval, "imbalance", imbalance)
        return interval

    @classmethod
    def point(cls, value: Tensor, *, nonnegative: bool = False) -> Interval:
        """Return the interval of width zero around ``value``."""
        return cls.trusted(value, value, nonnegative=nonnegative)

    @classmethod
    def checked(cls, lower: Tensor, upper: Tensor) -> Interval:
        """Return a checked interval, marked as a point if all its bounds are equal; for bounds that were stored.

        Args:
            lower: lower bounds, as the constructor takes them.
            upper: upper bounds.

        Raises:
            TypeError: as the constructor does.
            ValueError: as the constructor does.
            UnsoundBoundError: as the constructor does.

        Example:
            >>> Interval.checked(torch.ones(2), torch.ones(2)).is_point
            True
        """
        interval = cls(lower, upper)
        return cls.point(lower) if torch.equal(lower, upper) else interval

    @classmethod
    def cat(cls, parts: Sequence[Interval], dim: int = 0) -> Interval:
        """Concatenate intervals along an axis; the result is a point if all parts are.

        Args:
            parts: at least one; a single one is returned as it is.
            dim: the axis.

        Example:
            >>> parts = [Interval.point(torch.ones(1)), Interval(torch.zeros(2), torch.ones(2))]
            >>> Interval.cat(parts)
            Interval(lower=tensor([1., 0., 0.]), upper=tensor([1., 1., 1.]))
        """
        if len(parts) == 1:
            return parts[0]
        lower = torch.cat([part.lower for part in parts], dim)
        upper = lower if all(part.is_point for part in parts) else torch.cat([part.upper for part in parts], dim)
        return cls.trusted(lower, upper, nonnegative=all(part.nonnegative for part in parts))

    @property
    def is_point(self) -> bool:
        """Whether lower and upper are the same tensor: width zero by construction."""
        return self.lower is self.upper

    @property
    def shape(self) -> torch.Size:
        """The shape of the represented tensor."""
        return self.lower.shape

    @property
    def dtype(self) -> torch.dtype:
        """The floating point type of the bounds."""
        return self.lower.dtype

    @property
    def device(self) -> torch.device:
        """The device of the bounds."""
        return self.lower.device

    @property
    def mT(self) -> Interval:  # noqa: N802
        """The last two axes exchanged, as `torch.Tensor.mT` has them."""
        return self.rearranged(lambda bound: bound.mT)

    @property
    def center(self) -> Tensor:
        """The midpoint, ``(lower + upper) / 2``."""
        return (self.lower + self.upper).mul_(0.5)

    @property
    def radius(self) -> Tensor:
        """Half the width."""
        return (self.upper - self.lower).mul_(0.5)

    @property
    def width(self) -> Tensor:
        """``upper - lower``, never negative."""
        return self.upper - self.lower

    @property
    def magnitude(self) -> Tensor:
        """The largest absolute value in the interval, element-wise."""
        return self.lower.abs() if self.is_point else torch.maximum(self.lower.abs(), self.upper.abs())

    @property
    def mignitude(self) -> Tensor:
        """The smallest absolute value in the interval, element-wise; zero if the interval contains zero."""
        return self.lower.abs() if self.is_point else torch.maximum(self.lower, -self.upper).clamp(min=0)

    def contains(self, value: Tensor, tolerance: float = 0.0) -> bool:
        """Return whether all of ``value`` lies in ``[lower - tolerance, upper + tolerance]``; NaN never does."""
        inside = (value >= self.lower - tolerance) & (value <= self.upper + tolerance)
        return bool(inside.all())

    def __getitem__(self, index: Index | tuple[Index, ...]) -> Interval:
        """Select elements, as the index of a tensor does."""
        return self.rearranged(lambda bound: bound[index])

    def __neg__(self) -> Interval:
        lower = -self.upper
        return Interval.trusted(lower, lower if self.is_point else -self.lower)

    def __add__(self, other: Interval) -> Interval:
        """Return the sum of independent intervals; exact."""
        lower = self.lower + other.lower
        upper = lower if self.is_point and other.is_point else self.upper + other.upper
        return Interval.trusted(lower, upper, nonnegative=self.nonnegative and other.nonnegative)

    def __sub__(self, other: Interval) -> Interval:
        """Return the difference of independent intervals; exact."""
        lower = self.lower - other.upper
        upper = lower if self.is_point and other.is_point else self.upper - other.lower
        return Interval.trusted(lower, upper)

    def mapped(self, function: Callable[[Tensor], Tensor], *, nonnegative: bool = False) -> Interval:
        """Return ``[f(lower), f(upper)]``, the image under a non-decreasing function; each bound is attained.

        Args:
            function: f, non-decreasing in every element, such as ``tanh``, a sum over an axis or an added constant.
            nonnegative: whether the results are known to be nonnegative. Other facts are not carried over.

        Example:
            >>> Interval(torch.tensor([-1.0]), torch.tensor([2.0])).mapped(torch.relu, nonnegative=True)
            Interval(lower=tensor([0.]), upper=tensor([2.]))
        """
        lower = function(self.lower)
        return Interval.trusted(lower, lower if self.is_point else function(self.upper), nonnegative=nonnegative)

    def rearranged(self, function: Callable[[Tensor], Tensor]) -> Interval:
        """Return the interval of a rearranged tensor; exact.

        Points stay points and ``nonnegative`` is kept. ``ball`` and ``balanced`` are about one order of the elements,
        so they are dropped.

        Args:
            function: moves, drops or repeats elements, and may put zeros beside them; such as a transpose or a slice.

        Example:
            >>> Interval(torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 3.0]])).rearranged(lambda bound: bound.T)
            Interval(lower=tensor([[0.],
                    [1.]]), upper=tensor([[2.],
                    [3.]]))
        """
        return self.mapped(function, nonnegative=self.nonnegative)

    def scaled(self, factor: float) -> Interval:
        """Return ``factor · x``; exact. Bounds change places if the factor is negative.

        Example:
            >>> Interval(torch.tensor([1.0]), torch.tensor([2.0])).scaled(-3.0)
            Interval(lower=tensor([-6.]), upper=tensor([-3.]))
        """
        if factor == 1.0:
            return self
        lower = self.lower * factor
        upper = lower if self.is_point else self.upper * factor
        if factor < 0:
            return Interval.trusted(upper, lower)
        return Interval.trusted(lower, upper, nonnegative=self.nonnegative)

    def square(self) -> Interval:
        """Return ``x²``, in ``[mignitude², magnitude²]``; exact, where the product of independent factors is not.

        Example:
            >>> Interval(torch.tensor([-1.0]), torch.tensor([2.0])).square()
            Interval(lower=tensor([0.]), upper=tensor([4.]))
        """
        if self.is_point:
            return Interval.point(self.lower.square(), nonnegative=True)
        return Interval.trusted(self.mignitude.square(), self.magnitude.square(), nonnegative=True)

    def widened(self, by: Tensor | float, *, nonnegative: bool = False) -> Interval:
        """Return ``[lower - by, upper + by]``, which contains everything within that distance of a contained tensor.

        Args:
            by: distance, at least zero; a number, or a tensor that broadcasts to the interval's shape.
            nonnegative: whether what the result must contain is known to be nonnegative; then it is cut at zero.

        Example:
            >>> Interval(torch.tensor([1.0]), torch.tensor([2.0])).widened(3.0, nonnegative=True)
            Interval(lower=tensor([0.]), upper=tensor([5.]))
        """
        lower = self.lower - by
        return Interval.trusted(lower.clamp(min=0) if nonnegative else lower, self.upper + by, nonnegative=nonnegative)

    def widened_relatively(self, by: float) -> Interval:
        """Return ``[lower - by |lower|, upper + by |upper|]``: zeros stay zeros, and no bound changes its sign.

        It contains ``x (1 + δ)`` for every x in the interval and every δ with ``|δ| <= by < 1``.

        Args:
            by: at least zero and below one.

        Example:
            >>> Interval(torch.tensor([-1.0, 0.0]), torch.tensor([0.0, 2.0])).widened_relatively(0.5)
            Interval(lower=tensor([-1.5000,  0.0000]), upper=tensor([0., 3.]))
        """
        if self.nonnegative:
            return Interval.trusted(self.lower * (1 - by), self.upper * (1 + by), nonnegative=True)
        lower = torch.sub(self.lower, self.lower.abs(), alpha=by)
        upper = torch.add(self.upper, self.upper.abs(), alpha=by)
        return Interval.trusted(lower, upper, nonnegative=self.nonnegative)

    def intersect(self, other: Interval) -> Interval:
        """Return the intersection of two enclosures of the same value.

        Raises:
            UnsoundBoundError: if they do not meet, which means that one of them is no enclosure.
        """
        lower, upper = torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper)
        tight = Interval.trusted(lower, upper, nonnegative=self.nonnegative or other.nonnegative)
        check_finite_and_ordered(tight, "intersection of two enclosures")
        return tight

    def hull(self, other: Interval) -> Interval:
        """Return the smallest interval that contains both."""
        return Interval.trusted(torch.minimum(self.lower, other.lower), torch.maximum(self.upper, other.upper))

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Interval:
        """Return the interval in another type or on another device.

        A narrowing cast rounds outward, so the result contains this interval.

        Example:
            >>> third = Interval.point(torch.tensor(1 / 3, dtype=torch.float64)).to(dtype=torch.float32)
            >>> bool(third.lower.double() <= 1 / 3 <= third.upper.double())
            True
        """
        if dtype in (None, self.dtype) and device in (None, self.device):
            return self
        lower = self.lower.to(device=device)
        upper = lower if self.is_point else self.upper.to(device=device)
        if dtype is None or dtype == self.dtype:
            return Interval.trusted(lower, upper, nonnegative=self.nonnegative)
        cast = Interval.trusted(round_down(lower, dtype), round_up(upper, dtype), nonnegative=self.nonnegative)
        return Interval.point(cast.lower) if self.is_point and torch.equal(cast.lower, cast.upper) else cast

    def __repr__(self) -> str:
        return f"Interval(lower={self.lower!r}, upper={self.upper!r})"


def check_finite_and_ordered(interval: Interval, name: str) -> None:
    """Raise if a bound is NaN or infinite, or a lower bound exceeds its upper bound.

    Args:
        interval: the bounds to check.
        name: name of the bounded quantity, for the message.

    Raises:
        UnsoundBoundError: with the worst violation and its index.
    """
    width = interval.upper - interval.lower
    valid = torch.isfinite(width) & (width >= 0)  # NaN and infinity compare false
    if bool(valid.all()):
        return
    index = tuple(int(i) for i in torch.nonzero(~valid)[0])
    lower, upper = interval.lower[index].item(), interval.upper[index].item()
    raise UnsoundBoundError(
        f"Expected finite bounds with lower <= upper for {name}, but got [{lower}, {upper}] at index {index} "
        f"({int((~valid).sum())} of {valid.numel()} elements). Infinite or NaN bounds mean that the training or its "
        "bounds diverged: use fewer steps, a smaller learning rate or a weaker adversary. A crossed pair is a bug: "
        "please report it."
    )


def _check_compatible(lower: Tensor, upper: Tensor) -> None:
    for name, bound in (("lower", lower), ("upper", upper)):
        if not isinstance(bound, Tensor) or not bound.is_floating_point():
            kind = bound.dtype if isinstance(bound, Tensor) else type(bound).__name__
            raise TypeError(f"Expected `{name}` to be a floating point tensor, but got {kind}.")
    if lower.shape != upper.shape:
        raise ValueError(
            f"Expected `lower` and `upper` of one shape, but got {tuple(lower.shape)} and {tuple(upper.shape)}."
        )
    if lower.dtype != upper.dtype or lower.device != upper.device:
        raise TypeError(
            f"Expected `lower` and `upper` of one dtype and device, but got {lower.dtype} on {lower.device} and "
            f"{upper.dtype} on {upper.device}."
        )


def require_inside(name: str, value: Tensor, bounds: Interval, tolerance: float | Tensor, advice: str = "") -> None:
    """Raise unless ``bounds`` contain ``value`` up to rounding; NaN is never inside.

    Args:
        name: name of the bounded quantity, for the message.
        value: the value that training computed.
        bounds: bounds of the same shape.
        tolerance: largest rounding error, one number or one per element.
        advice: a way out, for the message.

    Raises:
        UnsoundBoundError: with the worst violation and its index.
    """
    excess = torch.maximum(bounds.lower - value, value - bounds.upper)
    if bool((excess <= tolerance).all()):
        return
    allowed = torch.as_tensor(tolerance, dtype=excess.dtype, device=excess.device).expand_as(excess)
    worst = torch.where(excess.isnan(), torch.inf, excess)
    beyond = (worst - allowed).argmax()
    index = tuple(int(i) for i in torch.unravel_index(beyond, worst.shape))
    raise UnsoundBoundError(
        f"Expected `{name}` within its bounds, but at index {index} got {value[index].item():.9g} outside "
        f"[{bounds.lower[index].item():.9g}, {bounds.upper[index].item():.9g}] by {worst[index].item():.3g} "
        f"(rounding allows {allowed[index].item():.3g}). {advice}".rstrip()
    )
