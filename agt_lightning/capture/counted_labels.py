"""Labels that a loss leaves out, by `ignore_index`, as a product with a fixed tensor.

The mean of a cross entropy divides by the number of labels that count. As long as no adversary can change a label, that
number is the same in every run, and the loss is a mean over all samples, each with a factor: zero for a label that is
left out, and for the others the number of labels over the number of those that count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from agt_lightning.capture.graph import COUNTED_MEAN, NONE_LEFT_OUT, Call, Graph, Reference
from agt_lightning.errors import UncertifiableError

_aten = torch.ops.aten

_DEFAULT = -100
"""The default of ``ignore_index``."""

_IN_ORDER = frozenset(
    {
        _aten._to_copy.default,
        _aten.detach.default,
        _aten.flatten.using_ints,
        _aten.squeeze.default,
        _aten.squeeze.dim,
        _aten.squeeze.dims,
        _aten.to.dtype,
        _aten.to.dtype_layout,
    }
)
"""Calls whose elements are those of their input, in the same order."""


@dataclass(frozen=True)
class CountedLabels:
    """The factor of each label's loss.

    Args:
        labels: name of the batch entry.
        ignored: label that is left out.
        mean: whether the loss divides by the number of labels that count, instead of adding up.
        shape: of the losses in the captured batch.
        source: the line of the loss.
    """

    labels: str
    ignored: int
    mean: bool
    shape: tuple[int, ...]
    source: str

    def factors(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the factors, (batch, ...).

        Args:
            labels: of the whole batch, as the loss takes its mean.
            dtype: of the result, which is rounded once.

        Raises:
            UncertifiableError: if no label counts, where the mean is no number.

        Example:
            >>> CountedLabels("y", -100, True, (3,), "a.py:1").factors(torch.tensor([0, -100, 2]), torch.float64)
            tensor([1.5000, 0.0000, 1.5000], dtype=torch.float64)
        """
        counted = (labels.long() != self.ignored).to(dtype).reshape(labels.shape[0], *self.shape[1:])
        if not self.mean:
            return counted
        if not bool(counted.any()):
            raise UncertifiableError(
                [
                    f"Every label of a batch is {self.ignored}, which {self.source} leaves out (`ignore_index`): the "
                    "mean of no losses is NaN. Leave out such batches."
                ]
            )
        return counted * (counted.numel() / counted.sum())


def ignored_labels(labels: Tensor) -> bool:
    """Return whether a batch entry has a label that `cross_entropy` leaves out unless it is told otherwise."""
    integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    return integers and bool((labels.long() == _DEFAULT).any())  # bytes compare modulo 256


def with_counted_labels(graph: Graph, holding: frozenset[int]) -> Graph:
    """Replace cross entropies that leave out labels by products with `CountedLabels`, where no label can be changed.

    Args:
        graph: with losses split from their reductions.
        holding: positions of the batch entries with `ignored_labels`.
    """
    calls: list[Call] = []
    shapes, masks = dict(graph.shapes), dict(graph.masks)
    for call in graph.calls:
        entry = _labels_of(graph, call) if _leaves_out_labels(call) else None
        if entry is None or call.arguments["ignore_index"] == _DEFAULT and graph.leaves[entry] not in holding:
            calls.append(call)
            continue
        parts, factors = _parts(graph, call, entry)
        calls += parts
        masks[f"{call.name}.counted"] = factors
        shapes |= {part.name: part.shape for part in parts} | {f"{call.name}.counted": call.shape}
    return replace(graph, calls=tuple(calls), shapes=shapes, masks=masks)


def _parts(graph: Graph, call: Call, entry: str) -> tuple[list[Call], CountedLabels]:
    """Return labels that all are classes, the losses of all labels, and their product with the factors."""
    target, classes = call.inputs[1], graph.shapes[call.inputs[0]][1]
    known = graph.producer(target)
    labels = replace(
        call,
        name=f"{call.name}.labels",
        op=_aten.clamp.default,
        arguments={"self": Reference(target), "min": 0, "max": classes - 1},
        shape=graph.shapes[target],
        dtype=graph.types[entry] if known is None else known.dtype,
    )
    arguments = {**call.arguments, "target": Reference(labels.name), "ignore_index": _DEFAULT}
    losses = replace(call, name=f"{call.name}.of_all", arguments=arguments)
    product = {"self": Reference(losses.name), "other": Reference(f"{call.name}.counted")}
    mean = bool(call.arguments.get(COUNTED_MEAN))
    factors = CountedLabels(entry, int(str(call.arguments["ignore_index"])), mean, call.shape, call.source)
    return [labels, losses, replace(call, op=_aten.mul.Tensor, arguments=product)], factors


def _leaves_out_labels(call: Call) -> bool:
    """Return whether a call is a plain cross entropy; how torch smooths labels that are left out depends on it."""
    arguments = call.arguments
    return (
        call.op is _aten.cross_entropy_loss.default
        and arguments["weight"] is None
        and arguments["label_smoothing"] == 0.0
        and arguments["reduction"] == 0
        and not arguments.get(NONE_LEFT_OUT)
    )


def _labels_of(graph: Graph, call: Call) -> str | None:
    """Return the batch entry of integers that a loss takes its labels from, element by element; None for others."""
    name = call.inputs[1]
    producer = graph.producer(name)
    while producer is not None and producer.op in _IN_ORDER:
        name = producer.inputs[0]
        producer = graph.producer(name)
    return name if name in graph.leaves and not graph.types[name].is_floating_point else None
