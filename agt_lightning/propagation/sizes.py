"""The weight of a sample in batches of other sizes, from the loss recorded on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch

from agt_lightning.capture import flatten
from agt_lightning.capture.batch import FlatBatch
from agt_lightning.capture.sameness import difference_besides_size
from agt_lightning.errors import UncertifiableError
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.propagation.samples import MicroBatch, checked_weight
from agt_lightning.rounding import unit_roundoff
from agt_lightning.rules.shape import RESHAPES

_KEPT = 1024
"""Recordings whose weights are kept; code that reads the step has a new one at each."""

_ROUNDINGS = 8
"""Roundings of the ratio of two factors in front of a loss."""


@dataclass(frozen=True)
class SizeWeights:
    """Weights of samples by the size of their batch, which insertions and deletions change.

    The loss is recorded at every size, on copies of samples. It must be the same function of each sample there, with
    one weight for all samples.

    Args:
        objectives: returns the captured loss of a batch.
    """

    objectives: Callable[[MicroBatch], BoundedObjective]
    _known: dict[tuple[BoundedObjective, int], float] = field(default_factory=dict)

    def __call__(self, batch: MicroBatch, changes: Iterable[int]) -> dict[int, float]:
        """Return the weight of each sample in batches that have so many samples more or less than this one, by change.

        Raises:
            UncertifiableError: if a batch could become empty, if it has entries that are not of one sample each, if
                there is dropout, or if the loss of a sample depends on the number of samples.
            CaptureError: if the loss cannot be recorded at some size.
        """
        bounded = self.objectives(batch)
        size = bounded.size(batch.data)
        changes = list(changes)
        if size + min(changes) < 1:
            raise UncertifiableError(
                [
                    f"A batch has {size} samples, and {-min(changes)} of them could be deleted: nothing would be left "
                    "to train on. Use larger batches, a smaller `n`, or say by `poisonable=` which samples can be "
                    "deleted."
                ]
            )
        if not _is_of_rows(batch, size):
            raise UncertifiableError(
                [
                    "The batch has entries besides tensors with a row for each sample, and what becomes of them in a "
                    "batch of another size is not known: a list of names has another length there. Leave them out in "
                    '`collate_fn`, or use `edits="replace"`.'
                ]
            )
        if bounded.graph.masks:
            raise UncertifiableError(
                [
                    "Dropout draws its masks by the position in the batch, which insertions and deletions change. Set "
                    '`p=0`, or use `edits="replace"`.'
                ]
            )
        return {change: self._weight(batch, bounded, size, size + change) for change in changes}

    def _weight(self, batch: MicroBatch, bounded: BoundedObjective, size: int, other: int) -> float:
        if (bounded, other) not in self._known:
            if len(self._known) >= _KEPT:
                del self._known[next(iter(self._known))]
            resized = self.objectives(resized_batch(batch, size, other))
            _require_same_loss(bounded, resized, size, other)
            self._known[bounded, other] = resized.sample_weight(other)
        return self._known[bounded, other]


def _is_of_rows(batch: MicroBatch, size: int) -> bool:
    """Return whether all entries of a batch, but for None, are tensors with a row for each sample."""
    entries = FlatBatch.of(batch.data)
    rows = all(leaf.ndim and len(leaf) == size for leaf in entries.tensors)
    return rows and all(entry is None for entry in entries.others)


def resized_batch(batch: MicroBatch, size: int, other: int) -> MicroBatch:
    """Return a batch of another number of samples: the first ones of a batch, all of them again and again.

    Args:
        batch: of tensors with ``size`` rows.
        size: its number of samples.
        other: the wanted one.

    Example:
        >>> resized_batch(MicroBatch((torch.arange(3), None)), 3, 4).data
        (tensor([0, 1, 2, 0]), None)
    """
    leaves, rebuild = flatten(batch.data)
    rows = torch.arange(other) % size
    taken = [leaf[rows.to(leaf.device)] for leaf in leaves]
    return replace(batch, data=rebuild(taken), recorded=None, versions=None)


def _require_same_loss(bounded: BoundedObjective, other: BoundedObjective, size: int, resized: int) -> None:
    """Require that two recordings are one function of each sample, up to a common weight."""
    place = next(iter(other.problems), None)
    if place is None and not other.counts(resized):
        place = "shapes of a batch of one sample"
    if place is None:
        sizes, besides = (size, resized), (bounded.objective.reduced, other.objective.reduced)
        place = difference_besides_size(bounded.graph, other.graph, sizes, besides, frozenset(RESHAPES))
    if place is None and not _same_slopes(bounded, other, size, resized):
        place = "the factors in front of its terms"
    if place is not None:
        raise UncertifiableError(
            [
                f"The loss of a sample depends on how many others are in its batch: with {resized} samples in place of "
                f"{size}, something else is computed ({place}). Insertions and deletions would change it for all. "
                "Use a mean or a sum over the samples."
            ]
        )


def _same_slopes(bounded: BoundedObjective, other: BoundedObjective, size: int, resized: int) -> bool:
    """Return whether all terms of a loss have the same factors relative to the common weight, up to rounding."""
    mine, theirs = _slopes(bounded, size), _slopes(other, resized)
    tolerance = _ROUNDINGS * unit_roundoff(torch.float64)
    return len(mine) == len(theirs) and all(abs(a - b) <= tolerance * abs(a) for a, b in zip(mine, theirs, strict=True))


def _slopes(bounded: BoundedObjective, size: int) -> list[float]:
    weight = bounded.sample_weight(size)
    return [term.coefficient / (size if term.mean else 1) / weight for term in bounded.objective.terms]


def weights_of(found: Mapping[int, float], scale: float) -> dict[int, float]:
    """Return weights times the factor in front of the batch's loss.

    Raises:
        UncertifiableError: if one is so small that gradients underflow earlier than bounds allow for.
    """
    return {change: checked_weight(scale * weight) for change, weight in found.items()}
