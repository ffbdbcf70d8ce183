"""Sums, scalings, powers and absolute values."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import multiply
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.rules.base import ElementwiseRule, Rule, Site, alignment_problem, name_of, reduce_to
from agt_lightning.rules.discrete import require_in_range
from agt_lightning.rules.roundings import EXACT, LinearMap, Roundings, as_operand
from agt_lightning.rules.values import Value, as_interval


@dataclass(frozen=True)
class Sum(ElementwiseRule):
    """``add`` and ``sub``: x ± a y, each a tensor or a number; exact.

    Args:
        sign: +1 for ``add``, -1 for ``sub``.
    """

    sign: float

    def _terms(self, site: Site) -> list[tuple[int | None, float, float]]:
        """Per term: position among the tensor inputs or None, coefficient, and value if it is a number."""
        scale = self.sign * site.number("alpha")
        terms: list[tuple[int | None, float, float]] = []
        position = 0
        for name, coefficient in (("self", 1.0), ("other", scale)):
            value = site[name]
            if isinstance(value, int | float):
                terms.append((None, coefficient, float(value)))
            else:
                terms.append((position, coefficient, 0.0))
                position += 1
        return terms

    def roundings(self, site: Site) -> Roundings:
        """One of the sum; with a factor or a number, also those of the summands."""
        plain = all(position is not None and abs(factor) == 1 for position, factor, _ in self._terms(site))
        numbers = [abs(factor * number) for position, factor, number in self._terms(site) if position is None]
        return Scaled(0 if plain else 3, 1, copies(site), sum(numbers), underflows=not plain, single=plain)

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """Bounds add."""
        result: Interval | None = None
        constant = 0.0
        for position, coefficient, number in self._terms(site):
            if position is None:
                constant += coefficient * number
                continue
            term = as_interval(inputs[position]).scaled(coefficient)
            result = term if result is None else result + term
        assert result is not None
        return result.mapped(lambda bound: bound + constant) if constant else result

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """The gradient, scaled, summed over repeated axes."""
        return [
            reduce_to(grad.scaled(coefficient), as_interval(inputs[position]).shape, samples=site.samples[position])
            for position, coefficient, _ in self._terms(site)
            if position is not None
        ]


class Negation(ElementwiseRule):
    """``neg``; exact."""

    def roundings(self, site: Site) -> Roundings:
        """None."""
        return EXACT

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``[-u, -l]``."""
        return -as_interval(inputs[0])

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``-g``."""
        return [-grad]


class ReverseDifference(ElementwiseRule):
    """``rsub``: c - a x for a number c; exact."""

    def roundings(self, site: Site) -> Roundings:
        """Those of the number, the product and the difference."""
        return Scaled(3, 1, copies(site), abs(site.number("other")))

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``c - a x``."""
        constant = site.number("other")
        return as_interval(inputs[0]).scaled(-site.number("alpha")).mapped(lambda bound: bound + constant)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``-a g``."""
        return [grad.scaled(-site.number("alpha"))]


class Product(ElementwiseRule):
    """``mul``: by a number, or of two independent tensors; exact element by element."""

    def roundings(self, site: Site) -> Roundings:
        """One product, of a rounded number if it is one."""
        return Scaled(0, 2, copies(site))

    def problem(self, site: Site) -> str | None:
        """Refuse numbers at the end of a type's range, as masks have them, times anything that is rounded."""
        number, kind = site["other"], site.call.dtype
        if not isinstance(number, int | float) or not kind.is_floating_point:
            return alignment_problem(site)
        if abs(number) <= torch.finfo(kind).max / 2:
            return alignment_problem(site)
        return (
            f"`{name_of(site.call)}` at {site.call.source} multiplies by {number:.3g}, the end of the range of {kind}, "
            "so that a rounding error leads to infinity. Use a smaller number, such as -1e9."
        )

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """All corner products."""
        if len(inputs) == 1:
            return as_interval(inputs[0]).scaled(site.number("other"))
        if site.call.inputs[0] == site.call.inputs[1]:
            return as_interval(inputs[0]).square()
        return multiply(as_interval(inputs[0]), as_interval(inputs[1]))

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``g y`` for x and ``g x`` for y."""
        if len(inputs) == 1:
            return [grad.scaled(site.number("other"))]
        values = [as_interval(value) for value in inputs]
        return [
            reduce_to(multiply(grad, other), value.shape, samples=samples)
            for value, other, samples in zip(values, reversed(values), site.samples, strict=True)
        ]


class Quotient(ElementwiseRule):
    """``div`` by a number or by a tensor of fixed values; exact."""

    def roundings(self, site: Site) -> Roundings:
        """A quotient, or a reciprocal and a product; three products in the gradient."""
        return Scaled(0, 4, copies(site))

    def problem(self, site: Site) -> str | None:
        """Refuse misaligned samples. Overloads with a rounding mode have no rule."""
        return alignment_problem(site)

    def _reciprocal(self, site: Site, inputs: Sequence[Value]) -> Interval:
        if len(inputs) == 1:
            return Interval.point(1.0 / torch.tensor(site.number("other"), dtype=torch.float64))
        divisor = as_interval(inputs[1])
        if not bool(((divisor.lower > 0) | (divisor.upper < 0)).all()):
            raise UncertifiableError(
                [f"`{name_of(site.call)}` at {site.call.source} divides by values that can reach zero."]
            )
        if divisor.is_point:
            return Interval.point(1.0 / divisor.lower)
        return Interval.trusted(1.0 / divisor.upper, 1.0 / divisor.lower)

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``x (1 / y)``."""
        return multiply(as_interval(inputs[0]), self._reciprocal(site, inputs))

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``g / y`` for x and ``-g x / y²`` for y."""
        reciprocal = self._reciprocal(site, inputs)
        dividend = as_interval(inputs[0])
        towards = [reduce_to(multiply(grad, reciprocal), dividend.shape, samples=site.samples[0])]
        if len(inputs) == 1:
            return towards
        slope = -multiply(dividend, reciprocal.square())
        return [*towards, reduce_to(multiply(grad, slope), as_interval(inputs[1]).shape, samples=site.samples[1])]


class Absolute(ElementwiseRule):
    """``abs``; the derivative is the sign, zero at zero as autograd has it."""

    def roundings(self, site: Site) -> Roundings:
        """None."""
        return EXACT

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``[mig, mag]``."""
        value = as_interval(inputs[0])
        if value.is_point:
            return Interval.point(value.lower.abs(), nonnegative=True)
        return Interval.trusted(value.mignitude, value.magnitude, nonnegative=True)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``g [sign l, sign u]``."""
        return [multiply(grad, as_interval(inputs[0]).mapped(torch.sign))]


@dataclass(frozen=True)
class Extremum(ElementwiseRule):
    """``maximum`` and ``minimum`` of two tensors; exact, with half the gradient each where they are equal.

    Args:
        sign: +1 for the maximum, -1 for the minimum.
    """

    sign: float

    def roundings(self, site: Site) -> Roundings:
        """None but those of a sum over copies: gradients are halved at most."""
        return Scaled(0, 0, copies(site))

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``[max(l, l'), max(u, u')]``."""
        first, second = map(as_interval, inputs)
        choose = torch.maximum if self.sign > 0 else torch.minimum
        lower = choose(first.lower, second.lower)
        nonnegative = first.nonnegative and second.nonnegative
        if first.is_point and second.is_point:
            return Interval.point(lower, nonnegative=nonnegative)
        return Interval.trusted(lower, choose(first.upper, second.upper), nonnegative=nonnegative)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``g H(x - y)`` for x and ``g H(y - x)`` for y, with H(0) = 1/2."""
        first, second = map(as_interval, inputs)
        lead = (first - second).scaled(self.sign)
        return [
            reduce_to(multiply(grad, _step(difference)), value.shape, samples=samples)
            for difference, value, samples in zip((lead, -lead), (first, second), site.samples, strict=True)
        ]


def copies(site: Site) -> int:
    """Return how many elements of a gradient are added up for an input that was broadcast; zero if none was."""
    if all(shape == tuple(site.call.shape) for shape in site.shapes):
        return 0
    return math.prod(site.call.shape[1:] if site.has_samples else site.call.shape)


@dataclass(frozen=True)
class Scaled(Roundings):
    """Sums, products and quotients of two inputs, broadcast against each other.

    Args:
        factor: roundings of each input before it is added: of its factor.
        result: roundings of the result itself, and of the gradient's products.
        copies: number of summands where a gradient is summed over repeated axes.
        number: magnitude of a number among the summands, which is rounded to the type of the tensor.
        underflows: whether results can underflow; sums and differences of floating point numbers cannot.
        single: whether a result is the exact one of the run's operands, rounded once.
    """

    factor: int
    result: int
    copies: int
    number: float = 0.0
    underflows: bool = True
    single: bool = False

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Value:
        operands = [as_operand(value, arithmetic) for value in inputs]
        if self.factor:
            operands = [arithmetic.outward(operand, self.factor) for operand in operands]
        output = as_interval(rule.forward(site, operands))
        if not self.result:
            return output
        wide = arithmetic.outward(output, self.result)
        wide = arithmetic.clear_of_underflow(wide) if self.underflows else wide
        if self.single:
            return arithmetic.in_range(output, wide)
        return wide.widened(self.number * arithmetic.relative(2)) if self.number else wide

    @override
    def backward(
        self,
        rule: Rule,
        site: Site,
        grad: Interval,
        inputs: Sequence[Value],
        output: Value,
        arithmetic: Arithmetic,
    ) -> Sequence[Interval | None]:
        inputs = [as_operand(value, arithmetic) for value in inputs]
        roundings = self.factor + 2 * self.result + self.copies
        if not roundings:
            return rule.backward(site, grad, inputs, output)
        gradients = rule.backward(site, arithmetic.outward(grad, roundings), inputs, output)
        if not self.underflows:
            return gradients
        return [None if each is None else arithmetic.clear_of_underflow(each, roundings) for each in gradients]

    @override
    def summands(self, site: Site, grad: Interval) -> int:
        """Return how many elements of one sample meet an element of an input that is shared by all samples."""
        elements = math.prod(site.call.shape[1:])
        shared = (shape for shape, samples in zip(site.shapes, site.samples, strict=True) if not samples)
        return max((elements // max(1, math.prod(shape)) for shape in shared), default=1)


def _step(value: Interval) -> Interval:
    """Heaviside's function, which is one half at zero."""
    half = value.lower.new_tensor(0.5)
    return value.mapped(lambda bound: torch.heaviside(bound, half), nonnegative=True)


@dataclass(frozen=True)
class Reduction(Rule):
    """``sum`` and ``mean`` over axes other than the samples'; exact.

    Args:
        reduce: `torch.sum` or `torch.mean`.
    """

    reduce: Callable[..., Tensor]

    def takes_constants(self, site: Site) -> bool:
        """Accept calls on constants alone, over any axes."""
        return True

    def takes_parameters(self, site: Site) -> bool:
        """Accept calls on parameters alone, as penalties have them."""
        return True

    def roundings(self, site: Site) -> Roundings:
        """A sum over the axes, and a division by their size."""
        return LinearMap(math.prod(site.shapes[0][dim] for dim in self._dims(site)), 2)

    def _dims(self, site: Site) -> list[int]:
        rank = len(site.shapes[0])
        dims = site.call.arguments.get("dim")
        if not dims:
            return list(range(rank))
        assert isinstance(dims, list | tuple)
        return [int(dim) % rank for dim in dims]

    def problem(self, site: Site) -> str | None:
        """Refuse a reduction over the samples, which only the loss may do."""
        if not site.has_samples or 0 not in self._dims(site):
            return None
        return (
            f"`{name_of(site.call)}` at {site.call.source} reduces over the samples before the loss is complete, so "
            "one sample reaches the gradients of all others. Write the loss as a mean or sum of per-sample terms."
        )

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """Bounds reduce like values; integers that would wrap around are refused."""
        value = as_interval(inputs[0])
        dims, keep = self._dims(site), bool(site.call.arguments.get("keepdim"))
        result = value.mapped(lambda bound: self.reduce(bound, dim=dims, keepdim=keep), nonnegative=value.nonnegative)
        require_in_range(site, result)
        return result

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """The gradient, repeated; for a mean, divided by the count."""
        shape = as_interval(inputs[0]).shape
        dims = self._dims(site)
        count = 1
        for dim in dims:
            count *= shape[dim]
        scale = 1.0 if self.reduce is torch.sum else 1.0 / count
        kept = [1 if axis in dims else size for axis, size in enumerate(shape)]
        first = [] if site.has_samples else [grad.shape[0]]
        repeated = grad.scaled(scale).rearranged(lambda bound: bound.reshape(first + kept).expand([*first, *shape]))
        return [repeated]
