"""Nominal and certified metrics of validation loaders, from the outputs and labels of the captured loss."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from agt_lightning.capture import LabelKind
from agt_lightning.certificates import squared_error_bounds
from agt_lightning.certificates.goals import is_single_logit
from agt_lightning.certificates.margins import predicted_classes
from agt_lightning.certificates.values import BoundedValues
from agt_lightning.distributed import ProcessGroup
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.errors import CaptureError, UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.rules import Value
from agt_lightning.rules.base import as_interval


@dataclass(frozen=True)
class ValidationResults:
    """The results of one validation, over all loaders and processes.

    Args:
        metrics: means over samples, by name: ``val_<metric>``, and ``val_<metric>/dataloader_idx_<index>`` if there are
            several loaders.
        domain_shares: by index of the loader, the share of the bounds on outputs that each domain decides, by its name.
        warning: why there are no results; empty if there are.
    """

    metrics: Mapping[str, float]
    domain_shares: Mapping[int, Mapping[str, float]]
    warning: str = ""

    @classmethod
    def of(cls, certificates: Mapping[int, LoaderCertificate]) -> ValidationResults:
        """Name the means of all loaders, by index of the loader."""
        several = len(certificates) > 1
        metrics = {
            f"val_{name}/dataloader_idx_{index}" if several else f"val_{name}": mean
            for index, certificate in certificates.items()
            for name, mean in certificate.means().items()
        }
        return cls(metrics, {index: certificate.domain_shares() for index, certificate in certificates.items()})


class Validation:
    """The certificates of all validation loaders.

    Args:
        engine: keeps the bounds and the captured loss.
    """

    def __init__(self, engine: AbstractGradientEngine) -> None:
        self.engine = engine
        self.loaders: dict[int, LoaderCertificate] = {}
        self.problem = ""

    def update(self, index: int, batch: object) -> None:
        """Add a batch of one loader; after a batch that does not fit the training loss, add none.

        Args:
            index: of the loader.
            batch: in this process.
        """
        if self.problem:
            return
        try:
            self.loaders.setdefault(index, LoaderCertificate(self.engine)).update(batch)
        except (CaptureError, UncertifiableError) as error:
            self.problem = str(error)

    def compute(self, processes: ProcessGroup) -> ValidationResults:
        """Return the results over the samples of all processes; a collective."""
        problems = processes.union([self.problem] if self.problem else [])
        if problems:
            warning = "No certified metric on the validation loader: its batches do not fit the training loss."
            return ValidationResults({}, {}, f"{warning}\n{problems[0]}")
        local = json.dumps({index: loader.plain() for index, loader in self.loaders.items()})
        received = [json.loads(str(message["sums"])) for message in processes.gather({"sums": local})]
        indices = sorted({int(index) for sums in received for index in sums})
        total = {
            index: LoaderCertificate.sum_of(self.engine, [sums[str(index)] for sums in received if str(index) in sums])
            for index in indices
        }
        return ValidationResults.of(total)


@dataclass
class LoaderCertificate:
    """The sums of per-sample results over the batches of one loader.

    Args:
        engine: keeps the bounds and the captured loss.
        sums: sums over samples, by name of the metric.
        samples: number of samples.
        shares: sums over samples of the share that each domain decides of the bounds on outputs, by its name.
    """

    engine: AbstractGradientEngine
    sums: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    shares: dict[str, float] = field(default_factory=dict)

    def update(self, batch: object) -> None:
        """Add a batch.

        Raises:
            CaptureError: if the loss cannot be captured on batches like this one.
            UncertifiableError: if it has no bounds.
        """
        results = self._results(self.engine.objective(batch), batch)
        _add(self.sums, {name: float(values.double().sum()) for name, values in results.items()})
        self.samples += len(next(iter(results.values()))) if results else 0

    def means(self) -> dict[str, float]:
        """Return means over all samples so far, by name of the metric; empty if there are no samples."""
        return {name: total / self.samples for name, total in self.sums.items()} if self.samples else {}

    def domain_shares(self) -> dict[str, float]:
        """Return the share of the bounds on outputs that each domain decides, by its name."""
        return {name: total / self.samples for name, total in self.shares.items()} if self.samples else {}

    def plain(self) -> dict[str, Any]:
        """Return sums and counts, ready for JSON."""
        return {"sums": self.sums, "samples": self.samples, "shares": self.shares}

    @classmethod
    def sum_of(cls, engine: AbstractGradientEngine, parts: Sequence[Mapping[str, Any]]) -> LoaderCertificate:
        """Return the certificate of the samples of several processes together.

        Args:
            engine: of this process.
            parts: `plain` of each process.
        """
        total = cls(engine, samples=sum(part["samples"] for part in parts))
        for part in parts:
            _add(total.sums, part["sums"])
            _add(total.shares, part["shares"])
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
        size = bounded.size(batch)
        _add(self.shares, {name: share * size for name, share in values.domain_shares().items()})
        if roles.label_kind is LabelKind.NUMBER:
            return _error_results(as_interval(nominal[roles.prediction]), values, roles.target)
        if roles.label_kind is LabelKind.CLASS or is_single_logit(values.outputs):
            return _class_results(as_interval(nominal[roles.prediction]), values, roles.target)
        return {}


def _add(sums: dict[str, float], terms: Mapping[str, float]) -> None:
    """Add terms to sums in place, by name."""
    for name, term in terms.items():
        sums[name] = sums.get(name, 0.0) + term


def _class_results(nominal: Interval, values: BoundedValues, target_name: str) -> dict[str, Tensor]:
    """Return whether the trained module predicts each sample correctly, and whether every reachable one does."""
    target = _classes(values.values[target_name])
    margins = values.margins(target).lower
    is_target = torch.nn.functional.one_hot(target, margins.shape[1]).bool()
    certified = ((margins > 0) | is_target).all(dim=1)
    return {"nominal_accuracy": predicted_classes(nominal.lower) == target, "certified_accuracy": certified}


def _error_results(nominal: Interval, values: BoundedValues, target_name: str) -> dict[str, Tensor]:
    """Return the mean squared error per sample: the trained module's, the largest and the smallest reachable one."""
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
