"""Nominal and certified metrics of a loader, from the captured loss: no prediction function has to be named."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from agt_lightning.capture import LabelKind
from agt_lightning.certificates import squared_error_bounds
from agt_lightning.certificates.margins import predicted_classes
from agt_lightning.certificates.objectives import is_single_logit
from agt_lightning.certificates.values import BoundedValues
from agt_lightning.distributed import ProcessGroup
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.errors import CaptureError, UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.rules import Value
from agt_lightning.rules.base import as_interval


class Validation:
    """Certificates of all validation loaders, over all processes.

    Args:
        engine: holds the bounds and the captured loss.
    """

    def __init__(self, engine: AbstractGradientEngine) -> None:
        self.engine = engine
        self.loaders: dict[int, ValidationCertificate] = {}
        self.problem = ""

    def update(self, index: int, batch: object) -> None:
        """Add a batch of one loader; after a batch that does not fit the training loss, nothing is added."""
        if self.problem:
            return
        try:
            self.loaders.setdefault(index, ValidationCertificate(self.engine)).update(batch)
        except (CaptureError, UncertifiableError) as error:
            self.problem = str(error)

    def compute(self, processes: ProcessGroup) -> tuple[dict[int, dict[str, float]], dict[int, dict[str, float]], str]:
        """Means by loader and metric, shares of deciding domains by loader, and why there is nothing.

        A collective: the samples of all processes count alike.
        """
        problems = processes.union([self.problem] if self.problem else [])
        if problems:
            return {}, {}, problems[0]
        own = json.dumps({index: loader.plain() for index, loader in self.loaders.items()})
        received = [json.loads(str(message["sums"])) for message in processes.gather({"sums": own})]
        indices = sorted({int(index) for sums in received for index in sums})
        total = {
            index: ValidationCertificate.sum_of(
                self.engine, [sums[str(index)] for sums in received if str(index) in sums]
            )
            for index in indices
        }
        means = {index: certificate.compute() for index, certificate in total.items()}
        return means, {index: certificate.shares() for index, certificate in total.items()}, ""


@dataclass
class ValidationCertificate:
    """Sums of per-sample results over a loader, by metric name.

    Args:
        engine: holds the bounds and the captured loss.
    """

    engine: AbstractGradientEngine
    sums: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    decided: dict[str, float] = field(default_factory=dict)

    def update(self, batch: object) -> None:
        """Add a batch.

        Raises:
            CaptureError: if the loss cannot be captured on batches like this one.
            UncertifiableError: if it has no bounds.
        """
        results = self._results(self.engine.objective(batch), batch)
        for name, values in results.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(values.double().sum())
        self.samples += len(next(iter(results.values()))) if results else 0

    def compute(self) -> dict[str, float]:
        """Means over all samples so far; empty without samples."""
        return {name: total / self.samples for name, total in self.sums.items()} if self.samples else {}

    def plain(self) -> dict[str, Any]:
        """Sums and counts, ready for JSON."""
        return {"sums": self.sums, "samples": self.samples, "decided": self.decided}

    @classmethod
    def sum_of(cls, engine: AbstractGradientEngine, parts: Sequence[Mapping[str, Any]]) -> ValidationCertificate:
        """What several processes found together."""
        total = cls(engine, samples=sum(part["samples"] for part in parts))
        for part in parts:
            for sums, own in ((total.sums, part["sums"]), (total.decided, part["decided"])):
                for name, value in own.items():
                    sums[name] = sums.get(name, 0.0) + value
        return total

    def _results(self, bounded: BoundedObjective, batch: object) -> Mapping[str, Tensor]:
        roles = bounded.objective
        if bounded.problems:
            raise UncertifiableError(bounded.problems)
        if roles.prediction is None or roles.target is None:
            return {}
        engine, module, dtype = self.engine, self.engine.module, self.engine.config.dtype
        points = {name: Interval.point(p.detach().to(dtype)) for name, p in module.named_parameters()}
        nominal = bounded.forward(bounded.inputs(module, batch, points, dtype))
        inputs = bounded.inputs(module, batch, self.engine.box, dtype)
        heads = self.engine.head_bounds(bounded)
        values = BoundedValues.of(
            bounded.program, inputs, roles.prediction, heads, bounded.skipped, engine.config.method
        )
        self._count(values.deciding(), bounded.size(batch))
        if roles.label_kind is LabelKind.NUMBER:
            return _error_results(as_interval(nominal[roles.prediction]), values, roles.target)
        if roles.label_kind is LabelKind.CLASS or is_single_logit(values.outputs):
            return _class_results(as_interval(nominal[roles.prediction]), values, roles.target)
        return {}

    def _count(self, deciding: Mapping[str, float], samples: int) -> None:
        for name, share in deciding.items():
            self.decided[name] = self.decided.get(name, 0.0) + share * samples

    def shares(self) -> dict[str, float]:
        """Share of the bounds on outputs that each domain decided, by name."""
        return {name: total / self.samples for name, total in self.decided.items()} if self.samples else {}


def _class_results(nominal: Interval, values: BoundedValues, target_name: str) -> dict[str, Tensor]:
    """Correct predictions of the trained module, and of every reachable one."""
    target = _classes(values.values[target_name])
    margins = values.margins(target).lower
    own = torch.nn.functional.one_hot(target, margins.shape[1]).bool()
    certified = ((margins > 0) | own).all(dim=1)
    return {"nominal_accuracy": predicted_classes(nominal.lower) == target, "certified_accuracy": certified}


def _error_results(nominal: Interval, values: BoundedValues, target_name: str) -> dict[str, Tensor]:
    """Squared errors of the trained module, and the largest and smallest of all reachable ones, meaned per sample."""
    truth = as_interval(values.values[target_name]).lower
    bounds = squared_error_bounds(values.outputs, truth)
    error = (nominal.lower - truth).square()
    return {
        "nominal_mse": error.flatten(1).mean(dim=1) if error.ndim > 1 else error,
        "certified_mse": bounds.upper.flatten(1).mean(dim=1) if error.ndim > 1 else bounds.upper,
        "best_mse": bounds.lower.flatten(1).mean(dim=1) if error.ndim > 1 else bounds.lower,
    }


def _classes(value: Value) -> Tensor:
    if isinstance(value, ClassLabels):
        return value.index.long()
    tensor = value if isinstance(value, Tensor) else value.lower
    if tensor.ndim == 2 and tensor.shape[1] > 1:
        return tensor.argmax(dim=1)
    return tensor.reshape(-1).round().long()
