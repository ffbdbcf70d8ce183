"""The frozen prefix of a network: values that depend on no trained parameter, so that all domains share them.

Outputs of frozen layers are bounded a few samples at a time, and only those that other layers read are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import nn

from agt_lightning.adversaries import Adversary
from agt_lightning.capture import reached
from agt_lightning.interval import Interval
from agt_lightning.memory import chunks
from agt_lightning.propagation import propagate_forward
from agt_lightning.propagation.objective import BoundedObjective, sample_count
from agt_lightning.propagation.samples import MicroBatch
from agt_lightning.rules.values import Value, concatenate, same_values, select


def frozen_values(
    bounded: BoundedObjective,
    module: nn.Module,
    batch: MicroBatch,
    dtype: torch.dtype,
    budget: int,
    *,
    keep_all: bool = False,
) -> dict[str, Value]:
    """Bounds on all inputs, and on the values that depend on no trained parameter, on the data as it is.

    Args:
        bounded: the captured loss, with roundings: sums in another order have other values, frozen or not.
        module: owner of parameters and buffers.
        batch: the data.
        dtype: floating point type to compute in.
        budget: bytes for the bounds that are computed at a time.
        keep_all: whether to return also what frozen layers alone read, as the substitution of linear bounds does.
    """
    points = {name: Interval.point(p.detach()).to(dtype=dtype) for name, p in module.named_parameters()}
    inputs = bounded.inputs(module, batch.data, points, dtype, batch.state)
    return _prefix(bounded, inputs, budget, frozenset() if keep_all else bounded.inside_frozen_layers)


class PoisonedPrefix:
    """Bounds on the frozen prefix for poisoned samples.

    Values that the adversary cannot change are copied from the clean ones; the others are computed on first access.

    Args:
        bounded: the captured loss of this batch.
        values: `frozen_values`, on the data as it is.
        adversary: the threat model.
        rows: positions of the poisonable samples; None means all.
        budget: bytes for the bounds that are computed at a time.
        earlier: of the same samples and values under another adversary, whose bounds are taken over if both adversaries
            reach the same inputs, as those do that differ in n alone; None if there is none.
    """

    def __init__(
        self,
        bounded: BoundedObjective,
        values: Mapping[str, Value],
        adversary: Adversary,
        rows: torch.Tensor | None,
        budget: int,
        earlier: PoisonedPrefix | None = None,
    ) -> None:
        self.bounded = bounded
        self.values = values
        self.adversary = adversary
        self.rows = rows
        self.budget = budget
        self._earlier = earlier

    def __getitem__(self, name: str) -> Value:
        """A value by its name.

        Raises:
            KeyError: if it depends on a trained parameter, or if frozen layers alone read it.
        """
        if name in self._touched or name not in self.values:
            return self._reachable[name]
        return select(self.values[name], self.rows) if name in self.bounded.program.samples else self.values[name]

    @property
    def moved_layers(self) -> Mapping[str, Value]:
        """The outputs of frozen layers that the adversary can change and other layers read, by name."""
        names = (self._touched & self.bounded.frozen_layers) - self.bounded.inside_frozen_layers
        return {name: self._reachable[name] for name in names}

    @cached_property
    def _touched(self) -> frozenset[str]:
        return reached(self.bounded.program.graph, self.bounded.perturbed_leaves(self.adversary))

    @cached_property
    def _reachable(self) -> dict[str, Value]:
        earlier, self._earlier = self._earlier, None  # not kept alive beyond its use
        if earlier is not None and same_values(self._inputs, earlier._inputs):
            return earlier._reachable
        return _prefix(self.bounded, self._inputs, self.budget, self.bounded.inside_frozen_layers)

    @cached_property
    def _inputs(self) -> dict[str, Value]:
        return self.bounded.poisoned(self.values, self.adversary, self.rows)


def _prefix(
    bounded: BoundedObjective, inputs: Mapping[str, Value], budget: int, dropped: frozenset[str]
) -> dict[str, Value]:
    """Bound the frozen prefix for given inputs: what no parameter enters at once, and then layers, part by part."""
    program, layers = bounded.program, bounded.frozen_layers
    calls = frozenset(call.name for call in program.graph.calls)
    before = propagate_forward(program, inputs, skip=(calls & (bounded.dependent | bounded.skipped)) | layers)
    if not layers:
        return before
    parts: dict[str, list[Value]] = {name: [] for name in layers - dropped}
    for rows in chunks(sample_count(program, inputs), _bytes_of_sample(bounded, before), budget):
        values = {name: select(value, rows) if name in program.samples else value for name, value in before.items()}
        values = propagate_forward(program, values, skip=calls - layers)
        for name, part in parts.items():
            part.append(values[name])
    return before | {name: concatenate(parts.pop(name)) for name in list(parts)}


def _bytes_of_sample(bounded: BoundedObjective, values: Mapping[str, Value]) -> int:
    """Return the bytes of both bounds on all outputs of frozen layers for one sample."""
    width = max((value.dtype.itemsize for value in values.values() if isinstance(value, Interval)), default=8)
    shapes = bounded.program.graph.shapes
    return max(1, 2 * width * sum(torch.Size(shapes[name][1:]).numel() for name in bounded.frozen_layers))
