"""Linear smoothers: sums of labels weighted by the influence of each training sample on a query."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.domains.influence.model import Budget, BudgetGroup, Predictions
from agt_lightning.errors import UnsoundBoundError

Shift = float | Literal["half"]
"""A number that is taken from every influence, or half of the largest influence of each query."""

_FLOAT64 = Arithmetic(torch.float64, torch.float64)


@dataclass(frozen=True, eq=False)
class SmootherInfluence:
    """A model ``f(x*) = Σ_i (a_i(x*) - δ(x*)) y_i`` of training labels y_i, for any influences a_i: a `LinearInLabels`.

    It is a kernel machine of one gradient step, kernel or ridge regression, a radius vote, or any other linear
    smoother. No label may have a part in its influences.

    The shift δ corrects outputs by the number of labels: for one-hot labels, ``f_k = Σ_{y_i = k} a_i - δ N_k``, N_k the
    number of samples with label k. The margin of c against k changes by ``δ (N_k - N_c)`` alone, which is nothing if
    classes are of one size; else it favors the rare ones. If all influences are between 0 and A, a flip costs a margin
    up to 2 A, and with ``shift="half"`` at most A: about twice as many flips are withstood.

    Rounding: ``coefficients`` and outputs are computed in float64, in the training whose labels are as they are, and in
    those with flipped ones. ``error`` is what influences of two such runs can differ by; the rest is bounded here.

    Args:
        coefficients: a, (Q, N) in float64, as a function of queries (Q, d).
        targets: y, (N, K).
        shift: δ in units of the influences, or ``"half"`` for half of the largest influence of each query.
        error: largest difference of an influence between two runs, (Q,), as a function of queries; None if all runs
            compute the same ones.

    Raises:
        ValueError: if targets are no matrix, or the shift is neither finite nor ``"half"``.

    Reference:
        docs/theory.md, eq. (11.6).

    Example:
        >>> features, targets = torch.eye(2).double(), torch.eye(2)
        >>> SmootherInfluence(lambda x: x @ features.T, targets, shift="half").outputs(features)
        tensor([[ 0.5000, -0.5000],
                [-0.5000,  0.5000]], dtype=torch.float64)
    """

    coefficients: Callable[[Tensor], Tensor]
    targets: Tensor
    shift: Shift = 0.0
    error: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        """Check targets and shift, and turn targets into float64."""
        if self.targets.ndim != 2:
            raise ValueError(f"Expected targets of shape (samples, outputs), but got {tuple(self.targets.shape)}.")
        if isinstance(self.shift, str) and self.shift != "half":
            raise ValueError(f"Expected `shift` to be a number or 'half', but got {self.shift!r}.")
        if not isinstance(self.shift, str) and not abs(self.shift) < float("inf"):
            raise ValueError(f"Expected `shift` to be finite, but got {self.shift}.")
        object.__setattr__(self, "targets", self.targets.double())

    @classmethod
    def class_sums(cls, features: Tensor, targets: Tensor, shift: Shift = 0.0) -> SmootherInfluence:
        """Return the sum of the training features of each class, as the weight of its output.

        It is what one full-batch gradient step on squared error makes of a head of zeros without a bias, up to a
        factor.

        Args:
            features: of the training samples, (N, d).
            targets: y, (N, K).
            shift: as above.
        """
        rows = features.double()
        largest = euclidean_norm(rows, dim=1).max() if len(rows) else rows.new_zeros(())

        def products(queries: Tensor) -> Tensor:
            return queries.double() @ rows.T

        def error(queries: Tensor) -> Tensor:
            sizes = euclidean_norm(queries.double(), dim=1) * largest
            return sizes * _FLOAT64.relative(rows.shape[1]) + _FLOAT64.absolute(rows.shape[1])

        return cls(products, targets, shift, error)

    @property
    def poisonable(self) -> Tensor:
        """All samples, boolean (N,)."""
        return torch.ones(len(self.targets), dtype=torch.bool, device=self.targets.device)

    def influence(self, queries: Tensor) -> Tensor:
        """Return ``a - δ``, (Q, N).

        Raises:
            ValueError: if the function returns another shape.
            UnsoundBoundError: if an influence is NaN or infinite.
        """
        return self._parts(queries)[0]

    def outputs(self, queries: Tensor) -> Tensor:
        """Return the outputs for features (Q, d), (Q, K) in float64."""
        return self.predict(queries).outputs

    def predict(self, queries: Tensor) -> Predictions:
        """Return the outputs for features (Q, d), and the errors of all runs and of this computation."""
        influence, sizes = self._parts(queries)
        count = len(self.targets)
        error = sizes.new_zeros(len(queries)) if self.error is None else self.error(queries)
        # A difference of the largest influence is one of a shift by half of it, too.
        per_label = _FLOAT64.relative(count + 8) * sizes + 2 * count * error
        constant = torch.full_like(per_label, _FLOAT64.absolute(count + 1))
        return Predictions(influence @ self.targets, constant, per_label)

    def budget_groups(self, queries: Tensor, budget: Budget) -> Iterator[BudgetGroup]:
        """Yield all samples as one group: there is one step, whose batch is the data set."""
        samples = torch.arange(len(self.targets), device=self.targets.device)
        yield BudgetGroup(samples, self.influence(queries))

    def group_sizes(self, budget: Budget) -> list[int]:
        """Return the number of samples."""
        return [len(self.targets)]

    def _parts(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``a - δ``, and the sum of ``|a| + |δ|`` for each query."""
        raw = self.coefficients(queries).double()
        expected = (len(queries), len(self.targets))
        if tuple(raw.shape) != expected:
            raise ValueError(f"Expected influences of shape {expected}, but got {tuple(raw.shape)}.")
        if not bool(raw.isfinite().all()):
            raise UnsoundBoundError("Expected finite influences, but some are NaN or infinite.")
        shift = raw.amax(dim=1, keepdim=True) / 2 if isinstance(self.shift, str) else raw.new_tensor([[self.shift]])
        return raw - shift, (raw.abs() + shift.abs()).sum(dim=1)
