"""Values of any number of hidden layers, derivatives that are propagated backward, and outputs, over the ball."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.ball.analysis import BallAnalysis
from agt_lightning.domains.ball.layers import LayerBall
from agt_lightning.domains.ball.norms import norms_on, with_one
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.roundoff import HeadRoundoff, largest_row_errors, result_errors
from agt_lightning.domains.ball.step_data import Samples
from agt_lightning.domains.ball.unstable import Pairs, UnstableBetween
from agt_lightning.domains.losses import OutputBounds
from agt_lightning.interval import Interval


@dataclass(frozen=True)
class HiddenUnits:
    """The units behind one layer.

    Args:
        mask: one for units that are active at the nominal parameters, (b, h).
        size: ``|h|``, (b, h).
        change: how far each h can move within the ball, (b, h).
        lipschitz: c with ``‖Δh‖ <= c ‖δ‖``, (b,).
        roundoff: rounding of each h, (b,).
        budget_slack: relative rounding of ``‖Δh‖²``.
        unstable: units that can switch within the ball.
    """

    mask: Tensor
    size: Tensor
    change: Tensor
    lipschitz: Tensor
    roundoff: Tensor
    budget_slack: float
    unstable: UnstableBetween

    @cached_property
    def possibly_active(self) -> Tensor:
        """One for units that may be active in the ball, (b, h)."""
        pairs = self.unstable.pairs
        return self.mask.index_put((pairs.sample, pairs.unit), self.mask.new_ones(()))

    @property
    def overshoot(self) -> Tensor:
        """Largest distance beyond zero of the h of a unit that switches: the error of its nominal slope, (b, h)."""
        pairs = self.unstable.pairs
        beyond = (pairs.of(self.change) - self.unstable.distance).clamp(min=0)
        return torch.zeros_like(self.mask).index_put((pairs.sample, pairs.unit), beyond)

    def unstable_within(self, more: Tensor, together: Tensor, bounds: Sequence[Interval]) -> UnstableBetween:
        """Return units that can switch if each h moves further than within the ball.

        Args:
            more: by how much each h moves beyond `change`, (b, h).
            together: how far all of them move, ``‖Δh‖``, (b,).
            bounds: on h from another domain, all of which hold together; empty without one.
        """
        budget = together.square() * (1 + self.budget_slack)
        return _unstable(self.size, self.change + more, self.roundoff, budget, bounds)


def _unstable(
    size: Tensor, change: Tensor, roundoff: Tensor, budget: Tensor, bounds: Sequence[Interval]
) -> UnstableBetween:
    """Units with ``|h| <= change``, up to rounding, whose sign no other domain fixes."""
    pairs = Pairs.where(size <= change + roundoff[:, None])
    if bounds:
        pairs = pairs.with_open_sign(*bounds)
    distance = (pairs.of(size) - roundoff[pairs.sample]).clamp(min=0)
    return UnstableBetween(pairs, distance, budget)


class DeepBounds(BallAnalysis):
    """The part of the analysis that bounds values forward, derivatives backward, and the Jacobian.

    ``‖J̃‖² <= Σ_l ‖B̃_l‖² ‖ẑ̃_l‖²``, and the same for J̄.

    Args:
        ball: the layers and the ball.
        samples: at the nominal parameters.
        features: what the adversary can do to their features, of which the rounding of poisoned samples depends; None
            if they stay.

    Attributes:
        layers: W_l.
        norms: ``‖W_l‖``.
        radius: R.
        inputs: z_l at the nominal parameters, (b, h) each.
        input_norms: ``‖ẑ_l‖``, (b,) each, with its rounding.
        errors: rounding of z_l over the ball, and last of f, (b,) each.
        units: behind each layer but the last.
        input_changes: upper bound on ``‖Δz_l‖``, (b,) each.
        result_jacobians: ``B_l = ∂f/∂h_l`` of each layer's results, (b, K, h_l).
        activation_jacobians: ``∂f/∂z_{l+1}``, the same in front of the units' slopes, for each layer but the last.
        jacobian_errors: own rounding of both, for each layer, (b,).
        backward_norms: upper bound on ``‖B_l‖`` at the nominal parameters, (b,) each.
        backward_changes: upper bound on ``‖ΔB_l‖``, (b,) each.

    Reference:
        docs/theory.md, eq. (10.24) and (10.25), where an input has the number of the layer before, z_{l-1}.
        docs/floats.md, eq. (B.7).
    """

    def __init__(self, ball: LayerBall, samples: Samples, features: Perturbation | None = None) -> None:
        super().__init__(ball, samples, features)
        self.layers, self.radius = ball.layers, ball.radius
        self.norms = tuple(layer.norm for layer in self.layers)
        self.inputs = [samples.inputs, *(hidden.clamp(min=0) for hidden in samples.layers[:-1])]
        self.outward = 1 + ball.arithmetic.own_relative(self.roundings)
        self.moved = None if features is None else features.norm()
        self.input_norms: list[Tensor] = []
        self.errors = [self.input_error]
        self.units = self._hidden_units()
        self.input_changes = [torch.zeros_like(self.input_norms[0])]
        self.input_changes += [self.radius * units.lipschitz for units in self.units]
        outputs = samples.outputs
        identity = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
        self.result_jacobians, self.activation_jacobians = self.backward(identity.expand(len(outputs), -1, -1))
        self.jacobian_errors = self.backward_errors(torch.full_like(self.input_norms[0], outputs.shape[1] ** 0.5))
        self.backward_norms = self._backward_norms()
        self.backward_changes = self.backward_changes_of(
            self.activation_jacobians, self.jacobian_errors, self.backward_norms
        )

    def _hidden_units(self) -> list[HiddenUnits]:
        """Return units behind each layer but the last, by the recursion of `_lipschitz`; fill norms and errors."""
        hidden_units: list[HiddenUnits] = []
        lipschitz, possibly_active = torch.zeros_like(self.input_error), torch.ones_like(self.samples.inputs)
        for number, layer in enumerate(self.layers):
            own_error = self.errors[-1] if number else 0.0  # features are exact where bounds are centered
            norm = with_one(euclidean_norm(self.inputs[number], dim=1) + own_error, layer.trains_bias)
            self.input_norms.append(norm)
            largest = norm + self.radius * lipschitz + self._moved_to(number)
            self.errors.append(result_errors(self.ball, layer, largest, self.errors[-1]))
            if number == len(self.layers) - 1:
                break
            rows = norms_on(possibly_active, layer.weight)
            of_each = self._lipschitz(rows, norm[:, None], lipschitz[:, None])
            lipschitz = self._lipschitz(self.norms[number], norm, lipschitz)
            # One unit's h moves no further than all of them.
            change = self.outward * self.radius * torch.minimum(of_each, lipschitz[:, None])
            size, roundoff = self.samples.layers[number].abs(), self._unit_errors(number, largest)
            bounds = [] if self.samples.layer_bounds is None else [self.samples.layer_bounds[number]]
            budget = self.outward * (self.radius * lipschitz).square()
            unstable = _unstable(size, change, roundoff, budget, bounds)
            mask = self.inputs[number + 1].sign()
            units = HiddenUnits(mask, size, change, lipschitz, roundoff, self.outward - 1, unstable)
            hidden_units.append(units)
            possibly_active = units.possibly_active
        return hidden_units

    def _unit_errors(self, number: int, largest: Tensor) -> Tensor:
        """Rounding of each h of a layer, (b,)."""
        return largest_row_errors(self.ball, self.layers[number], largest, self.errors[number])

    def _moved_to(self, number: int) -> Tensor | float:
        """How far poisoned features move the input of a layer, (b,) or (1,)."""
        if self.moved is None:
            return 0.0
        return math.prod(norm + self.radius for norm in self.norms[:number]) * self.moved

    def _lipschitz(self, weight: Tensor | float, input_norm: Tensor, lipschitz: Tensor) -> Tensor:
        """``c_l = ((‖W_l‖ c_{l-1})² + ‖ẑ_l‖²)^½ + R/2 c_{l-1}``: the layers before and layer l share the radius."""
        return torch.hypot(weight * lipschitz, input_norm) + self.radius / 2 * lipschitz

    def backward(self, signal: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Propagate the rows of ``signal`` from the outputs backward, at the nominal parameters.

        Args:
            signal: (b, q, K).

        Returns:
            ``signal · B_l`` at each layer's results, (b, q, h_l), and the same in front of the units' slopes.
        """
        at_results, at_activations = [signal], []
        for layer, units in zip(self.layers[:0:-1], self.units[::-1], strict=True):
            at_activations.append(at_results[-1] @ layer.weight)
            at_results.append(at_activations[-1] * units.mask[:, None])
        return at_results[::-1], at_activations[::-1]

    def backward_errors(self, norm: Tensor, error: Tensor | float = 0.0) -> list[Tensor]:
        """Bound the own rounding of what `backward` returns, for each layer, before and behind the units' slopes.

        Args:
            norm: of the signal, Frobenius, (b,).
            error: norm of its rounding, (b,).
        """
        errors, size = [error + torch.zeros_like(norm)], norm
        for layer in self.layers[:0:-1]:
            relative = self.ball.arithmetic.own_relative(len(layer.weight))
            errors.append(layer.norm * errors[-1] + relative * layer.frobenius * (size + errors[-1]))
            size = layer.norm * size
        return errors[::-1]

    def _backward_norms(self) -> list[Tensor]:
        norms, product = [], 1.0
        jacobians = zip(self.result_jacobians[::-1], self.jacobian_errors[::-1], self.norms[::-1], strict=True)
        for jacobian, error, norm in jacobians:
            norms.append((euclidean_norm(jacobian.flatten(1), dim=1) + error).clamp(max=product))
            product *= norm
        return norms[::-1]

    def backward_changes_of(
        self, at_activations: Sequence[Tensor], errors: Sequence[Tensor], norms: Sequence[Tensor]
    ) -> list[Tensor]:
        """Bound how far what is propagated backward from the outputs moves within the ball, at each layer's results.

        ``ΔB_l = ΔB_{l+1} W̃ M̃ + B_{l+1} δ M̃ + B_{l+1} W (M̃ - M)``, masks M and the layer behind, W + δ = W̃; the last is
        not zero for units that switch alone.

        Args:
            at_activations: in front of each layer's units, (b, q, h).
            errors: own rounding of these, (b,).
            norms: upper bounds on the norm at each layer's results, (b,).
        """
        changes, smooth = [torch.zeros_like(norms[-1])], torch.zeros_like(norms[-1])
        for number in range(len(self.units) - 1, -1, -1):
            behind, norm = number + 1, self.norms[number + 1]
            smooth = norm * smooth + self.radius * changes[-1] + self.radius * norms[behind]
            if behind < len(self.units):
                matrices = at_activations[behind], errors[behind]
                product = self.units[behind].unstable.product(*matrices, self.layers[behind].weight, norm)
                smooth = smooth + product
            jump = self.units[number].unstable.columns(at_activations[number], errors[number])
            changes.append(smooth + jump)
        return changes[::-1]

    @cached_property
    def largest_inputs(self) -> list[Tensor]:
        """Upper bounds on ``‖ẑ̃_l‖`` anywhere in the ball, (b,) each."""
        return [norm + change for norm, change in zip(self.input_norms, self.input_changes, strict=True)]

    @cached_property
    def largest_backward(self) -> list[Tensor]:
        """Upper bounds on ``‖B̃_l‖`` anywhere in the ball, (b,) each."""
        return [norm + change for norm, change in zip(self.backward_norms, self.backward_changes, strict=True)]

    @cached_property
    @override
    def jacobian_norm(self) -> Tensor:
        pairs = zip(self.largest_backward, self.largest_inputs, strict=True)
        norm: Tensor = euclidean_norm(torch.stack([backward * values for backward, values in pairs]), dim=0)
        return norm

    @cached_property
    @override
    def roundoff(self) -> HeadRoundoff:
        return HeadRoundoff(self.ball, self.largest_inputs, self.errors, self.largest_backward)

    @cached_property
    @override
    def outputs(self) -> OutputBounds:
        """``‖Δf‖ <= R c``, or R times the largest Jacobian, cut to the bounds of another domain."""
        lipschitz = self._lipschitz(self.norms[-1], self.input_norms[-1], self.units[-1].lipschitz)
        change = self.radius * torch.minimum(lipschitz, self.jacobian_norm)
        change = self.outward * (change + 2 * self.errors[-1])
        return OutputBounds.around(self.samples.outputs, change, self.samples.output_bounds)
