"""One hidden layer of ReLUs: suprema over the ball for ``f(x) = W₂ relu(W₁ x̂) + β₂`` (theory, "The ball domain")."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from agt_lightning.domains.ball.enclosure import Layer
from agt_lightning.domains.ball.losses import Reach
from agt_lightning.domains.ball.norms import spectral_norm, with_one
from agt_lightning.domains.ball.samples import Samples
from agt_lightning.rounding import accumulated_roundoff


@dataclass(frozen=True)
class HiddenLayer:
    """The two trained layers at the nominal parameters, and the radius of the ball around them.

    Args:
        first: W₁ without bias, (h, d).
        first_bias: bias of the first layer, (h,); zeros without one.
        second: W₂ without bias, (K, h).
        trains_first_bias: whether the first bias is trained, that is, x̂ = (x, 1).
        trains_second_bias: the same for the second layer.
        radius: R.
    """

    first: Tensor
    first_bias: Tensor
    second: Tensor
    trains_first_bias: bool
    trains_second_bias: bool
    radius: float

    @classmethod
    def of(cls, first: Layer, second: Layer, radius: float) -> HiddenLayer:
        """From the two layers as the head has them."""
        bias = torch.zeros_like(first.weight[:, 0]) if first.bias is None else first.bias
        return cls(first.weight, bias, second.weight, first.trains_bias, second.trains_bias, radius)

    @cached_property
    def columns(self) -> Tensor:
        """``‖W₂ e_j‖``, (h,)."""
        norms: Tensor = self.second.norm(dim=0)
        return norms

    @cached_property
    def second_norm(self) -> float:
        """``‖W₂‖``."""
        return spectral_norm(self.second)

    @cached_property
    def first_norm(self) -> float:
        """``‖W₁‖``."""
        return spectral_norm(self.first)

    def frobenius(self, units: Tensor) -> Tensor:
        """``‖W₂ diag(m_i)‖_F`` for units m_i, boolean (b, h); (b,)."""
        return (units.to(self.second.dtype) @ self.columns.square()).sqrt()

    def on(self, units: Tensor) -> Tensor:
        """Upper bound on ``‖W₂ diag(m_i)‖`` for units m_i, boolean (b, h); (b,)."""
        return self.frobenius(units).clamp(max=self.second_norm)


class HiddenReach:
    """Where hidden units and outputs of samples can be while the parameters are in the ball.

    Args:
        layer: the layers and the ball.
        samples: at the nominal parameters.

    Attributes:
        input_norm: ``‖x̂‖``, (b,).
        activation_norm: ``‖ẑ‖``, (b,).
        mask: units that are active at the nominal parameters, (b, h).
        doubt: rounding of h, (b, h): a unit this close to zero counts as one that can switch.
        possibly_on: units that are active somewhere in the ball, (b, h).
        weight_on: upper bound on ``‖W₂‖`` over these units, (b,).
        slope: upper bound on how fast outputs move with parameters at first order, (b,).
    """

    def __init__(self, layer: HiddenLayer, samples: Samples) -> None:
        self.layer = layer
        self.samples = samples
        self.hidden = samples.layers[0]
        self.hidden_box = None if samples.boxes is None else samples.boxes[0]
        hidden = self.hidden
        self.slack = accumulated_roundoff(samples.inputs.shape[1] + hidden.shape[1] + 2, hidden.dtype)
        length = samples.inputs.norm(dim=1)
        self.input_norm = with_one(length, layer.trains_first_bias)
        self.activation_norm = with_one(hidden.clamp(min=0).norm(dim=1), layer.trains_second_bias)
        self.mask = hidden > 0
        self.doubt = self.slack * (length[:, None] * layer.first.norm(dim=1) + layer.first_bias.abs())
        self.possibly_on = self.beyond(layer.radius * self.input_norm)
        self.weight_on = layer.on(self.possibly_on)
        self.slope = torch.hypot(self.activation_norm, self.weight_on * self.input_norm)

    def beyond(self, movement: Tensor) -> Tensor:
        """Units that a change of their preactivation by ``movement``, (b,) or (b, h), can leave active; (b, h)."""
        movement = movement if movement.ndim == 2 else movement[:, None]
        on: Tensor = self.hidden >= -(movement + self.doubt)
        return on if self.hidden_box is None else on & (self.hidden_box.upper >= 0)

    def rounding(self, terms: int) -> float:
        """Relative rounding of a sum of ``terms`` gradients, with respect to the sum of magnitudes."""
        return accumulated_roundoff(terms + sum(self.layer.first.shape) + 4, self.hidden.dtype)

    @cached_property
    def distance(self) -> Tensor:
        """How far the weights of a unit must move to switch it for a sample, (b, h); infinite if it cannot switch."""
        least = torch.finfo(self.doubt.dtype).tiny
        away: Tensor = (self.hidden.abs() - self.doubt).clamp(min=0) / self.input_norm.clamp(min=least)[:, None]
        box = self.hidden_box
        return away if box is None else away.masked_fill((box.lower > 0) | (box.upper < 0), torch.inf)

    @cached_property
    def outputs(self) -> Reach:
        """Reachable outputs of the samples as they are."""
        radius = self.layer.radius
        moved = radius * self.slope + radius * radius / 2 * self.input_norm
        doubt = self.slack * (self.activation_norm * self.layer.second_norm + self.samples.outputs.norm(dim=1))
        return Reach.around(self.samples.outputs, moved + 2 * doubt, self.samples.output_box)
