"""Several threat models of one training: what they must agree on, and how each is named."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from agt_lightning.adversaries.base import Adversary, require_adversary

Adversaries = Adversary | Sequence[Adversary]
"""One threat model, or several of one training."""

_LONGEST_NAME = 60
"""Characters of a name made of settings; longer ones are replaced by the position."""


def describe(adversary: Adversary) -> str:
    """Return an adversary as text, different for different ones: tensors are written out in full.

    Example:
        >>> from agt_lightning import BoundedAdversary
        >>> describe(BoundedAdversary(n=1, epsilon=0.5))[:32]
        'BoundedAdversary(n=1, epsilon=0.'
    """
    settings = ", ".join(f"{name}={value!r}" for name, value in _settings(adversary).items())
    return f"{type(adversary).__name__}({settings})"


def described(adversaries: Sequence[Adversary]) -> str:
    """Return all adversaries of a training as text; a single one as `describe` does."""
    texts = [describe(adversary) for adversary in adversaries]
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


def all_adversaries(given: Adversaries) -> tuple[Adversary, ...]:
    """Return the adversaries that one training is certified for.

    Args:
        given: one, or a sequence of them, distinct and with the same clipping of each sample's gradient.

    Raises:
        TypeError: if one of them is not an adversary.
        ValueError: if there is none, two are the same, or they need different trainings.

    Example:
        >>> from agt_lightning import BoundedAdversary
        >>> [adversary.n for adversary in all_adversaries([BoundedAdversary(n=1), BoundedAdversary(n=5)])]
        [1, 5]
    """
    adversaries = tuple(given) if isinstance(given, Sequence) else (given,)
    for adversary in adversaries:
        require_adversary(adversary)
    texts = [describe(adversary) for adversary in adversaries]
    if not texts:
        raise ValueError("Expected at least one adversary, but got an empty sequence. Pass `BoundedAdversary(n=...)`.")
    repeated = [text for position, text in enumerate(texts) if text in texts[:position]]
    if repeated:
        raise ValueError(f"Expected distinct adversaries, but got {repeated[0]} twice. Leave one of them out.")
    _require_one_training(adversaries)
    return adversaries


def _require_one_training(adversaries: Sequence[Adversary]) -> None:
    first = adversaries[0].sample_clipping
    for adversary in adversaries:
        if adversary.sample_clipping != first:
            raise ValueError(
                "Expected adversaries of one training, but they need each sample's gradient clipped in different ways, "
                f"{first} and {adversary.sample_clipping}. Give all of them the same `kappa` and `clip`, or train once "
                "for each, with a Trainer and a `CertifiedTraining` of its own."
            )
    places = {getattr(adversary, "at", None) for adversary in adversaries if adversary.perturbs_features}
    if len(places) > 1:
        raise ValueError(
            f"Expected adversaries that move features at one place, but got `at` in {sorted(map(str, places))}. Give "
            "all of them the same `at`, or train once for each."
        )


def names_of(adversaries: Sequence[Adversary]) -> tuple[str, ...]:
    """Return a name of each adversary, made of the settings in which they differ; an empty one if there is only one.

    Example:
        >>> from agt_lightning import BoundedAdversary
        >>> names_of([BoundedAdversary(n=n, epsilon=0.1) for n in (1, 5)])
        ('n_1', 'n_5')
    """
    if len(adversaries) == 1:
        return ("",)
    differing = settings_that_differ(adversaries)
    names = tuple("_".join(f"{key}_{_characters(value)}" for key, value in one.items()) for one in differing)
    if len(set(names)) < len(names) or any(len(name) > _LONGEST_NAME for name in names):
        return tuple(f"adversary_{position}" for position in range(len(adversaries)))
    return names


def settings_that_differ(adversaries: Sequence[Adversary]) -> tuple[Mapping[str, object], ...]:
    """Return the settings of each adversary that are not the same for all, by name.

    Example:
        >>> from agt_lightning import BoundedAdversary
        >>> settings_that_differ([BoundedAdversary(n=n, epsilon=0.1) for n in (1, 5)])
        ({'n': 1}, {'n': 5})
    """
    every = [{"type": type(adversary).__name__, **_settings(adversary)} for adversary in adversaries]
    names = dict.fromkeys(name for settings in every for name in settings)
    differing = [name for name in names if len({repr(settings.get(name)) for settings in every}) > 1]
    return tuple({name: settings[name] for name in differing if name in settings} for settings in every)


_ADDED = {"at": None, "counts": "samples", "per": "batch"}
"""Settings that descriptions of earlier versions lack, with what they were."""


def _settings(adversary: Adversary) -> dict[str, object]:
    fields = {field.name: getattr(adversary, field.name) for field in dataclasses.fields(adversary)}  # type: ignore[arg-type]
    added = {name for name, former in _ADDED.items() if fields.get(name) == former}
    return {
        name: value.tolist() if isinstance(value, Tensor) else value
        for name, value in fields.items()
        if name not in added
    }


def _characters(value: object) -> str:
    """Return a value as text, with an underscore for what log and file names cannot hold."""
    return re.sub(r"[^\w.\-]+", "_", str(value)).strip("_")
