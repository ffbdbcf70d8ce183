"""How many label flips a prediction survives, exactly, and the flips that it does not survive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from agt_lightning.domains.influence.codes import Comparison
from agt_lightning.domains.influence.label_sets import LabelFlips, LabelRange
from agt_lightning.domains.influence.linear import Budget, LinearInLabels, Round, query_chunks

MEMORY = 2**28
"""Bytes of working memory, 256 MiB."""


class FlipAttack(NamedTuple):
    """Labels to write, and what they achieve.

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


def certified_flips(
    model: LinearInLabels,
    queries: Tensor,
    flips: LabelFlips,
    *,
    budget: Budget = "dataset",
    tolerance: float = 0.0,
    memory: int = MEMORY,
) -> Tensor:
    r"""Largest n such that no n label flips change the predicted class; sound and complete.

    Flipping sample i lowers the margin of class c against k by at most ``a_i (1 + s_i)`` if ``a_i > 0`` and by
    ``-a_i (1 - s_i)`` otherwise, ``s_i = y_ic - y_ik`` (for one-hot codes). Reductions add, so n flips lower it by at
    most the n largest, and some flips attain that: the prediction survives them for every rival, or it does not.
    With the budget for each batch, the sum is over steps of the n largest of each step.

    A tie counts as changed. Rounding is one-sided: the margin must exceed the reduction by the error that summation and
    replay can have in float64, so a certificate holds and an n + 1 can be refused within that error.

    Args:
        model: outputs as a function of labels.
        queries: features of the test points, (Q, d).
        flips: labels that can be written; samples as in ``model.targets``.
        budget: "dataset": n samples of the data set, each with one new label for all epochs. "batch": n positions of
            every step's batch, each with a label of its own (with one label for all epochs, sound but not complete).
        tolerance: further slack on each margin, such as the distance of these outputs from those of a float32 module.
        memory: bytes of working memory; queries are processed in chunks.

    Returns:
        int64 (Q,): 0 if one flip is enough, or the prediction itself is a tie; the number of poisonable samples (of a
        batch) if no number of flips is enough.

    Raises:
        UncertifiableError: if it is not known which samples are the same, with the budget for the data set.

    Reference:
        docs/theory.md, "Exact influence of labels".

    Example:
        >>> from agt_lightning.domains.influence import HeadRecorder
        >>> from agt_lightning.domains.sgd import SGDSettings
        >>> recorder, x = HeadRecorder(torch.zeros(1, 1), bias=True), torch.zeros(5, 0)
        >>> y = torch.tensor([[1.0], [1.0], [1.0], [1.0], [-1.0]])
        >>> recorder.append(x, y, torch.full((5,), 0.2), SGDSettings(0.5), ids=torch.arange(5))
        >>> mean = recorder.influence()                    # the head is the mean of the labels, halved: 0.3
        >>> certified_flips(mean, torch.zeros(1, 0), LabelFlips.of_targets(mean.targets))
        tensor([1])
    """
    sizes = model.round_sizes(budget)
    bytes_per_query = 8 * (sum(sizes) + len(model.targets) + 4 * max(sizes))
    chunks = query_chunks(queries, bytes_per_query, memory)
    return torch.cat([_certified(model, chunk, flips, budget, tolerance) for chunk in chunks])


def strongest_flips(model: LinearInLabels, query: Tensor, n: int, flips: LabelFlips) -> FlipAttack:
    """The n flips of the data set that leave the predicted class the smallest margin: no n flips do more.

    Args:
        model: outputs as a function of labels.
        query: features of one test point, (d,).
        n: largest number of flips; flips without effect are left out.
        flips: labels that can be written.

    Returns:
        The attack, against the rival that it brings nearest.

    Example:
        >>> from agt_lightning.domains.influence import RidgeInfluence
        >>> features, labels = torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([[1.0], [1.0], [-1.0]])
        >>> ridge = RidgeInfluence(features, labels, penalty=0.1, bias=False)
        >>> strongest_flips(ridge, torch.tensor([1.0]), 1, LabelFlips.of_targets(labels)).samples
        tensor([1])
    """
    outputs = model.predict(query[None]).outputs
    own = flips.codes.predicted(outputs)
    margins = flips.codes.margins(outputs, own)
    (samples, coefficients), *_ = model.rounds(query[None], "dataset")
    attacks = []
    for _, rival, direction in flips.codes.comparisons(own):
        losses = flips.range(direction).loss(coefficients, samples)[0]
        largest = losses.topk(min(n, len(losses)))
        chosen = largest.indices[largest.values > 0]
        classes = flips.worst(direction, coefficients[0, chosen], samples[chosen])
        margin = float(margins[0, rival] - losses[chosen].sum())
        attacks.append(FlipAttack(samples[chosen], classes, rival, margin))
    return min(attacks, key=lambda attack: attack.margin)


def _certified(model: LinearInLabels, queries: Tensor, flips: LabelFlips, budget: Budget, tolerance: float) -> Tensor:
    predictions = model.predict(queries)
    own = flips.codes.predicted(predictions.outputs)
    slack = 2 * predictions.slack(model.roundoff, flips.largest) + tolerance  # a margin has at most two outputs
    spare = flips.codes.margins(predictions.outputs, own) - slack[:, None]
    rounds, positions = tuple(model.rounds(queries, budget)), max(model.round_sizes(budget))
    survived = torch.full_like(own, positions)
    for comparison in flips.codes.comparisons(own):
        members = comparison.queries
        damage = _damage(rounds, comparison, flips.range(comparison.direction), positions)
        count = (damage < spare[members, comparison.rival, None]).sum(dim=1)
        survived[members] = torch.minimum(survived[members], count)
    return survived


def _damage(rounds: Sequence[Round], comparison: Comparison, labels: LabelRange, positions: int) -> Tensor:
    """Largest loss of the margin by 1, 2, ... flips, (q, largest round)."""
    members = comparison.queries
    damage = torch.zeros(len(members), positions, dtype=torch.float64, device=members.device)
    for samples, coefficients in rounds:
        damage += _padded(_largest_sums(labels.loss(coefficients[members], samples)), positions)
    return damage


def _largest_sums(losses: Tensor) -> Tensor:
    """Sums of the 1, 2, ... largest entries of each row, which are overwritten; (q, m)."""
    if losses.is_cuda:
        return losses.sort(dim=1, descending=True).values.cumsum(dim=1)
    # On CPU this sort takes a twentieth of the time of `torch.sort` at 60 000 samples.
    losses.numpy().sort(axis=1)
    return losses.flip(1).cumsum(dim=1)


def _padded(sums: Tensor, positions: int) -> Tensor:
    """More flips than a smaller batch has positions do no more damage."""
    missing = positions - sums.shape[1]
    if not missing:
        return sums
    last = sums[:, -1:] if sums.shape[1] else sums.new_zeros(len(sums), 1)
    return torch.cat([sums, last.expand(-1, missing)], dim=1)
