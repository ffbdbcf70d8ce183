"""Gradients of the samples of all processes: their factors travel, never the gradients."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from torch import Tensor
from typing_extensions import override

from agt_lightning.distributed import Entry, Message, ProcessGroup
from agt_lightning.errors import UncertifiableError
from agt_lightning.gradients.base import FactoredGradient
from agt_lightning.gradients.composite import stack
from agt_lightning.interval import Interval

Gradients = Mapping[str, FactoredGradient]
"""By parameter name."""


def all_gathered(processes: ProcessGroup, *groups: Gradients) -> tuple[dict[str, FactoredGradient], ...]:
    """The same with the samples of all processes, by rank.

    Args:
        processes: all of which give theirs.
        groups: several sets of gradients that travel together; in a process without samples of one, it is empty.

    Raises:
        UncertifiableError: in every process, if one uses a parameter that another with samples does not use.
    """
    if processes.size == 1:
        return tuple(dict(group) for group in groups)
    received = processes.gather(_message(groups))
    sent = [[_Sent(message, number) for number in range(len(groups))] for message in received]
    templates = {_encoded_structure(gradient): gradient for group in groups for gradient in group.values()}
    common = set.intersection(*({kind for part in parts for kind in part.kinds.values()} for parts in sent))
    known = {kind: gradient for kind, gradient in templates.items() if kind in common and kind}
    return tuple(
        _joined(processes, group, [parts[number] for parts in sent], known) for number, group in enumerate(groups)
    )


def _message(groups: Sequence[Gradients]) -> Message:
    """Kind, number of pieces and samples, and shape of each gradient; and the pieces."""
    message: dict[str, Entry] = {}
    for number, group in enumerate(groups):
        forms = {}
        for name, gradient in group.items():
            pieces = () if gradient.kind is None else gradient.pieces
            forms[name] = (_encoded_structure(gradient), len(pieces), gradient.samples, gradient.shape)
            message |= {f"{number}/{name}/{position}": piece for position, piece in enumerate(pieces)}
        message[f"{number}"] = json.dumps(forms)
    return message


def _encoded_structure(gradient: FactoredGradient) -> str:
    """The kind as text; empty if there is none."""
    return "" if gradient.kind is None else repr(gradient.kind)


class _Sent:
    """What one process sent of one set of gradients."""

    def __init__(self, message: Mapping[str, Entry], number: int) -> None:
        forms: dict[str, tuple[str, int, int, list[int]]] = json.loads(str(message[f"{number}"]))
        self.kinds = {name: kind for name, (kind, _, _, _) in forms.items()}
        self.samples = {name: samples for name, (_, _, samples, _) in forms.items()}
        self.shapes = {name: tuple(shape) for name, (_, _, _, shape) in forms.items()}
        entries = {
            name: [message[f"{number}/{name}/{position}"] for position in range(count)]
            for name, (_, count, _, _) in forms.items()
        }
        self.pieces = {
            name: [factor for factor in factors if not isinstance(factor, str)] for name, factors in entries.items()
        }


def _joined(
    processes: ProcessGroup, own: Gradients, sent: Sequence[_Sent], templates: Mapping[str, FactoredGradient]
) -> dict[str, FactoredGradient]:
    """One set of gradients; ``templates`` are those of this process by kinds that all processes have."""
    holders = [part for part in sent if part.kinds]
    names = list(dict.fromkeys(name for part in holders for name in part.kinds))
    missing = [name for name in names if any(name not in part.kinds for part in holders)]
    if missing:
        raise UncertifiableError(
            [f"`{name}` is used in some processes of a step and not in others. Use the same code." for name in missing]
        )
    result: dict[str, FactoredGradient] = {}
    for name in names:
        if all(part.kinds[name] in templates for part in holders):
            result[name] = stack([templates[part.kinds[name]].of(part.pieces[name]) for part in holders])
        else:
            counts = [part.samples.get(name, 0) for part in sent]
            result[name] = ShardedGradient(own.get(name), processes, counts, holders[0].shapes[name])
    return result


class ShardedGradient(FactoredGradient):
    """Gradients that stay in their processes because they have no pieces; blocks of them travel when asked for.

    Every method is a collective: all processes must call it, in the same order.

    Args:
        own: of this process's samples; None if it has none.
        processes: all of them.
        counts: number of samples in each.
        shape: shape of the parameter.
    """

    def __init__(
        self, own: FactoredGradient | None, processes: ProcessGroup, counts: Sequence[int], shape: tuple[int, ...]
    ) -> None:
        self.own = own
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
            if self.own is not None:
                message["block"] = self.own.block(start, stop)
        blocks = [sent["block"] for sent in self.processes.gather(message) if "block" in sent]
        transposed = [_samples_first(block) for block in blocks if isinstance(block, Interval)]
        return _samples_first(Interval.cat(transposed))

    @override
    def total(self, weights: Tensor) -> Interval | None:
        own = weights.split(self.counts)[self.processes.rank]
        message: dict[str, Entry] = {}
        with self.processes.collective_errors():
            total = None if self.own is None else self.own.total(own)
            if total is not None:
                message["total"] = total
            elif self.own is not None:
                message["unknown"] = ""
        received = self.processes.gather(message)
        if any("unknown" in sent for sent in received):
            return None
        totals = [sent["total"] for sent in received if "total" in sent]
        return _summed([total for total in totals if isinstance(total, Interval)])

    @override
    def scale(self, weights: Tensor) -> float:
        own = weights.split(self.counts)[self.processes.rank]
        scale = 0.0 if self.own is None else self.own.scale(own)
        return float(self.processes.sum({"scale": own.new_tensor(scale)})["scale"])


def _samples_first(block: Interval) -> Interval:
    """(e, b) as (b, e), and back."""
    lower = block.lower.T.contiguous()
    return Interval.trusted(lower, lower if block.is_point else block.upper.T.contiguous())


def _summed(intervals: Sequence[Interval]) -> Interval:
    total = intervals[0]
    for interval in intervals[1:]:
        total = total + interval
    return total
