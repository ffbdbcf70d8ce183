"""Values of any number of hidden layers, derivatives that are propagated backward, and outputs, over the ball."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.domains.ball.analysis import BallAnalysis
from agt_lightning.domains.ball.layers import LayerBall
from agt_lightning.domains.ball.norms import with_one
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.step_data import Samples
from agt_lightning.domains.ball.unstable import Pairs, UnstableBetween
from agt_lightning.domains.losses import OutputBounds
from agt_lightning.interval import Interval
from agt_lightning.rounding import accumulated_roundoff


@dataclass(frozen=True)
class HiddenUnits:
    """The units behind one layer.

    Args:
        mask: one for units that are active at the nominal parameters, (b, h).
        size: ``|h|``, (b, h).
        change: how far each h can move within the ball, (b, h).
        lipschitz: c with ``‖Δh‖ <= c ‖δ‖``, (b,).
        roundoff: rounding of h, (b,).
        unstable: units that can switch within the ball.
    """

    mask: Tensor
    size: Tensor
    change: Tensor
    lipschitz: Tensor
    roundoff: Tensor
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
        return _unstable(self.size, self.change + more, self.roundoff, together, bounds)


def _unstable(
    size: Tensor, change: Tensor, roundoff: Tensor, together: Tensor, bounds: Sequence[Interval]
) -> UnstableBetween:
    """Units with ``|h| <= change``, up to rounding, whose sign no other domain fixes."""
    pairs = Pairs.where(size <= change + roundoff[:, None])
    if bounds:
        pairs = pairs.with_open_sign(*bounds)
    slack = accumulated_roundoff(size.shape[1] + 8, size.dtype)
    distance = (pairs.of(size) - roundoff[pairs.sample]).clamp(min=0)
    return UnstableBetween(pairs, distance, together.square() * (1 + slack))


class DeepBounds(BallAnalysis):
    """The part of the analysis that bounds values forward, derivatives backward, and the Jacobian.

    ``‖J̃‖² <= Σ_l ‖B̃_l‖² ‖ẑ̃_l‖²``, and the same for J̄.

    Args:
        ball: the layers and the ball.
        samples: at the nominal parameters.
        features: not used here.

    Attributes:
        layers: W_l.
        norms: ``‖W_l‖``.
        radius: R.
        inputs: z_l at the nominal parameters, (b, h) each.
        input_norms: ``‖ẑ_l‖``, (b,) each.
        magnitudes: magnitude that the rounding of each z_l, and last of f, is relative to, (b,) each.
        units: behind each layer but the last.
        input_changes: upper bound on ``‖Δz_l‖``, (b,) each.
        result_jacobians: ``B_l = ∂f/∂h_l`` of each layer's results, (b, K, h_l).
        activation_jacobians: ``∂f/∂z_{l+1}``, the same in front of the units' slopes, for each layer but the last.
        backward_norms: upper bound on ``‖B_l‖`` at the nominal parameters, (b,) each.
        backward_changes: upper bound on ``‖ΔB_l‖``, (b,) each.

    Reference:
        docs/theory.md, eq. (10.24) and (10.25), where an input has the number of the layer before, z_{l-1}.
    """

    def __init__(self, ball: LayerBall, samples: Samples, features: Perturbation | None = None) -> None:
        super().__init__(ball, samples, features)
        self.layers, self.radius = ball.layers, ball.radius
        self.norms = tuple(layer.norm for layer in self.layers)
        self.inputs = [samples.inputs, *(hidden.clamp(min=0) for hidden in samples.layers[:-1])]
        pairs = zip(self.inputs, self.layers, strict=True)
        self.input_norms = [with_one(values.norm(dim=1), layer.trains_bias) for values, layer in pairs]
        self.magnitudes = self._magnitudes()
        self.units = self._hidden_units()
        self.input_changes = [torch.zeros_like(self.input_norms[0])]
        self.input_changes += [self.radius * units.lipschitz for units in self.units]
        outputs = samples.outputs
        identity = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
        self.result_jacobians, self.activation_jacobians = self.backward(identity.expand(len(outputs), -1, -1))
        self.backward_norms = self._backward_norms()
        self.backward_changes = self.backward_changes_of(self.activation_jacobians, self.backward_norms)

    @cached_property
    @override
    def roundings(self) -> int:
        return 2 * sum(sum(layer.weight.shape) + 2 for layer in self.layers)

    @property
    def slack(self) -> float:
        """Relative rounding of outputs."""
        return accumulated_roundoff(self.roundings, self.samples.inputs.dtype)

    def _magnitudes(self) -> list[Tensor]:
        """Values if nothing cancelled anywhere, by Frobenius norms all the way."""
        magnitudes: list[Tensor] = [self.samples.inputs.norm(dim=1)]
        for layer in self.layers:
            offset = 0.0 if layer.bias is None else float(layer.bias.norm())
            magnitudes.append(float(layer.weight.norm()) * magnitudes[-1] + offset)
        return magnitudes

    def _hidden_units(self) -> list[HiddenUnits]:
        """Units behind each layer but the last, by the recursion of `_lipschitz`."""
        hidden_units: list[HiddenUnits] = []
        lipschitz, possibly_active = torch.zeros_like(self.input_norms[0]), torch.ones_like(self.samples.inputs)
        for number, layer in enumerate(self.layers[:-1]):
            rows = (possibly_active @ layer.weight.square().T).sqrt()
            of_each = self._lipschitz(rows, self.input_norms[number][:, None], lipschitz[:, None])
            lipschitz = self._lipschitz(self.norms[number], self.input_norms[number], lipschitz)
            # One unit's h moves no further than all of them.
            change = self.radius * torch.minimum(of_each, lipschitz[:, None])
            size, roundoff = self.samples.layers[number].abs(), self.slack * self.magnitudes[number + 1]
            bounds = [] if self.samples.layer_bounds is None else [self.samples.layer_bounds[number]]
            unstable = _unstable(size, change, roundoff, self.radius * lipschitz, bounds)
            mask = self.inputs[number + 1].sign()
            hidden_units.append(HiddenUnits(mask, size, change, lipschitz, roundoff, unstable))
            possibly_active = hidden_units[-1].possibly_active
        return hidden_units

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

    def _backward_norms(self) -> list[Tensor]:
        norms, product = [], 1.0
        for jacobian, norm in zip(self.result_jacobians[::-1], self.norms[::-1], strict=True):
            norms.append(jacobian.flatten(1).norm(dim=1).clamp(max=product))
            product *= norm
        return norms[::-1]

    def backward_changes_of(self, at_activations: Sequence[Tensor], norms: Sequence[Tensor]) -> list[Tensor]:
        """Bound how far what is propagated backward from the outputs moves within the ball, at each layer's results.

        ``ΔB_l = ΔB_{l+1} W̃ M̃ + B_{l+1} δ M̃ + B_{l+1} W (M̃ - M)``, masks M and the layer behind, W + δ = W̃; the last is
        not zero for units that switch alone.

        Args:
            at_activations: in front of each layer's units, (b, q, h).
            norms: upper bounds on the norm at each layer's results, (b,).
        """
        changes, jump = [torch.zeros_like(norms[-1])], torch.zeros_like(norms[-1])
        for number in range(len(self.units) - 1, -1, -1):
            behind, norm = number + 1, self.norms[number + 1]
            smooth = norm * (changes[-1] - jump) + self.radius * changes[-1] + self.radius * norms[behind]
            if behind < len(self.units):
                weight = self.layers[behind].weight
                smooth = smooth + self.units[behind].unstable.product(at_activations[behind], weight, norm)
            jump = self.units[number].unstable.columns(at_activations[number])
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
        norm: Tensor = torch.stack([backward * values for backward, values in pairs]).norm(dim=0)
        return norm

    @property
    @override
    def output_magnitude(self) -> Tensor:
        return self.magnitudes[-1]

    @cached_property
    @override
    def jacobian_magnitude(self) -> Tensor:
        """The norm if nothing cancelled anywhere, by Frobenius norms."""
        behind = [
            math.prod(float(later.weight.norm()) for later in self.layers[number + 1 :])
            for number in range(len(self.layers))
        ]
        sizes = zip(behind, self.magnitudes, self.layers, strict=False)
        rows = torch.stack([product * with_one(size, layer.trains_bias) for product, size, layer in sizes])
        norm: Tensor = rows.norm(dim=0)
        magnitude: Tensor = norm * math.sqrt(self.samples.outputs.shape[1])
        return magnitude

    @cached_property
    @override
    def outputs(self) -> OutputBounds:
        """``‖Δf‖ <= R c``, or R times the largest Jacobian, cut to the bounds of another domain."""
        lipschitz = self._lipschitz(self.norms[-1], self.input_norms[-1], self.units[-1].lipschitz)
        change = self.radius * torch.minimum(lipschitz, self.jacobian_norm)
        roundoff = self.slack * self.magnitudes[-1]
        return OutputBounds.around(self.samples.outputs, change + 2 * roundoff, self.samples.output_bounds)
