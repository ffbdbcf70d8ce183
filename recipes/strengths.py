"""Words for adversaries: in messages and titles."""

from dataclasses import MISSING, fields

from agt_lightning import BoundedAdversary, UnboundedAdversary

SYMBOLS = {"epsilon": "ε", "nu": "ν", "kappa": "κ"}


def describe(adversary: BoundedAdversary | UnboundedAdversary) -> str:
    """The adversary's settings that differ from their defaults, as in ``n = 200, ε = 0.01``."""
    chosen = {field.name: getattr(adversary, field.name) for field in fields(adversary)}
    defaults = {field.name: field.default for field in fields(adversary)}
    return ", ".join(
        f"{SYMBOLS.get(name, name)} = {value}"
        for name, value in chosen.items()
        if defaults[name] is MISSING or value != defaults[name]
    )
