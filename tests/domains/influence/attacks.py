"""The strongest label flips against a prediction, from the coefficients of its labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from agt_lightning.domains.influence.label_sets import LabelFlips
from agt_lightning.domains.influence.model import LinearInLabels


class FlipAttack(NamedTuple):
    """Labels to write, and their effect.

    Args:
        samples: which samples, int64 (m,) with m <= n.
        classes: their new classes, int64 (m,).
        rival: the class that gains on the predicted one.
        margin: what is left of the predicted class's margin; negative if the attack succeeds.
    """

    samples: Tensor
    classes: Tensor
    rival: int
    margin: float


def strongest_flips(model: LinearInLabels, query: Tensor, n: int, flips: LabelFlips) -> FlipAttack:
    """Return the n flips of the data set that leave the predicted class the smallest margin.

    Args:
        model: outputs as a function of labels.
        query: features of one test point, (d,).
        n: largest number of flips; flips without effect are left out.
        flips: labels that can be written.

    Returns:
        The attack, against the rival that it brings nearest.
    """
    outputs = model.predict(query[None]).outputs
    predicted = flips.encoding.predicted(outputs)
    margins = flips.encoding.margins(outputs, predicted)
    (samples, coefficients), *_ = model.budget_groups(query[None], "dataset")
    attacks = []
    for _, rival, direction in flips.encoding.comparisons(predicted):
        losses = flips.range(direction).loss(coefficients, samples)[0]
        largest = losses.topk(min(n, len(losses)))
        chosen = largest.indices[largest.values > 0]
        classes = strongest_classes(flips, direction, coefficients[0, chosen], samples[chosen])
        margin = float(margins[0, rival] - losses[chosen].sum())
        attacks.append(FlipAttack(samples[chosen], classes, rival, margin))
    return min(attacks, key=lambda attack: attack.margin)


def strongest_classes(flips: LabelFlips, direction: Tensor, coefficients: Tensor, samples: Tensor) -> Tensor:
    """Return the classes that lower ``w·f`` most, for one coefficient (m,) per sample (m,); int64 (m,)."""
    codewords = flips.encoding.codewords
    scores = (codewords @ direction.to(codewords)).expand(len(codewords), -1)
    lowest = torch.where(flips.allowed, scores, torch.inf).argmin(dim=1)
    highest = torch.where(flips.allowed, scores, -torch.inf).argmax(dim=1)
    own = flips.classes[samples]
    return torch.where(coefficients > 0, lowest[own], highest[own])
