r"""The influence of training labels on the outputs of a linear head, by replaying its training backward.

A head W (K, D) is trained on ``½ Σ_i c_i ‖W x̂_i - y_i‖²``, so its gradient is ``Σ_i c_i (W x̂_i - y_i) x̂_iᵀ``. Step t of
SGD takes the direction d and updates W and the momentum buffer M by

.. math::
    d = \sum_i c_i (W \hat x_i - y_i) \hat x_i^T + \text{decay} \circ W, \quad
    W' = W - \text{step} \circ d - \text{carry} \circ M, \quad M' = \text{keep} \circ M + \text{share} \circ d,

with one factor per column in ``step, carry, keep, share, decay`` (`SGDMap`). This is affine in (W, M) and in the
labels, and the same for every row, that is, for every output. A linear functional ``W' v + M' u`` of the state after
the step is therefore one of the state before it, plus a combination of labels: with ``z = share ∘ u - step ∘ v``,

.. math::
    W' v + M' u = W \Big( v - \sum_i a_i \hat x_i + \text{decay} \circ z \Big)
        + M \, ( \text{keep} \circ u - \text{carry} \circ v ) + \sum_i a_i y_i, \qquad a_i = -c_i \hat x_i^T z.

Starting with ``v = x̂*, u = 0``, whose functional is the output ``f(x*) = W_T x̂*``, and going through the steps from the
last to the first gives ``f(x*) = W_0 v + Σ_t Σ_i a_{t,i} y_{t,i}``; M is zero before the first step.

Reference:
    docs/theory.md, eq. (11.1) to (11.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.domains.influence.model import Budget, BudgetGroup, Predictions
from agt_lightning.domains.influence.roundings import Affine, StepErrors, functional_error, step_errors
from agt_lightning.domains.influence.sgd_map import SGDMap
from agt_lightning.errors import UncertifiableError


class Adjoint(NamedTuple):
    """Functionals ``W v + M u`` of parameter W and momentum buffer M, one per query.

    Args:
        parameter: v, (Q, D).
        buffer: u, (Q, D).
    """

    parameter: Tensor
    buffer: Tensor

    @classmethod
    def of_queries(cls, inputs: Tensor) -> Adjoint:
        """Return the outputs ``W x̂*`` themselves, for inputs (Q, D)."""
        return cls(inputs, torch.zeros_like(inputs))

    def norms(self) -> Tensor:
        """Return the Euclidean norms of v and u, (Q, 2)."""
        return torch.stack([euclidean_norm(self.parameter, dim=1), euclidean_norm(self.buffer, dim=1)], dim=1)


@dataclass(frozen=True, eq=False)
class HeadStep:
    """One optimizer step of the head, without the features and labels it used.

    Args:
        rows: rows of the table of features, int64 (b,).
        slopes: c_i, (b,). For `torch.nn.MSELoss`, the mean over batch and outputs, 2 / (b K).
        update: the optimizer's update.
        errors: largest distances of a sample's features and targets in a run from the recorded ones.
    """

    rows: Tensor
    slopes: Tensor
    update: SGDMap
    errors: tuple[float, float] = (0.0, 0.0)


def step_back(step: HeadStep, inputs: Tensor, after: Adjoint) -> tuple[Tensor, Adjoint]:
    """Rewrite functionals of the state after a step as functionals of the state before it.

    Args:
        step: the step.
        inputs: x̂ of its samples, (b, D).
        after: functionals of the state after it.

    Returns:
        The coefficients a of the labels at this step, (Q, b), and the functionals of the state before it.

    Example:
        >>> from agt_lightning.domains.influence.sgd_map import UpdateFactors
        >>> from agt_lightning.domains.sgd import SGDSettings
        >>> factors = UpdateFactors.of_settings(SGDSettings(0.1), started=False)
        >>> update = SGDMap.of_columns([factors], torch.device("cpu"))
        >>> step = HeadStep(torch.tensor([0]), torch.tensor([2.0]).double(), update)
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> coefficients, before = step_back(step, one, Adjoint.of_queries(one))
        >>> coefficients, before.parameter     # θ - 0.1 * 2 (θ - y) = 0.8 θ + 0.2 y
        (tensor([[0.2000]], dtype=torch.float64), tensor([[0.8000]], dtype=torch.float64))

    Reference:
        docs/theory.md, eq. (11.3).
    """
    update = step.update
    through = update.share * after.buffer - update.step * after.parameter
    coefficients = -(through @ inputs.T) * step.slopes
    parameter = after.parameter - coefficients @ inputs + update.decay * through
    return coefficients, Adjoint(parameter, update.keep * after.buffer - update.carry * after.parameter)


@dataclass(frozen=True, eq=False)
class LabelInfluence:
    """A recorded training of a linear head, ``f(x*) = W_0 v(x*) + Σ_i a_i(x*) y_i``, up to rounding.

    It covers SGD with momentum, dampening, Nesterov, weight decay, any schedule and any sequence of mini-batches that
    does not depend on labels. A step back costs two products of queries and batch. No tensor has the size of samples
    times parameters, and one of samples times queries has the queries of one call only. `HeadRecorder` makes it.

    Rounding: computed in float64. `predict` bounds the errors of all runs, and its own, see
    `agt_lightning.domains.influence.roundings`.

    Args:
        features: distinct rows of features, (rows, d), without the 1 of the bias.
        sample_of_row: the sample of each row, int64 (rows,).
        targets: y, (N, K) in float64.
        poisonable: samples whose label can be changed, boolean (N,).
        steps: in the order of training.
        initial: W_0, the head before the first step, (K, D) in float64; its momentum buffer is zero.
        bias: whether the last column of the head is a bias.
        problem: why rows cannot be attributed to samples; None if they can.
        run: floating point type in which the runs compute; None for runs in real arithmetic.

    Reference:
        docs/theory.md, eq. (11.2).
    """

    features: Tensor
    sample_of_row: Tensor
    targets: Tensor
    poisonable: Tensor
    steps: Sequence[HeadStep]
    initial: Tensor
    bias: bool
    problem: str | None = None
    run: torch.dtype | None = None

    @cached_property
    def _step_errors(self) -> tuple[list[StepErrors], Affine]:
        inputs = [euclidean_norm(self._inputs(self.features[step.rows]), dim=1) for step in self.steps]
        return step_errors(self.steps, inputs, self.initial, Arithmetic(self.run, torch.float64))

    @property
    def largest_head(self) -> Affine:
        """Upper bound on the norm of each row of the trained head, in every run."""
        return self._step_errors[1]

    def of_inputs(self) -> LabelInfluence:
        """Return the same training for queries x̂ (Q, D) that include the 1 of the bias.

        Unit vectors as queries give single parameters.
        """
        if not self.bias:
            return self
        return replace(self, features=torch.nn.functional.pad(self.features, (0, 1), value=1.0), bias=False)

    def step_coefficients(self, queries: Tensor) -> Iterator[tuple[HeadStep, Tensor]]:
        """Compute the coefficients of the labels of each step alone, last step first.

        Args:
            queries: features x*, (Q, d).

        Yields:
            A step, and the coefficients of the labels at its positions, (Q, b).
        """
        adjoint = Adjoint.of_queries(self._inputs(queries))
        for step in reversed(self.steps):
            coefficients, adjoint = step_back(step, self._inputs(self.features[step.rows]), adjoint)
            yield step, coefficients

    def coefficients(self, queries: Tensor) -> Tensor:
        """Compute a: what one unit of each sample's label, used in all its steps, adds to the outputs.

        Args:
            queries: features x*, (Q, d).

        Returns:
            (Q, N).

        Raises:
            UncertifiableError: if rows cannot be attributed to samples.
        """
        if self.problem is not None:
            raise UncertifiableError([self.problem])
        total = self.initial.new_zeros(len(queries), len(self.targets))
        for step, coefficients in self.step_coefficients(queries):
            total.scatter_add_(1, self.sample_of_row[step.rows].expand(len(queries), -1), coefficients)
        return total

    def outputs(self, queries: Tensor) -> Tensor:
        """Compute the outputs of the trained head for features (Q, d), (Q, K) in float64."""
        return self.predict(queries).outputs

    def predict(self, queries: Tensor) -> Predictions:
        """Compute the outputs for features (Q, d), and the errors of all runs and of this computation."""
        adjoint = Adjoint.of_queries(self._inputs(queries))
        labels = self.initial.new_zeros(len(queries), len(self.initial))
        constant, per_label = (self.initial.new_zeros(len(queries)) for _ in range(2))
        columns, summed = self.initial.shape[1], torch.zeros_like(constant)
        for step, made in zip(reversed(self.steps), reversed(self._step_errors[0]), strict=True):
            added = functional_error(step, made, adjoint.norms(), columns)
            constant, per_label = constant + added[0], per_label + added[1]
            inputs = self._inputs(self.features[step.rows])
            size = adjoint.norms() @ step.update.gains() * made.pull
            coefficients, adjoint = step_back(step, inputs, adjoint)
            labels += coefficients @ self.targets[self.sample_of_row[step.rows]]
            summed = summed + size
        own = Arithmetic(None, torch.float64).relative(len(self.steps) + len(self.targets) + columns)
        constant = constant + own * adjoint.norms()[:, 0] * euclidean_norm(self.initial, dim=1).max()
        return Predictions(adjoint.parameter @ self.initial.T + labels, constant, per_label + own * summed)

    def budget_groups(self, queries: Tensor, budget: Budget) -> Iterator[BudgetGroup]:
        """Yield one group with the coefficients of all poisonable samples, or one per step with those of its positions.

        Raises:
            UncertifiableError: if the budget is for the data set and rows cannot be attributed to samples.
        """
        if budget == "dataset":
            samples = self.poisonable.nonzero().squeeze(1)
            coefficients = self.coefficients(queries)
            yield BudgetGroup(samples, coefficients if len(samples) == len(self.targets) else coefficients[:, samples])
            return
        for step, coefficients in self.step_coefficients(queries):
            samples = self.sample_of_row[step.rows]
            poisonable = self.poisonable[samples]
            yield BudgetGroup(samples[poisonable], coefficients[:, poisonable])

    def group_sizes(self, budget: Budget) -> list[int]:
        """Return the number of poisonable positions in each group."""
        if budget == "dataset":
            return [int(self.poisonable.sum())]
        return [int(self.poisonable[self.sample_of_row[step.rows]].sum()) for step in reversed(self.steps)]

    def _inputs(self, features: Tensor) -> Tensor:
        """Return x̂: features in float64, with the 1 of the bias."""
        expected = self.initial.shape[1] - int(self.bias)
        if features.ndim != 2 or features.shape[1] != expected:
            raise ValueError(f"Expected queries of shape (queries, {expected}), but got {tuple(features.shape)}.")
        inputs = features.double()
        return torch.nn.functional.pad(inputs, (0, 1), value=1.0) if self.bias else inputs
