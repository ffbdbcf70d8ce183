"""Norms of parts of a sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import multiply
from agt_lightning.arithmetic.floating_point import Arithmetic, unless
from agt_lightning.interval import Interval
from agt_lightning.rounding import unit_roundoff
from agt_lightning.rules.base import Rule, Site, name_of
from agt_lightning.rules.roundings import Relative, Roundings
from agt_lightning.rules.values import Value, as_interval


class VectorNorm(Rule):
    """``linalg.vector_norm`` and ``norm`` of order 2 or 1; exact.

    ``‖x‖`` rises with every |x_k|. Its derivative ``x_k / √(x_k² + r²)``, with r the norm of the others, rises with x_k
    and moves towards zero as r rises; at the origin it is zero, as autograd has it.
    """

    def takes_constants(self, site: Site) -> bool:
        """Accept calls on constants alone, over any axes."""
        return self._order(site) in (1.0, 2.0)

    def takes_parameters(self, site: Site) -> bool:
        """Accept calls on parameters alone, as penalties and normalized weights have them."""
        return self._order(site) in (1.0, 2.0)

    def roundings(self, site: Site) -> Roundings:
        """A sum of squares, a root and a quotient, relatively, and squares that underflow."""
        terms = math.prod(site.shapes[0][dim] for dim in self._dims(site))
        return NormRoundings(terms + 8, 2 * terms + 16)

    def problem(self, site: Site) -> str | None:
        """Refuse other orders, and the samples' axis."""
        if site.has_samples and 0 in self._dims(site):
            return (
                f"`{name_of(site.call)}` at {site.call.source} runs over the samples, so that each meets all others. "
                "Choose other axes, for example `dim=1`."
            )
        if self._order(site) in (1.0, 2.0):
            return None
        return f"`{name_of(site.call)}` at {site.call.source} has order {self._order(site):g}; 1 and 2 are supported."

    def _order(self, site: Site) -> float:
        given = site.call.arguments.get("ord", site.call.arguments.get("p", 2))
        return 2.0 if given is None else float(given)  # type: ignore[arg-type]

    def _dims(self, site: Site) -> list[int]:
        rank, dims = len(site.shapes[0]), site.call.arguments.get("dim")
        assert dims is None or isinstance(dims, list | tuple)
        return [int(dim) % rank for dim in dims] if dims else list(range(rank))

    def short(self, site: Site, value: Interval, length: float) -> Tensor:
        """Return which vectors can be shorter than this and are not zero, with axes of size one; none of order 1.

        A vector with an entry of that size is not short; this is compared without squares, which could underflow.
        """
        if self._order(site) == 1.0:
            return torch.zeros_like(self._norm(site, value.lower, keepdim=True), dtype=torch.bool)
        dims = self._dims(site)
        least, largest = (part.amax(dim=dims, keepdim=True) for part in (value.mignitude, value.magnitude))
        return (least < length) & (largest > 0)

    def along(self, site: Site, grad: Interval, value: Interval) -> Interval:
        """Return the gradient of the result with axes of size one, to meet the input."""
        shape = [1 if axis in self._dims(site) else size for axis, size in enumerate(value.shape)]
        shape = shape if site.has_samples else [grad.shape[0], *shape]
        return grad.rearranged(lambda bound: bound.reshape(shape))

    def _norm(self, site: Site, values: Tensor, *, keepdim: bool) -> Tensor:
        result: Tensor = torch.linalg.vector_norm(values, self._order(site), self._dims(site), keepdim=keepdim)
        return result

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """The norms of the smallest and of the largest magnitudes."""
        value, keepdim = as_interval(inputs[0]), bool(site.call.arguments.get("keepdim", False))
        lower, upper = (self._norm(site, part, keepdim=keepdim) for part in (value.mignitude, value.magnitude))
        if value.is_point:
            return Interval.point(lower, nonnegative=True)
        return Interval.trusted(lower, upper, nonnegative=True)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``g x_k / ‖x‖``, or ``g sign(x_k)``."""
        value = as_interval(inputs[0])
        towards = self.along(site, grad, value)
        slope = value.mapped(torch.sign) if self._order(site) == 1.0 else self._direction(site, value)
        return [multiply(towards, slope)]

    def _direction(self, site: Site, value: Interval) -> Interval:
        if value.is_point:
            norm = self._norm(site, value.lower, keepdim=True)
            return Interval.point(
                torch.where(norm > 0, value.lower / norm.clamp(min=torch.finfo(value.dtype).tiny), 0.0)
            )
        least, most = (self._others(site, part.square()).sqrt() for part in (value.mignitude, value.magnitude))
        lower = torch.where(value.lower < 0, _share(value.lower, least), _share(value.lower, most))
        upper = torch.where(value.upper > 0, _share(value.upper, least), _share(value.upper, most))
        return Interval.trusted(lower, upper)

    def _others(self, site: Site, squares: Tensor) -> Tensor:
        """Return the sum of all other squares, without cancellation."""
        dims = self._dims(site)
        order = [axis for axis in range(squares.ndim) if axis not in dims] + dims
        rows = squares.permute(order).flatten(squares.ndim - len(dims))
        nothing = torch.zeros_like(rows[..., :1])
        before = torch.cat([nothing, rows[..., :-1].cumsum(-1)], dim=-1)
        behind = torch.cat([rows[..., 1:].flip(-1).cumsum(-1).flip(-1), nothing], dim=-1)
        inverse = [order.index(axis) for axis in range(squares.ndim)]
        return (before + behind).reshape([squares.shape[axis] for axis in order]).permute(inverse)


_LARGEST_SHARE = 1.25
"""Bound on ``|x_k| / ‖x‖`` in a run whose squares underflow, above √1.5."""


@dataclass(frozen=True)
class NormRoundings(Relative):
    """Relative roundings where no square matters that underflows; elsewhere any direction is possible.

    Squares below the smallest number of a type are zero, and those just above it have a single digit. So a run can
    take a short vector for the origin, where the gradient is zero, or divide by a norm that is too small:
    ``x_k² <= 3/2 fl(x_k²)`` unless that is zero, and a sum of rounded squares is no less than one of them.

    Reference:
        docs/floats.md, section 4.6.
    """

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Value:
        assert isinstance(rule, VectorNorm)
        wide, value = as_interval(super().forward(rule, site, inputs, arithmetic)), as_interval(inputs[0])
        short = self._short(rule, site, value, arithmetic).reshape(wide.shape)
        if not bool(short.any()):
            return wide
        by = unless(~short, math.sqrt(self.result * arithmetic.least), wide.lower)
        return wide.widened(by, nonnegative=True)

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
        assert isinstance(rule, VectorNorm)
        (wide,) = super().backward(rule, site, grad, inputs, output, arithmetic)
        value = as_interval(inputs[0])
        assert wide is not None
        short = self._short(rule, site, value, arithmetic)
        if not bool(short.any()):
            return [wide]
        reach = value.mapped(torch.sign).scaled(_LARGEST_SHARE).hull(Interval.point(torch.zeros_like(value.lower)))
        other = wide.hull(arithmetic.outward(multiply(rule.along(site, grad, value), reach), self.gradient))
        lower, upper = (
            torch.where(short, far, near) for far, near in ((other.lower, wide.lower), (other.upper, wide.upper))
        )
        return [Interval.trusted(lower, upper)]

    def _short(self, rule: VectorNorm, site: Site, value: Interval, arithmetic: Arithmetic) -> Tensor:
        """Return which vectors can be so short, and are not zero, that squares underflow; with axes of size one."""
        types = [kind for kind in (arithmetic.run, arithmetic.own) if kind is not None]
        limit = max(torch.finfo(kind).tiny / unit_roundoff(kind) for kind in types)
        return rule.short(site, value, math.sqrt(self.result * limit))


def _share(value: Tensor, others: Tensor) -> Tensor:
    """``x / √(x² + r²)``; zero at the origin."""
    size = torch.hypot(value, others)
    return torch.where(size > 0, value / size.clamp(min=torch.finfo(value.dtype).tiny), 0.0)
