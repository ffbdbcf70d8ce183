"""Every rule of the table obeys every law."""

from itertools import product

import pytest
import torch

from agt_lightning.rules import RULES
from agt_lightning.rules.comparison import COMPARISONS
from tests.rules.laws import LAWS, Box, Setting, bounds_are_attained, build
from tests.rules.settings import SETTINGS, TOTALS

DTYPES = (torch.float64, torch.float32)
BUILT_IN = {op: rule for op, rule in RULES.items() if op is not torch.ops.aten.special_expm1.default}
"""The table without the op that the doctest of `register_rule` adds."""


def test_every_overload_of_the_table_has_settings():
    elsewhere = TOTALS | COMPARISONS.keys()  # comparisons are discrete: tests/rules/test_comparison.py
    assert set(BUILT_IN) - elsewhere == {setting.op for setting in SETTINGS} - elsewhere


def test_a_setting_that_does_not_call_its_op_is_an_error():
    setting = Setting("doubled", torch.ops.aten.neg.default, lambda m, x: 2 * x, (Box(),))
    with pytest.raises(AssertionError, match=r"aten.neg.default doubled: the graph does not call the op"):
        build(setting, RULES)


def _cases():
    """Of each overload the first setting is quick."""
    seen = set()
    for setting in SETTINGS:
        yield pytest.param(setting, marks=[pytest.mark.slow] if setting.op in seen else [], id=str(setting))
        seen.add(setting.op)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("setting", list(_cases()))
def test_laws(setting, subtests):
    """All laws of a setting in one test: recording it takes longer than any of them."""
    for law, dtype in product(LAWS, DTYPES):
        with subtests.test(law=law.__name__, dtype=dtype):
            law(setting, dtype, RULES)
    if setting.exact:
        with subtests.test(law="bounds are attained where claimed"):
            bounds_are_attained(setting, torch.float64, RULES)
