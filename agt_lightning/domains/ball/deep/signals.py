"""The loss's gradient, propagated backward through a head at the nominal parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.ball.deep.bounds import DeepBounds
from agt_lightning.domains.ball.output_gradient import OutputGradient


@dataclass(frozen=True)
class Signals:
    """``e_l = B_lᵀ g`` of each layer's results, and the same in front of the units' slopes.

    Args:
        at_results: (b, h_l) each.
        at_activations: in front of the slopes, for each layer but the last, (b, h_l).
        errors: upper bound on the norm of the own rounding of both, (b,) each.
        norms: upper bound on ``‖e_l‖``, (b,) each.
    """

    at_results: Sequence[Tensor]
    at_activations: Sequence[Tensor]
    errors: Sequence[Tensor]
    norms: Sequence[Tensor]

    @classmethod
    def of(cls, bounds: DeepBounds, gradient: OutputGradient) -> Self:
        """Propagate ``g`` at the nominal parameters.

        Args:
            bounds: of the samples.
            gradient: of the same.
        """
        propagated = bounds.backward(gradient.nominal[:, None])
        at_results, at_activations = ([signal.squeeze(1) for signal in signals] for signals in propagated)
        errors = bounds.backward_errors(gradient.norm, gradient.error)
        norms = [euclidean_norm(signal, dim=1) + error for signal, error in zip(at_results, errors, strict=True)]
        return cls(at_results, at_activations, errors, norms)
