"""Obviously correct and slow: every edit of a small data set, and classifiers written out for each of them."""

from itertools import combinations, combinations_with_replacement, product
from typing import NamedTuple

import torch
from torch import Tensor

F64 = torch.float64


class DataSets(NamedTuple):
    """Many data sets side by side: samples of weight 0 are not there."""

    features: Tensor  # (L, M, d)
    labels: Tensor  # (L, M)
    weights: Tensor  # (L, M)


def problem(seed, samples=6, classes=3, corners=6):
    """Samples at some of the corners of a regular polygon; all corners, which can be inserted; and queries there."""
    generator = torch.Generator().manual_seed(seed)
    angles = torch.arange(corners, dtype=F64) * (2 * torch.pi / corners)
    grid = torch.stack([angles.cos(), angles.sin()], dim=1)
    features = grid[torch.randint(0, corners, (samples,), generator=generator)]
    labels = torch.randint(0, classes, (samples,), generator=generator)
    return features, labels, grid


def edited(features, labels, grid, classes, *, deleted, inserted):
    """All data sets with exactly so many samples deleted and so many of the grid inserted, with any label."""
    choices = list(product(range(len(grid)), range(classes)))
    added = list(combinations_with_replacement(choices, inserted))
    gone = list(combinations(range(len(features)), deleted))
    weights = torch.ones(len(gone), len(features), dtype=F64)
    for row, samples in enumerate(gone):
        weights[row, list(samples)] = 0.0
    places = torch.tensor([[place for place, _ in some] for some in added], dtype=torch.int64).reshape(len(added), -1)
    classes_of = torch.tensor([[label for _, label in some] for some in added], dtype=torch.int64).reshape(
        len(added), -1
    )
    rows, columns = (
        index.flatten() for index in torch.meshgrid(*map(torch.arange, (len(gone), len(added))), indexing="ij")
    )
    return DataSets(
        torch.cat([features.expand(len(rows), -1, -1), grid[places[columns]]], dim=1),
        torch.cat([labels.expand(len(rows), -1), classes_of[columns]], dim=1),
        torch.cat([weights[rows], torch.ones(len(rows), inserted, dtype=F64)], dim=1),
    )


def insertions_and_deletions(features, labels, grid, classes, n):
    return [
        edited(features, labels, grid, classes, deleted=deleted, inserted=n - deleted)
        for deleted in range(min(n, len(features)) + 1)
    ]


def replacements(features, labels, grid, classes, n):
    return [edited(features, labels, grid, classes, deleted=n, inserted=n)]


def one_hot_sums(values, sets, classes):
    """``Σ_i values_i [y_i = k]`` of each data set, (L, Q, K), for values (L, Q, M)."""
    members = torch.nn.functional.one_hot(sets.labels, classes).to(F64) * sets.weights[..., None]
    return values @ members


def votes(sets, queries, classes, threshold, shift=0.0):
    values = (torch.einsum("qd,lmd->lqm", queries, sets.features) > threshold).to(F64) - shift
    return one_hot_sums(values, sets, classes)


def class_sums(sets, queries, classes, shift=0.0):
    return one_hot_sums(torch.einsum("qd,lmd->lqm", queries, sets.features) - shift, sets, classes)


def trained(sets, queries, classes, rate, steps, scale):
    """Outputs after full-batch steps on squared error, whose mean is over ``scale`` samples in each data set."""
    targets = torch.nn.functional.one_hot(sets.labels, classes).to(F64)
    heads = torch.zeros(len(sets.labels), classes, queries.shape[1], dtype=F64)
    for _ in range(steps):
        errors = (sets.features @ heads.mT - targets) * sets.weights[..., None]
        heads = heads - rate / scale * errors.mT @ sets.features
    return torch.einsum("lkd,qd->lqk", heads, queries)


def changed(outputs, predicted, slack=1e-12):
    """Whether each prediction is another one, or a tie, on any of the data sets, (Q,)."""
    own = outputs.gather(2, predicted.expand(len(outputs), -1)[..., None])
    rivals = outputs.scatter(2, predicted.expand(len(outputs), -1)[..., None], -torch.inf)
    return (rivals.amax(dim=2) >= own.squeeze(2) - slack).any(dim=0)
