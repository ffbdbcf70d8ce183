"""The width of a loss's gradient over inputs and parameters: a penalty for networks that are certified later.

The bounds are those that certify a training: the package's own passes forward and backward, through which torch
differentiates. Where they are tight, a poisoned sample can push a later training little.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from agt_lightning.adversaries import BoundedAdversary
from agt_lightning.adversaries.base import check_size
from agt_lightning.aggregation import SampleSet, bounded_descent
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.propagation.loss_capture import LossCapture
from agt_lightning.propagation.objective import BoundedObjective, Loss, ProgramCache, signature
from agt_lightning.rules import RULES, RuleTable, Value

_MEMORY_BUDGET = 32 * 2**20
"""Bytes for temporary tensors of a gradient whose factors straddle zero; see `bounded_descent`."""


class GradientWidth:
    r"""A penalty: the root mean square of ``g_U - g_L`` over all trained parameters, differentiable in them.

    ``[g_L, g_U]`` contains the gradient of the loss of a batch for **all** its inputs within ℓ∞ distance ``epsilon`` of
    where they are, cut to ``bounds``, and every parameter p moved by up to ``spread · |p|``; in real arithmetic. Where
    both are zero it is a point, and the width is zero. The mean, unlike the norm, does not grow with the network.

    Nothing is certified by it. Added to a loss, it makes networks whose bounds stay narrow in a training that is:

        loss = objective(module, batch) + 0.3 * width(batch)

    Args:
        module: owner of the parameters; gradients of those that require grad are bounded.
        loss: maps a module and a batch to the scalar loss.
        epsilon: radius of the inputs, in units of the features that enter the loss.
        spread: radius of each parameter, relative to it.
        bounds: smallest and largest value that a feature can have, such as (0, 1) for pixels.
        dtype: floating point type to compute in; that of the parameters unless gradients are to be checked.
        rules: bound rules by overload.

    Raises:
        ValueError: if a radius is negative or not finite.

    Reference:
        Wicker, Heo, Costabello and Weller, Robust Explanation Constraints for Neural Networks, 2022, who bound the
        gradient of the inputs; the paper's section 4 pre-trains with it.

    Example:
        >>> module = nn.Linear(2, 1)
        >>> width = GradientWidth(module, lambda m, x: m(x).square().mean(), epsilon=0.1, spread=0.01)
        >>> penalty = width(torch.ones(4, 2))
        >>> penalty.backward()
        >>> bool(penalty > 0), module.weight.grad.shape
        (True, torch.Size([1, 2]))
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        *,
        epsilon: float = 0.0,
        spread: float = 0.0,
        bounds: tuple[float, float] | None = None,
        dtype: torch.dtype = torch.float32,
        rules: RuleTable = RULES,
    ) -> None:
        check_size("spread", spread)
        self.module = module
        self.loss = loss
        self.inputs = BoundedAdversary(n=1, epsilon=epsilon, bounds=bounds if epsilon > 0 else None)
        self.spread = spread
        self.dtype = dtype
        self.rules = rules
        self._objective = ProgramCache(self._recorded, partial(signature, module))

    def __call__(self, batch: object) -> Tensor:
        """Compute the width for one batch, a scalar.

        Raises:
            UncertifiableError: if the loss has an operation without a bound, or is no sum over samples.
        """
        widths = torch.cat([bounds.width.flatten() for bounds in self.interval(batch).values()])
        norm: Tensor = torch.linalg.vector_norm(widths)
        return norm / math.sqrt(widths.numel())

    def interval(self, batch: object) -> dict[str, Interval]:
        """Compute ``[g_L, g_U]`` by parameter name; the bounds require grad where the module's parameters do.

        Raises:
            UncertifiableError: if the loss has an operation without a bound, or is no sum over samples.
        """
        bounded = self._objective(batch)
        size = bounded.size(batch)
        box = {name: _spread(p.to(self.dtype), self.spread) for name, p in self.module.named_parameters()}
        values: dict[str, Value] = bounded.inputs(self.module, batch, box, self.dtype)
        reachable = bounded.forward(bounded.poisoned(values, self.inputs, None))
        gradients = bounded.gradients(reachable, size, self.dtype)
        device = next(iter(box.values())).device
        weights = torch.full((size,), bounded.sample_weight(size), dtype=self.dtype, device=device)
        return {
            name: bounded_descent(gradient, None, SampleSet(weights), 0, _MEMORY_BUDGET)
            for name, gradient in gradients.items()
        }

    def _recorded(self, batch: object) -> BoundedObjective:
        bounded = LossCapture(self.rules).of(self.module, self.loss, batch)
        if bounded.problems:
            raise UncertifiableError(list(bounded.problems))
        return bounded


def _spread(parameter: Tensor, spread: float) -> Interval:
    """Return ``p ± spread |p|``, a point if the parameter is frozen or ``spread`` is zero."""
    if not spread or not parameter.requires_grad:
        return Interval.point(parameter)
    radius = spread * parameter.abs()
    return Interval.trusted(parameter - radius, parameter + radius)
