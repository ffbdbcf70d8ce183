"""The influence domain: a record of the training of a linear head, which determines the exact effect of labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from agt_lightning.adversaries import Adversary, BoundedAdversary
from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.distributed import Entry
from agt_lightning.domains.base import Domain, DomainLostError, OptimizerStep, Step, TrainingSetup, bounds_count
from agt_lightning.domains.head import HeadError
from agt_lightning.domains.influence.applicability import (
    LabelledHead,
    adversary_problems,
    layer_settings,
    match_labelled_head,
)
from agt_lightning.domains.influence.label_sets import allowed_labels
from agt_lightning.domains.influence.recorded_head import RecordedHead
from agt_lightning.domains.influence.recorder import HeadRecorder
from agt_lightning.domains.influence.sample_table import content_digests
from agt_lightning.domains.sgd import sgd_problems
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.propagation.config import CertificationConfig
from agt_lightning.propagation.passes import BoundedBatch, ValueBounds
from agt_lightning.rounding import Floats
from agt_lightning.rules.values import as_interval


@dataclass(frozen=True, eq=False)
class InfluenceStep:
    """One step of the training, ready to be recorded.

    Args:
        head: the layer and the source of its targets.
        features: inputs of the layer, (b, d), in the type of its parameters.
        targets: y, (b, K) in float64.
        slopes: c_i, (b,).
        poisonable: samples whose label can be changed, boolean (b,); None for all.
        ids: integers that identify the samples, (b,); None to identify them by their content.
        epoch: number of the epoch; None if unknown.
        errors: largest distances of features and of targets in a run from these.
        sources: `content_digests` of what the loss reads of each sample, (b, 16); None if some process lacks them.
    """

    head: LabelledHead
    features: Tensor
    targets: Tensor
    slopes: Tensor
    poisonable: Tensor | None
    ids: Tensor | None
    epoch: int | None
    errors: tuple[float, float]
    sources: Tensor | None


class InfluenceDomain(Domain[InfluenceStep]):
    """The set of all heads that changed labels could have led to, as an exact function of the labels.

    It covers one trained linear layer on frozen features, mean or sum of squared errors, `torch.optim.SGD` with any
    schedule, momentum, Nesterov and weight decay, and an adversary that changes labels alone. The bounds are tight.

    A training step only records the batch. Bounds cost a replay of the whole training, so they are computed on demand
    and not at every step. The record lies in memory of the CPU: every distinct sample's features, in the type of the
    parameters, and 16 bytes for each position of each batch. Features of a frozen part that agree up to rounding in
    float64 are mostly equal in float32; give ``ids`` if content does not identify samples.

    Args:
        module: at its initial parameters.
        adversary: the threat model.
        floats: which runs the bounds contain.

    Attributes:
        recorder: the steps so far; None before the first one.

    Reference:
        docs/theory.md, section 11.
    """

    name: ClassVar[str] = "influence"
    reads_value_bounds: ClassVar[bool] = False
    counts_flips: ClassVar[bool] = True

    def __init__(self, module: nn.Module, adversary: Adversary, floats: Floats = "run") -> None:
        self.module = module
        self.adversary = adversary
        self.floats: Floats = floats
        self.recorder: HeadRecorder | None = None
        self._names: tuple[str, str | None] = ("", None)
        self._codewords: Tensor | None = None
        self._recorded_head: RecordedHead | None = None
        self._bounds: dict[str, Interval] | None = None

    @classmethod
    @override
    def build(cls, module: nn.Module, adversary: Adversary, config: CertificationConfig) -> Self:
        return cls(module, adversary, config.floats)

    @override
    def problems(self, setup: TrainingSetup) -> list[str]:
        problems = []
        if setup.clipping is not None:
            problems.append("The influence domain does not cover clipping of the mean gradient. Leave it out.")
        try:
            head = match_labelled_head(setup.bounded, setup.module)
        except HeadError as error:
            problems += adversary_problems(setup.adversary, None)
            return [*problems, f"The influence domain does not apply: {error}."]
        problems += adversary_problems(setup.adversary, head, setup.bounded.objective.labels)
        started = self.recorder is not None
        if started and self._names != (head.layer.weight, head.layer.bias):
            problems.append("The influence domain does not apply: another layer is trained than before.")
        return [*problems, *sgd_problems(self.name, setup, head.layer.parameters, started=started)]

    @override
    def bound_step(self, step: Step, value_bounds: Sequence[ValueBounds]) -> InfluenceStep:
        with step.processes.collective_errors():
            heads = [match_labelled_head(part.bounded, step.module) for part in step.parts]
            dtype = step.module.get_parameter(heads[0].layer.weight).dtype
            entries = _local_entries(step.parts, heads)
            local = _errors(step.parts, heads, dtype)
        head = heads[0]
        gathered = step.processes.gather(entries)
        epochs = sorted({part.batch.epoch for part in step.parts}, key=str)
        messages = step.processes.gather({"errors": json.dumps(local), "epochs": json.dumps(epochs)})
        errors: list[tuple[float, float]] = [json.loads(str(message["errors"])) for message in messages]
        every = {epoch for message in messages for epoch in json.loads(str(message["epochs"]))}
        features, targets = _all_entries(gathered, "features"), _all_entries(gathered, "targets")
        assert features is not None
        assert targets is not None
        targets = targets.double().cpu()
        _require_valid_targets(step.adversary, targets, head.codewords)
        return InfluenceStep(
            head=head,
            features=features.to(device="cpu", dtype=dtype),
            targets=targets,
            slopes=(head.factor * step.samples.weights).double().cpu(),
            poisonable=_poisonable_mask(step),
            ids=_all_entries(gathered, "ids"),
            epoch=every.pop() if len(every) == 1 else None,
            errors=(max(feature for feature, _ in errors), max(target for _, target in errors)),
            sources=_all_entries(gathered, "sources"),
        )

    @override
    def update(self, data: InfluenceStep, optimizer_step: OptimizerStep) -> None:
        recorder = self._recorder_of(data.head, optimizer_step)
        weight, bias = layer_settings(optimizer_step, data.head.layer)
        try:
            recorder.append(
                data.features,
                data.targets,
                data.slopes,
                weight,
                bias_settings=bias,
                ids=data.ids,
                epoch=data.epoch,
                poisonable=data.poisonable,
                errors=data.errors,
                sources=data.sources,
            )
        except (UncertifiableError, ValueError) as error:
            raise DomainLostError(str(error)) from error
        self._recorded_head = self._bounds = None

    @override
    def restart_optimizer(self) -> None:
        if self.recorder is not None:
            self.recorder.restart_optimizer()

    @override
    def box(self) -> dict[str, Interval] | None:
        """Return None, since bounds need a replay of the training; `exact_box` computes them."""
        return None

    @override
    def exact_box(self) -> dict[str, Interval]:
        """Return the smallest box around all heads, by parameter name; computed once after a step."""
        if self._bounds is None:
            self._bounds = self._compute_box()
        return self._bounds

    @override
    def parameter_set(self) -> RecordedHead | None:
        return self.recorded_head

    @property
    def recorded_head(self) -> RecordedHead | None:
        """The record up to now; None before the first step."""
        if self._recorded_head is None and self.recorder is not None:
            assert isinstance(self.adversary, BoundedAdversary)
            weight, bias = self._names
            dtype = self.module.get_parameter(weight).dtype
            run = dtype if self.floats == "run" else None
            self._recorded_head = RecordedHead(
                self.recorder.influence(run), self.adversary, weight, bias, self._codewords, dtype, self.floats
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
            "bounds_count": bounds_count(self.adversary, in_dataset=recorded_head.budget == "dataset"),
            "certified_flips_count": f"samples of the whole data set, over all epochs; {self._sample()}",
            "why_no_certified_flips": influence.problem,
        }

    def _sample(self) -> str:
        """Return what counts as one sample."""
        if self.recorder is not None and self.recorder.named:
            return "a sample is all that has one id"
        return "a sample is a distinct pair of features and target, since no `sample_ids` were given"

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
        return state if self._codewords is None else {**state, "codes": self._codewords}

    @override
    def restore(self, state: Mapping[str, Any]) -> None:
        self._recorded_head = self._bounds = None
        self.recorder = HeadRecorder.restored(state["recorder"]) if state else None
        if state:
            self._names, self._codewords = (state["weight"], state["bias"] or None), state.get("codes")

    def _recorder_of(self, head: LabelledHead, optimizer_step: OptimizerStep) -> HeadRecorder:
        """Return the recorder, which starts with the parameters before the first step.

        Raises:
            DomainLostError: if a later step trains another layer, or has other targets of classes.
        """
        layer = head.layer
        if self.recorder is None:
            names = (layer.weight,) if layer.bias is None else (layer.weight, layer.bias)
            before = [optimizer_step.before.get(name, self.module.get_parameter(name)).detach().cpu() for name in names]
            columns = [values if values.ndim == 2 else values[:, None] for values in before]
            self.recorder = HeadRecorder(torch.cat(columns, dim=1), bias=layer.bias is not None)
            self._names, self._codewords = (layer.weight, layer.bias), head.codewords
        if self._names != (layer.weight, layer.bias) or not _equal(head.codewords, self._codewords):
            raise DomainLostError("another layer is trained than before, or the targets of classes have changed")
        return self.recorder

    def _compute_box(self) -> dict[str, Interval]:
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


def _require_valid_targets(adversary: Adversary, targets: Tensor, codewords: Tensor | None) -> None:
    """Raise `DomainLostError` if the adversary flips labels and a target is not a codeword."""
    assert isinstance(adversary, BoundedAdversary)
    try:
        allowed_labels(adversary, targets, codewords)
    except ValueError as error:
        raise DomainLostError(str(error)) from error


def _local_entries(parts: Sequence[BoundedBatch], heads: Sequence[LabelledHead]) -> dict[str, Entry]:
    """Return features, targets and ids of this process's samples; without ids, digests of their content."""
    entries: dict[str, Entry] = {
        "features": torch.cat(
            [as_interval(part.nominal[head.input]).lower for part, head in zip(parts, heads, strict=True)]
        ),
        "targets": torch.cat([_targets(part, head) for part, head in zip(parts, heads, strict=True)]),
    }
    ids = [part.sample_ids.cpu() for part in parts if part.sample_ids is not None]
    if len(ids) == len(parts):
        return {**entries, "ids": torch.cat(ids)}
    return {**entries, "sources": torch.cat([content_digests(p.bounded.sample_entries(p.batch.data)) for p in parts])}


def _errors(parts: Sequence[BoundedBatch], heads: Sequence[LabelledHead], dtype: torch.dtype) -> tuple[float, float]:
    """Return the largest distance of features, and of targets, in any run from those that are recorded."""
    features, targets = 0.0, 0.0
    for part, head in zip(parts, heads, strict=True):
        recorded = as_interval(part.nominal[head.input]).lower.to(dtype).double()
        features = max(features, _distance(as_interval(part.frozen[head.input]), recorded))
        recorded = as_interval(part.nominal[head.target]).lower.double()
        targets = max(targets, head.code_error, _distance(as_interval(part.frozen[head.target]), recorded))
    return features, targets


def _distance(runs: Interval, recorded: Tensor) -> float:
    """Return the largest Euclidean distance of a sample's values in a run from recorded ones."""
    if runs.is_point and torch.equal(runs.lower.double(), recorded):
        return 0.0
    apart = torch.maximum((runs.upper.double() - recorded).abs(), (recorded - runs.lower.double()).abs())
    return float(euclidean_norm(apart.reshape(len(apart), -1), dim=1).max()) * (1 + 2.0**-20)


def _all_entries(gathered: Sequence[Mapping[str, Entry]], name: str) -> Tensor | None:
    """Return one entry with the samples of all processes; None if some processes lack it."""
    entries = [message.get(name) for message in gathered]
    tensors = [entry for entry in entries if isinstance(entry, Tensor)]
    return torch.cat(tensors) if len(tensors) == len(entries) else None


def _targets(part: BoundedBatch, head: LabelledHead) -> Tensor:
    """Return the targets of one micro-batch, (b, K); those of class labels must be their codewords."""
    target = as_interval(part.nominal[head.target]).lower
    target = target.reshape(len(target), -1)
    label = part.nominal[head.label]
    if head.codewords is not None and isinstance(label, ClassLabels):
        expected = head.codewords.to(target)[label.index.reshape(-1).long()]
        if not torch.equal(target, expected):
            raise DomainLostError("the targets of samples are not those of their classes")
    return target


def _poisonable_mask(step: Step) -> Tensor | None:
    rows = step.samples.poisonable
    if rows is None:
        return None
    mask = torch.zeros(len(step.samples.weights), dtype=torch.bool)
    mask[rows.cpu()] = True
    return mask


def _equal(codewords: Tensor | None, others: Tensor | None) -> bool:
    if codewords is None or others is None:
        return codewords is others
    return torch.equal(codewords, others)
