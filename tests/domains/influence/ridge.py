"""Ridge regression: an independent model that is linear in its labels, in closed form."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from agt_lightning.domains.influence.model import Budget, BudgetGroup, Predictions
from agt_lightning.errors import UncertifiableError
from agt_lightning.rounding import accumulated_roundoff


class RidgeInfluence:
    r"""A head that minimizes ``(1/N) Σ_i ‖W x̂_i - y_i‖² + penalty ‖W‖²``, and the coefficients of its labels.

    .. math::
        a_i = \hat x_*^T \Big(\sum_j \hat x_j \hat x_j^T + N \, \text{penalty} \, I\Big)^{-1} \hat x_i

    The bias, if there is one, is penalized like all other parameters. Every row is a sample of its own.

    Rounding: computed in float64; the relative error contains the condition number of the matrix.

    Args:
        features: x, (N, d), without the 1 of the bias.
        targets: y, (N, K).
        penalty: weight of ``‖W‖²`` against the *mean* squared error summed over outputs, > 0. For the sum over samples
            instead of their mean, divide by N.
        bias: whether the head has a bias.
        poisonable: samples whose label can be changed, boolean (N,); None for all.

    Raises:
        ValueError: if shapes do not fit or ``penalty`` is not positive.

    Example:
        >>> ridge = RidgeInfluence(torch.tensor([[1.0], [2.0]]), torch.ones(2, 1), penalty=2.5, bias=False)
        >>> ridge.coefficients(torch.tensor([[1.0]]))           # 1 / (1 + 4 + 5), 2 / (1 + 4 + 5)
        tensor([[0.1000, 0.2000]], dtype=torch.float64)
    """

    def __init__(
        self, features: Tensor, targets: Tensor, *, penalty: float, bias: bool, poisonable: Tensor | None = None
    ) -> None:
        if features.ndim != 2 or targets.ndim != 2 or len(features) != len(targets):
            raise ValueError(
                "Expected `features` of shape (samples, inputs) and `targets` of shape (samples, outputs), but got "
                f"{tuple(features.shape)} and {tuple(targets.shape)}."
            )
        if not penalty > 0:
            raise ValueError(f"Expected `penalty` to be positive, but got {penalty}. Without it no unique head exists.")
        everyone = torch.ones(len(features), dtype=torch.bool, device=features.device)
        self._bias = bias
        self._inputs = self._with_bias(features)
        self._targets = targets.double()
        self._poisonable = everyone if poisonable is None else poisonable
        gram = self._inputs.T @ self._inputs
        gram.diagonal().add_(len(features) * penalty)
        self._factor = torch.linalg.cholesky(gram)
        eigenvalues = torch.linalg.eigvalsh(gram)
        operations = len(features) + 4 * len(gram)
        self._roundoff = float(eigenvalues[-1] / eigenvalues[0]) * accumulated_roundoff(operations, torch.float64)

    @property
    def targets(self) -> Tensor:
        """Labels y, (N, K) in float64."""
        return self._targets

    @property
    def poisonable(self) -> Tensor:
        """Samples whose label can be changed, boolean (N,)."""
        return self._poisonable

    def coefficients(self, queries: Tensor) -> Tensor:
        """a, (Q, N), for features (Q, d)."""
        return self._solved(queries) @ self._inputs.T

    def outputs(self, queries: Tensor) -> Tensor:
        """Outputs of the head, (Q, K) in float64."""
        return self.predict(queries).outputs

    def predict(self, queries: Tensor) -> Predictions:
        """Outputs, and their rounding errors; nothing is independent of labels."""
        solved = self._solved(queries)
        influence = self._roundoff * solved.norm(dim=1) * self._inputs.norm(dim=1).sum()
        return Predictions(solved @ (self._inputs.T @ self._targets), torch.zeros_like(influence), influence)

    def budget_groups(self, queries: Tensor, budget: Budget) -> Iterator[BudgetGroup]:
        """Yield one group with the coefficients of all poisonable samples.

        Raises:
            UncertifiableError: with the budget for each batch.
        """
        _check_budget(budget)
        samples = self._poisonable.nonzero().squeeze(1)
        yield BudgetGroup(samples, self.coefficients(queries)[:, samples])

    def group_sizes(self, budget: Budget) -> list[int]:
        """Return the number of poisonable samples, in the one group."""
        _check_budget(budget)
        return [int(self._poisonable.sum())]

    def _solved(self, queries: Tensor) -> Tensor:
        """``x̂*ᵀ (Σ x̂ x̂ᵀ + N penalty I)⁻¹``, (Q, D)."""
        return torch.cholesky_solve(self._with_bias(queries).T, self._factor).T

    def _with_bias(self, features: Tensor) -> Tensor:
        inputs = features.double()
        return torch.nn.functional.pad(inputs, (0, 1), value=1.0) if self._bias else inputs


def _check_budget(budget: Budget) -> None:
    if budget != "dataset":
        raise UncertifiableError(["Ridge regression has no batches. Use `budget='dataset'`."])
