"""The number of edits of the training data that a prediction withstands."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.domains.edits.model import Damage, EditableModel, Evaluation

MEMORY = 2**28
"""Bytes of working memory, 256 MiB."""

_COPIES = 6
"""Matrices of queries by samples that are in memory together."""


def certified_edits(model: EditableModel, queries: Tensor, *, memory: int = MEMORY) -> Tensor:
    """Compute an n such that no n insertions and deletions in the whole data set change the predicted class.

    Inserted samples can be anything, copies of the query with a wrong label among them; deletions and insertions can be
    mixed. A replaced sample is **two** edits here, as in deep partition aggregation.

    A tie counts as changed, and all roundings are counted against the certificate: those of the training on edited data
    in any order of summation, and those of this computation.

    Args:
        model: the classifier, such as `KernelSums` or `LeastSquaresSteps`.
        queries: features of the test points, (Q, d).
        memory: bytes of working memory; queries are processed in chunks.

    Returns:
        int64 (Q,): the largest n that is proved; -1 if not even the prediction on the data as they are is certain, as
        for a tie.

    Reference:
        docs/theory.md, eq. (14.3) for sums of a kernel, (14.12) for steps of least squares.

    Example:
        >>> from agt_lightning.domains.edits import KernelSums, RadiusVote
        >>> x = torch.tensor([[1.0], [1.0], [1.0], [-1.0]])
        >>> votes = KernelSums(RadiusVote(0.5), x, torch.tensor([0, 0, 0, 1]), classes=2)
        >>> certified_edits(votes, torch.tensor([[1.0]]))        # three votes against none
        tensor([2])
    """
    return _certified(model, queries, lambda found: found.edits, memory)


def certified_replacements(model: EditableModel, queries: Tensor, *, memory: int = MEMORY) -> Tensor:
    """Compute an n such that no n replaced samples of the whole data set change the predicted class.

    A replaced sample becomes any other, with any label, and counts **once**. All else is as for `certified_edits`.

    Args:
        model: as there.
        queries: as there.
        memory: as there.

    Returns:
        int64 (Q,), as there.

    Reference:
        docs/theory.md, eq. (14.4) and (14.13).

    Example:
        >>> from agt_lightning.domains.edits import KernelSums, RadiusVote
        >>> x = torch.tensor([[1.0], [1.0], [1.0], [-1.0]])
        >>> votes = KernelSums(RadiusVote(0.5), x, torch.tensor([0, 0, 0, 1]), classes=2)
        >>> certified_replacements(votes, torch.tensor([[1.0]]))
        tensor([1])
    """
    return _certified(model, queries, lambda found: found.replacements, memory)


_Costs = Callable[[Tensor, int, int], Damage]


def _certified(model: EditableModel, queries: Tensor, costs: Callable[[Evaluation], _Costs], memory: int) -> Tensor:
    size = max(1, memory // (8 * _COPIES * max(1, len(model.labels))))
    found = (model.at(chunk) for chunk in queries.split(size))
    parts = [_least(evaluation, costs(evaluation), model.classes) for evaluation in found]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


def _least(evaluation: Evaluation, costs: _Costs, classes: int) -> Tensor:
    """Return the least number of edits over all rivals, (Q,)."""
    withstood = torch.full_like(evaluation.predicted, torch.iinfo(torch.int64).max)
    for members, label, rival in comparisons(evaluation.predicted, classes):
        spare = evaluation.spare[members, rival]
        withstood[members] = torch.minimum(withstood[members], largest(costs(members, label, rival), spare))
    return withstood


def comparisons(predicted: Tensor, classes: int) -> Iterator[tuple[Tensor, int, int]]:
    """Yield the queries of each class that is predicted, the class, and each of its rivals."""
    for label in predicted.unique().tolist():
        members = (predicted == label).nonzero().squeeze(1)
        for rival in range(classes):
            if rival != label:
                yield members, label, rival


def largest(damage: Damage, spare: Tensor) -> Tensor:
    """Return the largest n whose damage is below what a margin can spare, by bisection; -1 if there is none.

    Args:
        damage: by n edits.
        spare: (q,).

    Example:
        >>> one = torch.ones(2, dtype=torch.float64)
        >>> largest(Damage(one, one[:, None], 0 * one, most=9), spare=torch.tensor([4.5, 1.0]).double())
        tensor([3, 0])
    """
    ranked = damage.samples.sort(dim=1, descending=True).values.cumsum(dim=1)
    sums = torch.cat([torch.zeros_like(spare)[:, None], ranked], dim=1)
    upward = 1 + Arithmetic(None, spare.dtype).relative(sums.shape[1] + 8)
    magnitude = torch.cat([torch.zeros_like(spare)[:, None], damage.samples.abs()], dim=1).sum(dim=1)
    slack = (upward - 1) * magnitude  # sums of both signs can cancel

    def survives(n: Tensor) -> Tensor:
        top = sums.gather(1, n.clamp(0, sums.shape[1] - 1)[:, None]).squeeze(1)
        total = (n * damage.each + top.clamp(min=0) + n * n * damage.joint) * upward + top.clamp(max=0) + slack
        return total < spare

    low, high = torch.full_like(spare, -1, dtype=torch.int64), torch.full_like(spare, damage.most, dtype=torch.int64)
    while bool((low < high).any()):
        middle = low + (high - low + 1).div(2, rounding_mode="floor")
        good = survives(middle)
        low, high = torch.where(good, middle, low), torch.where(good, high, middle - 1)
    return low
