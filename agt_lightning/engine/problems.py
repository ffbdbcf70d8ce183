"""Problems: every reason why a training cannot be certified, found before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from agt_lightning.adversaries import Adversary
from agt_lightning.adversaries.base import counts_sources, inserts_and_deletes
from agt_lightning.aggregation.mean_clipping import MeanClipping
from agt_lightning.capture import LabelKind, LossRoles
from agt_lightning.capture.dropout import RandomState
from agt_lightning.domains import TrainingSetup
from agt_lightning.engine.bounded_runs import BoundedRuns, by_adversary
from agt_lightning.engine.entry_values import blaming_data
from agt_lightning.engine.nominal_step import NominalPass
from agt_lightning.errors import UncertifiableError
from agt_lightning.optimizers import optimizer_problems
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.propagation.precision import precision_problems
from agt_lightning.propagation.samples import MicroBatch, Sources


def training_problems(
    nominal: NominalPass,
    runs: Sequence[BoundedRuns],
    batch: MicroBatch,
    optimizer: torch.optim.Optimizer | None,
    clipping: MeanClipping | None,
) -> list[str]:
    """Return every reason why training on batches like this one cannot be certified, each with its way out.

    Args:
        nominal: the training's module, captured losses and processes.
        runs: those of each adversary; with ``"auto"``, their domains that do not apply are excluded.
        batch: an example.
        optimizer: of the module; None if there is none.
        clipping: how training clips the mean gradient; None if it does not.

    Raises:
        CaptureError: if the loss cannot be recorded.
    """
    processes = nominal.processes
    with processes.collective_errors():
        bounded = nominal.objectives(batch)
        local = by_adversary(runs, lambda each: _adversary_problems(each.adversary, nominal.config.sources, bounded))
        local += _mixing_problems(nominal, bounded)
        local += precision_problems(
            bounded.program.graph, nominal.config.dtype, _device(nominal), nominal.config.floats
        )
    unbounded, problems = processes.union(bounded.problems), processes.union(local)
    if unbounded:
        return [*unbounded, *problems, *optimizer_problems(optimizer)]
    problems += by_adversary(
        runs,
        lambda each: each.domains.problems(TrainingSetup(nominal.module, bounded, each.adversary, optimizer, clipping)),
    )
    return problems or _problems_of_values(nominal, runs, batch)


def _device(nominal: NominalPass) -> torch.device:
    return next((parameter.device for parameter in nominal.module.parameters()), torch.device("cpu"))


_EDITS_UNCLIPPED = (
    "The adversary inserts and deletes samples, but its `sample_clipping` is None: the gradient of an inserted sample "
    'has no bound. Give it a clipping, as `UnboundedAdversary` has one, or leave `edits` at "replace".'
)


_NO_SOURCES = (
    'The n of the adversary counts sources (`counts="sources"`), but it is not known whose a sample is. Name them by '
    "`sources=`, the key of integers in the batch, or a function that returns them, or count samples."
)


def _source_problems(adversary: Adversary, sources: Sources | None, bounded: BoundedObjective) -> list[str]:
    """Return why an adversary that owns sources is not covered; none for all others."""
    if not counts_sources(adversary):
        return []
    if inserts_and_deletes(adversary):
        return ['Nothing bounds how many samples a source inserts. Count samples, or leave `edits` at "replace".']
    if sources is None:
        return [_NO_SOURCES]
    if bounded.program.mixing:
        return [
            f"The loss has {bounded.program.mixed_by}, which is not covered for an adversary that owns sources. Count "
            f"samples, or {bounded.program.unmixed}."
        ]
    names = [bounded.objective.names[leaf] for leaf in bounded.perturbed_leaves(adversary)]
    if f"batch[{sources!r}]" in names:
        return [
            f"`sources={sources!r}` names an entry of the batch that the adversary changes, so it does not say whose a "
            "sample is. Give the sources an entry of their own."
        ]
    return []


def _adversary_problems(adversary: Adversary, sources: Sources | None, bounded: BoundedObjective) -> list[str]:
    if inserts_and_deletes(adversary) and adversary.sample_clipping is None:
        return [_EDITS_UNCLIPPED]
    of_sources = _source_problems(adversary, sources, bounded)
    if of_sources:
        return of_sources
    roles, entries = bounded.objective, bounded.objective.entries
    doubts: list[str] = []
    if adversary.n > 0:
        doubts += entries.feature_doubts if adversary.perturbs_features else ()
        doubts += entries.label_doubts if adversary.perturbs_labels else ()
        doubts += _shared_entries(roles) if adversary.sample_clipping is not None else ()
    if doubts:
        return doubts
    kinds = dict.fromkeys(roles.label_kinds[leaf] for leaf in roles.labels) or {LabelKind.NONE: None}
    labels = min(len(roles.labels), 1)
    return [problem for kind in kinds for problem in adversary.problems(kind, labels, len(roles.features))]


def _mixing_problems(nominal: NominalPass, bounded: BoundedObjective) -> list[str]:
    """Refuse settings that do not fit statistics of the batch, by which one sample reaches all gradients."""
    program = bounded.program
    if not program.mixing:
        return []
    what, instead = f"The loss has {program.mixed_by}", f"or {program.unmixed}."
    problems = []
    if nominal.adversary.sample_clipping is not None:
        problems.append(
            f"{what}, so no sample has a gradient of its own that could be clipped. Use `BoundedAdversary`, {instead}"
        )
    if nominal.config.method != "ibp":
        problems.append(f'{what}, for which there are no linear bounds. Use `method="ibp"`, {instead}')
    if nominal.processes.size > 1:
        problems.append(
            f"{what}, and with `DistributedDataParallel` each process has numbers of its own samples alone, which is "
            f"not covered. Use `devices=1`, {instead}"
        )
    return problems


def _shared_entries(roles: LossRoles) -> list[str]:
    """Refuse entries without an axis of samples if samples can be substituted: they may be computed from all."""
    return [
        f"The loss reads {name}, whose first axis does not count samples. If it is computed from the samples, a "
        "substituted one changes it for all. Give each sample its own row, or make it an attribute of the module."
        for leaf, name in roles.names.items()
        if leaf not in roles.samples
    ]


def _problems_of_values(nominal: NominalPass, runs: Sequence[BoundedRuns], batch: MicroBatch) -> list[str]:
    """Return problems that depend on the values of a batch, by bounding a step that is then dropped."""
    try:
        with blaming_data([batch]):
            step, _ = nominal.step([replace(batch, state=RandomState.now())], scale=1.0)
            for each in runs:
                step = nominal.against(step, each.adversary)
                with each.named_in_errors():
                    each.domains.bound_step(step)
    except UncertifiableError as error:
        return list(error.problems)
    return []


def require_initialized(module: nn.Module) -> None:
    """Require that all parameters have values.

    Raises:
        UncertifiableError: naming the parameters of lazy layers that have not seen a batch.
    """
    lazy = [f"`{name}`" for name, parameter in module.named_parameters() if is_lazy(parameter)]
    if lazy:
        names = ", ".join(lazy)
        raise UncertifiableError([f"Lazy layers have no values yet: {names}. Run the module on a batch before `fit`."])
