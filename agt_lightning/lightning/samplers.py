"""How training batches are drawn: a sample may be in a step only once, and the data must not choose the batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.data import sized_len
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper, _DatasetSamplerWrapper
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from agt_lightning.adversaries import Adversary
from agt_lightning.adversaries.base import inserts_and_deletes
from agt_lightning.distributed import ProcessGroup
from agt_lightning.lightning.content_batches import ContentBatches
from agt_lightning.lightning.packages import of_both

_DRAW_ONCE = (
    ContentBatches,
    SequentialSampler,
    RandomSampler,
    SubsetRandomSampler,
    BatchSampler,
    DistributedSampler,
    *of_both(DistributedSamplerWrapper),
    range,
)
"""Samplers that draw each index at most once in an epoch, unless `_repetition` gives a reason; no subclasses."""

_WRAPPERS = of_both(_DatasetSamplerWrapper)
"""Data sets of Lightning that hold a sampler."""

_LARGEST_SIZE = 2**40
"""More samples than a data set has, to number those of several data sets."""


def sampler_problems(trainer: L.Trainer, processes: ProcessGroup) -> list[str]:
    """Return why batches could hold a sample twice, depend on the data, or differ among processes; a collective.

    Args:
        trainer: with its training loaders set up.
        processes: of the Trainer.
    """
    problems = [_repetition(sampler) for sampler in _samplers(trainer)]
    local = [*filter(None, problems), *_data_set_problems(trainer), *_cycle_problems(trainer)]
    return [*processes.union(local), *_process_problems(trainer, processes)]


def assignment_problems(trainer: L.Trainer, adversaries: Iterable[Adversary]) -> list[str]:
    """Return why an inserted or deleted sample would move others to other batches.

    A sampler of the user's own that draws batches otherwise may assign samples by content; that it does is an
    assumption of the certificate.
    """
    if not any(map(inserts_and_deletes, adversaries)):
        return []
    samplers = [getattr(loader, "batch_sampler", None) for loader in _loaders(trainer) if _is_loader(loader)]
    shifting = [sampler for sampler in samplers if sampler is None or isinstance(sampler, BatchSampler)]
    return [
        "Batches are cut from a sequence of samples, in which one inserted or deleted sample moves all later ones to "
        'other batches. With `edits="insert-delete"`, draw them by content: `DataLoader(data, batch_sampler='
        "ContentBatches(data, batches))`, from `agt_lightning.lightning`."
    ] * bool(shifting)


def _is_loader(loader: object) -> bool:
    return isinstance(loader, DataLoader)


def draws_once(trainer: L.Trainer) -> bool:
    """Return whether all samplers are known to draw each index at most once; a sampler of the user's is not known.

    An `IterableDataset` has no indices: that it yields no sample twice in a step is an assumption of the certificate.
    """
    return all(type(sampler) in _DRAW_ONCE for sampler in _samplers(trainer))


def follows_epochs(trainer: L.Trainer, processes: ProcessGroup) -> bool:
    """Return whether no sample is known to be drawn twice in an epoch, in all processes together; a collective.

    An `IterableDataset` can yield a sample as often as it likes, and so can an iterable that is no `DataLoader`, or one
    with an ``__iter__`` of its own, which may repeat its batches.

    Args:
        trainer: with its training loaders set up.
        processes: of the Trainer.
    """
    by_index = draws_once(trainer) and all(map(_draws_by_index, _loaders(trainer))) and not starts_again(trainer)
    return not processes.any(not by_index) and _shares_are_apart(trainer, processes)


def _draws_by_index(loader: object) -> bool:
    """Return whether a loader yields just what its sampler draws from a data set with indices."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    kind = type(loader)
    return kind.__iter__ is DataLoader.__iter__ and kind._get_iterator is DataLoader._get_iterator


def _shares_are_apart(trainer: L.Trainer, processes: ProcessGroup) -> bool:
    """Return whether each process has its own share of every epoch, by a `DistributedSampler`; a collective.

    Other samplers draw from the whole data set in each process, or from an order that processes may not share.
    """
    if processes.size == 1:
        return True
    samplers = [_sampler_of(loader) for loader in _loaders(trainer)]
    shares = [sampler for sampler in samplers if type(sampler) is DistributedSampler]
    alike = [(each.num_replicas, each.shuffle, each.seed, each.drop_last, each.total_size) for each in shares]
    ranks = processes.union([str([each.rank for each in shares])])
    complete = len(shares) == len(samplers) and all(each.num_replicas == processes.size for each in shares)
    return not processes.any(not complete) and len(processes.union([str(alike)])) == 1 and len(ranks) == processes.size


def _sampler_of(loader: object) -> object:
    """Return what decides which samples of an epoch a loader draws, and in which order."""
    batches = getattr(loader, "batch_sampler", None)
    return getattr(loader, "sampler", None) if batches is None else getattr(batches, "sampler", batches)


def starts_again(trainer: L.Trainer) -> bool:
    """Return whether the shorter of several loaders starts again within an epoch, and draws its samples once more."""
    combined = trainer.fit_loop._combined_loader
    if combined is None or combined._mode != "max_size_cycle":
        return False
    lengths = [sized_len(loader) for loader in combined.flattened]
    return len(set(lengths)) > 1 or len(lengths) > 1 and None in lengths


def collates_more(trainer: L.Trainer, size: int) -> bool:
    """Return whether a batch has more samples than its loader draws for it, so that ``collate_fn`` may repeat some."""
    drawn = [_drawn_at_once(loader) for loader in _loaders(trainer)]
    return bool(drawn) and all(number is not None and number < size for number in drawn)


def _drawn_at_once(loader: object) -> int | None:
    """Return how many samples a loader draws for a batch at most; None if that is not known, or it draws batches."""
    sampler = getattr(loader, "batch_sampler", None)
    if isinstance(sampler, ContentBatches):
        return max(map(len, sampler.batches))
    number = getattr(sampler, "batch_size", None)
    return number if isinstance(number, int) else None


def _repetition(sampler: object) -> str | None:
    """Return why a sampler repeats samples or chooses them by the data; None if that is not known of it."""
    if isinstance(sampler, WeightedRandomSampler):
        return (
            "`WeightedRandomSampler` chooses batches by weights that may come from labels, and repeats samples. Use a "
            "sampler that does not look at the data."
        )
    if isinstance(sampler, RandomSampler) and sampler.replacement:
        return (
            "`RandomSampler(replacement=True)` repeats samples in a batch, where one poisoned sample would count "
            "several times. Draw without replacement."
        )
    if isinstance(sampler, RandomSampler) and sampler.num_samples > len(sampler.data_source):
        return (
            f"`RandomSampler(num_samples={sampler.num_samples})` draws from {len(sampler.data_source)} samples more "
            "than once, so that a batch can hold a sample twice. Train for more epochs instead."
        )
    indices = getattr(sampler, "indices", None) if isinstance(sampler, SubsetRandomSampler) else None
    if indices is not None and len(set(_integers(indices))) < len(indices):
        return "`SubsetRandomSampler` has repeated indices, so that a batch can hold a sample twice. Name each once."
    return None


def _integers(indices: Iterable[Any]) -> list[int]:
    return [int(index) for index in indices]


def _process_problems(trainer: L.Trainer, processes: ProcessGroup) -> list[str]:
    """Return why the batches of several processes do not fit together; a collective."""
    if processes.size == 1:
        return []
    problems = [
        f"`{type(sampler).__name__}` repeats {_repeated(sampler)} samples so that all processes "
        "get the same number: a repeated sample is poisoned in two places. Give the loader a `DistributedSampler(..., "
        "drop_last=True)`, or a data set whose size is a multiple of the number of processes."
        for sampler in _samplers(trainer)
        if isinstance(sampler, DistributedSampler) and _repeated(sampler) > 0
    ]
    if len(processes.union([str(trainer.num_training_batches)])) > 1:
        problems.append("The processes have different numbers of batches. Give each the same number.")
    return processes.union(problems)


def _repeated(sampler: DistributedSampler[Any]) -> int:
    """Return the number of samples that a sampler draws twice."""
    assert isinstance(sampler.dataset, Sized)
    return sampler.total_size - len(sampler.dataset)


# --- repeated samples in the data sets ---------------------------------------------------------------------------


def _data_set_problems(trainer: L.Trainer) -> list[str]:
    """Return a problem if a sample has several indices, by `Subset` or `ConcatDataset`, or is in several loaders."""
    datasets = [loader.dataset for loader in _loaders(trainer) if hasattr(loader, "dataset")]
    if not (len(datasets) > 1 or any(isinstance(dataset, Subset | ConcatDataset) for dataset in datasets)):
        return []
    members = _Members()
    numbers = [members.of(dataset) for dataset in datasets if not isinstance(dataset, IterableDataset)]
    drawn = torch.cat(numbers) if numbers else torch.empty(0, dtype=torch.int64)
    repeated = len(drawn) - len(drawn.unique())
    if repeated == 0:
        return []
    return [
        f"{repeated} samples are in the training data more than once, by `Subset` with repeated indices, by "
        "`ConcatDataset`, or by several loaders: a step can hold a sample twice, where one poisoned sample would count "
        "several times. Put each sample in once."
    ]


class _Members:
    """A numbering of the samples of data sets, in which a sample has the same number wherever it is."""

    def __init__(self) -> None:
        self._starts: dict[object, int] = {}
        self._kept: list[object] = []  # an `id` is unique only while its object lives

    def of(self, dataset: Any) -> Tensor:
        """Return the number of the sample at each index of a data set, int64; none if its size is not known."""
        if isinstance(dataset, Subset):
            indices = torch.tensor(_integers(dataset.indices), dtype=torch.int64)
            if isinstance(dataset.dataset, Subset | ConcatDataset):
                return self.of(dataset.dataset)[indices]
            return self._start(dataset.dataset) + indices
        if isinstance(dataset, ConcatDataset):
            return torch.cat([self.of(part) for part in dataset.datasets])
        return self._start(dataset) + torch.arange(len(dataset) if isinstance(dataset, Sized) else 0)

    def _start(self, dataset: object) -> int:
        """Return the number of the first sample of a data set."""
        self._kept.append(dataset)
        return self._starts.setdefault(_identity(dataset), _LARGEST_SIZE * len(self._starts))


def _identity(dataset: object) -> object:
    """Return what tells one data set from another: its tensors, or itself."""
    if type(dataset) is TensorDataset:
        return tuple((tensor.data_ptr(), tensor.shape, tensor.stride()) for tensor in dataset.tensors)
    return id(dataset)


def _cycle_problems(trainer: L.Trainer) -> list[str]:
    """Return a problem if the shorter of two loaders can start again within an optimizer step."""
    if _largest_accumulation(trainer) == 1 or not starts_again(trainer):
        return []
    return [
        "The shorter of the training loaders starts again while gradients are accumulated, so that a step can hold a "
        "sample twice. Use `CombinedLoader(loaders, 'min_size')`, or `accumulate_grad_batches=1`."
    ]


def _largest_accumulation(trainer: L.Trainer) -> int:
    schedules = [
        callback.scheduling.values()
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, of_both(GradientAccumulationScheduler))
    ]
    return max([trainer.accumulate_grad_batches, *(number for schedule in schedules for number in schedule)])


# --- loaders and samplers ----------------------------------------------------------------------------------------


def _loaders(trainer: L.Trainer) -> list[Any]:
    """Return all training loaders, those in dicts and lists too."""
    combined = trainer.fit_loop._combined_loader
    return [] if combined is None else list(combined.flattened)


def _samplers(trainer: L.Trainer) -> Iterator[object]:
    """Yield the samplers of all training loaders, with those inside other samplers; none of iterable data sets."""
    waiting = [
        sampler
        for loader in _loaders(trainer)
        if not isinstance(getattr(loader, "dataset", None), IterableDataset)
        for sampler in (getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None))
    ]
    seen: set[int] = set()
    while waiting:
        sampler = waiting.pop()
        if sampler is None or id(sampler) in seen:
            continue
        seen.add(id(sampler))
        if not isinstance(sampler, _WRAPPERS):
            yield sampler
        waiting += _parts(sampler)


def _parts(sampler: object) -> list[object]:
    """Return the samplers that a sampler draws from."""
    if isinstance(sampler, _WRAPPERS):
        return [sampler._sampler]
    attributes = list(getattr(sampler, "__dict__", {}).values())
    items = [item for value in attributes for item in (value if isinstance(value, list | tuple) else [value])]
    inner: list[object] = [item for item in items if isinstance(item, (Sampler, *_WRAPPERS))]
    return [*inner, sampler.sampler] if isinstance(sampler, BatchSampler) else inner  # its sampler can be any iterable
