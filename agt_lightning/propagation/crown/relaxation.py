"""Linear relaxations: a linear form of a call's result, bounded by a linear form of its inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from agt_lightning.interval import Interval
from agt_lightning.propagation.crown.concretize import inner, largest
from agt_lightning.propagation.crown.forms import Terms
from agt_lightning.propagation.crown.lines import LinesOf
from agt_lightning.propagation.crown.slopes import Slopes
from agt_lightning.rules import Rule, Site, Value
from agt_lightning.rules.values import as_interval


class Relaxation(ABC):
    """A linear relaxation of one operation; stateless.

    It maps Λ to Λ' and c with ``⟨Λ_r, y⟩ <= Σ ⟨Λ'_r, x⟩ + c_r`` for all inputs and parameters in their boxes.
    """

    affine: ClassVar[bool] = True
    """Whether the operation is affine in its inputs with samples."""

    def applies(self, site: Site, inputs: Sequence[Value]) -> bool:
        """Whether this call has a relaxation with these inputs; otherwise its own box takes its place."""
        return True

    def combines(self, site: Site) -> bool:
        """Whether a result depends on several elements, whose dependence interval bounds lose."""
        return False

    def weighs(self, site: Site) -> bool:
        """Whether a trained parameter multiplies the input, so that products need the input's own box."""
        return False

    @abstractmethod
    def substitute(self, site: Site, rule: Rule, coefficient: Tensor, inputs: Sequence[Value], slopes: Slopes) -> Terms:
        """Express ``⟨Λ_r, y⟩`` by the call's inputs.

        Args:
            site: the call.
            rule: its interval rule.
            coefficient: Λ, (b, r, *shape of y).
            inputs: bounds of the call's tensor inputs.
            slopes: slopes of the lines below kinked functions.
        """


def _any_settings(site: Site) -> bool:
    return True


@dataclass(frozen=True)
class Elementwise(Relaxation):
    """A function of each element between two lines: the upper one where Λ >= 0, the lower one elsewhere.

    Args:
        lines: computes the two lines of the function.
        covers: whether the lines are proved for the settings of a call.
    """

    lines: LinesOf
    covers: Callable[[Site], bool] = _any_settings
    affine: ClassVar[bool] = False

    def applies(self, site: Site, inputs: Sequence[Value]) -> bool:
        """Whether the lines cover the settings of this call."""
        return self.covers(site)

    def substitute(self, site: Site, rule: Rule, coefficient: Tensor, inputs: Sequence[Value], slopes: Slopes) -> Terms:
        """Return ``Λ⁺ (s x + t) - Λ⁻ (s' x + t')``."""
        box = as_interval(inputs[0])
        lines = self.lines(site, box, slopes(site.call.name, box))
        slope = torch.where(coefficient >= 0, lines.above_slope, lines.below_slope)
        constant = inner(coefficient.clamp(min=0), lines.above_offset.squeeze(1))
        size = inner(coefficient.abs(), torch.maximum(lines.above_offset.abs(), lines.below_offset.abs()).squeeze(1))
        if bool(lines.below_offset.any()):
            constant = constant + inner(coefficient.clamp(max=0), lines.below_offset.squeeze(1))
        return Terms([coefficient * slope], constant, size)


class Identity(Relaxation):
    """The relaxation of casts, `detach` and dropout that is switched off: the value itself."""

    def applies(self, site: Site, inputs: Sequence[Value]) -> bool:
        """Whether input and result are floating point values."""
        return isinstance(inputs[0], Interval) and site.call.dtype.is_floating_point

    def substitute(self, site: Site, rule: Rule, coefficient: Tensor, inputs: Sequence[Value], slopes: Slopes) -> Terms:
        """Return ``Λ x``."""
        nothing = coefficient.new_zeros(coefficient.shape[:2])
        return Terms([coefficient], nothing, nothing)


@dataclass(frozen=True)
class Affine(Relaxation):
    """The relaxation of ``y = A x + c``, with A and c given by parameters: ``⟨Λ, y⟩ = ⟨Aᵀ Λ, x⟩ + ⟨Λ, c⟩``.

    ``Aᵀ Λ`` is the gradient of ``⟨Λ, y⟩`` with respect to x, so the rule's own backward pass bounds it, exactly for
    point coefficients; convolutions become transposed convolutions. c is the call's value at x = 0.
    Derived in docs/theory.md, eq. (12.3).

    Args:
        mixes: whether a result depends on several elements of one input.
        multiplies: whether a parameter can multiply x.
    """

    mixes: bool = False
    multiplies: bool = False

    def applies(self, site: Site, inputs: Sequence[Value]) -> bool:
        """Whether at most one factor has samples."""
        return not self.multiplies or sum(site.samples) == 1

    def combines(self, site: Site) -> bool:
        """Whether a result depends on several elements of one input, or on two inputs with samples."""
        return self.mixes or sum(site.samples) > 1

    def weighs(self, site: Site) -> bool:
        """Whether the factor is trained."""
        return self.multiplies and any(
            trains and not own for trains, own in zip(site.trainable, site.samples, strict=True)
        )

    def substitute(self, site: Site, rule: Rule, coefficient: Tensor, inputs: Sequence[Value], slopes: Slopes) -> Terms:
        """Return ``Aᵀ Λ`` resolved over the box of x, and the largest ``⟨Λ, c⟩``."""
        b, r = coefficient.shape[:2]
        gradient = Interval.point(coefficient.flatten(0, 1))
        shapes = [_rows(value, b * r) if own else value for value, own in zip(inputs, site.samples, strict=True)]
        gradients = rule.backward(site, gradient, shapes, gradient)
        origins = [_origin(value) if own else value for value, own in zip(inputs, site.samples, strict=True)]
        offset = as_interval(rule.forward(site, origins))
        constant, size = largest(coefficient, offset), inner(coefficient.abs(), offset.magnitude)
        coefficients: list[Tensor | None] = []
        for value, own, towards in zip(inputs, site.samples, gradients, strict=True):
            if not own or towards is None:
                coefficients.append(None)
                continue
            resolved = resolve(towards.rearranged(lambda bound: bound.unflatten(0, (b, r))), as_interval(value))
            coefficients.append(resolved.coefficients[0])
            constant, size = constant + resolved.constant, size + resolved.size
        return Terms(coefficients, constant, size)


def resolve(coefficient: Interval, box: Interval) -> Terms:
    """Return the tightest linear upper bound in x of ``max Λ x`` over Λ in an interval, for x in its box.

    For Λ in [L, U] and x in [l, u] the maximum is max(L x, U x), convex in x; its least linear bound from above is the
    line through both ends: U x if l >= 0, L x if u <= 0, else with ``a = -l / (u - l)``

        (a L + (1 - a) U) x + (U - L) a u.

    Args:
        coefficient: Λ, (b, r, *shape).
        box: box of x, (b, *shape).

    Reference:
        docs/theory.md, eq. (12.2).

    Example:
        >>> box = Interval(torch.tensor([[-1.0]]), torch.tensor([[3.0]]))
        >>> terms = resolve(Interval(torch.tensor([[[-2.0]]]), torch.tensor([[[2.0]]])), box)
        >>> terms.coefficients[0], terms.constant
        (tensor([[[1.]]]), tensor([[3.]]))
    """
    if coefficient.is_point or box.nonnegative:
        nothing = coefficient.upper.new_zeros(coefficient.shape[:2])
        return Terms([coefficient.upper], nothing, nothing)
    below, above = (-box.lower).clamp(min=0), box.upper.clamp(min=0)
    share = below / torch.where(below + above > 0, below + above, 1.0)
    width = coefficient.width
    constant = inner(width, share * above)
    return Terms([coefficient.upper - width * share.unsqueeze(1)], constant, 4 * constant)


def _rows(value: Value, count: int) -> Interval:
    """Return zeros of the value's shape with this many samples, for rules that read the shape alone."""
    bounds = as_interval(value)
    return Interval.point(bounds.lower.new_zeros(()).expand(count, *bounds.shape[1:]))


def _origin(value: Value) -> Interval:
    """Return one sample of zeros."""
    bounds = as_interval(value)
    return Interval.point(bounds.lower.new_zeros(1, *bounds.shape[1:]))
