"""How far samples that an adversary brings and takes move one step, at the nominal parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.aggregation import BatchEdits, Choice
from agt_lightning.arithmetic import euclidean_norm

_RATIO = 2.0**-48
"""Above the rounding of a quotient of two weights, each a quotient itself."""


@dataclass(frozen=True)
class NominalSamples:
    """The clipped gradients ``c_i = r_i x̂_iᵀ`` of a batch at the nominal parameters.

    Args:
        inputs: x̂, (b, d).
        outputs: r as computed, (b, K).
        norms: upper bound on ``‖c_i‖``, (b,).
        errors: how far a computed ``c_i`` can be off, with its share in the error of a sum, (b,).
        weights: of each sample in the loss, (b,).
        kappa: upper bound on the norm of a clipped gradient of any sample, with its share in the error of a sum.
        relative: rounding of the sums here.
    """

    inputs: Tensor
    outputs: Tensor
    norms: Tensor
    errors: Tensor
    weights: Tensor
    kappa: float
    relative: float


class ForeignSamples(ABC):
    """Samples that an adversary brings into a batch, and those that it takes away.

    Args:
        n: how many, at most.
        poisonable: positions of those that it can take, (m,); None means all.
    """

    def __init__(self, n: int, poisonable: Tensor | None) -> None:
        self.n = n
        self.poisonable = poisonable

    @abstractmethod
    def heaviest(self, weights: Tensor) -> Tensor:
        """Return the largest weight that each sample can get, (b,), from that which it has."""

    @abstractmethod
    def largest(self, samples: NominalSamples) -> float:
        """Bound ``‖e‖``, e what the change of samples adds to the weighted sum of all ``c_i``."""

    def _select(self, values: Tensor) -> Tensor:
        return values if self.poisonable is None else values[self.poisonable]


class Replacements(ForeignSamples):
    """Samples are replaced by any others, which get their weights.

    Args:
        choice: the sets of samples that can be replaced together.
        poisonable: positions of those that can, (m,); None means all.
    """

    def __init__(self, choice: Choice, poisonable: Tensor | None) -> None:
        super().__init__(choice.samples, poisonable)
        self._choice = choice

    @override
    def heaviest(self, weights: Tensor) -> Tensor:
        return weights

    @override
    def largest(self, samples: NominalSamples) -> float:
        """``SEMax_n w_i (κ + ‖c_i‖)``.

        Reference:
            docs/theory.md, section 10.12.
        """
        moved = self._select(samples.weights * (samples.kappa + samples.norms))
        return float(self._choice.largest(moved))


class Edits(ForeignSamples):
    """Up to n samples are inserted and deleted, together, which changes the weight of all.

    Args:
        edits: how many, and the weights that they lead to.
        poisonable: positions of those that can be deleted, (m,); None means all.
    """

    def __init__(self, edits: BatchEdits, poisonable: Tensor | None) -> None:
        super().__init__(edits.n, poisonable)
        self.weights = edits.weights

    @override
    def heaviest(self, weights: Tensor) -> Tensor:
        return torch.full_like(weights, max(self.weights.values()))

    @override
    def largest(self, samples: NominalSamples) -> float:
        """The largest ``w' (j κ + max_D ‖Σ_{i ∈ D} c_i - (1 - w / w') Σ_i c_i‖)``, over all sizes of the batch.

        Reference:
            docs/theory.md, eq. (10.41).
        """
        deviations = _Deviations.of(samples)
        removable = len(self._select(samples.norms))
        weight = float(samples.weights[0])
        candidates = []
        for change, changed in self.weights.items():
            gone = min(removable, (self.n - change) // 2)
            share = 1 - weight / changed
            moved = self._gone(deviations, gone, share)
            candidates.append(changed * ((gone + change) * samples.kappa + moved))
        return max(candidates)

    def _gone(self, deviations: _Deviations, count: int, share: float) -> float:
        """Bound ``‖Σ_{i ∈ D} c_i - share Σ_i c_i‖`` over sets D of so many samples."""
        if count == 0:
            return (abs(share) + _RATIO) * (deviations.total + deviations.total_error)
        return float(self._select(deviations.from_share(share / count)).topk(count).values.sum())


@dataclass(frozen=True)
class _Deviations:
    """Distances of clipped gradients from multiples of their sum ``s = Σ_k c_k``.

    Args:
        norms: ``‖c_i‖``, (b,), as computed as all that follows.
        products: ``⟨c_i, s⟩``, (b,).
        errors: of each computed ``c_i``, (b,).
        total: ``‖s‖``.
        total_error: of the computed s.
        relative: rounding of the sums here.
    """

    norms: Tensor
    products: Tensor
    errors: Tensor
    total: float
    total_error: float
    relative: float

    @classmethod
    def of(cls, samples: NominalSamples) -> _Deviations:
        total = samples.outputs.T @ samples.inputs
        return cls(
            norms=euclidean_norm(samples.outputs, dim=1) * euclidean_norm(samples.inputs, dim=1),
            products=((samples.inputs @ total.T) * samples.outputs).sum(dim=1),
            errors=samples.errors,
            total=float(euclidean_norm(total)),
            total_error=float(samples.errors.sum()),
            relative=samples.relative,
        )

    def from_share(self, share: float) -> Tensor:
        """Upper bound on ``‖c_i - share s‖``, (b,): the square is expanded, and its rounding added."""
        sizes = self.norms + abs(share) * self.total
        squares = self.norms.square() - 2 * share * self.products + (share * self.total) ** 2
        distances = (squares + self.relative * sizes.square()).clamp(min=0).sqrt()
        return distances + self.errors + abs(share) * self.total_error + _RATIO * (self.total + self.total_error)
