"""Faults of rules: one op's rule is broken, or a function that it calls; the laws of its settings must notice."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch._ops import OpOverload

from agt_lightning.rules import RULES, Rule, RuleTable
from tests.faults import Fault
from tests.rules.laws import LAWS, bounds_are_attained
from tests.rules.settings import SETTINGS

UNSOUND = "leaves its bounds|has width"
LOOSE = "is loose by"


@dataclass(frozen=True)
class Laws:
    """Every law, for every setting of one op."""

    op: OpOverload

    def __call__(self, table: RuleTable = RULES) -> None:
        for setting in SETTINGS:
            if setting.op is self.op:
                for law in LAWS:
                    law(setting, torch.float64, table)


@dataclass(frozen=True)
class Exactness:
    """Attained bounds, for every setting of one op that claims them."""

    op: OpOverload

    def __call__(self, table: RuleTable = RULES) -> None:
        for setting in SETTINGS:
            if setting.op is self.op and setting.exact:
                bounds_are_attained(setting, torch.float64, table)


def broken_rules(rules: Mapping[str, tuple[OpOverload, Rule]]) -> list[Fault]:
    """Unsound rules, by what is wrong with them."""
    return [Fault(name, Laws(op), {**RULES, op: rule}) for name, (op, rule) in rules.items()]


def loose_rules(rules: Mapping[str, tuple[OpOverload, Rule]]) -> list[Fault]:
    """Sound rules that are wider than need be: only exactness can notice."""
    return [Fault(name, Exactness(op), {**RULES, op: rule}) for name, (op, rule) in rules.items()]
