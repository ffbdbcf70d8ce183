"""Any number of hidden layers: suprema over the ball of values, of signals that are sent back, and of outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from agt_lightning.domains.ball.deep.switching import Switching
from agt_lightning.domains.ball.enclosure import Layer
from agt_lightning.domains.ball.norms import spectral_norm, with_one
from agt_lightning.domains.ball.pairs import Pairs
from agt_lightning.domains.ball.samples import Samples
from agt_lightning.domains.losses import OutputBounds
from agt_lightning.interval import Interval
from agt_lightning.rounding import accumulated_roundoff


@dataclass(frozen=True)
class DeepHead:
    """The trained layers at the nominal parameters, and the radius of the ball around them.

    Args:
        layers: first to last.
        radius: R.
    """

    layers: tuple[Layer, ...]
    radius: float

    @cached_property
    def norms(self) -> tuple[float, ...]:
        """``‖W_l‖`` of each layer."""
        return tuple(spectral_norm(layer.weight) for layer in self.layers)

    @cached_property
    def roundings(self) -> int:
        """Roundings on the way to an output and back."""
        return 2 * sum(sum(layer.weight.shape) + 2 for layer in self.layers)


@dataclass(frozen=True)
class Units:
    """The units behind one layer.

    Args:
        mask: one for units that are active at the nominal parameters, (b, h).
        size: ``|h|``, (b, h).
        moved: how far each h can move within the ball, (b, h).
        slope: c with ``‖Δh‖ <= c ‖δ‖``, (b,).
        doubt: rounding of h, (b,).
        switching: units that can switch within the ball.
    """

    mask: Tensor
    size: Tensor
    moved: Tensor
    slope: Tensor
    doubt: Tensor
    switching: Switching

    @cached_property
    def possibly_on(self) -> Tensor:
        """One for units that may be active, (b, h)."""
        pairs = self.switching.pairs
        return self.mask.index_put((pairs.sample, pairs.unit), self.mask.new_ones(()))

    @property
    def slip(self) -> Tensor:
        """How far beyond zero a unit that switches can be, which a nominal slope does not see, (b, h)."""
        pairs = self.switching.pairs
        beyond = (pairs.of(self.moved) - self.switching.distance).clamp(min=0)
        return torch.zeros_like(self.mask).index_put((pairs.sample, pairs.unit), beyond)

    def within(self, more: Tensor, away: Tensor, boxes: Sequence[Interval]) -> Switching:
        """Units that switch if each h moves further.

        Args:
            more: by how much each h moves beyond ``moved``, (b, h).
            away: how far all of them move together, (b,).
            boxes: bounds on h from another domain, which hold together; empty without one.
        """
        return _switching(self.size, self.moved + more, self.doubt, away, boxes)


def _switching(size: Tensor, moved: Tensor, doubt: Tensor, away: Tensor, boxes: Sequence[Interval]) -> Switching:
    pairs = Pairs.where(size <= moved + doubt[:, None])
    if boxes:
        lower = torch.stack([pairs.of(box.lower) for box in boxes]).amin(dim=0)
        upper = torch.stack([pairs.of(box.upper) for box in boxes]).amax(dim=0)
        pairs = pairs.among((lower <= 0) & (upper >= 0))
    slack = accumulated_roundoff(size.shape[1] + 8, size.dtype)
    distance = (pairs.of(size) - doubt[pairs.sample]).clamp(min=0)
    return Switching(pairs, distance, away.square() * (1 + slack))


class DeepReach:
    """Where values of samples, and signals that are sent back through the layers, can be in the ball.

    ``c_l = ((‖W_l‖ c_{l-1})² + ‖ẑ_{l-1}‖²)^½ + R/2 c_{l-1}`` bounds how fast layer l's results move, for the movement
    of the layers before and that of layer l share the radius.

    Args:
        head: the layers and the ball.
        samples: at the nominal parameters.

    Attributes:
        units: behind each layer but the last.
        entering: ``‖ẑ‖`` of what enters each layer, (b,) each.
        drift: how far that moves.
        slope: c of the outputs, (b,).
        signals: ``∂f/∂h_l`` of each layer's results, (b, K, h_l).
        before: the same in front of the units' own slopes, for each layer but the last.
        sent: upper bound on ``‖∂f/∂h_l‖`` at the nominal parameters, (b,) each.
        bent: upper bound on how far that matrix moves.
    """

    def __init__(self, head: DeepHead, samples: Samples) -> None:
        self.head, self.samples = head, samples
        self.units: list[Units] = []
        first = samples.inputs.norm(dim=1)
        self.entering = [with_one(first, head.layers[0].trains_bias)]
        self.drift = [torch.zeros_like(first)]
        self._magnitudes: list[Tensor] = [first]
        slope = self._forward()
        count = samples.outputs.shape[1]
        identity = torch.eye(count, dtype=first.dtype, device=first.device).expand(len(first), -1, -1)
        self.signals, self.before = self.sent_back(identity)
        self.sent = self._sizes()
        self.bent = self.bending(self.before, self.sent)
        self.slope = torch.minimum(slope, self.steepest)

    def _forward(self) -> Tensor:
        """Fill what belongs to the units; returns the outputs' slope."""
        radius, values = self.head.radius, self.samples.inputs
        slope, moving = torch.zeros_like(self.entering[0]), torch.ones_like(values)
        for number, (layer, norm) in enumerate(zip(self.head.layers, self.head.norms, strict=True)):
            doubt = self._round(layer)
            rows = (moving @ layer.weight.square().T).sqrt()
            each = torch.hypot(rows * slope[:, None], self.entering[-1][:, None]) + radius / 2 * slope[:, None]
            slope = torch.hypot(norm * slope, self.entering[-1]) + radius / 2 * slope
            if number == len(self.head.layers) - 1:
                break
            hidden = self.samples.layers[number]
            boxes = [] if self.samples.boxes is None else [self.samples.boxes[number]]
            # One unit's h moves no further than all of them.
            moved = radius * torch.minimum(each, slope[:, None])
            switching = _switching(hidden.abs(), moved, doubt, radius * slope, boxes)
            values = hidden.clamp(min=0)
            self.units.append(Units(values.sign(), hidden.abs(), moved, slope, doubt, switching))
            moving = self.units[-1].possibly_on
            self.entering.append(with_one(values.norm(dim=1), self.head.layers[number + 1].trains_bias))
            self.drift.append(radius * slope)
        return slope

    def _round(self, layer: Layer) -> Tensor:
        """Rounding of a layer's results, (b,), by Frobenius norms all the way."""
        offset = 0.0 if layer.bias is None else float(layer.bias.norm())
        self._magnitudes.append(float(layer.weight.norm()) * self._magnitudes[-1] + offset)
        doubt: Tensor = self.slack * self._magnitudes[-1]
        return doubt

    @property
    def slack(self) -> float:
        """Relative rounding of outputs."""
        return accumulated_roundoff(self.head.roundings, self.samples.inputs.dtype)

    def sent_back(self, signal: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """A signal (b, q, K) at each layer's results, and in front of its units' slopes; nominal parameters."""
        signals, before = [signal], []
        for layer, units in zip(self.head.layers[:0:-1], self.units[::-1], strict=True):
            before.append(signals[-1] @ layer.weight)
            signals.append(before[-1] * units.mask[:, None])
        return signals[::-1], before[::-1]

    def _sizes(self) -> list[Tensor]:
        sizes, product = [], 1.0
        for signal, norm in zip(self.signals[::-1], self.head.norms[::-1], strict=True):
            sizes.append(signal.flatten(1).norm(dim=1).clamp(max=product))
            product *= norm
        return sizes[::-1]

    def bending(self, before: Sequence[Tensor], sent: Sequence[Tensor]) -> list[Tensor]:
        """How far a signal that is sent back from the outputs moves within the ball, at each layer's results.

        ``ΔB_l = ΔB_{l+1} W̃ M̃ + B_{l+1} δ M̃ + B_{l+1} W (M̃ - M)``; the last is not zero for units that switch alone.

        Args:
            before: the signal in front of each layer's units, (b, q, h).
            sent: upper bounds on its norm at each layer's results, (b,).
        """
        radius = self.head.radius
        bent, jumped = [torch.zeros_like(sent[-1])], torch.zeros_like(sent[-1])
        for number in range(len(self.units) - 1, -1, -1):
            layer, norm = self.head.layers[number + 1], self.head.norms[number + 1]
            smooth = norm * (bent[-1] - jumped) + radius * bent[-1] + radius * sent[number + 1]
            if number + 1 < len(self.units):
                smooth = smooth + self.units[number + 1].switching.sent_back(before[number + 1], layer.weight, norm)
            jumped = self.units[number].switching.signal(before[number])
            bent.append(smooth + jumped)
        return bent[::-1]

    @cached_property
    def largest_entering(self) -> list[Tensor]:
        """Upper bounds on what enters each layer anywhere in the ball, (b,) each."""
        return [norm + drift for norm, drift in zip(self.entering, self.drift, strict=True)]

    @cached_property
    def largest_sent(self) -> list[Tensor]:
        """Upper bounds on ``‖∂f/∂h_l‖`` anywhere in the ball, (b,) each."""
        return [norm + bent for norm, bent in zip(self.sent, self.bent, strict=True)]

    @cached_property
    def steepest(self) -> Tensor:
        """Upper bound on ``‖∂f/∂θ‖`` anywhere in the ball, (b,)."""
        pairs = zip(self.largest_sent, self.largest_entering, strict=True)
        steepest: Tensor = torch.stack([sent * entering for sent, entering in pairs]).norm(dim=0)
        return steepest

    @property
    def output_size(self) -> Tensor:
        """What the rounding of outputs is relative to, (b,)."""
        return self._magnitudes[-1]

    @property
    def slope_size(self) -> Tensor:
        """What the rounding of ``∂f/∂θ`` is relative to, (b,): its norm if nothing cancelled anywhere."""
        behind = [
            math.prod(float(later.weight.norm()) for later in self.head.layers[number + 1 :])
            for number in range(len(self.head.layers))
        ]
        sizes = zip(behind, self._magnitudes, self.head.layers, strict=False)
        rows = torch.stack([product * with_one(size, layer.trains_bias) for product, size, layer in sizes])
        norm: Tensor = rows.norm(dim=0)
        size: Tensor = norm * math.sqrt(self.samples.outputs.shape[1])
        return size

    @cached_property
    def outputs(self) -> OutputBounds:
        """Reachable outputs of the samples as they are."""
        moved = self.head.radius * self.slope + 2 * self.slack * self.output_size
        return OutputBounds.around(self.samples.outputs, moved, self.samples.output_box)
