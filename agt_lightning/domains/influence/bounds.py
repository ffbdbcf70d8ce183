"""Worst and best outputs and margins for a given number of changed labels, attained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from agt_lightning.aggregation.top_n import top_n_sum
from agt_lightning.domains.influence.codes import ClassCodes, Comparison
from agt_lightning.domains.influence.flips import MEMORY
from agt_lightning.domains.influence.label_sets import LabelSet
from agt_lightning.domains.influence.linear import Budget, LinearInLabels, query_chunks
from agt_lightning.interval import Interval


def prediction_bounds(
    model: LinearInLabels,
    queries: Tensor,
    n: int,
    labels: LabelSet,
    *,
    budget: Budget = "dataset",
    memory: int = MEMORY,
) -> Interval:
    """Smallest and largest output of every query over all changes of n labels; each bound is attained.

    ``f_k ± ν Σ top-n |a_i|`` for a `LabelBall`; with the budget for each batch, summed over the steps. Widened by the
    error that summation and replay can have in float64.

    Args:
        model: outputs as a function of labels.
        queries: features, (Q, d).
        n: number of samples of the data set, or of positions in every batch.
        labels: what can be written in place of a label.
        budget: what n counts.
        memory: bytes of working memory.

    Returns:
        Bounds of shape (Q, K), in units of the targets.

    Raises:
        UncertifiableError: if it is not known which samples are the same, with the budget for the data set.

    Example:
        >>> from agt_lightning.domains.influence import LabelBall, RidgeInfluence
        >>> features, targets = torch.tensor([[1.0], [1.0], [2.0]]), torch.ones(3, 1)
        >>> ridge = RidgeInfluence(features, targets, penalty=2.0, bias=False)     # a = (1, 1, 2) / 12
        >>> prediction_bounds(ridge, torch.tensor([[1.0]]), 2, LabelBall(targets, nu=0.4))
        Interval(lower=tensor([[0.2333]], dtype=torch.float64), upper=tensor([[0.4333]], dtype=torch.float64))
    """
    return _stacked(
        [
            _prediction_bounds(model, chunk, n, labels, budget)
            for chunk in query_chunks(queries, _bytes(model, budget), memory)
        ]
    )


def margin_bounds(
    model: LinearInLabels,
    queries: Tensor,
    classes: Tensor,
    n: int,
    labels: LabelSet,
    codes: ClassCodes,
    *,
    budget: Budget = "dataset",
    memory: int = MEMORY,
) -> Interval:
    """Smallest and largest margin of a class against every other over all changes of n labels; each is attained.

    Args:
        model: outputs as a function of labels.
        queries: features, (Q, d).
        classes: class c of each query whose margins are bounded, int64 (Q,).
        n: number of samples of the data set, or of positions in every batch.
        labels: what can be written in place of a label.
        codes: how outputs are read as classes; for `LabelFlips`, its own ``codes``.
        budget: what n counts.
        memory: bytes of working memory.

    Returns:
        Bounds on ``f_c - f_k`` for every k, (Q, C), and for one output on its distance from the midpoint of the codes;
        0 for ``k = c``.

    Raises:
        UncertifiableError: if it is not known which samples are the same, with the budget for the data set.

    Example:
        >>> from agt_lightning.domains.influence import LabelFlips, RidgeInfluence
        >>> features, targets = torch.tensor([[1.0], [1.0], [2.0]]), torch.ones(3, 1)
        >>> ridge, codes = RidgeInfluence(features, targets, penalty=2.0, bias=False), ClassCodes.binary()
        >>> flips = LabelFlips.of_targets(targets, codes)
        >>> margin_bounds(ridge, torch.tensor([[1.0]]), torch.tensor([1]), 1, flips, codes).upper
        tensor([[0.3333, 0.0000]], dtype=torch.float64)
    """
    parts = zip(
        query_chunks(queries, _bytes(model, budget), memory),
        query_chunks(classes, _bytes(model, budget), memory),
        strict=True,
    )
    return _stacked([_margin_bounds(model, chunk, own, n, labels, codes, budget) for chunk, own in parts])


def _prediction_bounds(model: LinearInLabels, queries: Tensor, n: int, labels: LabelSet, budget: Budget) -> Interval:
    predictions = model.predict(queries)
    outputs = predictions.outputs
    everyone = torch.arange(len(queries), device=outputs.device)
    axes = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
    single = [Comparison(everyone, column, axis) for column, axis in enumerate(axes)]
    slack = predictions.slack(model.roundoff, labels.largest)[:, None]
    return _widened(outputs, _changes(model, queries, n, labels, budget, single, len(axes)), slack)


def _margin_bounds(
    model: LinearInLabels,
    queries: Tensor,
    classes: Tensor,
    n: int,
    labels: LabelSet,
    codes: ClassCodes,
    budget: Budget,
) -> Interval:
    predictions = model.predict(queries)
    pairs, count = tuple(codes.comparisons(classes)), len(codes.codes)
    slack = 2 * predictions.slack(model.roundoff, labels.largest)[:, None].expand(-1, count)
    slack = slack.scatter(1, classes[:, None], 0.0)
    changes = _changes(model, queries, n, labels, budget, pairs, count)
    return _widened(codes.margins(predictions.outputs, classes), changes, slack)


def _changes(
    model: LinearInLabels,
    queries: Tensor,
    n: int,
    labels: LabelSet,
    budget: Budget,
    comparisons: Iterable[Comparison],
    columns: int,
) -> tuple[Tensor, Tensor]:
    """Largest fall and rise of every ``w·f`` that is compared, each (Q, columns)."""
    fall = torch.zeros(len(queries), columns, dtype=torch.float64, device=queries.device)
    rise = torch.zeros_like(fall)
    for samples, coefficients in model.rounds(queries, budget):
        for members, column, direction in comparisons:
            chosen, label_range = coefficients[members], labels.range(direction)
            fall[members, column] += top_n_sum(label_range.loss(chosen, samples), n)
            rise[members, column] += top_n_sum(label_range.reversed().loss(chosen, samples), n)
    return fall, rise


def _widened(value: Tensor, changes: tuple[Tensor, Tensor], slack: Tensor) -> Interval:
    fall, rise = changes
    return Interval(value - fall - slack, value + rise + slack)


def _bytes(model: LinearInLabels, budget: Budget) -> int:
    """Working memory of one query: its coefficients and a few copies."""
    return 8 * 6 * max(*model.round_sizes(budget), len(model.targets))


def _stacked(parts: Sequence[Interval]) -> Interval:
    return Interval.trusted(torch.cat([part.lower for part in parts]), torch.cat([part.upper for part in parts]))
