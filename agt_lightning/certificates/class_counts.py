"""Samples of each class that are predicted correctly, and certified, in a validation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

ClassCounts = Mapping[int, tuple[int, int, int]]
"""By class: the number of samples, of those that the trained module predicts correctly, and of certified ones."""


_ROUNDINGS = 1e-12
"""Of a quotient of two counts, in float64."""


def class_counts(classes: Tensor, right: Tensor, certified: Tensor) -> ClassCounts:
    """Count the samples of each class that occurs.

    Args:
        classes: integers of shape (batch,).
        right: whether the trained module predicts each sample correctly, booleans of shape (batch,).
        certified: whether every module within the bounds does, booleans of shape (batch,).

    Example:
        >>> import torch
        >>> class_counts(torch.tensor([2, 0, 2]), torch.tensor([True, True, True]), torch.tensor([True, False, False]))
        {0: (1, 1, 0), 2: (2, 2, 1)}
    """
    return {
        label: (int(own.sum()), int((own & right).sum()), int((own & certified).sum()))
        for label in classes.unique().tolist()
        for own in (classes == label,)
    }


def added(parts: Iterable[ClassCounts]) -> ClassCounts:
    """Return the counts of several disjoint sets of samples together.

    Example:
        >>> added([{1: (2, 1, 1)}, {0: (1, 0, 0), 1: (1, 1, 0)}])
        {0: (1, 0, 0), 1: (3, 2, 1)}
    """
    found: dict[int, tuple[int, int, int]] = {}
    for part in parts:
        for label, counts in part.items():
            before = found.get(label, (0, 0, 0))
            found[label] = (before[0] + counts[0], before[1] + counts[1], before[2] + counts[2])
    return dict(sorted(found.items()))


def plain_counts(of: Mapping[int, ClassCounts]) -> list[dict[str, int]]:
    """Return counts as a certificate states them.

    Args:
        of: by index of the validation loader.
    """
    return [
        {"loader": loader, "class": label, "samples": samples, "nominal": right, "certified": certified}
        for loader, counts in of.items()
        for label, (samples, right, certified) in counts.items()
    ]


def disagreements(stated: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what counts of classes and the accuracies beside them contradict.

    Args:
        stated: from `plain_counts`.
        metrics: nominal and certified accuracies, as a certificate states them.
    """
    accuracies = {each["loader"]: each for each in metrics if each["metric"].endswith("accuracy")}
    for loader in dict.fromkeys(each["loader"] for each in stated):
        own = [each for each in stated if each["loader"] == loader]
        if len({each["class"] for each in own}) < len(own):
            yield f"`by_class` has a class of validation loader {loader} twice"
        if any(not each["certified"] <= each["nominal"] <= each["samples"] for each in own):
            yield f"`by_class` has more certified or right samples than there are, of validation loader {loader}"
        samples = sum(each["samples"] for each in own)
        for kind in ("nominal", "certified"):
            accuracy, share = accuracies.get(loader, {}).get(kind), sum(each[kind] for each in own) / max(samples, 1)
            if accuracy is None or abs(float(accuracy) - share) > _ROUNDINGS:
                found = f"a {kind} accuracy of {share} for validation loader {loader}"
                yield f"`by_class` has {found}, but `metrics` has {accuracy}"
