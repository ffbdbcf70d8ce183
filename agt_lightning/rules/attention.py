"""Scaled dot-product attention, bounded like the calls that it consists of.

Axis letters: ``t`` queries, ``s`` keys, ``d`` their size; batch axes in front, of which the first counts samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import product, softmax
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Rule, Site, name_of
from agt_lightning.rules.roundings import Roundings
from agt_lightning.rules.softmax import softmax_gradient
from agt_lightning.rules.values import Value, as_interval

_ROUNDINGS = 32
"""Roundings of one probability besides its score and the sum over keys: differences, exponentials, rescalings."""

_OF_SCORES = 8
"""Roundings of a score, of the logarithm of the sum, and of their difference."""

_MASKED = -1e30
"""A score whose probability is zero in every floating point type, as for minus infinity."""


@dataclass(frozen=True)
class AttentionRoundings(Roundings):
    """The roundings of attention, whose kernels take the softmax block by block (docs/floats.md, 4.4).

    Scores are sums of products. A probability is off relatively by the rounding of the differences of its score to the
    largest one, which a kernel may take in several steps. The gradient of a score, ``P (G V - Σ P (G V))``, is off by
    the rounding of these sums, relative to their magnitudes.

    Args:
        size: d, length of queries and keys.
        keys: number of keys.
        queries: number of queries.
    """

    size: int
    keys: int
    queries: int

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Interval:
        assert isinstance(rule, Attention)
        value = as_interval(inputs[2])
        exact, off = self._probabilities(rule, site, inputs, arithmetic)
        kept = rule.kept(site, self._rounded(exact, off, arithmetic), inputs)
        probabilities = arithmetic.outward(kept, self.keys + 3)
        return arithmetic.clear_of_underflow(product(probabilities, value), self.keys + 2)

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
        assert isinstance(rule, Attention)
        query, key, value = map(as_interval, inputs[:3])
        probabilities, off = self._probabilities(rule, site, inputs, arithmetic)
        sums = self.size + self.keys + value.shape[-1] + _ROUNDINGS
        towards = rule.kept(site, product(arithmetic.outward(grad, sums), value.mT), inputs)
        sizes = rule.kept(site, Interval.point(grad.magnitude @ value.magnitude.mT), inputs).upper
        largest = sizes + (probabilities.upper * sizes).sum(dim=-1, keepdim=True)
        exact = _last(softmax_gradient(_second(probabilities), _second(towards)))
        # With P (1 + θ) for P, |θ| <= off, twice off of these magnitudes; the third is room for the sums.
        slack = (3 * off * (1 + off) + 2 * arithmetic.relative(sums)) * probabilities.upper * largest
        slack = slack.nan_to_num(nan=torch.inf)
        scores = exact.widened(slack + arithmetic.absolute(sums)).scaled(rule.scale(site))
        wide = arithmetic.outward(scores, self.queries + self.keys + _ROUNDINGS)
        rounded = rule.kept(site, self._rounded(probabilities, off, arithmetic), inputs)
        towards_value = product(arithmetic.outward(rounded.mT, self.queries + 3), grad)
        gradients = [product(wide, key), product(wide.mT, query), towards_value]
        cleared = [arithmetic.clear_of_underflow(each, sums + self.queries) for each in gradients]
        return [*cleared, *[None] * (len(inputs) - 3)]

    def _rounded(self, exact: Interval, off: Tensor, arithmetic: Arithmetic) -> Interval:
        """Return bounds on P as a run computes it."""
        error = (exact.upper * off).nan_to_num(nan=torch.inf) + arithmetic.absolute(self.keys)
        return exact.widened(error, nonnegative=True)

    def _probabilities(
        self, rule: Attention, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic
    ) -> tuple[Interval, Tensor]:
        """Return bounds on P in real arithmetic, and how far a run's can be from it, relatively.

        A kernel's backward pass computes ``exp(s - log Σ exp s')`` with scores s that it rounds anew, so that P can
        exceed one and its rows need not add up to one.
        """
        query, key, _ = map(as_interval, inputs[:3])
        scores = rule.scores(site, query, key)
        sizes = abs(rule.scale(site)) * (query.magnitude @ key.magnitude.mT)
        apart = arithmetic.relative(self.size + 4) * sizes + arithmetic.absolute(self.size + 4)
        spread = scores.magnitude + scores.magnitude.amax(dim=-1, keepdim=True)
        relative = arithmetic.relative(_OF_SCORES) * spread + arithmetic.relative(self.keys + _ROUNDINGS)
        off = apart + apart.amax(dim=-1, keepdim=True) + relative
        return rule.probabilities(site, scores, inputs), off.expm1()


class Attention(Rule):
    """``scaled_dot_product_attention``: softmax(c Q Kᵀ) V, exact call by call but for the softmax's gradient.

    A mask may hide keys, by False or minus infinity, if it is the same in every run. With dropout, its mask D is the
    last input: (D ∘ softmax(c Q Kᵀ)) V.
    """

    def problem(self, site: Site) -> str | None:
        """Refuse masks that are trained, dropout without its mask, and factors with different samples or heads."""
        ranks = {len(shape) for shape in site.shapes[:3]}
        heads = {shape[:-2] for shape in site.shapes[:3]}
        dropped = bool(site["dropout_p"])
        if self._is_given_dropout(site):
            dropped = site.trainable[-1] or not site.samples[-1] and site.shapes[-1][0] != 1
        plain = self._mask_is_aligned(site) and not dropped and all(site.samples[:3])
        if plain and len(heads) == len(ranks) == 1 and len(site.shapes[0]) >= 3:
            return None
        return (
            f"`{name_of(site.call)}` at {site.call.source} has a mask that is trained or has other axes, dropout of "
            "all weights or on another device than a CPU, or factors that do not carry the same samples and heads. Use "
            "a mask of fixed numbers, `dropout_p=0`, and the batch as first axis."
        )

    def _mask_is_aligned(self, site: Site) -> bool:
        """Return whether there is no mask, or one whose first axis counts samples if they have masks of their own."""
        if site["attn_mask"] is None:
            return True
        rank, shape = len(site.shapes[0]), site.shapes[3]
        of_samples = len(shape) == rank and site.samples[3]
        shared = len(shape) < rank or shape[0] == 1
        return not site.trainable[3] and (of_samples or shared and not site.samples[3])

    def _is_given_dropout(self, site: Site) -> bool:
        """Return whether the last input is the mask of dropout."""
        return site.call.arguments.get("dropout_mask") is not None

    def kept(self, site: Site, weights: Interval, inputs: Sequence[Value]) -> Interval:
        """Return ``D ∘ P``, or ``D ∘ ∂L/∂(D ∘ P)``; without dropout what is given."""
        if not self._is_given_dropout(site):
            return weights
        mask = as_interval(inputs[-1]).lower
        return weights.mapped(lambda bound: bound * mask, nonnegative=weights.nonnegative)

    def _masks(self, site: Site, inputs: Sequence[Value]) -> Sequence[Value]:
        """Return what hides keys."""
        return inputs[3 : len(inputs) - self._is_given_dropout(site)]

    def hidden(self, site: Site, masks: Sequence[Value], like: Tensor) -> Tensor | None:
        """Return which keys a query does not see; None if it sees all.

        Raises:
            UncertifiableError: if a mask differs between runs, has other numbers than zero and minus infinity, or hides
                every key from a query, where the softmax is NaN.
        """
        if site["is_causal"]:
            return torch.ones(like.shape[-2:], dtype=torch.bool, device=like.device).triu(diagonal=1)
        if not masks:
            return None
        (mask,) = masks
        bounds = as_interval(mask)
        given = mask if isinstance(mask, Tensor) else bounds.lower
        hidden = given == 0 if given.dtype == torch.bool else given == -torch.inf
        plain = given.dtype == torch.bool or bool((hidden | (given == 0)).all())
        if not plain or not bounds.is_point or bool(hidden.all(dim=-1).any()):
            raise UncertifiableError(
                [
                    f"`{name_of(site.call)}` at {site.call.source} has a mask that differs between runs, hides every "
                    "key from a query, or has numbers other than zero and minus infinity. Use a mask of True and False "
                    "that is computed from entries which nobody moves."
                ]
            )
        return hidden

    def roundings(self, site: Site) -> Roundings:
        """Those of all kernels for attention."""
        return AttentionRoundings(site.shapes[0][-1], site.shapes[1][-2], site.shapes[0][-2])

    def scale(self, site: Site) -> float:
        """Return c."""
        return 1 / math.sqrt(site.shapes[0][-1]) if site["scale"] is None else site.number("scale")

    def scores(self, site: Site, query: Interval, key: Interval) -> Interval:
        """Return bounds on ``c Q Kᵀ``."""
        return product(query, key.mT).scaled(self.scale(site))

    def probabilities(self, site: Site, scores: Interval, inputs: Sequence[Value]) -> Interval:
        """Return bounds on ``P``, the softmax over keys."""
        hidden = self.hidden(site, self._masks(site, inputs), scores.lower)
        if hidden is not None:
            scores = scores.mapped(lambda bound: bound.masked_fill(hidden, _MASKED))
        return _last(softmax(_second(scores)))

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``P V``."""
        query, key, value = map(as_interval, inputs[:3])
        probabilities = self.probabilities(site, self.scores(site, query, key), inputs)
        return product(self.kept(site, probabilities, inputs), value)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``∂L/∂V = Pᵀ G``; with ``S`` the softmax's gradient of ``G Vᵀ``, ``c S K`` for Q and ``c Sᵀ Q`` for K.

        With dropout, ``(D ∘ P)ᵀ G`` and ``D ∘ (G Vᵀ)``.
        """
        query, key, value = map(as_interval, inputs[:3])
        probabilities = self.probabilities(site, self.scores(site, query, key), inputs)
        towards = self.kept(site, product(grad, value.mT), inputs)
        scores = _last(softmax_gradient(_second(probabilities), _second(towards))).scaled(self.scale(site))
        gradients = [product(scores, key), product(scores.mT, query)]
        gradients.append(product(self.kept(site, probabilities, inputs).mT, grad))
        return [*gradients, *[None] * (len(inputs) - 3)]


def _second(value: Interval) -> Interval:
    """Move the last axis to axis 1, over which the softmax is taken."""
    return value.rearranged(lambda bound: bound.movedim(-1, 1))


def _last(value: Interval) -> Interval:
    """Move axis 1 to the last place."""
    return value.rearranged(lambda bound: bound.movedim(1, -1))
