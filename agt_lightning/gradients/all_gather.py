"""Gradients of the samples of all processes: their factors are sent, never the gradients."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.distributed import Entry, Message, ProcessGroup
from agt_lightning.errors import UncertifiableError
from agt_lightning.gradients.base import FactoredGradient
from agt_lightning.gradients.composite import merged, stack
from agt_lightning.interval import Interval

Gradients = Mapping[str, FactoredGradient]
"""Gradients by parameter name."""


def all_gathered(processes: ProcessGroup, *groups: Gradients) -> tuple[dict[str, FactoredGradient], ...]:
    """Return the same gradients for the samples of all processes, ordered by rank.

    Args:
        processes: the processes; each of them calls this.
        groups: several sets of gradients, sent in one message; a set is empty in a process without samples of it.

    Raises:
        UncertifiableError: in every process, if one uses a parameter that another one with samples does not use.
    """
    if processes.size == 1:
        return tuple(dict(group) for group in groups)
    groups = tuple({name: merged(gradient) for name, gradient in group.items()} for group in groups)
    received = processes.gather(_message(groups))
    by_rank = [[_Received(message, number) for number in range(len(groups))] for message in received]
    common = set.intersection(*({s for part in parts for s in part.structures.values()} for parts in by_rank))
    local = {_encoded_structure(gradient): gradient for group in groups for gradient in group.values()}
    templates = {structure: gradient for structure, gradient in local.items() if structure in common and structure}
    return tuple(
        _of_all_processes(processes, group, [parts[number] for parts in by_rank], templates)
        for number, group in enumerate(groups)
    )


def _message(groups: Sequence[Gradients]) -> Message:
    """Structure, number of leaves, number of samples and shape of each gradient; and the leaves."""
    message: dict[str, Entry] = {}
    for number, group in enumerate(groups):
        headers = {}
        for name, gradient in group.items():
            leaves = () if gradient.structure is None else gradient.leaves
            headers[name] = (_encoded_structure(gradient), len(leaves), gradient.samples, gradient.shape)
            message |= {f"{number}/{name}/{position}": leaf for position, leaf in enumerate(leaves)}
        message[f"{number}"] = json.dumps(headers)
    return message


def _encoded_structure(gradient: FactoredGradient) -> str:
    """The structure as text; empty if there is none."""
    return "" if gradient.structure is None else repr(gradient.structure)


class _Received:
    """One set of gradients, as one process sent it."""

    def __init__(self, message: Mapping[str, Entry], number: int) -> None:
        headers: dict[str, tuple[str, int, int, list[int]]] = json.loads(str(message[f"{number}"]))
        self.structures = {name: structure for name, (structure, _, _, _) in headers.items()}
        self.samples = {name: samples for name, (_, _, samples, _) in headers.items()}
        self.shapes = {name: tuple(shape) for name, (_, _, _, shape) in headers.items()}
        entries = {
            name: [message[f"{number}/{name}/{position}"] for position in range(count)]
            for name, (_, count, _, _) in headers.items()
        }
        self.leaves = {name: [leaf for leaf in leaves if not isinstance(leaf, str)] for name, leaves in entries.items()}


def _of_all_processes(
    processes: ProcessGroup, local: Gradients, received: Sequence[_Received], templates: Mapping[str, FactoredGradient]
) -> dict[str, FactoredGradient]:
    """One set of gradients; ``templates`` are those of this process by structures that all processes have."""
    holders = [part for part in received if part.structures]
    names = list(dict.fromkeys(name for part in holders for name in part.structures))
    missing = [name for name in names if any(name not in part.structures for part in holders)]
    if missing:
        raise UncertifiableError(
            [f"`{name}` is used in some processes of a step and not in others. Use the same code." for name in missing]
        )
    result: dict[str, FactoredGradient] = {}
    for name in names:
        if all(part.structures[name] in templates for part in holders):
            result[name] = stack([templates[part.structures[name]].with_leaves(part.leaves[name]) for part in holders])
        else:
            counts = [part.samples.get(name, 0) for part in received]
            result[name] = ShardedGradient(local.get(name), processes, counts, holders[0].shapes[name])
    return result


class ShardedGradient(FactoredGradient):
    """Gradients that stay in their processes because they have no leaves; their blocks are sent when they are needed.

    Every method is a collective: all processes must call it, in the same order.

    Args:
        local: gradients of this process's samples; None if it has none.
        processes: all processes.
        counts: number of samples of each process.
        shape: shape of the parameter.
    """

    def __init__(
        self, local: FactoredGradient | None, processes: ProcessGroup, counts: Sequence[int], shape: tuple[int, ...]
    ) -> None:
        self.local = local
        self.processes = processes
        self.counts = list(counts)
        self._shape = shape

    @property
    @override
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    @override
    def samples(self) -> int:
        return sum(self.counts)

    @override
    def block(self, start: int, stop: int) -> Interval:
        message: dict[str, Entry] = {}
        with self.processes.collective_errors():
            if self.local is not None:
                message["block"] = self.local.block(start, stop)
        blocks = [sent["block"] for sent in self.processes.gather(message) if "block" in sent]
        return Interval.cat([block for block in blocks if isinstance(block, Interval)], dim=1)

    @override
    def total(self, weights: Tensor) -> Interval | None:
        share = weights.split(self.counts)[self.processes.rank]
        message: dict[str, Entry] = {}
        with self.processes.collective_errors():
            total = None if self.local is None else self.local.total(share)
            if total is not None:
                message["total"] = total
            elif self.local is not None:
                message["unknown"] = ""
        received = self.processes.gather(message)
        if any("unknown" in sent for sent in received):
            return None
        totals = [sent["total"] for sent in received if "total" in sent]
        return _summed([total for total in totals if isinstance(total, Interval)])

    @override
    def rounded(self, arithmetic: Arithmetic, roundings: int) -> ShardedGradient:
        local = None if self.local is None else self.local.rounded(arithmetic, roundings)
        return ShardedGradient(local, self.processes, self.counts, self._shape)

    @override
    def nonzero(self) -> Tensor:
        """Return true for all elements: only the processes together know."""
        return torch.ones(self._shape, dtype=torch.bool)

    @override
    def scale(self, weights: Tensor) -> float:
        share = weights.split(self.counts)[self.processes.rank]
        scale = 0.0 if self.local is None else self.local.scale(share)
        return float(self.processes.sum({"scale": share.new_tensor(scale)})["scale"])


def _summed(intervals: Sequence[Interval]) -> Interval:
    total = intervals[0]
    for interval in intervals[1:]:
        total = total + interval
    return total
