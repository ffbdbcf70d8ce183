"""Products and quotients of a value with something that does not depend on it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.arithmetic import multiply
from agt_lightning.interval import Interval
from agt_lightning.propagation.crown.forms import Terms
from agt_lightning.propagation.crown.relaxation import Relaxation, resolve
from agt_lightning.propagation.crown.slopes import Slopes
from agt_lightning.rules import Rule, Site, Value
from agt_lightning.rules.base import reduce_to
from agt_lightning.rules.values import as_interval


@dataclass(frozen=True)
class Scaling(Relaxation):
    """The relaxation of ``y = f x``, element by element; f is a number, a parameter, or fixed data as a dropout mask.

    Args:
        places: positions among the tensor inputs that x can have; a divisor is none.
    """

    places: tuple[int, ...]

    def applies(self, site: Site, inputs: Sequence[Value]) -> bool:
        """Whether one input alone has bounds and samples, and the factor is another input."""
        return self._moving(site, inputs) in self.places and len(set(site.call.inputs)) == len(inputs)

    def weighs(self, site: Site) -> bool:
        """Whether the factor is trained or has samples."""
        return sum(site.samples) > 1 or any(
            trains and not own for trains, own in zip(site.trainable, site.samples, strict=True)
        )

    def substitute(self, site: Site, rule: Rule, coefficient: Tensor, inputs: Sequence[Value], slopes: Slopes) -> Terms:
        """Return ``Λ f``, summed where x was broadcast, resolved over the box of x."""
        position = self._moving(site, inputs)
        assert position is not None
        box = as_interval(inputs[position])
        product = multiply(Interval.point(coefficient), self._factor(site, rule, inputs, position))
        b, r = product.shape[:2]
        flat = product.rearranged(lambda bound: bound.flatten(0, 1))
        summed = reduce_to(flat, torch.Size((b * r, *box.shape[1:])), samples=True)
        terms = resolve(summed.rearranged(lambda bound: bound.unflatten(0, (b, r))), box)
        towards = [terms.coefficients[0] if place == position else None for place in range(len(inputs))]
        return Terms(towards, terms.constant, terms.size)

    def _moving(self, site: Site, inputs: Sequence[Value]) -> int | None:
        """Return the position of the only input with samples that is no point; None if there is not exactly one."""
        own = [place for place, samples in enumerate(site.samples) if samples]
        moving = [place for place in own if not as_interval(inputs[place]).is_point]
        return moving[0] if len(moving) == 1 else None

    def _factor(self, site: Site, rule: Rule, inputs: Sequence[Value], position: int) -> Interval:
        """Return the call's value at x = 1, with an axis for rows behind that of samples."""
        ones = Interval.point(torch.ones_like(as_interval(inputs[position]).lower), nonnegative=True)
        operands = [ones if place == position else value for place, value in enumerate(inputs)]
        return as_interval(rule.forward(site, operands)).rearranged(lambda bound: bound.unsqueeze(1))
