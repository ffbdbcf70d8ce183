"""The certificate as a file: threat model, optimizer, settings, results and assumptions of a certified training."""

import dataclasses
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from agt_lightning.adversaries import Adversary
from agt_lightning.adversaries.several import settings_that_differ
from agt_lightning.certificates.assumptions import assumptions
from agt_lightning.certificates.phases import (
    EVALUATED,
    FLOATS,
    OVERRIDDEN_OBJECTIVE,
    SAMPLES_ARE_NAMED,
    Phase,
    any_phase,
    in_all_phases,
)

PACKAGES = ("agt-lightning", "torch", "lightning", "pytorch-lightning", "torchmetrics", "numpy")

_SETTINGS = (bool, int, float, str, tuple, torch.Tensor)
"""Types of an optimizer's settings that a certificate states."""


@dataclass(frozen=True)
class Weights:
    """The weights that bounds and results are about.

    Args:
        steps: number of optimizer steps that led to them.
        digest: of their bits; see `tensors_digest`.
    """

    steps: int
    digest: str


@dataclass(frozen=True)
class Results:
    """Metrics of one module.

    Args:
        weights: of the module.
        metrics: by name.
    """

    weights: Weights
    metrics: Mapping[str, float]


def certificate(
    adversary: Adversary,
    optimizer: torch.optim.Optimizer,
    *,
    results: Results,
    phases: Sequence[Phase],
    domains: Mapping[str, object],
    earlier: Results | None = None,
    remarks: Sequence[str] = (),
    frozen: Sequence[str] = (),
) -> dict[str, object]:
    """Return a description of a certified training, ready for JSON.

    Args:
        adversary: the threat model.
        optimizer: the optimizer, with its settings at the end.
        results: metrics of the module that the bounds are about, after the last certified step.
        phases: how bounds were computed, for all steps.
        domains: what the certificate states about the domains.
        earlier: metrics of the last validation if later steps have changed the weights or their bounds.
        remarks: sentences on the results, such as why some are missing.
        frozen: names of the parameters that were not trained at the end.
    """
    fields = dataclasses.asdict(adversary)  # type: ignore[call-overload]
    groups = [
        {key: _plain(value) for key, value in group.items() if key != "params" and isinstance(value, _SETTINGS)}
        for group in optimizer.param_groups
    ]
    return {
        "format": "agt_lightning certificate 1",
        "adversary": {"type": type(adversary).__name__, **fields},
        "optimizer": {"type": type(optimizer).__name__, "param_groups_at_the_end": groups},
        "steps": results.weights.steps,
        "bounds": {**in_all_phases(phases), "domains": dict(domains)},
        "phases": [phase.plain() for phase in phases],
        "frozen_parameters": list(frozen),
        "results": dict(results.metrics),
        "results_are_of": _plain_weights(results.weights),
        "earlier_results": []
        if earlier is None
        else [{**_plain_weights(earlier.weights), "results": dict(earlier.metrics)}],
        "remarks": list(remarks),
        "assumptions": assumptions(
            adversary,
            own_objective=any_phase(phases, OVERRIDDEN_OBJECTIVE),
            named_samples=any_phase(phases, SAMPLES_ARE_NAMED),
            evaluated=any_phase(phases, EVALUATED),
            real=any(phase.settings.get(FLOATS) != "run" for phase in phases),
        ),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def certificates(adversaries: Sequence[Adversary], records: Mapping[str, Mapping[str, Any]]) -> dict[str, object]:
    """Return the certificates of one training for several adversaries, and the curve of results over their settings.

    Args:
        adversaries: the threat models.
        records: from `certificate` for each of them, by its name and in the same order.
    """
    settings = settings_that_differ(adversaries)
    return {
        "format": "agt_lightning certificates 1",
        "curve": [
            {"name": name, "settings": dict(differing), "results": record["results"]}
            for (name, record), differing in zip(records.items(), settings, strict=True)
        ],
        "certificates": dict(records),
    }


def frozen_parameters(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of the parameters that an optimizer does not train."""
    owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    named = module.named_parameters()
    return [name for name, parameter in named if not parameter.requires_grad or id(parameter) not in owned]


def write_certificate(path: str | os.PathLike[str], record: Mapping[str, object]) -> None:
    """Write a certificate as JSON, atomically; infinities become the strings "inf" and "-inf".

    Args:
        path: the file; missing folders are made.
        record: from `certificate`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(_plain(record), indent=2, allow_nan=False) + "\n")
    os.replace(partial, path)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _plain_weights(weights: Weights) -> dict[str, object]:
    return {"steps": weights.steps, "digest_of_the_weights": weights.digest}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
