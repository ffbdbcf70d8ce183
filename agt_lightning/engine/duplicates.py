"""Samples that are in one step twice, or in several processes: poisoning one of them would count several times."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agt_lightning.distributed.fingerprint import row_fingerprints
from agt_lightning.errors import UncertifiableError
from agt_lightning.propagation.objective import BoundedObjective


def sample_keys(bounded: BoundedObjective, batch: object, ids: Tensor | None) -> Tensor:
    """Return an integer for each sample of a batch, int64 (b,): equal samples have equal integers in all processes.

    Args:
        bounded: the captured loss.
        batch: the data.
        ids: names of the samples, (b,); None if all that the loss reads of a sample identifies it.
    """
    if ids is not None:
        return ids
    return row_fingerprints(bounded.sample_entries(batch))


def require_distinct(keys: Sequence[Tensor]) -> None:
    """Raise if two processes share a sample.

    Args:
        keys: `sample_keys` of the poisonable samples of each process, by rank.

    Raises:
        UncertifiableError: with the number of shared samples and the way out.
    """
    distinct = torch.cat([each.unique() for each in keys])
    _, counts = distinct.unique(return_counts=True)
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


def require_once(keys: Tensor, *, named: bool) -> None:
    """Raise if a process has a sample twice in one step.

    Args:
        keys: `sample_keys` of its poisonable samples.
        named: whether these are names of the samples, so that equal content does not matter.

    Raises:
        UncertifiableError: with the number of repeated samples and the way out.
    """
    repeated = len(keys) - len(keys.unique())
    if not repeated:
        return
    if named:
        raise UncertifiableError(
            [
                f"{repeated} samples of a step have the name of another one in it, by `sample_ids`: one poisoned "
                "sample would count several times. Draw each sample once in a step, and give it a name of its own."
            ]
        )
    raise UncertifiableError(
        [
            f"{repeated} samples of a step are equal to another one in it, and the sampler, or the loader's "
            "`collate_fn`, is not known to take each sample once: one poisoned sample would count several times. Take "
            "each sample once in a step. If they are "
            "different samples of equal content, name them by `sample_ids`."
        ]
    )
