"""The influence domain: a record of the training of a linear head, from which the effect of labels follows exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from agt_lightning.adversaries import Adversary, BoundedAdversary
from agt_lightning.distributed import Entry
from agt_lightning.domains.base import BoundedBatch, Domain, DomainLostError, OptimizerStep, Step, TrainingSetup
from agt_lightning.domains.head import HeadError
from agt_lightning.domains.influence.reading import LabelledHead, layer_settings, reach_problems, read_labelled_head
from agt_lightning.domains.influence.record import HeadRecorder
from agt_lightning.domains.influence.recorded_head import RecordedHead
from agt_lightning.domains.influence.threat import reachable_labels
from agt_lightning.domains.sgd import sgd_problems
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.propagation.passes import ValueBounds
from agt_lightning.rules.base import as_interval


@dataclass(frozen=True, eq=False)
class InfluenceStep:
    """What one step's batches hold for the record.

    Args:
        head: the layer and where its targets come from.
        features: what enters the layer, (b, d), in the type of its parameters.
        targets: y, (b, K) in float64.
        slopes: c_i, (b,).
        poisonable: samples whose label can be changed, boolean (b,); None for all.
        ids: names of the samples, integers (b,); None if they are known by their content.
        epoch: number of the epoch.
    """

    head: LabelledHead
    features: Tensor
    targets: Tensor
    slopes: Tensor
    poisonable: Tensor | None
    ids: Tensor | None
    epoch: int


class InfluenceDomain(Domain[InfluenceStep]):
    """All heads that changed labels could have led to, as an exact function of the labels.

    It covers one trained linear layer on frozen features, mean or sum of squared errors, `torch.optim.SGD` with any
    schedule, momentum, Nesterov and weight decay, and an adversary that changes labels alone. Its bounds are attained.

    A step costs reading the batch. Bounds cost a replay of the whole training, so they are computed where they are
    asked for, and not at every step. The record lies in memory of the CPU: every distinct sample's features, in the
    type of the parameters, and 16 bytes for each position of each batch. Features of a frozen part that are the same up
    to rounding in float64 are mostly the same in float32; `ids` settle it where content does not.

    Args:
        module: at its initial parameters.
        adversary: the threat model.

    Attributes:
        recorder: the steps so far; None before the first one.

    Reference:
        docs/theory.md, "Exact influence of labels".
    """

    name: ClassVar[str] = "influence"
    uses_poisoned_prefix: ClassVar[bool] = False

    def __init__(self, module: nn.Module, adversary: Adversary) -> None:
        self.module = module
        self.adversary = adversary
        self.recorder: HeadRecorder | None = None
        self._names: tuple[str, str | None] = ("", None)
        self._codes: Tensor | None = None
        self._recorded_head: RecordedHead | None = None
        self._bounds: dict[str, Interval] | None = None

    @override
    def problems(self, setup: TrainingSetup) -> list[str]:
        problems = []
        if setup.clipping is not None:
            problems.append("The influence domain does not cover clipping of the mean gradient. Leave it out.")
        try:
            head = read_labelled_head(setup.bounded, setup.module)
        except HeadError as error:
            return [
                *problems,
                *_adversary_problems(setup.adversary),
                f"The influence domain does not apply: {error}.",
            ]
        problems += reach_problems(head, setup.adversary)
        started = self.recorder is not None
        if started and self._names != (head.layer.weight, head.layer.bias):
            problems.append("The influence domain does not apply: another layer is trained than before.")
        return [*problems, *sgd_problems(self.name, setup, head.layer.parameters, started=started)]

    @override
    def bound_step(self, step: Step, value_bounds: Sequence[ValueBounds]) -> InfluenceStep:
        with step.processes.collective_errors():
            heads = [read_labelled_head(part.bounded, step.module) for part in step.parts]
            first = heads[0]
            own = _own_entries(step.parts, heads)
        received = step.processes.gather(own)
        features, targets = _joined(received, "features"), _joined(received, "targets")
        assert features is not None
        assert targets is not None
        dtype = step.module.get_parameter(first.layer.weight).dtype
        targets = targets.double().cpu()
        self._require_readable_targets(targets, first.codes, step.adversary)
        return InfluenceStep(
            first,
            features.to(device="cpu", dtype=dtype),
            targets,
            (first.factor * step.samples.weights).double().cpu(),
            _mask(step),
            _joined(received, "ids"),
            step.parts[0].batch.epoch,
        )

    @override
    def update(self, pending: InfluenceStep, optimizer_step: OptimizerStep) -> None:
        layer = pending.head.layer
        self._begin(pending, optimizer_step)
        assert self.recorder is not None
        weight, bias = layer_settings(optimizer_step, layer)
        try:
            self.recorder.append(
                pending.features,
                pending.targets,
                pending.slopes,
                weight,
                bias_settings=bias,
                ids=pending.ids,
                epoch=pending.epoch,
                poisonable=pending.poisonable,
            )
        except (UncertifiableError, ValueError) as error:
            raise DomainLostError(str(error)) from error
        self._recorded_head = self._bounds = None

    @override
    def box(self) -> dict[str, Interval] | None:
        """None: bounds take a replay of the training, see `exact_box`."""
        return None

    @override
    def exact_box(self) -> dict[str, Interval]:
        """The smallest box around all heads, by parameter name; computed once after a step."""
        if self._bounds is None:
            self._bounds = self._boxed()
        return self._bounds

    @property
    def recorded_head(self) -> RecordedHead | None:
        """The record up to now; None before the first step."""
        if self._recorded_head is None and self.recorder is not None:
            assert isinstance(self.adversary, BoundedAdversary)
            weight, bias = self._names
            dtype = self.module.get_parameter(weight).dtype
            self._recorded_head = RecordedHead(
                self.recorder.influence(), self.adversary, weight, bias, self._codes, dtype
            )
        return self._recorded_head

    @override
    def record(self) -> dict[str, object]:
        recorded_head = self.recorded_head
        if recorded_head is None:
            return {"steps": 0}
        influence = recorded_head.influence
        return {
            "steps": len(influence.steps),
            "samples": len(influence.targets),
            "poisonable_samples": int(influence.poisonable.sum()),
            "bounds_count": "n samples of each batch, as the adversary does",
            "certified_flips_count": "samples of the whole data set, over all epochs",
            "why_no_certified_flips": influence.problem,
        }

    @override
    def fingerprint_tensors(self) -> Iterator[Tensor]:
        if self.recorder is not None:
            yield from self.recorder.last_step()

    @override
    def state(self) -> dict[str, Any]:
        if self.recorder is None:
            return {}
        weight, bias = self._names
        state = {"recorder": self.recorder.state(), "weight": weight, "bias": bias or ""}
        return state if self._codes is None else {**state, "codes": self._codes}

    @override
    def restore(self, state: Mapping[str, Any]) -> None:
        self._recorded_head = self._bounds = None
        self.recorder = HeadRecorder.restored(state["recorder"]) if state else None
        if state:
            self._names, self._codes = (state["weight"], state["bias"] or None), state.get("codes")

    def _begin(self, pending: InfluenceStep, optimizer_step: OptimizerStep) -> None:
        """Start the record with the parameters before the first step; later steps must train the same layer."""
        layer, codes = pending.head.layer, pending.head.codes
        if self.recorder is None:
            names = (layer.weight,) if layer.bias is None else (layer.weight, layer.bias)
            before = [optimizer_step.before.get(name, self.module.get_parameter(name)).detach().cpu() for name in names]
            columns = [values if values.ndim == 2 else values[:, None] for values in before]
            self.recorder = HeadRecorder(torch.cat(columns, dim=1), bias=layer.bias is not None)
            self._names, self._codes = (layer.weight, layer.bias), codes
        same_codes = codes is self._codes is None or codes is not None and _equal(codes, self._codes)
        if self._names != (layer.weight, layer.bias) or not same_codes:
            raise DomainLostError("another layer is trained than before, or the targets of classes have changed")

    def _boxed(self) -> dict[str, Interval]:
        box = {name: Interval.point(p.detach().double()) for name, p in self.module.named_parameters()}
        recorded_head = self.recorded_head
        if recorded_head is None:
            return box
        bounds = recorded_head.parameters(recorded_head.head_of(self.module))
        device = box[recorded_head.weight].device
        inputs = box[recorded_head.weight].shape[1]
        lower, upper = bounds.lower.to(device), bounds.upper.to(device)
        box[recorded_head.weight] = Interval.trusted(lower[:, :inputs], upper[:, :inputs])
        if recorded_head.bias is not None:
            box[recorded_head.bias] = Interval.trusted(lower[:, inputs], upper[:, inputs])
        return box

    @staticmethod
    def _require_readable_targets(targets: Tensor, codes: Tensor | None, adversary: Adversary) -> None:
        assert isinstance(adversary, BoundedAdversary)
        try:
            reachable_labels(adversary, targets, codes)
        except ValueError as error:
            raise DomainLostError(str(error)) from error


def _adversary_problems(adversary: Adversary) -> list[str]:
    """What can be said of an adversary without a head."""
    if isinstance(adversary, BoundedAdversary):
        return []
    return ["The influence domain needs a `BoundedAdversary` that changes labels alone."]


def _own_entries(parts: Sequence[BoundedBatch], heads: Sequence[LabelledHead]) -> dict[str, Entry]:
    """Features, targets and names of this process's samples."""
    views = list(zip(parts, heads, strict=True))
    entries: dict[str, Entry] = {
        "features": torch.cat([as_interval(part.nominal[head.input]).lower for part, head in views]),
        "targets": torch.cat([_targets(part, head) for part, head in views]),
    }
    ids = _ids(parts)
    return entries if ids is None else {**entries, "ids": ids}


def _joined(received: Sequence[Mapping[str, Entry]], name: str) -> Tensor | None:
    """One entry with the samples of all processes; None if some have none."""
    entries = [message.get(name) for message in received]
    tensors = [entry for entry in entries if isinstance(entry, Tensor)]
    return torch.cat(tensors) if len(tensors) == len(entries) else None


def _targets(part: BoundedBatch, head: LabelledHead) -> Tensor:
    """Targets of one micro-batch, (b, K)."""
    target = as_interval(part.nominal[head.target]).lower
    target = target.reshape(len(target), -1)
    label = part.nominal[head.label]
    if head.codes is not None and isinstance(label, ClassLabels):
        expected = head.codes.to(target)[label.index.reshape(-1).long()]
        if not torch.equal(target, expected):
            raise DomainLostError("the targets of samples are not those of their classes")
    return target


def _mask(step: Step) -> Tensor | None:
    rows = step.samples.poisonable
    if rows is None:
        return None
    mask = torch.zeros(len(step.samples.weights), dtype=torch.bool)
    mask[rows.cpu()] = True
    return mask


def _ids(parts: Sequence[BoundedBatch]) -> Tensor | None:
    ids = [part.ids.cpu() for part in parts if part.ids is not None]
    return torch.cat(ids) if len(ids) == len(parts) else None


def _equal(codes: Tensor, others: Tensor | None) -> bool:
    return others is not None and torch.equal(codes, others)
