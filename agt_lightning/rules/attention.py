"""Scaled dot-product attention, bounded like the calls that it consists of.

Axis letters: ``t`` queries, ``s`` keys, ``d`` their size; batch axes in front, of which the first counts samples.
"""

import math
from collections.abc import Sequence

import torch

from agt_lightning.arithmetic import product, softmax
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Rule, Site, name_of
from agt_lightning.rules.softmax import softmax_gradient
from agt_lightning.rules.values import Value, as_interval

_MASKED = -1e30
"""A score whose probability is zero in every floating point type, as for minus infinity."""


class Attention(Rule):
    """``scaled_dot_product_attention``: softmax(c Q Kᵀ) V, exact call by call but for the softmax's gradient."""

    def problem(self, site: Site) -> str | None:
        """Refuse masks other than the causal one, dropout, and factors with different samples or heads."""
        ranks = {len(shape) for shape in site.shapes}
        heads = {shape[:-2] for shape in site.shapes}
        plain = site["attn_mask"] is None and not site["dropout_p"] and all(site.samples)
        if plain and len(heads) == len(ranks) == 1 and len(site.shapes[0]) >= 3:
            return None
        return (
            f"`{name_of(site.call)}` at {site.call.source} has a mask, dropout, or factors that do not carry the same "
            "samples and heads. Use `is_causal=True` for a causal mask, `dropout_p=0`, and the batch as first axis."
        )

    def _scale(self, site: Site) -> float:
        return 1 / math.sqrt(site.shapes[0][-1]) if site["scale"] is None else site.number("scale")

    def _probabilities(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``P = softmax(c Q Kᵀ)`` over keys."""
        scores = product(as_interval(inputs[0]), as_interval(inputs[1]).mT).scaled(self._scale(site))
        if site["is_causal"]:
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(diagonal=1)
            scores = scores.mapped(lambda bound: bound.masked_fill(hidden, _MASKED))
        return _last(softmax(_second(scores)))

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``P V``."""
        return product(self._probabilities(site, inputs), as_interval(inputs[2]))

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``∂L/∂V = Pᵀ G``; with ``S`` the softmax's gradient of ``G Vᵀ``, ``c S K`` for Q and ``c Sᵀ Q`` for K."""
        query, key, value = map(as_interval, inputs)
        probabilities = self._probabilities(site, inputs)
        towards = product(grad, value.mT)
        scores = _last(softmax_gradient(_second(probabilities), _second(towards))).scaled(self._scale(site))
        return [product(scores, key), product(scores.mT, query), product(probabilities.mT, grad)]


def _second(value: Interval) -> Interval:
    """Move the last axis to axis 1, over which the softmax is taken."""
    return value.rearranged(lambda bound: bound.movedim(-1, 1))


def _last(value: Interval) -> Interval:
    """Move axis 1 to the last place."""
    return value.rearranged(lambda bound: bound.movedim(1, -1))
