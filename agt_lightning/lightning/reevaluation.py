"""The results of a certificate, evaluated anew from bounds, weights, data and the module's code, without training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning as L
import torch

from agt_lightning.adversaries import Adversary, BoundedAdversary, UnboundedAdversary
from agt_lightning.bounds import ParameterBounds
from agt_lightning.certificates.class_counts import plain_counts
from agt_lightning.certificates.digests import bounds_digest
from agt_lightning.certificates.findings import Finding
from agt_lightning.certificates.verification import StoredWeights, close, is_of_a_validation, numbers
from agt_lightning.digest import content_digest
from agt_lightning.distributed import SINGLE_PROCESS
from agt_lightning.domains.box import BoxDomain
from agt_lightning.domains.family import DOMAINS
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.errors import AgtError
from agt_lightning.interval import Interval
from agt_lightning.lightning.idle_trainer import idle_trainer
from agt_lightning.lightning.resume import CHECKPOINT_KEY
from agt_lightning.lightning.training_step import TrainingLoss
from agt_lightning.lightning.validation import Validation
from agt_lightning.propagation.config import CertificationConfig

_ADVERSARIES: Mapping[str, type] = {kind.__name__: kind for kind in (BoundedAdversary, UnboundedAdversary)}

_UPPER = {"certified_mse": 1.0, "best_mse": -1.0, "certified_accuracy": -1.0}
"""By kind of result, 1 if it bounds from above and -1 if it bounds from below; others are values of one module."""


def reevaluated(
    record: Mapping[str, Any],
    bounds: ParameterBounds,
    weights: StoredWeights,
    module: L.LightningModule,
    loaders: Sequence[Iterable[object]],
) -> list[Finding]:
    """Evaluate the metrics of validations anew, and compare them with a certificate.

    Bounds of the box come from the file of bounds. Those of other domains come from the checkpoint, if it has states
    with the digests that the certificate states.

    Args:
        record: of one adversary.
        bounds: from its file.
        weights: of the checkpoint.
        module: with these weights; not trained, switched to `eval` mode.
        loaders: of the validation data, in the order of the training.
    """
    claimed = {name: value for name, value in numbers(record["results"]).items() if is_of_a_validation(name)}
    if not claimed:
        return [Finding.unchecked("results", "the certificate has none of a validation")]
    stated = record["digests"]["validation_data"]
    if len(loaders) != len(stated):
        return [Finding.unchecked("data", f"the certificate is about {len(stated)} loaders, but got {len(loaders)}")]
    try:
        engine, complete = _engine(record, bounds, weights, module)
        validation = Validation(engine, module, lambda runs: runs.parameter_sets)
        for index, loader in enumerate(loaders):
            for batch in loader:
                validation.update(index, batch)
        (results,) = validation.compute(SINGLE_PROCESS).values()
    except (AgtError, RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
        text = str(error).replace("\n", " ")
        return [Finding.unchecked("results", f"the loss of the module has no bounds on these data: {text}")]
    if not results.metrics:
        reason = (results.warning or results.remark).replace("\n", " ")
        return [Finding.unchecked("results", reason or "the data have no batch")]
    by_class = plain_counts(results.by_class)
    return [
        *_data_findings(stated, results.data),
        *_result_findings(claimed, results.metrics, complete=complete),
        *_class_findings(record.get("by_class", []), by_class, complete=complete),
    ]


def _data_findings(stated: Sequence[Mapping[str, Any]], found: Mapping[int, Mapping[str, object]]) -> list[Finding]:
    """Compare the digests of validation data."""
    findings = []
    for loader in stated:
        data, about = found.get(loader["loader"], {}), f"data of loader {loader['loader']}"
        if loader["processes"] != 1:
            text = f"{loader['processes']} processes had a part each, so that their order is not known"
            findings.append(Finding.unchecked(about, text))
        elif data.get("sha256_of_rows") != loader["sha256_of_rows"]:
            text = f"these {data.get('samples', 0)} samples are not the {loader['samples']} that were certified"
            findings.append(Finding.contradicted(about, text))
        else:
            findings.append(Finding.holds(about, f"{loader['samples']} samples, as certified"))
    return findings


def _result_findings(claimed: Mapping[str, float], found: Mapping[str, float], *, complete: bool) -> list[Finding]:
    """Compare results; claims that are weaker than what is found hold.

    Args:
        claimed: by name.
        found: by name.
        complete: whether they are of the bounds of all domains.
    """
    findings = []
    for name, value in claimed.items():
        if name not in found:
            findings.append(Finding.contradicted(name, f"{value} is claimed, but these data have no such result"))
            continue
        sign = _UPPER.get(name.removeprefix("val_").partition("/")[0], 0.0)
        beyond = sign * found[name] - sign * value if sign else abs(found[name] - value)
        text = f"{value} is claimed, {found[name]} is found"
        if beyond <= 0 or close(found[name], value):
            findings.append(Finding.holds(name, text))
        elif sign and not complete:
            more = "by the box alone; the states of the other domains are not in the checkpoint"
            findings.append(Finding.unchecked(name, f"{text} {more}"))
        else:
            findings.append(Finding.contradicted(name, text))
    return findings


def _class_findings(
    claimed: Sequence[Mapping[str, int]], found: Sequence[Mapping[str, int]], *, complete: bool
) -> list[Finding]:
    """Compare right and certified samples of each class; claims of fewer certified ones hold.

    Args:
        claimed: as a certificate states them.
        found: likewise.
        complete: whether they are of the bounds of all domains.
    """
    wrong: list[int] = []
    unknown: list[int] = []
    ours = {(each["loader"], each["class"]): each for each in found}
    for each in claimed:
        own = ours.get((each["loader"], each["class"]))
        if own is None or (own["samples"], own["nominal"]) != (each["samples"], each["nominal"]):
            wrong.append(each["class"])
        elif own["certified"] < each["certified"]:
            (wrong if complete else unknown).append(each["class"])
    if wrong:
        return [Finding.contradicted("by_class", f"other counts are found for the classes {sorted(set(wrong))}")]
    if unknown:
        more = "the states of the other domains are not in the checkpoint"
        text = f"the box alone certifies fewer samples of the classes {sorted(set(unknown))}; {more}"
        return [Finding.unchecked("by_class", text)]
    return [Finding.holds("by_class", f"the counts of {len(claimed)} classes")] if claimed else []


def _engine(
    record: Mapping[str, Any], bounds: ParameterBounds, weights: StoredWeights, module: L.LightningModule
) -> tuple[AbstractGradientEngine, bool]:
    """Return an engine with the bounds of a certificate, and whether it has those of all domains."""
    module.eval()
    last = record["phases"][-1] if record["phases"] else {}
    loss = TrainingLoss(idle_trainer(module))
    states = _states(record, weights)
    adversary = _adversary(record["adversary"])
    config = CertificationConfig(
        method=last.get("method", "ibp"),
        domains=("box",) if adversary is None or states is None else tuple(states),
        dtype=getattr(torch, str(last.get("dtype", "float64"))),
        floats=last.get("floats", "run"),
    )
    engine = AbstractGradientEngine(module, loss, adversary or BoundedAdversary(n=0), config)
    (runs,) = engine.runs
    complete = adversary is not None and states is not None
    if complete and states is not None:
        runs.domains.restore(states)
        complete = bounds_digest(_in_types_of(bounds, runs.box)) == record["digests"]["bounds"]["sha256_of_content"]
    box = runs.domains.in_use.get("box")
    if isinstance(box, BoxDomain):  # the file of bounds decides, whatever a checkpoint has
        box.adopt({name: each.to(dtype=config.dtype) for name, each in bounds.items()}, {})
        box.running = {name: each.to(dtype=config.dtype) for name, each in bounds.running.items()}
    engine.steps = record["steps"]
    return engine, complete or record["digests"]["domains"].keys() == {"box"}


def _in_types_of(bounds: ParameterBounds, box: Mapping[str, Interval]) -> ParameterBounds:
    """Return a box rounded outward to the types of a file of bounds, with all else that the file states."""
    rounded = {name: each.to(dtype=bounds[name].lower.dtype) for name, each in box.items()}
    return ParameterBounds(rounded, bounds.weights, bounds.floats, bounds.running)


def _states(record: Mapping[str, Any], weights: StoredWeights) -> Mapping[str, Any] | None:
    """Return the states of all domains in a checkpoint that have the digests of a certificate; None if none have."""
    stated = record["digests"]["domains"]
    if not set(stated) <= set(DOMAINS):
        return None
    for key, saved in weights.checkpoint.items():
        if key.startswith(CHECKPOINT_KEY) and isinstance(saved, Mapping):
            for states in [saved.get("domains", {}), *saved.get("domains_of_others", [])]:
                if {name: content_digest(state) for name, state in states.items()} == stated:
                    return dict(states)
    return None


def _adversary(stated: Mapping[str, Any]) -> Adversary | None:
    """Return the threat model of a certificate; None if it is a user's own."""
    kind = _ADVERSARIES.get(stated["type"])
    if kind is None:
        return None
    settings = {name: _setting(value) for name, value in stated.items() if name != "type"}
    for name in ("bounds", "target_classes", "source_classes"):
        if isinstance(stated.get(name), list):
            settings[name] = tuple(stated[name])
    adversary: Adversary = kind(**settings)
    return adversary


def _setting(value: object) -> object:
    if isinstance(value, str) and value in ("inf", "-inf"):
        return float(value)
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value
