"""Bounds of the float program contain what float hardware computes, and the exact bounds."""

import pytest
import torch

from agt_lightning.interval import Interval
from agt_lightning.rules import RULES
from agt_lightning.rules.rounded import Rounded
from tests.rules.laws import Labels, draw_domain, evaluate, propagate
from tests.rules.settings import SETTINGS

SINGLE = torch.float32


class _Checked(Rounded):
    """With the refusals of the rule inside, so that a table can hold it."""

    def problem(self, site):
        return self.rule.problem(site)


TABLE = {op: _Checked(rule, SINGLE) for op, rule in RULES.items()}
NETWORKS = [
    setting for setting in SETTINGS if setting.parameters and not any(isinstance(x, Labels) for x in setting.leaves)
]


@pytest.mark.parametrize("setting", NETWORKS, ids=str)
def test_rounded_bounds_contain_the_exact_ones(setting):
    domain = draw_domain(setting, torch.float64, seed=0)
    exact, rounded = propagate(setting, RULES, domain), propagate(setting, TABLE, domain)
    for narrow, wide in [
        (exact.output, rounded.output),
        *((b, rounded.gradients[n]) for n, b in exact.gradients.items()),
    ]:
        assert bool((wide.lower <= narrow.lower).all())
        assert bool((wide.upper >= narrow.upper).all())


@pytest.mark.parametrize("setting", NETWORKS, ids=str)
def test_rounded_bounds_contain_a_run_in_single_precision(setting):
    domain = draw_domain(setting, SINGLE, seed=1, scale=0.0)
    wide = propagate(setting, TABLE, _double(domain)).output
    holder = torch.nn.Module()
    for name, box in domain.parameters.items():
        holder.register_parameter(name, torch.nn.Parameter(box.lower))
    leaves = [leaf.lower if isinstance(leaf, Interval) else leaf for leaf in domain.leaves]
    output = evaluate(setting, holder, leaves).detach()
    if output.dtype != SINGLE:
        pytest.skip("its constants are in double precision, and so is its run")
    assert wide.contains(output.double())


def _double(domain):
    def point(value):
        if not isinstance(value, Interval):
            return value
        return Interval.point(value.lower.double(), nonnegative=value.nonnegative)

    parameters = {name: point(box) for name, box in domain.parameters.items()}
    return type(domain)(tuple(point(leaf) for leaf in domain.leaves), parameters, point(domain.seed))
