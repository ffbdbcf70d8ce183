"""Kernels: how much a training sample counts for a query, and the range that any sample's count lies in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from agt_lightning.adversaries.base import check_size
from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.domains.edits.model import check_finite
from agt_lightning.interval import Interval

_FLOAT64 = Arithmetic(torch.float64, torch.float64)


class Kernel(Protocol):
    """A function g(x*, x) of a query and a training sample, in float64. No label has a part in it."""

    def __call__(self, queries: Tensor, features: Tensor) -> Interval:
        """Bound what any run can compute for these pairs, (Q, N), for queries (Q, d) and features (N, d)."""
        ...

    def reach(self, queries: Tensor) -> Interval:
        """Bound g(x*, x) over **every** x that an adversary can insert, as any run can compute it, (Q,)."""
        ...


@dataclass(frozen=True)
class RadiusVote:
    """A vote for each training sample at an inner product above ``threshold``: 1 if ``⟨x*, x⟩ > threshold``, else 0.

    For features of unit norm these are the samples within a radius, by the cosine. Whatever a sample is, it has one
    vote. A product that is closer to the threshold than rounding can move it is in doubt: 0 or 1, whichever is worse.

    Args:
        threshold: in units of the inner product.
        error: largest Euclidean distance of two runs' computed features of one sample: a feature map that is applied to
            many samples at once can round differently if others come or go.

    Raises:
        ValueError: if an argument is not finite, or the error negative.

    Example:
        >>> RadiusVote(0.5)(torch.ones(1, 1), torch.tensor([[0.6], [0.5], [0.4]]))
        Interval(lower=tensor([[1., 0., 0.]], dtype=torch.float64), upper=tensor([[1., 1., 0.]], dtype=torch.float64))
    """

    threshold: float
    error: float = 0.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not math.isfinite(self.threshold):
            raise ValueError(f"Expected `threshold` to be finite, but got {self.threshold}.")
        check_size("error", self.error)

    def __call__(self, queries: Tensor, features: Tensor) -> Interval:
        """Return the votes, where those in doubt are [0, 1]."""
        products = _products(queries, features, self.error)
        sure, possible = products.lower > self.threshold, products.upper >= self.threshold
        return Interval.trusted(sure.double(), possible.double(), nonnegative=True)

    def reach(self, queries: Tensor) -> Interval:
        """Return [0, 1]."""
        zero = torch.zeros(len(queries), dtype=torch.float64, device=queries.device)
        return Interval.trusted(zero, zero + 1, nonnegative=True)


@dataclass(frozen=True)
class InnerProduct:
    """The inner product ⟨x*, x⟩, of which sums by class are one gradient step on squared error, up to a factor.

    Args:
        radius: largest norm of the features of any sample; 1 for unit norm, whose own rounding is counted here.
        nonnegative: whether no feature of any sample, the query's included, is negative, as for histograms.
        error: as for `RadiusVote`.

    Raises:
        ValueError: if the radius is not positive and finite, or the error negative.

    Example:
        >>> InnerProduct(nonnegative=True).reach(torch.tensor([[2.0]])).center
        tensor([1.0000], dtype=torch.float64)
    """

    radius: float = 1.0
    nonnegative: bool = False
    error: float = 0.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_size("radius", self.radius, positive=True)
        check_size("error", self.error)

    def __call__(self, queries: Tensor, features: Tensor) -> Interval:
        """Return the products, with their roundings.

        Raises:
            ValueError: if a norm exceeds the radius, or a feature is negative though none can be.
        """
        self._check(queries, features)
        return _products(queries, features, self.error)

    def reach(self, queries: Tensor) -> Interval:
        """Return ``[-‖x*‖ radius, ‖x*‖ radius]``, or half of it."""
        norms = euclidean_norm(queries.double(), dim=1) + self.error
        largest = norms * (self.radius + self.error) * (1 + 4 * _FLOAT64.relative(queries.shape[1] + 8))
        largest = largest + _FLOAT64.absolute(queries.shape[1] + 8)
        spread = _spread(queries, norms, self._most(queries), self.error)
        return Interval.trusted(-spread if self.nonnegative else -largest - spread, largest + spread)

    def _most(self, features: Tensor) -> float:
        """Return the largest norm that is computed of features within the radius."""
        return self.radius * (1 + _FLOAT64.relative(features.shape[1] + 8))

    def _check(self, queries: Tensor, features: Tensor) -> None:
        norms = euclidean_norm(features.double(), dim=1)
        if bool((norms > self._most(features)).any()):
            raise ValueError(f"Expected features of norm at most {self.radius}, but got {float(norms.max())}.")
        if self.nonnegative and bool((features < 0).any() | (queries < 0).any()):
            raise ValueError("Expected no negative feature with `nonnegative=True`, but got some.")


@dataclass(frozen=True)
class Shifted:
    """A kernel less a constant, ``g(x*, x) - shift``: outputs ``Σ_{y_i = k} g - shift N_k``.

    For a kernel between 0 and 1 and the shift 1/2 an edit counts half as much, while margins are the same if classes
    are of one size. Else it favors the rare ones: check accuracy.

    Args:
        kernel: g.
        shift: a constant that no training sample has a part in.

    Raises:
        ValueError: if the shift is not finite.

    Example:
        >>> Shifted(RadiusVote(0.5), 0.5).reach(torch.ones(1, 1))
        Interval(lower=tensor([-0.5000], dtype=torch.float64), upper=tensor([0.5000], dtype=torch.float64))
    """

    kernel: Kernel
    shift: float

    def __post_init__(self) -> None:
        """Check the shift."""
        if not math.isfinite(self.shift):
            raise ValueError(f"Expected `shift` to be finite, but got {self.shift}.")

    def __call__(self, queries: Tensor, features: Tensor) -> Interval:
        """Return the kernel's values less the shift."""
        return self._moved(self.kernel(queries, features))

    def reach(self, queries: Tensor) -> Interval:
        """Return the kernel's range less the shift."""
        return self._moved(self.kernel.reach(queries))

    def _moved(self, values: Interval) -> Interval:
        # Rounding keeps order, so bounds less the shift bound what a run computes.
        return Interval.trusted(values.lower - self.shift, values.upper - self.shift)


def _products(queries: Tensor, features: Tensor, error: float) -> Interval:
    """Bound the inner products that runs compute, (Q, N).

    Raises:
        UnsoundBoundError: if one is NaN or infinite, so that comparisons would mean nothing.
    """
    queries, features = queries.double(), features.double()
    products = queries @ features.T
    norms = euclidean_norm(queries, dim=1), euclidean_norm(features, dim=1)
    largest = norms[1].max() if len(features) else norms[1].sum()
    spread = _spread(queries, norms[0], largest, error)[:, None]
    lower, upper = products - spread, products + spread
    check_finite(lower, "inner products")
    check_finite(upper, "inner products")
    return Interval.trusted(lower, upper)


def _spread(queries: Tensor, norms: Tensor, largest: Tensor | float, error: float) -> Tensor:
    """Return how far inner products of features of norm up to ``largest`` can be off in two runs, (Q,)."""
    size = queries.shape[1]
    moved = error * (norms + largest + error)
    rounded = _FLOAT64.relative(size + 8) * (norms + error) * (largest + error)
    return (rounded + moved) * (1 + _FLOAT64.relative(8)) + _FLOAT64.absolute(size + 8)
