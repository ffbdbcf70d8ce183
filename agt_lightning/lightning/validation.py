"""Nominal and certified metrics of a loader, from the captured loss: no prediction function has to be named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from agt_lightning.capture import LabelKind
from agt_lightning.certificates import squared_error_bounds
from agt_lightning.certificates.model import output_margins, predicted_classes
from agt_lightning.certificates.objectives import is_single_logit
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.objective import BoundedObjective
from agt_lightning.rules import Value
from agt_lightning.rules.base import interval


@dataclass
class ValidationCertificate:
    """Sums of per-sample results over a loader, by metric name.

    Args:
        engine: holds the bounds and the captured loss.
    """

    engine: AbstractGradientEngine
    sums: dict[str, float] = field(default_factory=dict)
    samples: int = 0

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

    def _results(self, bounded: BoundedObjective, batch: object) -> Mapping[str, Tensor]:
        roles = bounded.objective
        if bounded.problems:
            raise UncertifiableError(bounded.problems)
        if roles.prediction is None or roles.target is None:
            return {}
        module, dtype = self.engine.module, self.engine.dtype
        points = {name: Interval.point(p.detach().to(dtype)) for name, p in module.named_parameters()}
        nominal = bounded.forward(bounded.inputs(module, batch, points, dtype))
        values = bounded.forward(bounded.inputs(module, batch, self.engine.box, dtype))
        if roles.label_kind is LabelKind.NUMBER:
            return _error_results(interval(nominal[roles.prediction]), values, roles.prediction, roles.target)
        if roles.label_kind is LabelKind.CLASS or is_single_logit(interval(values[roles.prediction])):
            return _class_results(bounded, nominal, values)
        return {}


def _class_results(
    bounded: BoundedObjective, nominal: Mapping[str, Value], values: Mapping[str, Value]
) -> dict[str, Tensor]:
    """Correct predictions of the trained module, and of every reachable one."""
    roles = bounded.objective
    assert roles.prediction is not None
    assert roles.target is not None
    target = _classes(values[roles.target])
    predictions = predicted_classes(interval(nominal[roles.prediction]).lower)
    margins = output_margins(bounded.program, values, roles.prediction, target).lower
    own = torch.nn.functional.one_hot(target, margins.shape[1]).bool()
    certified = ((margins > 0) | own).all(dim=1)
    return {"nominal_accuracy": predictions == target, "certified_accuracy": certified}


def _error_results(nominal: Interval, values: Mapping[str, Value], prediction: str, target: str) -> dict[str, Tensor]:
    """Squared errors of the trained module, and the largest and smallest of all reachable ones, meaned per sample."""
    truth = interval(values[target]).lower
    bounds = squared_error_bounds(interval(values[prediction]), truth)
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
