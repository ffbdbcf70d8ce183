"""Models whose outputs are an affine function of their training labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

Budget = Literal["dataset", "batch"]
"""What n counts: samples of the whole data set, each with one label for all epochs, or positions of every step's batch,
each with a fresh label, which is the threat model of `BoundedAdversary`."""

MEMORY = 2**28
"""Bytes of working memory, 256 MiB."""


class Predictions(NamedTuple):
    """Outputs for queries, and the rounding errors of outputs under any labels.

    Args:
        outputs: (Q, K), in units of the targets.
        constant: error of every output that does not depend on labels, (Q,).
        per_label: error for each unit of the largest label, (Q,).
    """

    outputs: Tensor
    constant: Tensor
    per_label: Tensor

    def slack(self, largest_label: float) -> Tensor:
        """Return the rounding error that one output can have, in the runs and in its computation, (Q,).

        Args:
            largest_label: largest magnitude of a label, changed or not.
        """
        return self.constant + self.per_label * largest_label


class BudgetGroup(NamedTuple):
    """A group of positions, of which the adversary chooses at most n, independently of all other groups.

    Args:
        samples: the sample at each position, int64 (m,); poisonable ones only.
        coefficients: a, (Q, m): label ``y`` at position i adds ``a_i y`` to the outputs.
    """

    samples: Tensor
    coefficients: Tensor


class LinearInLabels(Protocol):
    """A model ``f(x*) = constant(x*) + Σ_i a_i(x*) y_i`` of training labels y_i, with the same a_i for all outputs.

    Attributes:
        targets: y, (N, K) in float64.
        poisonable: samples whose label can be changed, boolean (N,).
    """

    @property
    def targets(self) -> Tensor: ...  # noqa: D102 - described in the class docstring

    @property
    def poisonable(self) -> Tensor: ...  # noqa: D102

    def predict(self, queries: Tensor) -> Predictions:
        """Return the outputs for features (Q, d), in float64."""
        ...

    def budget_groups(self, queries: Tensor, budget: Budget) -> Iterator[BudgetGroup]:
        """Yield one group for the data set, or one per step, last step first; their effects on the outputs add."""
        ...

    def group_sizes(self, budget: Budget) -> Sequence[int]:
        """Return the number of poisonable positions in each group."""
        ...


def query_chunks(queries: Tensor, bytes_per_query: int, memory: int) -> tuple[Tensor, ...]:
    """Split queries so that a chunk needs at most ``memory`` bytes, or is a single query.

    Example:
        >>> import torch
        >>> [len(chunk) for chunk in query_chunks(torch.zeros(5, 3), bytes_per_query=100, memory=250)]
        [2, 2, 1]
    """
    size = max(1, memory // max(1, bytes_per_query))
    return tuple(queries[start : start + size] for start in range(0, len(queries), size))
