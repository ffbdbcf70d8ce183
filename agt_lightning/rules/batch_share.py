"""Shares of a loss that divides all samples by one number of the batch (docs/theory.md, section 16.7).

Axis letters: ``r`` rows, as in `BatchRows`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import multiply
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.arithmetic.order import uncrossed
from agt_lightning.capture.totals import OVER_ROOT_OF_MEAN
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Rule, Site, name_of
from agt_lightning.rules.batch_statistics import BatchRows
from agt_lightning.rules.roundings import Roundings
from agt_lightning.rules.values import Value, as_interval

_ROUNDINGS = 16
"""Roundings besides the sum over the batch: of its members, the mean, the root and the quotients, forward or back."""


@dataclass(frozen=True)
class BatchShare(Rule):
    """``a / D`` for a divisor D that all samples determine: the root of their mean loss, or the sum of their weights.

    Args:
        rows: which rows are samples as they are; None means all, so that nothing is poisoned.
    """

    rows: BatchRows | None = None

    @override
    def roundings(self, site: Site) -> Roundings:
        return ShareRoundings()

    @override
    def problem(self, site: Site) -> str | None:
        if all(site.samples) and not any(site.trainable[1:]) and all(site.shapes):
            return None
        return (
            f"`{name_of(site.call)}` at {site.call.source} divides a loss by a number of the batch that is not made of "
            "its samples' own numbers. Write the loss as a mean of per-sample terms."
        )

    @override
    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        return self.shared(site, inputs, None)

    @override
    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        return [self.towards(site, grad, inputs, None), *[None] * (len(inputs) - 1)]

    def shared(self, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic | None) -> Interval:
        """Return the share of each sample, of the shape of the input.

        Args:
            site: the call.
            inputs: bounds on its inputs, of all rows.
            arithmetic: of the run and of the bounds; None for exact arithmetic.
        """
        value = as_interval(inputs[0])
        if self._is_root(site):
            value = value.mapped(lambda bound: bound + site.number("addend"))
        return multiply(value, _reciprocal(self._divisor(site, inputs, arithmetic)))

    def towards(self, site: Site, grad: Interval, inputs: Sequence[Value], arithmetic: Arithmetic | None) -> Interval:
        """Return the gradient of the whole loss, by (16.13) and (16.14), of the shape of the input.

        Args:
            site: the call.
            grad: with respect to the shares; of a root the same for all, as it is of their mean.
            inputs: bounds on its inputs, of all rows.
            arithmetic: of the run and of the bounds; None for exact arithmetic.
        """
        factor = _reciprocal(self._divisor(site, inputs, arithmetic))
        if not self._is_root(site):
            return multiply(grad, factor)
        if bool(grad.lower.min() != grad.lower.max()) or bool(grad.upper.min() != grad.upper.max()):
            raise AssertionError("Expected one gradient for all shares of a root.")
        return multiply(grad, factor.mapped(lambda bound: bound / 2, nonnegative=True))

    @staticmethod
    def _is_root(site: Site) -> bool:
        return site.call.op is OVER_ROOT_OF_MEAN

    def _divisor(self, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic | None) -> Interval:
        """Return bounds on D, (r, 1, ...), by (16.12).

        Raises:
            UncertifiableError: if it can be zero.
        """
        members = as_interval(inputs[0 if self._is_root(site) else 1])
        rows = self.rows or BatchRows(len(members.lower))
        count = rows.samples * math.prod(members.shape[1:])

        def largest(bound: Tensor) -> Tensor:
            sums = rows.totals(bound.flatten(1).sum(dim=1) if bound.ndim > 1 else bound)
            return sums.reshape(-1, *[1] * (len(site.shapes[0]) - 1))

        total = uncrossed(-largest(-members.lower), largest(members.upper))
        if arithmetic is not None:
            slack = arithmetic.relative(count + _ROUNDINGS) * largest(members.magnitude)
            # A run's sum of numbers that are not negative is none.
            above = bool((members.lower >= 0).all())
            total = total.widened(slack + arithmetic.absolute(count), nonnegative=above)
        if self._is_root(site):
            total = total.mapped(lambda bound: bound / count + site.number("addend"))
        if bool((total.lower <= 0).any()):
            raise UncertifiableError([_zero(site, root=self._is_root(site))])
        return total.mapped(lambda bound: bound.sqrt()) if self._is_root(site) else total


class ShareRoundings(Roundings):
    """The roundings of a sum over the batch in any order, and of what is done with it."""

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Value:
        assert isinstance(rule, BatchShare)
        return arithmetic.clear_of_underflow(arithmetic.outward(rule.shared(site, inputs, arithmetic), _ROUNDINGS))

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
        assert isinstance(rule, BatchShare)
        result = arithmetic.outward(rule.towards(site, grad, inputs, arithmetic), _ROUNDINGS)
        return [arithmetic.clear_of_underflow(result), *[None] * (len(inputs) - 1)]


def _reciprocal(divisor: Interval) -> Interval:
    return Interval.trusted(divisor.upper.reciprocal(), divisor.lower.reciprocal(), nonnegative=True)


def _zero(site: Site, *, root: bool) -> str:
    if root:
        return (
            f"The root at {site.call.source} is of a mean that can be zero in a poisoned run, where its gradient is "
            "infinite. Add a number to the mean, such as `torch.sqrt(mse + 1e-4)`, or use the mean without a root."
        )
    return (
        f"The weights by class at {site.call.source} can add up to zero over a batch, as far as bounds know: a label "
        "that can be flipped counts with any weight from zero to the sum of all. Use larger batches, a smaller `n`, or "
        "`F.cross_entropy(z, y, weight=w, reduction='none').mean()`."
    )
