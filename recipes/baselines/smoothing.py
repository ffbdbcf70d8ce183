r"""Randomized smoothing over labels, for a linear least-squares classifier (Rosenfeld et al.).

Base classifier: least squares on one-hot labels predicts class argmax_k S_k at a test point x, with
``S_k = Σ_i a_i [y_i = k]`` and ``a = X (XᵀX + λ I)⁻¹ x``. Noise: every training label is kept with probability 1 − q
and else becomes any of the other K − 1 classes, each with probability ``q' = q / (K − 1)``. The smoothed classifier
predicts the class that the base classifier predicts most often under noise.

The certificate needs no sampling. Let ĉ be a class, A the event that the base classifier does not predict ĉ under noise
on the labels y, and p its probability.

1. **Chernoff.** A implies ``S_j ≥ S_ĉ`` for a class j ≠ ĉ, so for any t_j ≥ 0

       p ≤ Σ_{j ≠ ĉ} E exp(t_j (S_j − S_ĉ)) = Σ_{j ≠ ĉ} Π_i E exp(t_j a_i ([ỹ_i = j] − [ỹ_i = ĉ])),

   and each factor has three terms, for labels are drawn one by one.

2. **Neyman and Pearson.** Let y' differ from y in r labels. Only these matter to the likelihood ratio of ỹ under y'
   against y, which is ``β^m`` with ``β = (1 − q) / q'`` and m the number of them that equal y' minus the number that
   equal y. Among all events of probability at least 1/2 under y', the least probable one under y is the one of largest
   m, and m is a sum of r independent steps: +1 with probability 1 − q under y', −1 with q', else 0. Let ``p_r`` be its
   probability under y, a number that depends on q, K and r alone. **If p < p_r, A has probability below 1/2 under y'.**

So, with r the largest number such that p < p_0, …, p_r, the smoothed classifier predicts ĉ on all labels that differ
from y in at most r of the **whole data set**. ``p < p_0 = 1/2`` alone is its prediction on y itself.

The adversary cannot touch features. Noise on labels must be below ``q < (K − 1) / K``, so that β > 1.

Reference:
    Rosenfeld, Winston, Ravikumar and Kolter, "Certified robustness to label-flipping attacks via randomized smoothing",
    ICML 2020. Theirs bounds p_r from below by Kullback and Leibler's divergence D of the two noises,
    ``4 p (1 − p) < exp(−2 r D)``; the exact p_r is larger.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_SLACK = 1e-3
"""Added to log p. A sum of n numbers of total magnitude M is off by at most n u M: 7e-4 for n = 60 000, M = 10⁸, which
is far more than any t leads to. Thresholds come from some thousand sums of positive numbers, each off by a few u."""

_CHUNK = 64  # test samples whose bounds are computed together
_NODES = 512  # of the grid of weights
_FACTORS = ([2**k for k in range(-7, 2)], [2 ** (k / 7) for k in range(-4, 5)])
"""Candidates for t: in units of the best one for Gaussian scores, then in units of the best one so far."""


@dataclass(frozen=True)
class LabelNoise:
    """Every label is kept with probability 1 - ``flip`` and else becomes any other class with equal probability.

    Args:
        flip: q.
        classes: K.
    """

    flip: float
    classes: int

    def __post_init__(self) -> None:
        if self.classes < 2 or not 0 < self.flip < 1 - 1 / self.classes:
            raise ValueError(
                f"Expected `flip` between 0 and 1 - 1 / classes, so that a label has information, but got {self.flip} "
                f"for {self.classes} classes."
            )

    @property
    def other(self) -> float:
        """Return q', the probability of each other class."""
        return self.flip / (self.classes - 1)

    @property
    def ratio(self) -> float:
        """Logarithm of β."""
        return math.log1p(-self.flip) - math.log(self.other)


def log_thresholds(noise: LabelNoise, largest: int) -> Tensor:
    """Logarithms of p_r for r = 0 … ``largest``, ``(largest + 1,)``.

    Args:
        noise: the noise on labels.
        largest: largest number of changed labels.

    Example:
        >>> noise = LabelNoise(0.25, 2)
        >>> log_thresholds(noise, 1).exp()  # half of 1/2 is reached within m = 1: 1/2 · (1/4) / (3/4)
        tensor([0.5000, 0.1667], dtype=torch.float64)
    """
    log_steps = torch.tensor([noise.other, noise.flip - noise.other, 1 - noise.flip], dtype=torch.float64).log()
    law = torch.full((2 * largest + 1,), -math.inf, dtype=torch.float64)  # log P(m) under y', m = -largest … largest
    law[largest] = 0.0
    m = torch.arange(-largest, largest + 1, dtype=torch.float64)
    thresholds = [_log_threshold(law, m, noise.ratio)]
    for _ in range(largest):
        down, up = law.roll(-1), law.roll(1)
        law = torch.stack([down, law, up]).add(log_steps[:, None]).logsumexp(dim=0)
        thresholds.append(_log_threshold(law, m, noise.ratio))
    return torch.stack(thresholds)


def _log_threshold(law: Tensor, m: Tensor, ratio: float) -> Tensor:
    """Log probability under y of the event of largest m that has probability 1/2 under y'."""
    mass = law.flip(0).exp()
    before = mass.cumsum(0) - mass
    taken = torch.minimum(mass, (0.5 - before).clamp(min=0))
    return (taken.log() - ratio * m.flip(0)).logsumexp(dim=0)


def certified_flips(log_probability: Tensor, thresholds: Tensor) -> Tensor:
    """Return the largest r with p < p_r, integers ``(t,)``; -1 if not even the prediction is certain.

    Args:
        log_probability: upper bounds on log p, ``(t,)``.
        thresholds: log p_r for r = 0, 1, …; no r beyond them is certified.
    """
    return (log_probability[:, None] + _SLACK < thresholds).long().cumprod(dim=1).sum(dim=1) - 1


@dataclass(frozen=True)
class LeastSquares:
    """Least squares on one-hot labels.

    Args:
        features: X with whatever constant it shall have, ``(n, d)``.
        labels: y, ``(n,)``.
        classes: K.
        ridge: λ, in units of the mean eigenvalue of XᵀX.
    """

    features: Tensor
    labels: Tensor
    classes: int
    ridge: float = 1e-6

    def weights(self, x: Tensor) -> Tensor:
        """Return the weight of each training label in the scores of test points, a, ``(t, n)``.

        Args:
            x: test points, ``(t, d)``.
        """
        gram = self.features.T @ self.features
        eye = torch.eye(len(gram), dtype=gram.dtype)
        inverse = torch.linalg.inv(gram + self.ridge * gram.trace() / len(gram) * eye)
        weights: Tensor = x @ inverse @ self.features.T
        return weights

    def smoothed(self, x: Tensor, noises: Sequence[LabelNoise]) -> tuple[Tensor, Tensor]:
        """Return predictions ``(t,)`` and, for each noise, a bound on log P(another class), ``(noises, t)``.

        The prediction is the class of largest mean score under noise, which is the class that is predicted without
        noise: noise shrinks all differences of mean scores alike.

        Args:
            x: test points, ``(t, d)``.
            noises: noises on labels.
        """
        winners, bounds = [], []
        for chunk in x.split(_CHUNK):
            binned = BinnedWeights.of(self.weights(chunk), self.labels, self.classes)
            winner = binned.sums(binned.nodes).argmax(dim=1)
            winners.append(winner)
            bounds.append(torch.stack([binned.log_probability(winner, noise) for noise in noises]))
        return torch.cat(winners), torch.cat(bounds, dim=1)


@dataclass(frozen=True)
class BinnedWeights:
    """Weights of training labels, each split between the two nodes next to it so that its mean stays.

    A convex function of the weights only grows by that (Jensen), and ``log E exp(t a w)`` is convex in a: bounds from
    binned weights are bounds, at a cost that does not depend on n.

    Args:
        nodes: an even grid from the smallest to the largest weight, ``(t, g)``.
        counts: how many weights of labels of each class lie there, ``(t, K, g)``.
    """

    nodes: Tensor
    counts: Tensor

    @classmethod
    def of(cls, weights: Tensor, labels: Tensor, classes: int) -> "BinnedWeights":
        """Split the weights ``(t, n)`` of labels ``(n,)``."""
        low, high = (end[:, None] for end in weights.aminmax(dim=1))
        grid = torch.linspace(0, 1, _NODES, dtype=weights.dtype)
        place = (weights - low) / (high - low).clamp(min=torch.finfo(weights.dtype).tiny) * (_NODES - 1)
        left = place.floor().clamp(0, _NODES - 2)
        share = (place - left).clamp(0, 1)
        index = labels * _NODES + left.long()
        counts = torch.zeros(len(weights), classes * _NODES, dtype=weights.dtype)
        counts.scatter_add_(1, index, 1 - share).scatter_add_(1, index + 1, share)
        return cls(low + grid * (high - low), counts.view(-1, classes, _NODES))

    def sums(self, values: Tensor) -> Tensor:
        """Return sums of a function of the weights over the labels of each class, ``(t, K)``, from its nodes."""
        return (self.counts @ values[:, :, None]).squeeze(2)

    def log_probability(self, winner: Tensor, noise: LabelNoise) -> Tensor:
        """Return Chernoff's bound on log P(a class other than ``winner`` has the largest score), ``(t,)``."""
        t = self._gaussian(winner, noise)
        for factors in _FACTORS:
            tried = torch.stack([factor * t for factor in factors])
            bounds, index = torch.stack([self._log_moment(winner, t, noise) for t in tried]).min(dim=0)
            t = tried.gather(0, index[None]).squeeze(0)
        return bounds.scatter(1, winner[:, None], -math.inf).logsumexp(dim=1)

    def _gaussian(self, winner: Tensor, noise: LabelNoise) -> Tensor:
        """Return the best t for Gaussian differences of scores, minus mean over variance, at least 0, ``(t, K)``."""
        kept, moved = 1 - noise.flip, noise.other
        first, second = self.sums(self.nodes), self.sums(self.nodes.square())
        own_first, own_second = (sums.gather(1, winner[:, None]) for sums in (first, second))
        gap = (kept - moved) * (own_first - first)
        ours = own_second + second
        rest = second.sum(dim=1, keepdim=True) - ours
        variance = ours * (kept + moved - (kept - moved) ** 2) + rest * 2 * moved
        return (gap / variance.clamp(min=torch.finfo(gap.dtype).tiny)).clamp(min=0)

    def _log_moment(self, winner: Tensor, t: Tensor, noise: LabelNoise) -> Tensor:
        """Return an upper bound on log E exp(t (S_j − S_winner)), ``(t, K)``, for t of each j."""
        kept, moved = 1 - noise.flip, noise.other
        u = t[:, :, None] * self.nodes[:, None]
        shrink, near = (-2 * u.abs()).exp(), (-u.abs()).exp()  # all three powers in units of exp |u|: none overflows
        up, down = torch.where(u > 0, 1, shrink), torch.where(u > 0, shrink, 1)
        own = self.counts.gather(1, winner[:, None, None].expand(-1, 1, _NODES))
        rest = self.counts.sum(dim=1, keepdim=True) - own - self.counts
        logs = own * (kept * down + moved * up + (noise.flip - moved) * near).log()
        logs += self.counts * (kept * up + moved * down + (noise.flip - moved) * near).log()
        logs += rest * (moved * (up + down) + (1 - 2 * moved) * near).log()
        logs += self.counts.sum(dim=1, keepdim=True) * u.abs()
        return logs.sum(dim=2)
