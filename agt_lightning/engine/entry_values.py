"""Values of a batch for which no step has bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from agt_lightning.capture import flatten
from agt_lightning.capture.entries import entries
from agt_lightning.errors import UnsoundBoundError
from agt_lightning.propagation.samples import MicroBatch


def not_finite(batches: Sequence[MicroBatch]) -> list[str]:
    """Return each entry of the batches that the loss reads and that has NaN or infinite values, with the way out.

    Example:
        >>> import torch
        >>> [problem[:56] for problem in not_finite([MicroBatch({"x": torch.tensor([[1.0], [torch.nan]])})])]
        ["batch['x'] has 1 value that is NaN or infinite, at index"]
    """
    problems: dict[str, None] = {}
    for batch in batches:
        read = None if batch.recorded is None else set(batch.recorded.graph.leaves.values())
        for position, (entry, leaf) in enumerate(zip(entries(batch.data), flatten(batch.data)[0], strict=True)):
            if read is not None and position not in read:
                continue
            wrong = (~leaf.detach().isfinite()).nonzero()
            if len(wrong):
                values = "1 value that is" if len(wrong) == 1 else f"{len(wrong)} values that are"
                problems[
                    f"{entry.name} has {values} NaN or infinite, at index {tuple(wrong[0].tolist())} for one, so that "
                    "its step has no bounds. Leave these samples out, or fill in other values before training."
                ] = None
    return list(problems)


@contextmanager
def blaming_data(batches: Sequence[MicroBatch]) -> Iterator[None]:
    """Name the entries of the batches in place of a broken bound if they are its cause.

    Raises:
        UnsoundBoundError: if a bound is broken.
    """
    try:
        yield
    except UnsoundBoundError as error:
        problems = not_finite(batches)
        if problems:
            raise UnsoundBoundError(problems[0]) from error
        raise
