"""Nominal and certified metrics of validation loaders, from the predictions and labels of the captured loss."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from agt_lightning.certificates.class_counts import ClassCounts, added, class_counts
from agt_lightning.certificates.record import Weights
from agt_lightning.certificates.values import BoundedValues
from agt_lightning.digest import RowsDigest, content_digest, tensors_digest
from agt_lightning.distributed import ProcessGroup
from agt_lightning.domains import ParameterSet
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.engine.bounded_runs import BoundedRuns
from agt_lightning.errors import CaptureError, UncertifiableError, UnsoundBoundError
from agt_lightning.interval import Interval
from agt_lightning.lightning.comparison import Comparison, MetricUndefinedError, comparison
from agt_lightning.lightning.sample_metrics import label_classes, sample_metrics
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.rules.values import as_interval

Sets = Mapping[str, ParameterSet]
"""Sets of parameters that certificates use beside the box, by name of their domain."""

NO_METRIC = "No certified metric on the validation loader: "

_DO_NOT_FIT = "its batches do not fit the training loss."

_OTHER_WEIGHTS = (
    "the module has other weights than the last step left, and the bounds are not about these. A callback has put "
    "others in place (averages of the weights), they were loaded (`trainer.validate(ckpt_path=...)`), or it is another "
    "module. Validate the module as the last step left it, without `ckpt_path`."
)


def weights_of(engine: AbstractGradientEngine) -> Weights:
    """Return which weights the bounds of an engine are about, while its module has them.

    Raises:
        UnsoundBoundError: if something besides the optimizer changed a parameter since the last step.
    """
    engine.require_untouched()
    return Weights(engine.steps, tensors_digest(engine.module.named_parameters()))


_ROUNDINGS_PER_SAMPLE = 2**10
"""Roundings of one sample's error, before the mean over samples."""


@dataclass(frozen=True)
class ValidationResults:
    """The results of one validation, over all loaders and processes.

    Args:
        metrics: means over samples, by name: ``val_<metric>``, and ``val_<metric>/dataloader_idx_<index>`` if there are
            several loaders.
        domain_shares: by index of the loader, the share of the bounds on outputs that each domain decides, by its name.
        weights: the weights that the results are about; None if there are no results.
        warning: why there are no results although there could be; empty otherwise.
        remark: why loss or labels have no metric; empty if they have.
        left_out: names of domains in use whose bounds these results do without.
        data: by index of the loader, number and digest of the samples, and the number of processes that had a part.
        by_class: by index of the loader, right and certified samples of each class, if labels are classes.
    """

    metrics: Mapping[str, float]
    domain_shares: Mapping[int, Mapping[str, float]]
    weights: Weights | None = None
    warning: str = ""
    remark: str = ""
    left_out: tuple[str, ...] = ()
    data: Mapping[int, Mapping[str, object]] = field(default_factory=dict)
    by_class: Mapping[int, ClassCounts] = field(default_factory=dict)

    @classmethod
    def of(
        cls, certificates: Mapping[int, LoaderCertificate], weights: Weights, left_out: tuple[str, ...] = ()
    ) -> ValidationResults:
        """Name the means of all loaders, by index of the loader."""
        several = len(certificates) > 1
        metrics = {
            f"val_{name}/dataloader_idx_{index}" if several else f"val_{name}": mean
            for index, certificate in certificates.items()
            for name, mean in certificate.means().items()
        }
        shares = {index: certificate.domain_shares() for index, certificate in certificates.items()}
        by_class = {index: certificate.classes for index, certificate in certificates.items() if certificate.classes}
        return cls(metrics, shares, weights, left_out=left_out, by_class=by_class)

    def after(self, earlier: ValidationResults | None) -> ValidationResults:
        """Return these results, and of earlier ones those that are not repeated.

        Earlier ones must be about the same weights, by the bounds of the same domains.
        """
        if earlier is None or (earlier.weights, earlier.left_out) != (self.weights, self.left_out):
            return self
        return replace(
            self,
            metrics={**earlier.metrics, **self.metrics},
            domain_shares={**earlier.domain_shares, **self.domain_shares},
            data={**earlier.data, **self.data},
            by_class={**earlier.by_class, **self.by_class},
        )


class Validation:
    """The certificates of all validation loaders, for each adversary of a training.

    What does not depend on the adversary, such as the outputs of the trained module, is computed once for all.

    Args:
        engine: keeps the captured loss, and the bounds for each adversary.
        module: that is validated.
        sets_of: which sets of parameters certificates use beside the box, by name of their domain.
    """

    def __init__(
        self, engine: AbstractGradientEngine, module: nn.Module, sets_of: Callable[[BoundedRuns], Sets]
    ) -> None:
        self.engine = engine
        self.module = module
        self.certificates = tuple(AdversaryValidation(engine, runs, sets_of(runs)) for runs in engine.runs)
        self._data: dict[int, RowsDigest] = {}

    def update(self, index: int, batch: object) -> None:
        """Add a batch of one loader; for an adversary for which something does not fit, add none from then on.

        Args:
            index: of the loader.
            batch: in this process.
        """
        self._check_weights()
        open_ones = [each for each in self.certificates if not each.closed]
        if not open_ones:
            return
        try:
            trained = TrainedBatch.of(self.engine, batch)
        except (MetricUndefinedError, CaptureError, UncertifiableError, UnsoundBoundError) as error:
            for each in open_ones:
                each.note(error)
            return
        self._data.setdefault(index, RowsDigest()).update(batch, trained.bounded.size(batch))
        for each in open_ones:
            each.update(index, trained)

    def compute(self, processes: ProcessGroup) -> dict[BoundedRuns, ValidationResults]:
        """Return the results for each adversary over the samples of all processes; a collective.

        Raises:
            UnsoundBoundError: if the trained module does worse than its certificate.
        """
        self._check_weights()
        data = self.data(processes)
        return {each.runs: replace(each.compute(processes), data=data) for each in self.certificates}

    def data(self, processes: ProcessGroup) -> dict[int, dict[str, object]]:
        """Return number and digest of the samples of each loader; a collective."""
        own = {index: [rows.samples, rows.hexdigest()] for index, rows in self._data.items()}
        received = [json.loads(str(message["data"])) for message in processes.gather({"data": json.dumps(own)})]
        found = {}
        for index in sorted({int(index) for each in received for index in each}):
            parts = [each[str(index)] for each in received if str(index) in each]
            digests = [digest for _, digest in parts]
            found[index] = {
                "sha256_of_rows": digests[0] if len(digests) == 1 else content_digest(digests),
                "samples": sum(samples for samples, _ in parts),
                "processes": processes.size,
            }
        return found

    def _check_weights(self) -> None:
        """Note a problem unless the validated module has the weights that the last step left."""
        same = self.module is self.engine.module
        try:
            self.engine.require_untouched()
        except UnsoundBoundError:
            same = False
        if not same:
            for each in self.certificates:
                each.problem = NO_METRIC + _OTHER_WEIGHTS


@dataclass(frozen=True)
class TrainedBatch:
    """A validation batch with what the trained module makes of it, whoever the adversary is.

    Args:
        batch: as the loader gives it.
        bounded: the captured loss of such a batch.
        compared: its label and its prediction.
        nominal: bounds on the trained module's predictions, as wide as rounding.
        classes: of the labels, integers of shape (batch,); None if they are no classes.
    """

    batch: object
    bounded: BoundedObjective
    compared: Comparison
    nominal: Interval
    classes: Tensor | None

    @classmethod
    def of(cls, engine: AbstractGradientEngine, batch: object) -> TrainedBatch:
        """Pass a batch through the trained module.

        Raises:
            CaptureError: if the loss cannot be captured on batches like this one.
            MetricUndefinedError: if the loss has no metric, or labels do not fit it.
            UncertifiableError: if the loss has no bounds.
        """
        bounded = engine.objective(batch)
        if bounded.problems:
            raise UncertifiableError(bounded.problems)
        if bounded.program.mixing:
            raise UncertifiableError(
                [
                    f"A validation batch has {bounded.program.mixed_by}, which mixes its samples. Validate in "
                    "`eval()`, and with a loss that is a mean of per-sample terms."
                ]
            )
        try:
            engine.require_constant(bounded, but=_with_bounds(engine, bounded))
        except UnsoundBoundError as error:  # no step read it, so that training is sound without this metric
            raise UncertifiableError([str(error)]) from error
        compared = comparison(bounded.objective)
        module, dtype = engine.module, engine.config.dtype
        points = {name: Interval.point(p.detach()).to(dtype=dtype) for name, p in module.named_parameters()}
        rounded = bounded.rounded(dtype, engine.config.floats)
        nominal = rounded.forward(bounded.inputs(module, batch, points, dtype))
        outputs = as_interval(nominal[compared.prediction])
        classes = label_classes(compared, nominal[compared.target], outputs)
        return cls(batch, bounded, compared, outputs, classes)


class AdversaryValidation:
    """The certificates of all validation loaders for one adversary.

    Args:
        engine: keeps the captured loss.
        runs: those of the adversary, with their bounds.
        sets: sets of parameters beside the box.
    """

    def __init__(self, engine: AbstractGradientEngine, runs: BoundedRuns, sets: Sets) -> None:
        self.engine = engine
        self.runs = runs
        self.sets = sets
        self.loaders: dict[int, LoaderCertificate] = {}
        self.problem = ""
        self.remark = ""
        self.violation: UnsoundBoundError | None = None

    @property
    def closed(self) -> bool:
        """Whether something did not fit, so that there are no results."""
        return bool(self.problem or self.remark or self.violation)

    def update(self, index: int, trained: TrainedBatch) -> None:
        """Add a batch of one loader; note what does not fit."""
        try:
            self.loaders.setdefault(index, LoaderCertificate(self.engine, self.runs, self.sets)).update(trained)
        except (MetricUndefinedError, CaptureError, UncertifiableError, UnsoundBoundError) as error:
            self.note(error)

    def note(self, error: MetricUndefinedError | CaptureError | UncertifiableError | UnsoundBoundError) -> None:
        """Keep why there are no results."""
        if isinstance(error, UnsoundBoundError):  # raised when all processes can raise it together
            self.violation = error
        elif isinstance(error, MetricUndefinedError):
            self.remark = f"{NO_METRIC}{str(error)[0].lower()}{str(error)[1:]}"
        else:
            self.problem = f"{NO_METRIC}{_DO_NOT_FIT}\n{error}"

    def compute(self, processes: ProcessGroup) -> ValidationResults:
        """Return the results over the samples of all processes; a collective.

        Raises:
            UnsoundBoundError: if the trained module does worse than its certificate.
        """
        with processes.collective_errors():
            if self.violation is not None:
                raise self.violation
        problems = processes.union([self.problem] if self.problem else [])
        remarks = processes.union([self.remark] if self.remark else [])
        if problems or remarks:
            return ValidationResults({}, {}, warning=problems[0] if problems else "", remark="".join(remarks[:1]))
        local = json.dumps({index: loader.plain() for index, loader in self.loaders.items()})
        received = [json.loads(str(message["sums"])) for message in processes.gather({"sums": local})]
        indices = sorted({int(index) for sums in received for index in sums})
        total = {index: self._sum([sums[str(index)] for sums in received if str(index) in sums]) for index in indices}
        left_out = tuple(name for name in self.runs.parameter_sets if name not in self.sets)
        return ValidationResults.of(total, weights_of(self.engine), left_out)

    def _sum(self, parts: Sequence[Mapping[str, Any]]) -> LoaderCertificate:
        return LoaderCertificate.sum_of(self.engine, self.runs, parts)


@dataclass
class LoaderCertificate:
    """The sums of per-sample results over the batches of one loader.

    Args:
        engine: keeps the captured loss.
        runs: those of the adversary, with their bounds.
        sets: sets of parameters beside the box.
        sums: sums over samples, by name of the metric.
        samples: number of samples.
        shares: sums over samples of the share that each domain decides of the bounds on outputs, by its name.
        classes: right and certified samples of each class; empty if labels are no classes.
    """

    engine: AbstractGradientEngine
    runs: BoundedRuns
    sets: Sets
    sums: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    shares: dict[str, float] = field(default_factory=dict)
    classes: ClassCounts = field(default_factory=dict)

    def update(self, trained: TrainedBatch) -> None:
        """Add a batch.

        Raises:
            UncertifiableError: if labels do not fit the predictions.
            UnsoundBoundError: if the trained module does worse than its certificate.
        """
        results = self._results(trained)
        _add(self.sums, {name: float(values.double().sum()) for name, values in results.items()})
        self.samples += len(next(iter(results.values()))) if results else 0
        if trained.classes is not None:
            counts = class_counts(trained.classes, results["nominal_accuracy"], results["certified_accuracy"])
            self.classes = added([self.classes, counts])

    def means(self) -> dict[str, float]:
        """Return means over all samples so far, by name of the metric; empty if there are no samples."""
        if not self.samples:
            return {}
        return {name: total / self.samples * self._outward(name) for name, total in self.sums.items()}

    def _outward(self, name: str) -> float:
        """Return the factor that rounds a mean of errors outward: up for the largest one, down for the smallest."""
        roundoff = (self.samples + _ROUNDINGS_PER_SAMPLE) * torch.finfo(torch.float64).eps
        return {"certified_mse": 1 + roundoff, "best_mse": 1 - roundoff}.get(name, 1.0)

    def domain_shares(self) -> dict[str, float]:
        """Return the share of the bounds on outputs that each domain decides, by its name."""
        return {name: total / self.samples for name, total in self.shares.items()} if self.samples else {}

    def plain(self) -> dict[str, Any]:
        """Return sums and counts, ready for JSON."""
        classes = {str(label): counts for label, counts in self.classes.items()}
        return {"sums": self.sums, "samples": self.samples, "shares": self.shares, "classes": classes}

    @classmethod
    def sum_of(
        cls, engine: AbstractGradientEngine, runs: BoundedRuns, parts: Sequence[Mapping[str, Any]]
    ) -> LoaderCertificate:
        """Return the certificate of the samples of several processes together.

        Args:
            engine: of this process.
            runs: those of the adversary.
            parts: `plain` of each process.
        """
        total = cls(engine, runs, {}, samples=sum(part["samples"] for part in parts))
        for part in parts:
            _add(total.sums, part["sums"])
            _add(total.shares, part["shares"])
        total.classes = added({int(label): counts for label, counts in part["classes"].items()} for part in parts)
        return total

    def _results(self, trained: TrainedBatch) -> Mapping[str, Tensor]:
        engine, bounded, compared = self.engine, trained.bounded, trained.compared
        box = {**self.runs.box, **self.runs.running_statistics}
        inputs = bounded.inputs(engine.module, trained.batch, box, engine.config.dtype)
        values = BoundedValues.of(
            bounded.rounded(engine.config.dtype, engine.config.floats).program,
            inputs,
            compared.prediction,
            self.runs.head_bounds(bounded, self.sets),
            bounded.skipped,
            engine.config.method,
            trained.classes,
        )
        size = bounded.size(trained.batch)
        _add(self.shares, {name: share * size for name, share in values.domain_shares().items()})
        return sample_metrics(compared, trained.nominal, values, trained.classes)


def _with_bounds(engine: AbstractGradientEngine, bounded: BoundedObjective) -> frozenset[str]:
    """Return the names of the buffers that have bounds and enter a loss where these are propagated."""
    evaluated = () if bounded.prelude is None else bounded.prelude.calls
    read = {name for call in evaluated for name in call.inputs}
    as_they_are = {target for name, target in bounded.graph.buffers.items() if name in read}
    moved = frozenset.intersection(*(frozenset(runs.running_statistics) for runs in engine.runs))
    return moved - as_they_are


def _add(sums: dict[str, float], terms: Mapping[str, float]) -> None:
    """Add terms to sums in place, by name."""
    for name, term in terms.items():
        sums[name] = sums.get(name, 0.0) + term
