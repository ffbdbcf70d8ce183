"""A few full-batch steps of least squares from zero, on edited training data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from agt_lightning.adversaries.base import check_count, check_size
from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.domains.edits.model import Damage, check_finite, check_samples

_FLOAT64 = Arithmetic(torch.float64, torch.float64)


@dataclass(frozen=True, eq=False)
class LeastSquaresSteps:
    """A linear head after T full-batch steps ``W ← W - (η / N) Σ_i (W x_i - y_i) x_iᵀ`` from ``W = 0``, in float64.

    y_i are one-hot labels, and the class of the largest output is predicted. **N is one number in all runs**, that of
    the samples given here, also where the sum has more or fewer: an edited run divides by N as this one did. (A mean
    over those that are there would be another training.) No sample has features of norm above 1, inserted ones
    included; a constant for a bias counts as a feature.

    Args:
        features: of the training samples, (N, d), by a map that no training sample has a part in.
        labels: classes, integers (N,).
        classes: number of classes K.
        rate: η; in units of torch's ``mse_loss``, which is a mean over N K numbers, a learning rate of ``η K / 2``.
        steps: T.
        error: largest Euclidean distance of two runs' computed features of one sample, as for `RadiusVote`.

    Raises:
        ValueError: if shapes do not match, a label is no class, a norm exceeds 1, the error is negative or leaves no
            bound on W, or ``η > 2 / λ``, λ the largest eigenvalue of ``Σ_i x_i x_iᵀ / N``.
        UnsoundBoundError: if a feature is NaN or infinite.

    Reference:
        docs/theory.md, section 14.2.

    Example:
        >>> x, y = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]), torch.tensor([0, 0, 1, 1])
        >>> LeastSquaresSteps(x, y, classes=2, rate=1.0, steps=1).outputs(torch.tensor([[1.0]]))
        tensor([[ 0.5000, -0.5000]], dtype=torch.float64)
    """

    features: Tensor
    labels: Tensor
    classes: int
    rate: float
    steps: int
    error: float = 0.0

    def __post_init__(self) -> None:
        """Check the samples and the rate."""
        check_samples(self.features, self.labels, self.classes)
        check_size("rate", self.rate, positive=True)
        check_count("steps", self.steps)
        check_size("error", self.error)
        object.__setattr__(self, "features", self.features.double())
        norms = euclidean_norm(self.features, dim=1)
        if bool((norms > 1 + _FLOAT64.relative(self.features.shape[1] + 8)).any()):
            raise ValueError(f"Expected features of norm at most 1, but got {float(norms.max())}. Scale all of them.")
        if self.most < 0:
            raise ValueError(
                f"Expected `rate` at most {2 / self.curvature:.6g}, 2 / the largest eigenvalue, but got {self.rate}."
            )
        if self.growth >= 1:
            raise ValueError(
                f"Expected an `error` that leaves heads bounded in {self.steps} steps, but got {self.error}."
            )

    @cached_property
    def curvature(self) -> float:
        """An upper bound on λ."""
        gamma = _FLOAT64.relative(len(self.features) + self.features.shape[1] ** 2)
        moved = 2 * self.error * (1 + self.error)
        return float(torch.linalg.eigvalsh(self._moments)[-1]) + gamma * float(self._moments.trace()) + moved

    @property
    def roundoff(self) -> float:
        """γ of one step on at most 2 N samples, and what other features change: two factors of each product."""
        gamma = _FLOAT64.relative(2 * len(self.features) + 2 * self.features.shape[1] + 16)
        return gamma + 2 * self.error * (1 + self.error)

    @property
    def growth(self) -> float:
        """How much rounding and other features can add to a row of W in all steps, relative to its largest norm."""
        return self.steps * self.roundoff * (1 + 2 * self.rate)

    @property
    def most(self) -> int:
        """The largest n with ``η (λ + n / N) <= 2``, at most N; -1 if there is none."""
        room = (2 / self.rate * (1 - 2.0**-40) - self.curvature) * len(self.features)
        return max(-1, min(len(self.features), int(room // 1)))

    @cached_property
    def heads(self) -> Tensor:
        """W before each step and after the last, (T + 1, K, d)."""
        targets = F.one_hot(self.labels.long(), self.classes).double()
        crossed = targets.T @ self.features / len(self.features)
        heads = [torch.zeros_like(crossed)]
        for _ in range(self.steps):
            heads.append(heads[-1] - self.rate * (heads[-1] @ self._moments - crossed))
        return torch.stack(heads)

    @cached_property
    def predictions(self) -> Tensor:
        """Outputs for the training samples before each step, (T, N, K)."""
        return self.features @ self.heads[:-1].mT

    @cached_property
    def _moments(self) -> Tensor:
        return self.features.T @ self.features / len(self.features)

    def outputs(self, queries: Tensor) -> Tensor:
        """Return the outputs for queries (Q, d), (Q, K)."""
        return queries.double() @ self.heads[-1].T

    def at(self, queries: Tensor) -> LeastSquaresQueries:
        """Return the model at queries (Q, d)."""
        check_finite(queries, "queries")
        return LeastSquaresQueries(self, queries.double())

    def carried_back(self, queries: Tensor) -> Tensor:
        """Return ``v_t = (I - η C)^(T-1-t) x*`` for t = 0 … T - 1, (T, Q, d)."""
        carried = [queries]
        for _ in range(self.steps - 1):
            carried.append(carried[-1] - self.rate * (carried[-1] @ self._moments))
        return torch.stack(carried[::-1]) if self.steps else queries.new_zeros(0, *queries.shape)


class LeastSquaresQueries:
    """The steps of least squares at some queries: an `Evaluation`.

    Args:
        model: the training.
        queries: (Q, d) in float64.
    """

    def __init__(self, model: LeastSquaresSteps, queries: Tensor) -> None:
        self._model, self._count = model, len(model.features)
        self._carried = model.carried_back(queries)
        self._along = self._carried @ model.features.T
        self._norms = euclidean_norm(queries, dim=1) * (1 + _FLOAT64.relative(queries.shape[1]))
        outputs = model.outputs(queries)
        self.predicted = outputs.argmax(dim=1)
        margins = outputs.gather(1, self.predicted[:, None]) - outputs
        self.spare = margins - self._drift()[:, None]

    def edits(self, members: Tensor, label: int, rival: int) -> Damage:
        """Return P for each edit, and what a deletion can take beyond it."""
        coming, going, joint = self._costs(members, label, rival)
        return Damage(coming, (going - coming[:, None]).clamp(min=0), joint, self._model.most)

    def replacements(self, members: Tensor, label: int, rival: int) -> Damage:
        """Return P for each sample that comes, and p_i for the one that goes."""
        coming, going, joint = self._costs(members, label, rival)
        return Damage(coming, going, 2 * joint, self._model.most)

    def _costs(self, members: Tensor, label: int, rival: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return P, (q,), p, (q, N), and the factor of n² in eq. (14.12), (q,)."""
        model, step = self._model, self._model.rate / self._count
        carried, along = self._carried[:, members], self._along[:, members]
        head = model.heads[:-1, label] - model.heads[:-1, rival]
        signs = (model.labels == label).double() - (model.labels == rival).double()
        residuals = signs - (model.predictions[..., label] - model.predictions[..., rival])
        going = step * torch.einsum("tqn,tn->qn", along, residuals)
        norms = euclidean_norm(head, dim=1)
        products = euclidean_norm(carried, dim=2) * norms[:, None] + torch.einsum("tqd,td->tq", carried, head)
        coming = step * (euclidean_norm(carried.sum(dim=0), dim=1) + products.sum(dim=0).clamp(min=0) / 2)
        later = torch.arange(model.steps - 1, -1, -1, dtype=torch.float64, device=head.device)
        joint = step**2 * (later * (1 + norms + 2 * self._sizes()[1])).sum() * self._norms[members]
        return (
            coming + self._rounded()[members],
            going,
            joint * (1 + _FLOAT64.relative(head.shape[1] + model.steps + 8)),
        )

    def _drift(self) -> Tensor:
        """Return what rounding can take from a margin, in the edited run and in this computation, (Q,)."""
        rows, off = self._sizes()
        error = self._model.error
        moved = (self._norms + error) * (off + self._model.roundoff * rows) + error * rows
        return 4 * moved * (1 + _FLOAT64.relative(8)) + _FLOAT64.absolute(4 * self._count)

    def _rounded(self) -> Tensor:
        """Return how far P or p of one edit can be off by the roundings of v_t and w_t, (Q,)."""
        rows, off = self._sizes()
        steps, rate, roundoff = self._model.steps, self._model.rate, self._model.roundoff
        carried = steps * roundoff * (1 + 4 * rate)
        one = (carried + roundoff) * (1 + 2 * rows) + 2 * off
        return 4 * rate * steps / self._count * one * self._norms + _FLOAT64.absolute(4 * self._count)

    def _sizes(self) -> tuple[float, float]:
        """Return the largest norm B of a row of W in any run, and how far rounding can move it: B = 2 η T + that."""
        steps, rate, growth = self._model.steps, self._model.rate, self._model.growth
        rows = 2 * rate * steps * (1 + self._model.roundoff) / (1 - growth)
        return rows, growth * rows + 2 * rate * steps * self._model.roundoff
