"""The number of label flips that a prediction withstands, exactly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.domains.influence.label_sets import LabelFlips, LabelRange
from agt_lightning.domains.influence.model import MEMORY, Budget, BudgetGroup, LinearInLabels, query_chunks
from agt_lightning.domains.influence.target_encoding import Comparison


def certified_flips(
    model: LinearInLabels,
    queries: Tensor,
    flips: LabelFlips,
    *,
    budget: Budget = "dataset",
    tolerance: float = 0.0,
    memory: int = MEMORY,
) -> Tensor:
    r"""Compute the largest n such that no n label flips change the predicted class; sound and complete.

    Flipping sample i lowers the margin of class c against k by at most ``a_i (1 + s_i)`` if ``a_i > 0`` and by
    ``-a_i (1 - s_i)`` otherwise, ``s_i = y_ic - y_ik`` (for one-hot codewords). Reductions add, so n flips lower the
    margin by at most the sum of the n largest, and some flips attain it: the prediction withstands them against a
    rival if and only if the margin exceeds that sum. With the budget for each batch, the sums of all steps add, each
    of the n largest of its step.

    A tie counts as changed. Rounding is one-sided: the margin must exceed the reduction by the errors that runs, replay
    and sums can have, so a certificate holds, and within them n + 1 flips can be refused without need.

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
        UncertifiableError: if rows cannot be attributed to samples, with the budget for the data set.

    Reference:
        docs/theory.md, eq. (11.4) and (11.5).

    Example:
        >>> from agt_lightning.domains.influence.recorder import HeadRecorder
        >>> from agt_lightning.domains.sgd import SGDSettings
        >>> recorder, x = HeadRecorder(torch.zeros(1, 1), bias=True), torch.zeros(5, 0)
        >>> y = torch.tensor([[1.0], [1.0], [1.0], [1.0], [-1.0]])
        >>> recorder.append(x, y, torch.full((5,), 0.2), SGDSettings(0.5), ids=torch.arange(5))
        >>> mean = recorder.influence()                    # the head is the mean of the labels, halved: 0.3
        >>> certified_flips(mean, torch.zeros(1, 0), LabelFlips.of_targets(mean.targets))
        tensor([1])
    """
    sizes = model.group_sizes(budget)
    bytes_per_query = 8 * (sum(sizes) + len(model.targets) + 4 * max(sizes))
    chunks = query_chunks(queries, bytes_per_query, memory)
    return torch.cat([_certified(model, chunk, flips, budget, tolerance) for chunk in chunks])


def _certified(model: LinearInLabels, queries: Tensor, flips: LabelFlips, budget: Budget, tolerance: float) -> Tensor:
    predictions = model.predict(queries)
    predicted = flips.encoding.predicted(predictions.outputs)
    slack = 2 * predictions.slack(flips.largest) + tolerance  # a margin has at most two outputs
    spare = flips.encoding.margins(predictions.outputs, predicted) - slack[:, None]
    groups, positions = tuple(model.budget_groups(queries, budget)), max(model.group_sizes(budget))
    withstood = torch.full_like(predicted, positions)
    for comparison in flips.encoding.comparisons(predicted):
        members = comparison.queries
        damage = _damage(groups, comparison, flips.range(comparison.direction), positions)
        own = Arithmetic(None, damage.dtype)
        upward = damage * (1 + own.relative(len(model.targets) + len(groups)))
        count = (upward < spare[members, comparison.rival, None]).sum(dim=1)
        withstood[members] = torch.minimum(withstood[members], count)
    return withstood


def _damage(groups: Sequence[BudgetGroup], comparison: Comparison, labels: LabelRange, positions: int) -> Tensor:
    """Return the largest loss of the margin by 1, 2, ... flips, (q, largest group)."""
    members = comparison.queries
    damage = torch.zeros(len(members), positions, dtype=torch.float64, device=members.device)
    for samples, coefficients in groups:
        damage += _padded(_largest_sums(labels.loss(coefficients[members], samples)), positions)
    return damage


def _largest_sums(losses: Tensor) -> Tensor:
    """Return the sums of the 1, 2, ... largest entries of each row, (q, m); the argument is overwritten."""
    if losses.is_cuda:
        return losses.sort(dim=1, descending=True).values.cumsum(dim=1)
    # On CPU this sort takes a twentieth of the time of `torch.sort` at 60 000 samples.
    losses.numpy().sort(axis=1)
    return losses.flip(1).cumsum(dim=1)


def _padded(sums: Tensor, positions: int) -> Tensor:
    """Repeat the last sum: more flips than a smaller batch has positions do no more damage."""
    missing = positions - sums.shape[1]
    if not missing:
        return sums
    last = sums[:, -1:] if sums.shape[1] else sums.new_zeros(len(sums), 1)
    return torch.cat([sums, last.expand(-1, missing)], dim=1)
