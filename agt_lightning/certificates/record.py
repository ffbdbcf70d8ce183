"""The certificate as a file: threat model, optimizer, settings, results and assumptions of a certified training."""

import dataclasses
import json
import math
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from agt_lightning.adversaries import Adversary
from agt_lightning.aggregation.mean_clipping import MeanClipping
from agt_lightning.propagation.config import CertificationConfig

PACKAGES = ("agt-lightning", "torch", "lightning", "torchmetrics", "numpy")

_SETTINGS = (bool, int, float, str, tuple, torch.Tensor)
"""Types of an optimizer's settings that a certificate states."""

_ASSUMPTIONS = (
    "The adversary changes at most n samples of each optimizer step's batch, different ones in each step if it likes; "
    "n is counted per batch, not per data set.",
    "Batches come in the same order and with the same members in every run; the order does not depend on the data.",
    "Samples are substituted or perturbed in place; none is inserted or deleted.",
    "Batches are perturbed as they enter `training_step`, after transforms and transfer hooks.",
    "Whatever else `training_step` reads (attributes, buffers, the epoch) is the same in every run.",
    "Dropout draws the same masks in every run, from the same seeds.",
    "Initial parameters, the optimizer's settings at each step (learning rates among them) and the number of steps are "
    "the same in every run.",
    "Bounds hold in real arithmetic. They are computed in floating point without directed rounding, in double "
    "precision unless stated otherwise; each step is checked against the training's own arithmetic.",
)


def assumptions(adversary: Adversary) -> list[str]:
    """Return all assumptions of a certificate for this adversary, in words."""
    return [*_ASSUMPTIONS, *adversary.assumptions]


def describe(adversary: Adversary) -> str:
    """Return an adversary as text, different for different ones: tensors are written out in full.

    Example:
        >>> from agt_lightning import BoundedAdversary
        >>> describe(BoundedAdversary(n=1, epsilon=0.5))[:32]
        'BoundedAdversary(n=1, epsilon=0.'
    """
    fields = {field.name: getattr(adversary, field.name) for field in dataclasses.fields(adversary)}  # type: ignore[arg-type]
    plain = {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in fields.items()}
    return f"{type(adversary).__name__}({', '.join(f'{name}={value!r}' for name, value in plain.items())})"


def certificate(
    adversary: Adversary,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    results: Mapping[str, float],
    settings: Mapping[str, object],
) -> dict[str, object]:
    """Return a description of a certified training, ready for JSON.

    Args:
        adversary: the threat model.
        optimizer: the optimizer, with its settings at the end.
        steps: number of certified optimizer steps.
        results: metrics by name.
        settings: how bounds were computed, see `bound_settings`.
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
        "steps": steps,
        "bounds": dict(settings),
        "results": dict(results),
        "assumptions": assumptions(adversary),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def bound_settings(
    config: CertificationConfig, domains: Mapping[str, object], clipping: MeanClipping | None
) -> dict[str, object]:
    """Return how the bounds of a training were computed, ready for JSON.

    Args:
        config: the settings of the bounds.
        domains: what the certificate states about the domains.
        clipping: how training clips the mean gradient; None if it does not.
    """
    return {
        "method": config.method,
        "domains": dict(domains),
        "aggregation": config.aggregation,
        "dtype": str(config.dtype).removeprefix("torch."),
        "all_samples_poisonable": config.poisonable is None,
        "clipping_of_the_mean_gradient": None if clipping is None else repr(clipping),
    }


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


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
