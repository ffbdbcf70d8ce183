"""What a certified training will cost, and whether it can be had: a few steps of a copy, before the real ones."""

from __future__ import annotations

import copy
import resource
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, Dataset

from agt_lightning.capture.batch import FlatBatch
from agt_lightning.capture.replica import independent_replica
from agt_lightning.certificates.record import frozen_parameters
from agt_lightning.errors import CaptureError, UncertifiableError
from agt_lightning.lightning.cost import StepCost
from agt_lightning.lightning.packages import DATA_MODULES, trainer_of
from agt_lightning.lightning.vacuity import vacuity_warning

if TYPE_CHECKING:
    from agt_lightning.lightning.callback import CertifiedTraining

_STEPS = 3
"""Steps of a trial: the first one records the loss, those after it are timed."""

_PARTS = (8, 4)
"""Shares of a batch, 1/8 and 1/4, whose steps are timed where one of the whole batch would take too long."""


@dataclass(frozen=True)
class Plan:
    """What was found about a certified training by trying it.

    Attributes:
        problems: every reason why it cannot be certified, each with a way out; empty if it can.
        roles: the entries of a batch that the adversary moves, as certificates list them.
        frozen: names of the parameters that are not trained.
        domains: names of the sets that are kept.
        left_out: the other ones, with the reason.
        samples: number b of samples of a batch.
        tried: number of samples of the largest batch that was tried.
        cost: seconds of a step on b samples; linear in the samples from smaller batches if ``tried`` is less than b.
            None if there are problems.
        peak_memory: bytes; on a GPU, of all tensors; on a CPU, of the process with all it did before.
        warning: that the bounds say nothing already after these few steps; empty if they still do.
    """

    problems: tuple[str, ...]
    roles: tuple[Mapping[str, object], ...] = ()
    frozen: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    samples: int = 0
    tried: int = 0
    cost: StepCost | None = None
    peak_memory: int = 0
    warning: str = ""

    def __str__(self) -> str:
        """Return a report of a few lines."""
        if self.problems:
            return str(UncertifiableError(self.problems))
        lines = ["This training can be certified.", *(f"  {_in_words(each)}" for each in self.roles)]
        lines += [f"  frozen: {', '.join(self.frozen)}"] * bool(self.frozen)
        lines += [f"  domains: {', '.join(self.domains)}"]
        lines += [f"  without {name}: {reason}" for name, reason in self.left_out]
        if self.cost is not None:
            how = "measured" if self.tried >= self.samples else f"from batches of up to {self.tried}"
            lines.append(
                f"  a step on {self.samples} samples: {self.cost.certified:.2g} s, {self.cost.factor:.0f} times a "
                f"plain one ({self.cost.plain:.2g} s; {how})"
            )
            lines.append(f"  memory: {self.peak_memory / 2**30:.1f} GiB at most")
        lines += [f"  warning: {text}" for text in (self.cost.warning() if self.cost else "", self.warning) if text]
        return "\n".join(lines)


def plan(
    certified: Callable[[], CertifiedTraining],
    module: L.LightningModule,
    data: object,
    seconds: float,
    settings: Mapping[str, Any],
) -> Plan:
    """Try a training on copies of a module; see `CertifiedTraining.plan`.

    Args:
        certified: makes a callback.
        module: not changed.
        data: a batch, a loader of batches, or a `LightningDataModule`.
        seconds: steps that would take longer are not tried, but predicted from smaller batches.
        settings: of the Trainer.
    """
    batch = first_batch(data)
    size = batch_size(batch)
    found = Plan(())
    costs: dict[int, StepCost] = {}
    for part in sorted({max(1, size // share) for share in (*_PARTS, 1)}):
        if part == size and costs and _predicted(costs, size).certified > seconds:
            break
        found = _trial(certified(), module, rows_of(batch, size, part), settings)
        if found.cost is not None:
            costs[part] = found.cost
    if not costs or found.problems:
        return found
    return replace(found, samples=size, tried=max(costs), cost=_predicted(costs, size))


def _predicted(costs: Mapping[int, StepCost], samples: int) -> StepCost:
    """Return the cost on so many samples: on the line through the two largest batches, at least the last one's."""
    largest = sorted(costs)[-2:]
    first, last = costs[largest[0]], costs[largest[-1]]
    if len(largest) == 1:
        return StepCost(*(each * samples / largest[0] for each in (last.certified, last.plain)))
    ahead = (samples - largest[1]) / (largest[1] - largest[0])
    pairs = ((first.certified, last.certified), (first.plain, last.plain))
    return StepCost(*(late + ahead * max(0.0, late - early) for early, late in pairs))


def _trial(certified: CertifiedTraining, module: L.LightningModule, batch: object, settings: Mapping[str, Any]) -> Plan:
    """Make a few steps on copies of a module and a batch, one an epoch."""
    copied = independent_replica(module)
    quiet = {name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")}
    chosen = {"max_steps": _STEPS, "max_epochs": -1, "limit_val_batches": 0, **quiet, **settings}
    others = settings.get("callbacks") or []
    others = copy.deepcopy(list(others) if isinstance(others, Sequence) else [others])
    trainer = trainer_of(module)(**{**chosen, "callbacks": [*others, certified]})
    on_gpu = trainer.strategy.root_device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        with isolate_rng(), warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            trainer.fit(copied, DataLoader(_Once(batch), batch_size=None, collate_fn=_as_it_is))
    except UncertifiableError as error:
        return Plan(error.problems)
    except CaptureError as error:
        return Plan((str(error),))
    family, optimizer = certified.engine.runs[0].domains, trainer.optimizers[0]
    return Plan(
        (),
        roles=tuple(certified.roles),
        frozen=tuple(frozen_parameters(copied, optimizer)),
        domains=tuple(family.in_use),
        left_out=tuple(family.excluded.items()),
        cost=certified.cost,
        peak_memory=torch.cuda.max_memory_allocated() if on_gpu else _peak_of_process(),
        warning=vacuity_warning(family.relative_size(), certified.engine.steps),
    )


def _as_it_is(batch: object) -> object:
    """Return a batch; the collation of torch makes lists of tuples."""
    return batch


class _Once(Dataset[object]):
    """A data set whose only entry is a batch."""

    def __init__(self, batch: object) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> object:
        return self.batch


def _peak_of_process() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def first_batch(data: object) -> object:
    """Return the first batch of a loader or a data module; anything else is a batch already.

    Args:
        data: a `LightningDataModule`, an iterable that is no container of tensors, or a batch.

    Raises:
        ValueError: if a loader is empty.
    """
    if isinstance(data, DATA_MODULES):
        data.prepare_data()
        data.setup("fit")
        return first_batch(data.train_dataloader())
    if isinstance(data, Iterable) and not isinstance(data, torch.Tensor | Mapping | Sequence):
        for batch in data:
            return batch
        raise ValueError("Expected a loader with at least one batch, but it has none.")
    return data


def batch_size(batch: object) -> int:
    """Return the number of samples: the first size that most tensors of a batch have.

    Example:
        >>> batch_size({"x": torch.ones(8, 3), "y": torch.ones(8), "scale": torch.ones(2)})
        8

    Raises:
        ValueError: if no entry of the batch is a tensor with an axis.
    """
    sizes = Counter(len(tensor) for tensor in FlatBatch.of(batch).tensors if tensor.ndim)
    if not sizes:
        raise ValueError(f"Expected a batch with tensors of samples, but got {type(batch).__name__}.")
    return sizes.most_common(1)[0][0]


def rows_of(batch: object, size: int, rows: int) -> object:
    """Return the first samples of a batch.

    Args:
        batch: not changed.
        size: its number of samples.
        rows: how many of them.

    Example:
        >>> rows_of((torch.arange(4), torch.ones(2)), size=4, rows=1)
        (tensor([0]), tensor([1., 1.]))
    """
    entries = FlatBatch.of(batch)
    return entries.rebuild([each[:rows] if each.ndim and len(each) == size else each for each in entries.tensors])


def _in_words(roles: Mapping[str, object]) -> str:
    return "; ".join(f"{name}: {entries}" for name, entries in roles.items() if entries)
