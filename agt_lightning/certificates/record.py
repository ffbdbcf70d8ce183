"""What a certificate says: threat model, optimizer, settings, results, digests and assumptions of a training."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from agt_lightning.adversaries import Adversary
from agt_lightning.adversaries.several import settings_that_differ
from agt_lightning.certificates.acceptance import judged
from agt_lightning.certificates.assumptions import assumptions
from agt_lightning.certificates.class_counts import ClassCounts, plain_counts
from agt_lightning.certificates.document import with_digest
from agt_lightning.certificates.environment import versions
from agt_lightning.certificates.phases import (
    EVALUATED,
    FLOATS,
    OVERRIDDEN_OBJECTIVE,
    ROLES,
    SAMPLES_ARE_NAMED,
    Phase,
    any_phase,
    in_all_phases,
)
from agt_lightning.certificates.scope import budget, metrics, not_certified

SCHEMA = "urn:agt-lightning:certificate:2"
"""Name of the JSON Schema of a certificate; predicate type of a statement about it."""

VERSION = 2
"""Of the schema."""

ONE, SEVERAL = "agt_lightning certificate 2", "agt_lightning certificates 2"
"""Formats of a certificate, and of those of several adversaries."""

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
        domain_shares: by index of the validation loader, the share of the bounds on outputs that each domain decides.
        by_class: by index of the validation loader, right and certified samples of each class.
    """

    weights: Weights
    metrics: Mapping[str, float]
    domain_shares: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    by_class: Mapping[int, ClassCounts] = field(default_factory=dict)


@dataclass(frozen=True)
class Circumstances:
    """What ties a certificate to one training.

    Args:
        digests: SHA-256 of weights, bounds, data and code, by name; see docs/certificate.md.
        samples: the smallest and the largest number of samples of a step; None if not all steps are known.
        types: of the parameters that are trained, such as ``"float32"``.
        acceptance: criteria, from `agt_lightning.certificates.acceptance.dated`.
        made: from `agt_lightning.certificates.environment.made`.
    """

    digests: Mapping[str, object]
    samples: tuple[int, int] | None
    types: Sequence[str]
    acceptance: Sequence[Mapping[str, Any]]
    made: Mapping[str, object]


def certificate(
    adversary: Adversary,
    optimizer: torch.optim.Optimizer,
    *,
    results: Results,
    phases: Sequence[Phase],
    domains: Mapping[str, object],
    circumstances: Circumstances,
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
        circumstances: what ties it to one training.
        earlier: metrics of the last validation if later steps have changed the weights or their bounds.
        remarks: sentences on the results, such as why some are missing.
        frozen: names of the parameters that were not trained at the end.
    """
    fields = dataclasses.asdict(adversary)  # type: ignore[call-overload]
    groups = [
        {key: value for key, value in group.items() if key != "params" and isinstance(value, _SETTINGS)}
        for group in optimizer.param_groups
    ]
    real = any(phase.settings.get(FLOATS) != "run" for phase in phases)
    steps = results.weights.steps
    return with_digest(
        {
            "$schema": SCHEMA,
            "schema_version": VERSION,
            "format": ONE,
            "adversary": {"type": type(adversary).__name__, **fields},
            "budget": budget(adversary, circumstances.samples, steps),
            "roles": _roles(phases),
            "optimizer": {"type": type(optimizer).__name__, "param_groups_at_the_end": groups},
            "steps": steps,
            "bounds": {**in_all_phases(phases), "domains": dict(domains)},
            "floats": {
                "level": "real" if real else "run",
                "meaning": _REAL if real else _RUN,
                "types_of_the_run": list(circumstances.types),
            },
            "phases": [phase.plain() for phase in phases],
            "frozen_parameters": list(frozen),
            "results": dict(results.metrics),
            "metrics": metrics(results.metrics, results.domain_shares, steps),
            "by_class": plain_counts(results.by_class),
            "results_are_of": _plain_weights(results.weights),
            "earlier_results": []
            if earlier is None
            else [{**_plain_weights(earlier.weights), "results": dict(earlier.metrics)}],
            "acceptance": judged(circumstances.acceptance, results.metrics),
            "remarks": list(remarks),
            "assumptions": assumptions(
                adversary,
                own_objective=any_phase(phases, OVERRIDDEN_OBJECTIVE),
                named_samples=any_phase(phases, SAMPLES_ARE_NAMED),
                evaluated=any_phase(phases, EVALUATED),
                real=real,
            ),
            "not_certified": not_certified(
                adversary, frozen=bool(frozen), validated=bool(results.domain_shares), real=real
            ),
            "digests": dict(circumstances.digests),
            "versions": versions(),
            "made": dict(circumstances.made),
        }
    )


_RUN = "Bounds contain every run as hardware executes it, in these types, in any order of summation (docs/floats.md)."

_REAL = "Bounds contain every run in real arithmetic; a run on hardware can leave them by rounding (docs/floats.md)."


def certificates(adversaries: Sequence[Adversary], records: Mapping[str, Mapping[str, Any]]) -> dict[str, object]:
    """Return the certificates of one training for several adversaries, and the curve of results over their settings.

    Args:
        adversaries: the threat models.
        records: from `certificate` for each of them, by its name and in the same order.
    """
    settings = settings_that_differ(adversaries)
    return with_digest(
        {
            "$schema": SCHEMA,
            "schema_version": VERSION,
            "format": SEVERAL,
            "curve": [
                {"name": name, "settings": dict(differing), "results": record["results"]}
                for (name, record), differing in zip(records.items(), settings, strict=True)
            ],
            "certificates": dict(records),
        }
    )


def frozen_parameters(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of the parameters that an optimizer does not train."""
    owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    named = module.named_parameters()
    return [name for name, parameter in named if not parameter.requires_grad or id(parameter) not in owned]


def _plain_weights(weights: Weights) -> dict[str, object]:
    return {"steps": weights.steps, "digest_of_the_weights": weights.digest}


def _roles(phases: Sequence[Phase]) -> list[object]:
    """Return the roles of batch entries, once for each kind of batch of any phase."""
    found: list[object] = []
    for phase in phases:
        roles = phase.settings.get(ROLES, [])
        found += [each for each in (roles if isinstance(roles, list) else []) if each not in found]
    return found
