"""Record a training: the parameters before each step, its samples by row number, and what the adversary could do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.domains.adjoint.linear import LinearStep
from agt_lightning.domains.adjoint.one_hidden import OneHiddenStep
from agt_lightning.domains.adjoint.replay import RecordedStep
from agt_lightning.domains.adjoint.row_table import RowTable
from agt_lightning.domains.ball.layers import Layer, LayerBall
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.step_data import Poison, Samples, StepData
from agt_lightning.domains.losses import HeadLoss, LabelPerturbation, Target
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels


@dataclass(frozen=True)
class Form:
    """What is the same for all samples of a step.

    Args:
        features: number d of features.
        outputs: number K of outputs.
        classes: whether targets are class labels.
        poisoned: whether samples can be poisoned.
        n: largest number of poisoned samples.
        flippable: whether class labels can be flipped.
        sources: classes that flips start from; None for all.
        targets: classes that flips lead to; None for all.
        radius: Euclidean limit on a change of labels; None if it is that of their box.
        own_widths: whether each sample has half-widths of its own.
        p: norm of the ball of features; 0 without one.
    """

    features: int
    outputs: int
    classes: bool
    poisoned: bool = False
    n: int = 0
    flippable: bool = False
    sources: tuple[int, ...] | None = None
    targets: tuple[int, ...] | None = None
    radius: float | None = None
    own_widths: bool = False
    p: float = 0.0

    @property
    def columns(self) -> tuple[int, int, int, int]:
        """How many numbers are stored of each sample: features, target, its limits under poison, half-widths."""
        limits = 2 * self.outputs if self.poisoned and not self.classes else 0
        return self.features, 1 if self.classes else self.outputs, limits, self.features if self.own_widths else 0


@dataclass(frozen=True, eq=False)
class Entry:
    """One recorded step, with samples as positions in a table.

    Args:
        rows: of the samples, int64 (b,).
        weights: w_i, (b,).
        poisonable: positions of poisonable samples in the batch, int64 (m,); None for all.
        input_error: how far features of a run can be from these, (b,); None if they are exact.
        target_error: the same of targets.
        half_widths: one row for all samples, (1, d); None if features stay or each has its own.
        scale: of the ball of features, (d,); None without one.
        numbers: R before the step, learning rate, weight decay, what roundings add, and the longest sum.
        form: what is the same for all samples.
    """

    rows: Tensor
    weights: Tensor
    poisonable: Tensor | None
    input_error: Tensor | None
    target_error: Tensor | None
    half_widths: Tensor | None
    scale: Tensor | None
    numbers: tuple[float, float, float, float, int]
    form: Form


@dataclass(eq=False)
class TrajectoryRecorder:
    """A growing record of a training.

    It needs 8 bytes a parameter and step, 16 bytes a position of a batch, and the distinct samples once.

    Args:
        names: of the parameters of the layers in the module, weight and bias of each; None where there is no bias.
        trained: whether each bias is trained.

    Attributes:
        parameters: values before each step, and after the last one.
        entries: the steps.
        tables: samples, with targets, labels under poison and half-widths, by how many numbers that is: it changes with
            what the adversary can do to a batch.
        widths: how far the parameters of runs can be from these, entry by entry, before each step and after the last
            one; none if a ball is kept instead.
    """

    names: tuple[str | None, ...]
    trained: tuple[bool, ...]
    parameters: list[tuple[Tensor | None, ...]] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    tables: dict[int, RowTable] = field(default_factory=dict)
    widths: list[tuple[Tensor | None, ...]] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """Number of distinct samples, each counted once for every form of its record."""
        return sum(len(table.rows) for table in self.tables.values())

    def append(self, data: StepData, weights: Tensor, numbers: tuple[float, float, float, float]) -> None:
        """Add a step after the last parameters.

        Args:
            data: samples, targets and poison.
            weights: w_i, (b,).
            numbers: R before the step, learning rate, weight decay, and what roundings add.
        """
        form, samples, poison = _form(data), data.samples, data.poison
        table = self.tables.setdefault(sum(form.columns), RowTable())
        features = None if poison is None else poison.features
        self.entries.append(
            Entry(
                rows=table.positions(_columns(data, form)),
                weights=_stored(weights),
                poisonable=None if poison is None or poison.covers(len(weights)) else poison.rows.cpu().clone(),
                input_error=_unless_zero(samples.input_error),
                target_error=_unless_zero(samples.target_error),
                half_widths=None if features is None or form.own_widths else _stored(features.half_widths),
                scale=None if features is None or features.scale is None else _stored(features.scale),
                numbers=(*numbers, data.sum_roundings - 8),
                form=form,
            )
        )

    def so_far(self) -> TrajectoryRecorder:
        """Return the record of the steps so far, to which later ones are not added."""
        return replace(
            self,
            parameters=list(self.parameters),
            entries=list(self.entries),
            tables=dict(self.tables),
            widths=list(self.widths),
        )

    def layers(self, number: int) -> tuple[Layer, ...]:
        """Return the layers before a step, or after the last one for -1."""
        values = [None if each is None else each.to(torch.float64) for each in self.parameters[number]]
        layers = []
        for weight, bias, trained in zip(values[::2], values[1::2], self.trained, strict=True):
            assert weight is not None
            layers.append(Layer(weight, bias, trained))
        return tuple(layers)

    def backward(self, loss: HeadLoss, run: torch.dtype | None) -> Iterator[RecordedStep]:
        """Yield the steps, last one first.

        Args:
            loss: of one sample.
            run: floating point type of the runs; None for runs in real arithmetic.
        """
        arithmetic = Arithmetic(run, torch.float64)
        for number in reversed(range(len(self.entries))):
            entry = self.entries[number]
            radius, rate, decay, rounding, _ = entry.numbers
            ball = LayerBall(self.layers(number), radius, arithmetic)
            kind = LinearStep if len(ball.layers) == 1 else OneHiddenStep
            yield RecordedStep(kind(ball, self._data(entry), entry.weights, loss), rate, decay, rounding)

    def _data(self, entry: Entry) -> StepData:
        form = entry.form
        columns = self.tables[sum(form.columns)].rows.index_select(0, entry.rows)
        x, y, labels, widths = columns.split(form.columns, dim=1)
        target: Target = ClassLabels(y[:, 0].long()) if form.classes else Interval.point(y)
        samples = Samples(x, (), None, entry.input_error, entry.target_error)
        poison = _poison(entry, target, labels, widths) if form.poisoned else None
        return StepData(samples, target, poison, int(entry.numbers[-1]))

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return tensors, numbers and strings for a checkpoint."""
        return {
            "names": [name or "" for name in self.names],
            "trained": list(self.trained),
            "parameters": [[torch.empty(0) if p is None else p for p in values] for values in self.parameters],
            "entries": [_entry_state(entry) for entry in self.entries],
            "tables": [table.rows for table in self.tables.values()],
            "widths": [[torch.empty(0) if w is None else w for w in widths] for widths in self.widths],
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> TrajectoryRecorder:
        """Return the recorder of a checkpoint, which continues as if it had not been interrupted."""
        names = tuple(name or None for name in state["names"])
        parameters, widths = (
            [
                tuple(None if name is None else values for name, values in zip(names, each, strict=True))
                for each in state.get(key, [])
            ]
            for key in ("parameters", "widths")
        )
        entries = [_entry_of(each) for each in state["entries"]]
        tables = {rows.shape[1]: RowTable.restored(rows) for rows in state["tables"]}
        return cls(names, tuple(map(bool, state["trained"])), parameters, entries, tables, widths)


_TENSORS = ("poisonable", "input_error", "target_error", "half_widths", "scale")


def _entry_state(entry: Entry) -> dict[str, Any]:
    tensors = {name: getattr(entry, name) for name in _TENSORS if getattr(entry, name) is not None}
    form = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(entry.form).items()}
    return {"rows": entry.rows, "weights": entry.weights, **tensors, "numbers": list(entry.numbers), "form": form}


def _entry_of(state: Mapping[str, Any]) -> Entry:
    form: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in state["form"].items()
    }
    radius, rate, decay, rounding, summands = state["numbers"]
    numbers = (float(radius), float(rate), float(decay), float(rounding), int(summands))
    optional = {name: state.get(name) for name in _TENSORS}
    return Entry(rows=state["rows"], weights=state["weights"], numbers=numbers, form=Form(**form), **optional)


def _stored(values: Tensor) -> Tensor:
    return values.detach().double().cpu().clone()


def _unless_zero(error: Tensor | None) -> Tensor | None:
    return None if error is None or not bool(error.any()) else _stored(error)


def _form(data: StepData) -> Form:
    classes, poison = isinstance(data.target, ClassLabels), data.poison
    form = Form(data.samples.inputs.shape[1], data.samples.outputs.shape[1], classes)
    if poison is None:
        return form
    labels, features = poison.labels.poisoned, poison.features
    flips = labels if isinstance(labels, ClassLabels) else ClassLabels(torch.zeros(0, dtype=torch.int64))
    return Form(
        form.features,
        form.outputs,
        classes,
        poisoned=True,
        n=poison.n,
        flippable=flips.flippable,
        sources=_numbers(flips.sources),
        targets=_numbers(flips.targets),
        radius=poison.labels.radius,
        own_widths=features is not None and len(features.half_widths) > 1,
        p=0.0 if features is None or features.scale is None else float(features.p),
    )


def _numbers(classes: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if classes is None else tuple(classes)


def _columns(data: StepData, form: Form) -> Tensor:
    """Return what is stored of each sample, (b, n)."""
    samples, poison = data.samples, data.poison
    columns = [samples.inputs, _numbers_of(data.target)]
    if poison is not None and not form.classes:
        poisoned = poison.labels.poisoned
        assert isinstance(poisoned, Interval)
        for bound in (poisoned.lower, poisoned.upper):
            limit = _numbers_of(data.target).clone()
            limit[poison.rows] = bound.reshape(len(bound), -1).to(limit)
            columns.append(limit)
    if poison is not None and poison.features is not None and form.own_widths:
        widths = torch.zeros_like(samples.inputs)
        widths[poison.rows] = poison.features.half_widths
        columns.append(widths)
    return torch.cat([each.detach().double().cpu() for each in columns], dim=1)


def _numbers_of(target: Target) -> Tensor:
    if isinstance(target, ClassLabels):
        return target.index.reshape(-1, 1).double()
    return target.lower.reshape(len(target.lower), -1).double()


def _poison(entry: Entry, target: Target, labels: Tensor, widths: Tensor) -> Poison:
    form = entry.form
    rows = torch.arange(len(entry.rows)) if entry.poisonable is None else entry.poisonable
    clean: Target
    poisoned: Target
    if isinstance(target, ClassLabels):
        index = target.index[rows]
        clean, poisoned = ClassLabels(index), ClassLabels(index, form.flippable, form.sources, form.targets)
    else:
        lower, upper = labels[rows].chunk(2, dim=1)
        clean, poisoned = Interval.point(target.lower[rows]), Interval.trusted(lower, upper)
    half_widths = widths[rows] if form.own_widths else entry.half_widths
    features = None if half_widths is None else Perturbation(half_widths, entry.scale, form.p or 2.0)
    return Poison(rows, form.n, LabelPerturbation(clean, poisoned, form.radius), features)
