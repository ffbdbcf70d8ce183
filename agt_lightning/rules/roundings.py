"""How the results of rules are widened by rounding: what a rule states of the operations behind its call.

The bounds of a rule are those in real arithmetic. A statement of roundings turns them into bounds that also contain
what a program in floating point computes, in any order of summation, and that cover their own computation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.capture.graph import JOINT_STEPS
from agt_lightning.interval import Interval
from agt_lightning.rounding import unit_roundoff
from agt_lightning.rules.values import Value, as_interval

if TYPE_CHECKING:
    from agt_lightning.gradients import FactoredGradient
    from agt_lightning.rules.base import Rule, Site


class Roundings(ABC):
    """A statement of the roundings of one call, forward and backward."""

    @abstractmethod
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Value:
        """Return bounds on the call's result in floating point.

        Args:
            rule: the rule in real arithmetic.
            site: the call.
            inputs: bounds on its tensor inputs as the program computes them.
            arithmetic: of the run and of the bounds.
        """

    @abstractmethod
    def backward(
        self,
        rule: Rule,
        site: Site,
        grad: Interval,
        inputs: Sequence[Value],
        output: Value,
        arithmetic: Arithmetic,
    ) -> Sequence[Interval | None]:
        """Return bounds on the gradients that the program computes for the call's inputs; arguments as above."""

    def summands(self, site: Site, grad: Interval) -> int:
        """Return how many products one sample adds to an element of a parameter's gradient; by default one."""
        return 1

    def parameter_gradient(
        self,
        rule: Rule,
        site: Site,
        position: int,
        grad: Interval,
        inputs: Sequence[Value],
        arithmetic: Arithmetic,
    ) -> FactoredGradient:
        """Return the rule's factors, widened by one sum over positions and samples; see `spread`."""
        return rule.parameter_gradient(site, position, self.spread(site, grad, arithmetic), inputs)

    def spread(self, site: Site, grad: Interval, arithmetic: Arithmetic) -> Interval:
        """Return the gradient, widened by a sum over positions and samples together.

        A run may take one sum over all of them, in which a product passes through positions times samples roundings.
        In a recurrent layer that sum runs over all time steps. The aggregation covers sums over samples alone, in the
        parameter's type; where a call computes in a coarser one, its sum over samples is covered here.

        Args:
            site: the call.
            grad: bounds on the gradient with respect to the result.
            arithmetic: of the run and of the bounds.
        """
        positions = max(self.summands(site, grad), _joint_steps(site))
        samples = max(site.call.shape[0], grad.shape[0])
        covered = positions == 1 and not _coarser_than_inputs(site, arithmetic)
        return grad if covered else arithmetic.outward(grad, positions * samples)


def _joint_steps(site: Site) -> int:
    steps = site.call.arguments.get(JOINT_STEPS, 1)
    assert isinstance(steps, int)
    return steps


def _coarser_than_inputs(site: Site, arithmetic: Arithmetic) -> bool:
    """Return whether a call computes in a coarser type than a trained input has, as torch does for single numbers."""
    types = [kind for kind in site.kinds if kind.is_floating_point]
    return arithmetic.run is not None and any(unit_roundoff(kind) < unit_roundoff(arithmetic.run) for kind in types)


@dataclass(frozen=True)
class Exact(Roundings):
    """No rounding: moves, copies, signs, comparisons, and products with zero, one and powers of two.

    Args:
        positions: number of numbers that one sample adds to an element of the parameter's gradient.
    """

    positions: int = 1

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Value:
        return rule.forward(site, inputs)

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
        return rule.backward(site, grad, inputs, output)

    @override
    def summands(self, site: Site, grad: Interval) -> int:
        return self.positions


@dataclass(frozen=True)
class LinearMap(Roundings):
    """Results are sums of entries of one input, times constants: sums, means, averages over windows.

    ``fl(Σ_k c_k a_k) = Σ_k c_k a_k (1 + δ_k)`` with |δ_k| <= γ_{K + 2}, so the input is widened; backward likewise.

    Args:
        terms: number K of summands of a result; zero if results are exact.
        gradient_terms: number of summands of a gradient; zero if gradients are exact.
    """

    terms: int
    gradient_terms: int

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Value:
        if not self.terms:
            return rule.forward(site, inputs)
        roundings = self.terms + 2
        output = rule.forward(site, [arithmetic.outward(as_interval(inputs[0]), roundings), *inputs[1:]])
        return arithmetic.clear_of_underflow(as_interval(output), roundings)

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
        if not self.gradient_terms:
            return rule.backward(site, grad, inputs, output)
        roundings = self.gradient_terms + 2
        gradients = rule.backward(site, arithmetic.outward(grad, roundings), inputs, output)
        return [None if each is None else arithmetic.clear_of_underflow(each, roundings) for each in gradients]


@dataclass(frozen=True)
class Relative(Roundings):
    """Every element of a result, and of its gradients, is right up to a few roundings of that element itself.

    This holds for single products, quotients, sums of two numbers and elementary functions, not for longer sums.

    Args:
        result: roundings of a result.
        gradient: roundings of a gradient.
    """

    result: int
    gradient: int

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Value:
        output = rule.forward(site, inputs)
        return _widened(output, self.result, arithmetic) if isinstance(output, Interval) else output

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
        gradients = rule.backward(site, grad, inputs, output)
        return [None if each is None else _widened(each, self.gradient, arithmetic) for each in gradients]


@dataclass(frozen=True)
class Contraction(Roundings):
    """Results are sums of products of two inputs, plus other inputs; the floating point error is a change of a factor.

    ``fl(Σ_k a_k b_k + c) = Σ_k a_k b_k (1 + δ_k) + c (1 + δ)`` with |δ| <= γ_{K + 2}: bounds on one factor are widened
    relatively, and so are those on all summands; then the exact rule applies.

    Args:
        terms: number K of products in a result.
        gradient_terms: number of products in an element of the gradient of the sample's input.
        positions: number of products that one sample adds to an element of the parameter's gradient.
    """

    terms: int
    gradient_terms: int
    positions: int = 1

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Value:
        operands = [as_interval(value) for value in inputs]
        chosen = smaller_factor(operands[0], operands[1])
        # Backward substitution relies on room for its own sums over results, see propagation/crown/roundings.py.
        own = arithmetic.own_relative(max(self.terms, self.gradient_terms) + 2)
        relative = arithmetic.run_relative(self.terms + 2) + own
        widened = [
            operand.widened_relatively(relative) if position == chosen or position > 1 else operand
            for position, operand in enumerate(operands)
        ]
        output = rule.forward(site, widened)
        return arithmetic.clear_of_underflow(as_interval(output), self.terms + 2)

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
        weight = as_interval(inputs[1])
        roundings = self.gradient_terms + 2
        if smaller_factor(grad, weight) == 0:
            grad = arithmetic.outward(grad, roundings)
        else:
            inputs = [inputs[0], arithmetic.outward(weight, roundings), *inputs[2:]]
        gradients = rule.backward(site, grad, inputs, output)
        return [None if each is None else arithmetic.clear_of_underflow(each, roundings) for each in gradients]

    @override
    def summands(self, site: Site, grad: Interval) -> int:
        return self.positions


@dataclass(frozen=True)
class BilinearContraction(Contraction):
    """A contraction of two inputs that both have gradients: sums of products with the result's gradient."""

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
        roundings = self.gradient_terms + 2
        gradients = rule.backward(site, arithmetic.outward(grad, roundings), inputs, output)
        return [None if each is None else arithmetic.clear_of_underflow(each, roundings) for each in gradients]


def as_operand(value: Value, arithmetic: Arithmetic) -> Interval:
    """Return an input as a kernel reads it: integers, and single numbers, are rounded to the type of the result first.

    Example:
        >>> import torch
        >>> large = torch.tensor([2**24 + 1])
        >>> as_operand(large, Arithmetic(torch.float32, torch.float64)).lower - 2.0**24
        tensor([0.], dtype=torch.float64)
    """
    bounds = as_interval(value)
    if arithmetic.run is None or (isinstance(value, Interval) and bounds.lower.ndim):
        return bounds
    rounded = arithmetic.stored(bounds)
    if not isinstance(value, Interval):
        return rounded
    same = torch.equal(rounded.lower, bounds.lower) and torch.equal(rounded.upper, bounds.upper)
    return bounds if same else bounds.hull(rounded)


def smaller_factor(first: Interval, second: Interval) -> int:
    """Return which of two factors to widen: the smaller one, but no point beside an interval, which must stay cheap.

    A factor with a fact about its ball keeps it.

    Example:
        >>> import torch
        >>> point, box = Interval.point(torch.ones(2)), Interval(torch.zeros(3), torch.ones(3))
        >>> smaller_factor(point, box), smaller_factor(point, point)
        (1, 0)
    """
    if first.ball is not None:
        return 1
    if first.is_point != second.is_point:
        return int(first.is_point)
    return int(second.lower.numel() < first.lower.numel())


@dataclass(frozen=True)
class Unstated(Roundings):
    """The safe default for a rule that states nothing: errors relative to the largest numbers of a sample.

    Each result may be off by the roundings of a sum over a whole sample, relative to the largest input or result.
    """

    calls: int = 64
    """Roundings inside one call besides its sums, such as those of elementary functions."""

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Value:
        output = rule.forward(site, inputs)
        if not isinstance(output, Interval):
            return output
        return self.result(output, inputs, arithmetic)

    def result(self, output: Interval, inputs: Sequence[Value], arithmetic: Arithmetic) -> Interval:
        """Widen a result that was computed from these inputs.

        Args:
            output: bounds in real arithmetic.
            inputs: bounds on all tensor inputs of the call.
            arithmetic: of the run and of the bounds.
        """
        operands = [as_interval(value) for value in inputs]
        return self._widened(output, [output, *operands], operands, arithmetic)

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
        gradients = rule.backward(site, grad, inputs, output)
        return [None if each is None else self._widened(each, [each, grad], [grad], arithmetic) for each in gradients]

    def _widened(
        self, value: Interval, sizes: Sequence[Interval], operands: Sequence[Interval], arithmetic: Arithmetic
    ) -> Interval:
        longest = max((_sample_size(operand) for operand in operands), default=1)
        largest = max((float(each.magnitude.max()) for each in sizes if each.lower.numel()), default=0.0)
        slack = longest * max(largest, 1.0) * arithmetic.relative(longest + self.calls)
        return value.widened(slack + arithmetic.absolute(longest + self.calls), nonnegative=value.nonnegative)

    @override
    def summands(self, site: Site, grad: Interval) -> int:
        return _sample_size(grad)


def _sample_size(value: Interval) -> int:
    """Return the number of elements of one sample."""
    return max(1, value.lower[0].numel()) if value.lower.ndim and len(value.lower) else 1


def _widened(value: Interval, roundings: int, arithmetic: Arithmetic) -> Interval:
    return arithmetic.clear_of_underflow(arithmetic.outward(value, roundings))


EXACT = Exact()
"""The statement of calls that do not round."""

UNSTATED = Unstated()
"""The statement of a rule that says nothing."""
