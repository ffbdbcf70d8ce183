"""The adjoint of one training step of a linear head: how a query looks at the parameters before it.

A head ``W`` (K, D) that is trained with gradient ``Σ_i c_i (W x̂_i - y_i) x̂_iᵀ`` moves linearly in W, in its momentum
buffer M and in the labels, and alike in every output. So a functional ``W v + M u`` of the state after a step is one of
the state before it, plus ``Σ_i a_i y_i``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from agt_lightning.domains.influence.sgd_map import SGDMap


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
        """The outputs ``W x̂*`` themselves, for inputs (Q, D)."""
        return cls(inputs, torch.zeros_like(inputs))

    def norms(self) -> Tensor:
        """Euclidean norms of v and u, (Q, 2)."""
        return torch.stack([self.parameter.norm(dim=1), self.buffer.norm(dim=1)], dim=1)


@dataclass(frozen=True, eq=False)
class HeadStep:
    """What one optimizer step did to the head, without the features and labels it used.

    Args:
        rows: rows of the table of features, int64 (b,).
        slopes: c_i, (b,): the gradient of output k is ``Σ_i c_i (w_k·x̂_i - y_ik) x̂_i``. For `torch.nn.MSELoss`, the
            mean over batch and outputs, 2 / (b K).
        update: the optimizer's update.
    """

    rows: Tensor
    slopes: Tensor
    update: SGDMap


def step_back(step: HeadStep, inputs: Tensor, after: Adjoint) -> tuple[Tensor, Adjoint]:
    r"""Rewrite functionals of the state after a step as functionals of the state before it.

    With ``z = share ∘ u - step ∘ v`` the direction d enters ``W v + M u`` as ``d z``, and
    ``d = Σ_i c_i (W x̂_i - y_i) x̂_iᵀ + W decay``. So

    .. math::
        a_i = -c_i \hat x_i^T z, \quad v \leftarrow v - \sum_i a_i \hat x_i + \text{decay} \circ z, \quad
        u \leftarrow \text{keep} \circ u - \text{carry} \circ v.

    Args:
        step: the step.
        inputs: x̂ of its samples, (b, D).
        after: functionals of the state after it.

    Returns:
        The coefficients a of the labels at this step, (Q, b), and the functionals of the state before it.

    Example:
        >>> from agt_lightning.domains.influence.sgd_map import UpdateFactors
        >>> from agt_lightning.domains.sgd import SGDSettings
        >>> update = SGDMap.of_columns([UpdateFactors.of_settings(SGDSettings(0.1), started=False)], torch.device("cpu"))
        >>> step = HeadStep(torch.tensor([0]), torch.tensor([2.0]).double(), update)
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> coefficients, before = step_back(step, one, Adjoint.of_queries(one))
        >>> coefficients, before.parameter     # θ - 0.1 * 2 (θ - y) = 0.8 θ + 0.2 y
        (tensor([[0.2000]], dtype=torch.float64), tensor([[0.8000]], dtype=torch.float64))

    Reference:
        docs/theory.md, "Exact influence of labels".
    """
    update = step.update
    through = update.share * after.buffer - update.step * after.parameter
    coefficients = -(through @ inputs.T) * step.slopes
    parameter = after.parameter - coefficients @ inputs + update.decay * through
    return coefficients, Adjoint(parameter, update.keep * after.buffer - update.carry * after.parameter)
