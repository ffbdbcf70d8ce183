"""The settings under which the steps of a training were certified; a resumed training can have several groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agt_lightning.aggregation.mean_clipping import MeanClipping
from agt_lightning.propagation.config import CertificationConfig

OVERRIDDEN_OBJECTIVE = "certified_objective_is_overridden"
"""Setting of a phase: whether `certified_objective` was certified in place of `training_step`."""

UNTRIED_HOOKS = "hooks_that_could_not_be_tried"
"""Setting of a phase: hooks between steps that could not run on copies, each with the reason."""

ROLES = "roles"
"""Setting of a phase: the roles of batch entries, one dictionary for each kind of batch."""

EVALUATED = "parts_are_evaluated_without_rules"
"""Setting of a phase: whether a part that neither poison nor training reaches was evaluated as it is."""

SAMPLES_ARE_NAMED = "samples_are_named"
"""Setting of a phase: whether `poisonable` or `sample_ids` was given."""

UNKNOWN = "unknown"
"""Value of a setting that an earlier version did not keep."""

FLOATS = "floats"
"""Setting of a phase: whether bounds contain runs as hardware executes them, or runs in real arithmetic."""

_ALL_POISONABLE = "all_samples_poisonable"

_SOURCES = "sources"
"""Setting of a phase: what named the source of each sample, if something did."""


@dataclass(frozen=True)
class Phase:
    """Consecutive steps that were certified under the same settings.

    Args:
        first: number of the first step, from 1 on.
        last: number of the last step.
        settings: from `bound_settings`; those that an earlier version did not keep are "unknown".
    """

    first: int
    last: int
    settings: Mapping[str, object]

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Phase:
        """Return a phase from its `plain` form."""
        first, last = plain["steps"]
        return cls(int(first), int(last), {key: value for key, value in plain.items() if key != "steps"})

    def plain(self) -> dict[str, Any]:
        """Return numbers, strings, lists and dictionaries, for JSON and checkpoints."""
        return {"steps": [self.first, self.last], **self.settings}


def bound_settings(
    config: CertificationConfig,
    domains: Sequence[str],
    clipping: MeanClipping | None,
    stated: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Return how the bounds of a training are computed, ready for JSON.

    Args:
        config: the settings of the bounds.
        domains: names of the domains in use.
        clipping: how training clips the mean gradient; None if it does not.
        stated: other facts about the training, by the name that a certificate gives them.
    """
    return {
        "method": config.method,
        "domains": list(domains),
        "aggregation": "exact",  # earlier versions had wider sums, which certificates of resumed trainings must tell
        "dtype": str(config.dtype).removeprefix("torch."),
        FLOATS: config.floats,
        _ALL_POISONABLE: config.poisonable is None,
        SAMPLES_ARE_NAMED: config.poisonable is not None or config.sample_ids is not None,
        **({} if config.sources is None else {_SOURCES: name_of(config.sources)}),
        "clipping_of_the_mean_gradient": None if clipping is None else repr(clipping),
        OVERRIDDEN_OBJECTIVE: False,
        EVALUATED: False,
        **(stated or {}),
    }


def name_of(entry: Callable[[object], object] | str) -> str:
    """Return a key of the batch as it is, and of a function its name.

    Example:
        >>> name_of("hospital"), name_of(Phase.of)
        ('hospital', 'agt_lightning.certificates.phases.Phase.of')
    """
    if isinstance(entry, str):
        return entry
    named = entry if hasattr(entry, "__qualname__") else type(entry)
    return f"{named.__module__}.{named.__qualname__}"


def followed_by(earlier: Sequence[Phase], steps: int, settings: Mapping[str, object]) -> tuple[Phase, ...]:
    """Return the phases of a training that goes on from earlier ones.

    Args:
        earlier: phases of the steps before.
        steps: number of all certified steps.
        settings: of the steps since. They make no phase if there are none, and no new one if they are the last one's.
    """
    before = earlier[-1].last if earlier else 0
    if steps <= before:
        return tuple(earlier)
    if earlier and earlier[-1].settings == settings:
        return (*earlier[:-1], Phase(earlier[-1].first, steps, settings))
    return (*earlier, Phase(before + 1, steps, settings))


def any_phase(phases: Sequence[Phase], setting: str) -> bool:
    """Return whether a setting is true in some phase, or unknown."""
    return any(phase.settings.get(setting) not in (False, None) for phase in phases)


def in_all_phases(phases: Sequence[Phase]) -> dict[str, object]:
    """Return the settings that hold for all steps; different values are listed in their order, as one string.

    Samples count as poisonable, all of them, if they were in every phase.
    """
    if not phases:
        return {}
    settings = {name: _in_order([phase.settings.get(name, UNKNOWN) for phase in phases]) for name in _names(phases)}
    poisonable = [phase.settings.get(_ALL_POISONABLE) for phase in phases]
    settings[_ALL_POISONABLE] = all(value is True for value in poisonable)
    if not settings[_ALL_POISONABLE] and False not in poisonable:
        settings[_ALL_POISONABLE] = UNKNOWN
    for flag in (SAMPLES_ARE_NAMED, OVERRIDDEN_OBJECTIVE, EVALUATED):
        if True in [phase.settings.get(flag) for phase in phases]:
            settings[flag] = True
    return settings


def _names(phases: Sequence[Phase]) -> list[str]:
    return list(dict.fromkeys(name for phase in phases for name in phase.settings if name != "domains"))


def _in_order(values: Sequence[object]) -> object:
    different = [value for position, value in enumerate(values) if position == 0 or value != values[position - 1]]
    return different[0] if len(different) == 1 else ", then ".join(str(value) for value in different)
