"""Samples that several processes train on in one step: poisoning one of them would count several times."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agt_lightning.capture import flatten
from agt_lightning.distributed.fingerprint import row_fingerprints
from agt_lightning.errors import UncertifiableError
from agt_lightning.propagation.objective import BoundedObjective


def sample_marks(bounded: BoundedObjective, batch: object, ids: Tensor | None) -> Tensor:
    """A number for each sample of a batch, the same for the same sample in every process, int64 (b,).

    Args:
        bounded: the captured loss.
        batch: the data.
        ids: names of the samples; None marks them by all that the loss reads of them.
    """
    if ids is not None:
        return ids
    leaves, _ = flatten(batch)
    read = [
        leaves[position] for name, position in bounded.program.graph.leaves.items() if name in bounded.objective.samples
    ]
    return row_fingerprints(read)


def require_distinct(marks: Sequence[Tensor]) -> None:
    """Raise if two processes share a sample.

    Args:
        marks: of the samples of each process that can be poisoned, by rank.

    Raises:
        UncertifiableError: with the way out.
    """
    owned = torch.cat([own.unique() for own in marks])
    _, counts = owned.unique(return_counts=True)
    repeated = int((counts > 1).sum())
    if repeated:
        raise UncertifiableError(
            [
                f"{repeated} samples are in the batches of several processes in one step: one poisoned sample would "
                "count several times. Give each process its own part of the data set (`DistributedSampler` with "
                "`drop_last=True`, or a size that is a multiple of the number of processes). If they are different "
                "samples of equal content, name them by `sample_ids`."
            ]
        )
