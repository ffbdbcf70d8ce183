"""Choices between two values by a mask that is the same in all runs, or that a flipped label can change."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from agt_lightning.arithmetic import multiply
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.rules.arithmetic import Scaled, copies
from agt_lightning.rules.base import ElementwiseRule, Rule, Site, alignment_problem, name_of, reduce_to
from agt_lightning.rules.roundings import Roundings
from agt_lightning.rules.values import Value, as_interval


class Where(ElementwiseRule):
    """``where(mask, x, y)`` and ``masked_fill(x, mask, y)``, each of x and y a tensor or a number; exact.

    A test for a class that can be flipped, such as ``labels == 1``, makes a mask of which some entries are unknown:
    there the result is the hull of both, and each gets between none and all of the gradient.
    """

    def roundings(self, site: Site) -> Roundings:
        """Numbers are rounded to the type of the result; gradients are summed over repeated axes."""
        given = [site.number(name) for name in self._values(site) if self._is_number(site, name)]
        numbers = [abs(number) for number in given if not stored_exactly(number, site.call.dtype)]
        return ChoiceRoundings(0, 1 if numbers else 0, copies(site), sum(numbers), underflows=False)

    def _values(self, site: Site) -> tuple[str, str]:
        """Return the names of the arguments that are taken where the mask is true, and where it is false."""
        return ("value", "self") if "mask" in site.call.arguments else ("self", "other")

    def _is_number(self, site: Site, name: str) -> bool:
        return isinstance(site[name], int | float)

    def _positions(self, site: Site) -> tuple[int, int | None, int | None]:
        """Return which tensor inputs are the mask and the two values; None for numbers."""
        order = [argument.name for argument in site.call.op._schema.arguments]
        tensors = [name for name in order if name == self._mask(site) or not self._is_number(site, name)]
        first, second = self._values(site)
        return tensors.index(self._mask(site)), *(
            None if self._is_number(site, name) else tensors.index(name) for name in (first, second)
        )  # type: ignore[return-value]

    def _mask(self, site: Site) -> str:
        return "mask" if "mask" in site.call.arguments else "condition"

    def problem(self, site: Site) -> str | None:
        """Refuse masks of predictions, broadcasts that pair different samples, and infinite numbers."""
        mask, *_ = self._positions(site)
        if site.trainable[mask]:
            return (
                f"`{name_of(site.call)}` at {site.call.source} chooses by a prediction, whose gradient jumps. Use "
                "`relu`, `clamp`, `maximum` or another call that has bounds."
            )
        numbers = [site.number(name) for name in self._values(site) if self._is_number(site, name)]
        if not all(math.isfinite(number) for number in numbers):
            return (
                f"`{name_of(site.call)}` at {site.call.source} fills in infinity, which has no bounds. Use a finite "
                "number, such as -1e4 before a softmax."
            )
        return alignment_problem(site)

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """The chosen bounds, and the hull of both where the choice is unknown."""
        true, unknown, first, second = self._operands(site, inputs)
        lower, upper = (
            torch.where(true, one, other) for one, other in ((first.lower, second.lower), (first.upper, second.upper))
        )
        if unknown is not None:
            lower = torch.where(unknown, torch.minimum(first.lower, second.lower), lower)
            upper = torch.where(unknown, torch.maximum(first.upper, second.upper), upper)
        elif first.is_point and second.is_point:
            return Interval.point(lower)
        return Interval.trusted(lower, upper, nonnegative=first.nonnegative and second.nonnegative)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """The gradient where a value is chosen, zero elsewhere."""
        mask, *positions = self._positions(site)
        true, unknown, *_ = self._operands(site, inputs)
        gradients: list[Interval | None] = [None] * len(inputs)
        for position, chosen in zip(positions, (true, ~true), strict=True):
            if position is None:
                continue
            towards = multiply(grad, _indicator(chosen, unknown, grad))
            shape, samples = as_interval(inputs[position]).shape, site.samples[position]
            gradients[position] = reduce_to(towards, shape, samples=samples)
        return gradients

    def _operands(self, site: Site, inputs: Sequence[Value]) -> tuple[Tensor, Tensor | None, Interval, Interval]:
        """Return where the mask is true, where it is unknown, and both values."""
        mask, *positions = self._positions(site)
        true, unknown = _known(site, inputs[mask])
        values = [
            Interval.point(torch.tensor(site.number(name), dtype=torch.float64))
            if position is None
            else as_interval(inputs[position])
            for name, position in zip(self._values(site), positions, strict=True)
        ]
        return true, unknown, values[0], values[1]


def stored_exactly(number: float, kind: torch.dtype) -> bool:
    """Return whether a number is one of a type, so that filling it in does not round it.

    Example:
        >>> stored_exactly(-1e9, torch.float32), stored_exactly(0.1, torch.float32)
        (True, False)
    """
    return float(torch.tensor(number, dtype=kind)) == number


class ChoiceRoundings(Scaled):
    """Copies; numbers that are filled in are rounded once."""

    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Value:
        """Masks stay as they are; a result is off by the rounding of a number."""
        output = as_interval(rule.forward(site, inputs))
        return output.widened(self.number * arithmetic.relative(2)) if self.number else output

    def backward(
        self,
        rule: Rule,
        site: Site,
        grad: Interval,
        inputs: Sequence[Value],
        output: Value,
        arithmetic: Arithmetic,
    ) -> Sequence[Interval | None]:
        """Sums over repeated axes round."""
        return rule.backward(site, arithmetic.outward(grad, self.copies) if self.copies else grad, inputs, output)


def _known(site: Site, mask: Value) -> tuple[Tensor, Tensor | None]:
    """Return where a mask is true, and where a flip can change it; None if nowhere."""
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        return mask, None
    if isinstance(mask, ClassLabels) and mask.index.dtype == torch.bool:
        if not mask.flippable:
            return mask.index, None
        reachable = mask.reachable(2)
        return reachable[..., 1], reachable.all(dim=-1)
    raise UncertifiableError(
        [
            f"`{name_of(site.call)}` at {site.call.source} chooses by values that poisoned runs can change. Compute "
            "the mask in the data set, as booleans."
        ]
    )


def _indicator(chosen: Tensor, unknown: Tensor | None, grad: Interval) -> Interval:
    upper = chosen.to(grad.dtype).expand(grad.shape)
    if unknown is None:
        return Interval.point(upper, nonnegative=True)
    lower = (chosen & ~unknown).to(grad.dtype).expand(grad.shape)
    return Interval.trusted(lower, (chosen | unknown).to(grad.dtype).expand(grad.shape), nonnegative=True)
