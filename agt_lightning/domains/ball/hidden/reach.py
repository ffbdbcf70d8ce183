"""One hidden layer of ReLUs: suprema over the ball for ``f(x) = W₂ relu(W₁ x̂) + β₂`` (theory, "The ball domain")."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from agt_lightning.domains.ball.enclosure import Layer
from agt_lightning.domains.ball.hidden.signs import Look, NearUnits, Signs
from agt_lightning.domains.ball.norms import spectral_norm, with_one
from agt_lightning.domains.ball.perturbation import Carried, Perturbation
from agt_lightning.domains.ball.samples import Samples
from agt_lightning.domains.losses import OutputBounds
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
    def squares(self) -> Tensor:
        """Their squares, (h,)."""
        return self.columns.square()

    @cached_property
    def second_norm(self) -> float:
        """``‖W₂‖``."""
        return spectral_norm(self.second)

    @cached_property
    def first_norm(self) -> float:
        """``‖W₁‖``."""
        return spectral_norm(self.first)


class HiddenReach:
    """Where hidden units and outputs of samples can be while the parameters are in the ball.

    Args:
        layer: the layers and the ball.
        samples: at the nominal parameters.
        moves: what the adversary can do to their features; None if they stay.

    Attributes:
        hidden: h, (b, h).
        hidden_box: bounds on it from another domain; None without one.
        signs: of h.
        carried: how far features and preactivations move; None if features stay.
        input_norm: ``‖x̂‖``, (b,).
        activation_norm: ``‖ẑ‖``, (b,).
        doubt: rounding of h, (b,): a unit this close to zero counts as one that can switch.
        unsure: units that can switch within the ball, features moved or not; no other domain is asked.
        near: units that can switch within the ball.
        distance: how far their weights must move at least for that, (m,).
        frobenius_on: ``‖W₂‖_F`` on units that are active somewhere in the ball, (b,).
        slope: upper bound on how fast outputs move with parameters at first order, (b,).
    """

    def __init__(self, layer: HiddenLayer, samples: Samples, moves: Perturbation | None = None) -> None:
        self.layer = layer
        self.samples = samples
        self.hidden = samples.layers[0]
        self.hidden_box = None if samples.boxes is None else samples.boxes[0]
        self.signs = Signs(self.hidden)
        self.slack = accumulated_roundoff(sum(layer.first.shape) + 2, self.hidden.dtype)
        length = samples.inputs.norm(dim=1)
        self.input_norm = with_one(length, layer.trains_first_bias)
        self.doubt = self.slack * (length * layer.first.norm(dim=1).max() + layer.first_bias.abs().max())
        self.carried = None if moves is None else Carried.through(layer.first, moves)
        look = self._look()
        self.activation_norm = with_one(look.activation_norm, layer.trains_second_bias)
        self.unsure = look.near
        self.near = self._not_fixed(self._within_ball(look.near))
        least = torch.finfo(self.doubt.dtype).tiny
        self.distance = self.away(self.near) / self.near.by_sample(self.input_norm.clamp(min=least))
        self._squares_on = look.sum_on
        self.frobenius_on = self.frobenius(self.near)
        self.slope = torch.hypot(self.activation_norm, self.weight_on * self.input_norm)

    def _look(self) -> Look:
        if self.carried is None:
            return self.signs.look(self._movement(self.input_norm), None, self.layer.squares)
        longest = self._movement(self.input_norm + self.carried.length)
        return self.signs.look(longest, self.carried.along, self.layer.squares)

    def _movement(self, norm: Tensor) -> Tensor:
        """How far h can move within the ball, and its rounding, (b,)."""
        movement: Tensor = self.layer.radius * norm + self.doubt
        return movement

    def _within_ball(self, units: NearUnits) -> NearUnits:
        """Those that can switch without a movement of features."""
        if self.carried is None:
            return units
        return units.among(units.hidden.abs() <= units.by_sample(self._movement(self.input_norm)))

    @property
    def weight_on(self) -> Tensor:
        """Upper bound on ``‖W₂‖`` on units that are active somewhere in the ball, (b,)."""
        return self.frobenius_on.clamp(max=self.layer.second_norm)

    def away(self, units: NearUnits) -> Tensor:
        """Lower bound on ``|h|``, (m,)."""
        return (units.hidden.abs() - units.by_sample(self.doubt)).clamp(min=0)

    def frobenius(self, unsure: NearUnits) -> Tensor:
        """``‖W₂‖_F`` on units that are active, and those that may be, (b,)."""
        added = unsure.by_unit(self.layer.squares) * (unsure.hidden <= 0)
        return (self._squares_on + unsure.sums(added, len(self.hidden))).sqrt()

    def _not_fixed(self, units: NearUnits) -> NearUnits:
        """Without the units whose sign another domain knows."""
        if self.hidden_box is None:
            return units
        lower, upper = units.of(self.hidden_box.lower), units.of(self.hidden_box.upper)
        return units.among((lower <= 0) & (upper >= 0))

    def rounding(self, terms: int) -> float:
        """Relative rounding of a sum of ``terms`` gradients, with respect to the sum of magnitudes."""
        return accumulated_roundoff(terms + sum(self.layer.first.shape) + 4, self.hidden.dtype)

    @cached_property
    def outputs(self) -> OutputBounds:
        """Reachable outputs of the samples as they are."""
        radius = self.layer.radius
        moved = radius * self.slope + radius * radius / 2 * self.input_norm
        doubt = self.slack * (self.activation_norm * self.layer.second_norm + self.samples.outputs.norm(dim=1))
        return OutputBounds.around(self.samples.outputs, moved + 2 * doubt, self.samples.output_box)
