"""The coefficients of all labels in the outputs of a trained head, by replaying its training backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from agt_lightning.domains.influence.adjoint import Adjoint, HeadStep, step_back
from agt_lightning.domains.influence.linear import Budget, Predictions, Round
from agt_lightning.errors import UncertifiableError
from agt_lightning.rounding import accumulated_roundoff

_UPDATE_ROUNDINGS = 8
"""Roundings of one step back besides its two matrix products."""


@dataclass(frozen=True, eq=False)
class LabelInfluence:
    r"""A recorded training of a linear head, ``f(x*) = Φθ_0 + Σ_i a_i(x*) y_i``, exact in real arithmetic.

    For SGD with momentum, dampening, Nesterov, weight decay, any schedule and any sequence of mini-batches that does
    not depend on labels. A step back costs two products of queries and batch; no tensor has the size of samples times
    parameters, and samples times queries only for the queries of one call. Made by `HeadRecorder`.

    Rounding: computed in float64. The relative error ``roundoff`` counts the roundings along the replay, with respect
    to products of norms in which each functional counts as large as it ever was. It presumes that steps do not amplify
    errors, as where no learning rate exceeds 2 over the largest curvature.

    Args:
        features: distinct rows of features, (rows, d), without the 1 of the bias.
        sample_of_row: the sample of each row, int64 (rows,).
        targets: y, (N, K) in float64.
        poisonable: samples whose label can be changed, boolean (N,).
        steps: in the order of training.
        initial: the head before the first step, (K, D) in float64; its momentum buffer is zero.
        bias: whether the last column of the head is a bias.
        problem: why it is not known which samples are the same, or None.

    Reference:
        docs/theory.md, "Exact influence of labels".
    """

    features: Tensor
    sample_of_row: Tensor
    targets: Tensor
    poisonable: Tensor
    steps: Sequence[HeadStep]
    initial: Tensor
    bias: bool
    problem: str | None = None

    @property
    def operations(self) -> int:
        """Roundings on the way through the training, or its replay, to one output."""
        inputs = self.initial.shape[1]
        return sum(len(step.rows) + inputs + _UPDATE_ROUNDINGS for step in self.steps) + len(self.targets)

    @property
    def roundoff(self) -> float:
        """Relative error of outputs and coefficients with respect to the sum of magnitudes."""
        return accumulated_roundoff(self.operations, torch.float64)

    def of_inputs(self) -> LabelInfluence:
        """The same for queries x̂ (Q, D), with the 1 of the bias among them: unit vectors ask for single parameters."""
        if not self.bias:
            return self
        return replace(self, features=torch.nn.functional.pad(self.features, (0, 1), value=1.0), bias=False)

    def step_coefficients(self, queries: Tensor) -> Iterator[tuple[HeadStep, Tensor]]:
        """Coefficients of the labels of each step alone, last step first.

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
        """a: what one unit of each sample's label, used in all its steps, adds to the outputs.

        Args:
            queries: features x*, (Q, d).

        Returns:
            (Q, N).

        Raises:
            UncertifiableError: if it is not known which samples are the same.
        """
        if self.problem is not None:
            raise UncertifiableError([self.problem])
        total = self.initial.new_zeros(len(queries), len(self.targets))
        for step, coefficients in self.step_coefficients(queries):
            total.scatter_add_(1, self.sample_of_row[step.rows].expand(len(queries), -1), coefficients)
        return total

    def outputs(self, queries: Tensor) -> Tensor:
        """Outputs of the trained head for features (Q, d), (Q, K) in float64: a check of record and replay."""
        return self.predict(queries).outputs

    def predict(self, queries: Tensor) -> Predictions:
        """Outputs, and the magnitudes that their rounding is relative to."""
        adjoint = Adjoint.of_queries(self._inputs(queries))
        labels = self.initial.new_zeros(len(queries), len(self.initial))
        influence = self.initial.new_zeros(len(queries))
        sizes = adjoint.norms()
        for step in reversed(self.steps):
            inputs = self._inputs(self.features[step.rows])
            influence += (sizes @ step.update.gains()) * (step.slopes.abs() * inputs.norm(dim=1)).sum()
            coefficients, adjoint = step_back(step, inputs, adjoint)
            labels += coefficients @ self.targets[self.sample_of_row[step.rows]]
            sizes = torch.maximum(sizes, adjoint.norms())
        constant = sizes[:, 0] * self.initial.norm(dim=1).max()
        return Predictions(adjoint.parameter @ self.initial.T + labels, constant, influence)

    def rounds(self, queries: Tensor, budget: Budget) -> Iterator[Round]:
        """One round with the coefficients of all poisonable samples, or one round a step with those of its positions.

        Raises:
            UncertifiableError: if the budget is for the data set and it is not known which samples are the same.
        """
        if budget == "dataset":
            samples = self.poisonable.nonzero().squeeze(1)
            coefficients = self.coefficients(queries)
            yield Round(samples, coefficients if len(samples) == len(self.targets) else coefficients[:, samples])
            return
        for step, coefficients in self.step_coefficients(queries):
            samples = self.sample_of_row[step.rows]
            allowed = self.poisonable[samples]
            yield Round(samples[allowed], coefficients[:, allowed])

    def round_sizes(self, budget: Budget) -> list[int]:
        """Number of poisonable positions in each round."""
        if budget == "dataset":
            return [int(self.poisonable.sum())]
        return [int(self.poisonable[self.sample_of_row[step.rows]].sum()) for step in reversed(self.steps)]

    def _inputs(self, features: Tensor) -> Tensor:
        """x̂: features in float64, with the 1 of the bias."""
        expected = self.initial.shape[1] - int(self.bias)
        if features.ndim != 2 or features.shape[1] != expected:
            raise ValueError(f"Expected queries of shape (queries, {expected}), but got {tuple(features.shape)}.")
        inputs = features.double()
        return torch.nn.functional.pad(inputs, (0, 1), value=1.0) if self.bias else inputs
