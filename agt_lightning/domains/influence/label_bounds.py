"""Bounds on outputs and margins for a given number of changed labels, attained."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from agt_lightning.aggregation.top_n import top_n_sum
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.domains.influence.label_sets import LabelSet
from agt_lightning.domains.influence.model import MEMORY, Budget, LinearInLabels, query_chunks
from agt_lightning.domains.influence.target_encoding import Comparison, TargetEncoding
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
    """Bound every output of every query over all changes of n labels; each bound is attained.

    They are ``f_k ± ν Σ top-n |a_i|`` for a `LabelBall`; with the budget for each batch, summed over the steps. They
    are widened by the error that summation and replay can have in float64.

    Args:
        model: outputs as a function of labels.
        queries: features, (Q, d).
        n: number of samples of the data set, or of positions in every batch.
        labels: the labels that can be written.
        budget: what n counts.
        memory: bytes of working memory.

    Returns:
        Bounds of shape (Q, K), in units of the targets.

    Raises:
        UncertifiableError: if rows cannot be attributed to samples, with the budget for the data set.

    Reference:
        docs/theory.md, section 11.

    Example:
        >>> from agt_lightning.domains.influence.label_sets import LabelBall
        >>> from agt_lightning.domains.influence.recorder import HeadRecorder
        >>> from agt_lightning.domains.sgd import SGDSettings
        >>> recorder, targets = HeadRecorder(torch.zeros(1, 1), bias=False), torch.ones(2, 1)
        >>> recorder.append(torch.tensor([[1.0], [2.0]]), targets, torch.ones(2), SGDSettings(0.1))
        >>> head = recorder.influence()                              # w = 0.1 y_1 + 0.2 y_2
        >>> prediction_bounds(head, torch.tensor([[1.0]]), 1, LabelBall(targets, nu=0.5))
        Interval(lower=tensor([[0.2000]], dtype=torch.float64), upper=tensor([[0.4000]], dtype=torch.float64))
    """
    chunks = query_chunks(queries, _bytes(model, budget), memory)
    return Interval.cat([_prediction_bounds(model, chunk, n, labels, budget) for chunk in chunks])


def margin_bounds(
    model: LinearInLabels,
    queries: Tensor,
    classes: Tensor,
    n: int,
    labels: LabelSet,
    encoding: TargetEncoding,
    *,
    budget: Budget = "dataset",
    memory: int = MEMORY,
) -> Interval:
    """Bound the margin of a class against every other over all changes of n labels; each bound is attained.

    Args:
        model: outputs as a function of labels.
        queries: features, (Q, d).
        classes: class c of each query whose margins are bounded, int64 (Q,).
        n: number of samples of the data set, or of positions in every batch.
        labels: the labels that can be written.
        encoding: gives the prediction rule; for `LabelFlips`, its own ``encoding``.
        budget: what n counts.
        memory: bytes of working memory.

    Returns:
        Bounds on ``f_c - f_k`` for every k, (Q, C), and for one output on its distance from the midpoint of the
        codewords; 0 for ``k = c``.

    Raises:
        UncertifiableError: if rows cannot be attributed to samples, with the budget for the data set.

    Reference:
        docs/theory.md, section 11.

    Example:
        >>> from agt_lightning.domains.influence.label_sets import LabelFlips
        >>> from agt_lightning.domains.influence.recorder import HeadRecorder
        >>> from agt_lightning.domains.sgd import SGDSettings
        >>> recorder, targets = HeadRecorder(torch.zeros(1, 1), bias=False), torch.tensor([[1.0], [-1.0]])
        >>> recorder.append(torch.tensor([[1.0], [2.0]]), targets, torch.ones(2), SGDSettings(0.1))
        >>> head, flips = recorder.influence(), LabelFlips.of_targets(targets)     # w = 0.1 y_1 + 0.2 y_2
        >>> margin_bounds(head, torch.tensor([[1.0]]), torch.tensor([0]), 1, flips, flips.encoding).lower
        tensor([[ 0.0000, -0.3000]], dtype=torch.float64)
    """
    parts = zip(
        query_chunks(queries, _bytes(model, budget), memory),
        query_chunks(classes, _bytes(model, budget), memory),
        strict=True,
    )
    return Interval.cat([_margin_bounds(model, chunk, part, n, labels, encoding, budget) for chunk, part in parts])


def _prediction_bounds(model: LinearInLabels, queries: Tensor, n: int, labels: LabelSet, budget: Budget) -> Interval:
    predictions = model.predict(queries)
    outputs = predictions.outputs
    members = torch.arange(len(queries), device=outputs.device)
    axes = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
    single = [Comparison(members, column, axis) for column, axis in enumerate(axes)]
    slack = predictions.slack(labels.largest)[:, None]
    return _with_changes(
        outputs, _changes(model, queries, n, labels, budget, single, len(axes)), slack, sum(model.group_sizes(budget))
    )


def _margin_bounds(
    model: LinearInLabels,
    queries: Tensor,
    classes: Tensor,
    n: int,
    labels: LabelSet,
    encoding: TargetEncoding,
    budget: Budget,
) -> Interval:
    predictions = model.predict(queries)
    pairs, count = tuple(encoding.comparisons(classes)), len(encoding.codewords)
    slack = 2 * predictions.slack(labels.largest)[:, None].expand(-1, count)
    slack = slack.scatter(1, classes[:, None], 0.0)
    changes = _changes(model, queries, n, labels, budget, pairs, count)
    value = encoding.margins(predictions.outputs, classes)
    return _with_changes(value, changes, slack, sum(model.group_sizes(budget)))


def _changes(
    model: LinearInLabels,
    queries: Tensor,
    n: int,
    labels: LabelSet,
    budget: Budget,
    comparisons: Iterable[Comparison],
    columns: int,
) -> tuple[Tensor, Tensor]:
    """Return the largest fall and rise of every ``w·f`` that is compared, each (Q, columns)."""
    fall = torch.zeros(len(queries), columns, dtype=torch.float64, device=queries.device)
    rise = torch.zeros_like(fall)
    for samples, coefficients in model.budget_groups(queries, budget):
        for members, column, direction in comparisons:
            chosen, label_range = coefficients[members], labels.range(direction)
            fall[members, column] += top_n_sum(label_range.loss(chosen, samples), n)
            rise[members, column] += top_n_sum(label_range.reversed().loss(chosen, samples), n)
    return fall, rise


def _with_changes(value: Tensor, changes: tuple[Tensor, Tensor], slack: Tensor, summands: int) -> Interval:
    """Widen a value by sums of at most so many changes, and by the slack."""
    fall, rise = changes
    own = Arithmetic(None, value.dtype)
    # Sums over the chosen labels of each step; the errors of their coefficients are part of the slack.
    room = slack + own.relative(summands) * (fall + rise)
    return own.outward(Interval(value - fall - room, value + rise + room))


def _bytes(model: LinearInLabels, budget: Budget) -> int:
    """Return the working memory of one query: its coefficients and a few copies."""
    return 8 * 6 * max(*model.group_sizes(budget), len(model.targets))
