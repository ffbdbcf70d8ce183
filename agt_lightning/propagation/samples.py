"""The samples of a micro-batch: which can be poisoned, how they are named and weighted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agt_lightning.aggregation import SampleSet
from agt_lightning.arithmetic.floating_point import SMALLEST_WEIGHT
from agt_lightning.capture.batch import FlatBatch, flatten
from agt_lightning.capture.dropout import RandomState, noting_masks
from agt_lightning.capture.graph import Draw
from agt_lightning.errors import UncertifiableError, UnsoundBoundError
from agt_lightning.gradients import FactoredGradient, stack
from agt_lightning.propagation.objective import BoundedObjective

Poisonable = Callable[[object], Tensor] | str
"""Which samples can be poisoned: a function from batch to boolean mask, or the key of such a mask in the batch."""


SampleIds = Callable[[object], Tensor] | str
"""Names of samples in all epochs: a function from batch to integers (batch,), or the key of such a tensor in it."""


Sources = Callable[[object], Tensor] | str
"""Whom samples come from: a function from batch to integers (batch,), or the key of such a tensor in the batch."""


@dataclass(frozen=True)
class MicroBatch:
    """A batch and what else its training step could see.

    Args:
        data: the batch.
        state: the generators' state when the step began, from which dropout drew its masks; None if unknown.
        epoch: number of the pass over the data set that it belongs to; None if unknown: its step is then a pass of its
            own.
        recorded: the captured loss of this batch at its time; None if it is still to be recorded.
        versions: how often each tensor of ``data`` had been changed in place when the step began; None if unknown.
    """

    data: object
    state: RandomState | None = None
    epoch: int | None = None
    recorded: BoundedObjective | None = None
    versions: tuple[int, ...] | None = None

    @classmethod
    def of(cls, batch: object) -> MicroBatch:
        """The batch itself if it is one already."""
        return batch if isinstance(batch, MicroBatch) else cls(batch)

    @classmethod
    def observed(cls, batch: object, recorded: BoundedObjective, epoch: int | None) -> MicroBatch:
        """Return a batch as its training step finds it; call it right before the step.

        The containers are copied, and so are the tensors that the step changes in place, so that the step may take
        entries out or replace them.
        """
        entries = FlatBatch.of(batch)
        changed = recorded.graph.changed
        tensors = [leaf.detach().clone() if at in changed else leaf for at, leaf in enumerate(entries.tensors)]
        versions = tuple(leaf._version for leaf in tensors)
        return cls(entries.rebuild(tensors), RandomState.now(), epoch, recorded, versions)

    def running(self, module: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which the step on this batch must run, so that it is known which random numbers it draws.

        Args:
            module: the module in training.
        """
        draws = self.recorded is None or self.recorded.graph.masks
        return noting_masks(module, self.state) if draws and self.state is not None else nullcontext()

    def require_drawn(self, recorded: BoundedObjective) -> None:
        """Raise if the loss reads random numbers, and it is not known how many the step has drawn besides.

        Args:
            recorded: the captured loss of this batch.

        Raises:
            UncertifiableError: naming the context that is missing.
        """
        draws = any(isinstance(mask, Draw) for mask in recorded.program.graph.masks.values())
        if draws and self.state is not None and not self.state.after:
            raise UncertifiableError([_UNKNOWN_DRAWS])

    def require_unchanged(self) -> None:
        """Raise if something has changed the tensors in place since the step began.

        Raises:
            UnsoundBoundError: since what was certified is then not what was trained on.
        """
        leaves, _ = flatten(self.data)
        if self.versions is not None and self.versions != tuple(leaf._version for leaf in leaves):
            raise UnsoundBoundError(
                "Expected the batch as `training_step` found it, but something besides `training_step` (a hook, a "
                "callback, another process) changed one of its tensors in place before the optimizer's step. Change a "
                "copy instead: `x = x - mean`."
            )


_UNKNOWN_DRAWS = (
    "The loss reads random numbers, and it is not known whether the step has drawn others besides. Run its forward "
    "pass in `with observed.running(module):`, where `observed` is what `AbstractGradientEngine.observe` returned."
)


def sample_weights(
    bounded: BoundedObjective, batch: MicroBatch, scale: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Weight of each sample of a micro-batch in the applied gradient, (b,).

    Raises:
        UncertifiableError: if the weight is so small that gradients underflow earlier than bounds allow for.
    """
    size = bounded.size(batch.data)
    weight = checked_weight(scale * bounded.sample_weight(size))
    return torch.full((size,), weight, dtype=dtype, device=device)


def checked_weight(weight: float) -> float:
    """Return a weight of samples if their gradients do not underflow earlier than bounds allow for.

    Raises:
        UncertifiableError: if it is too small.
    """
    if 0 < weight < SMALLEST_WEIGHT:
        raise UncertifiableError(
            [
                f"Each sample has a weight of {weight:.3g} in the loss of a step, but expected at least "
                f"{SMALLEST_WEIGHT:.3g}: smaller gradients underflow. Raise the factor of the loss, and lower the "
                "learning rate by as much."
            ]
        )
    return weight


def poisonable_rows(
    poisonable: Poisonable | None, batch: object, size: int, device: torch.device | None = None
) -> Tensor | None:
    """Positions of the samples that can be poisoned, on a device; None means all.

    Raises:
        KeyError: if ``poisonable`` names a key that the batch does not have.
        ValueError: if the mask is not boolean of shape (batch,).
    """
    if poisonable is None:
        return None
    mask = _entry("poisonable", poisonable, batch) if isinstance(poisonable, str) else poisonable(batch)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != (size,):
        got = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(type(mask))
        raise ValueError(f"Expected `poisonable` to give a boolean mask of shape ({size},), but got {got}.")
    return None if bool(mask.all()) else mask.to(device).nonzero().squeeze(1)


def ids_of_samples(sample_ids: SampleIds | None, batch: object, size: int) -> Tensor | None:
    """Integers that name the samples of a batch in all epochs, (batch,); None if they have no names.

    Raises:
        KeyError: if ``sample_ids`` names a key that the batch does not have.
        ValueError: if the ids are no integers of shape (batch,).
    """
    return None if sample_ids is None else _integers("sample_ids", sample_ids, batch, size)


def sources_of_samples(
    sources: Sources | None, batch: object, size: int, device: torch.device | None = None
) -> Tensor | None:
    """Integers that name the source of each sample, (batch,), on a device; None if no sources are named.

    Raises:
        KeyError: if ``sources`` names a key that the batch does not have.
        ValueError: if the sources are no integers of shape (batch,).
    """
    return None if sources is None else _integers("sources", sources, batch, size).to(device)


def _integers(setting: str, names: Callable[[object], Tensor] | str, batch: object, size: int) -> Tensor:
    ids = _entry(setting, names, batch) if isinstance(names, str) else names(batch)
    integers = isinstance(ids, Tensor) and not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if not isinstance(ids, Tensor) or not integers or tuple(ids.shape) != (size,):
        got = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else repr(type(ids))
        raise ValueError(f"Expected `{setting}` to give integers of shape ({size},), but got {got}.")
    return ids.long()


def _entry(setting: str, key: str, batch: object) -> object:
    if not isinstance(batch, Mapping) or key not in batch:
        raise KeyError(f"Expected a batch with the key {key!r} of `{setting}`, but got {type(batch).__name__}.")
    return batch[key]


def sample_set(
    weights: Sequence[Tensor], poisonable: Sequence[Tensor | None], sources: Sequence[Tensor | None] | None = None
) -> SampleSet:
    """The samples of all micro-batches of a step, one after another.

    Args:
        weights: of each micro-batch's samples.
        poisonable: positions of the poisonable samples in each micro-batch; None means all.
        sources: integers that name the source of each sample in each micro-batch; None if no sources are named.
    """
    together = torch.cat(list(weights))
    named = [part for part in sources or () if part is not None]
    whose = torch.cat(named) if named else None
    if all(rows is None for rows in poisonable):
        return SampleSet(together, sources=whose)
    positions, offset = [], 0
    for part, rows in zip(weights, poisonable, strict=True):
        every = torch.arange(len(part), device=part.device)
        positions.append(offset + (every if rows is None else rows))
        offset += len(part)
    return SampleSet(together, torch.cat(positions), whose)


def stacked(parts: Sequence[Mapping[str, FactoredGradient]]) -> dict[str, FactoredGradient]:
    """Gradients of all micro-batches of a step, one sample after another, by parameter.

    Raises:
        UncertifiableError: if some micro-batch does not use a parameter that another uses.
    """
    names = dict.fromkeys(name for part in parts for name in part)
    for name in names:
        if any(name not in part for part in parts):
            raise UncertifiableError(
                [f"`{name}` is used in some micro-batches of a step and not in others. Use the same code for all."]
            )
    return {name: stack([part[name] for part in parts]) for name in names}
