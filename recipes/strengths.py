"""Words for adversaries: in messages, legends and on axes."""

from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any

from agt_lightning import BoundedAdversary, UnboundedAdversary

SYMBOLS = {"epsilon": "ε", "nu": "ν", "kappa": "κ"}
AXES = {
    "n": "poisoned samples per batch, n",
    "epsilon": "radius of the feature perturbation, ε (feature units)",
    "nu": "radius of the label perturbation, ν (label units)",
    "kappa": "clipping level, κ (units of a sample's gradient)",
}


def describe(adversary: BoundedAdversary | UnboundedAdversary, without: str | None = None) -> str:
    """The adversary's settings that differ from their defaults, as in ``n = 200, ε = 0.01``, but ``without`` one."""
    chosen = {field.name: getattr(adversary, field.name) for field in fields(adversary)}
    defaults = {field.name: field.default for field in fields(adversary)}
    return ", ".join(
        _setting(name, value)
        for name, value in chosen.items()
        if name != without and (defaults[name] is MISSING or value != defaults[name])
    )


def varying_setting(adversaries: Sequence[BoundedAdversary | UnboundedAdversary]) -> str:
    """Name of the one setting in which the adversaries differ; ``n`` if there is only one adversary.

    Raises:
        ValueError: if they differ in more settings or in kind.
    """
    if len({type(adversary) for adversary in adversaries}) == 1:
        names = [field.name for field in fields(adversaries[0])]
        differing = [name for name in names if len({getattr(adversary, name) for adversary in adversaries}) > 1]
        if len(differing) <= 1:
            return differing[0] if differing else "n"
    raise ValueError(f"Expected adversaries of one kind that differ in one setting, but got {list(adversaries)}.")


def label(adversary: BoundedAdversary | UnboundedAdversary, setting: str) -> str:
    """One setting of an adversary, as in ``n = 200``."""
    return _setting(setting, getattr(adversary, setting))


def _setting(name: str, value: Any) -> str:
    return f"{SYMBOLS.get(name, name)} = {value}"
