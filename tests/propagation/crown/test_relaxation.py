"""Every linear relaxation of the table is sound, with interval and with point parameters."""

import pytest
import torch

from agt_lightning.interval import Interval
from agt_lightning.propagation.crown.relaxation import resolve
from agt_lightning.propagation.crown.table import RELAXATIONS
from tests.propagation.crown.laws import forms_contain_sampled_points
from tests.rules.settings import SETTINGS

RELAXED = [setting for setting in SETTINGS if setting.op in RELAXATIONS]
OTHERS = [setting for setting in SETTINGS if setting.op not in RELAXATIONS]
VARIANTS = {
    "boxes": {},
    "fixed parameters": {"points": True},
    "single precision": {"dtype": torch.float32},
}
TOLERANCE = 1e-12
"""Float64 rounding of a few operations on numbers below ten."""


def test_every_relaxation_has_settings():
    assert set(RELAXATIONS) == {setting.op for setting in RELAXED}


@pytest.mark.thinned(6)
@pytest.mark.parametrize("setting", RELAXED, ids=str)
def test_forms_contain_sampled_points(setting, subtests):
    for variant, settings in VARIANTS.items():
        with subtests.test(variant):
            forms_contain_sampled_points(setting, **settings)


@pytest.mark.thinned(6)
@pytest.mark.parametrize("setting", OTHERS, ids=str)
def test_forms_contain_sampled_points_without_a_relaxation(setting):
    forms_contain_sampled_points(setting)


def test_an_uncertain_coefficient_is_resolved_by_the_least_line_above():
    generator = torch.Generator().manual_seed(0)
    ends = torch.randn(2, 50, 4, 3, generator=generator, dtype=torch.float64).sort(dim=0).values
    box = Interval(*torch.randn(2, 50, 3, generator=generator, dtype=torch.float64).sort(dim=0).values)
    terms = resolve(Interval(*ends), box)
    (slope,) = terms.coefficients
    for x in (box.lower, box.upper):  # a line above at both ends that touches both is the least one
        attained = torch.maximum(ends[0] * x[:, None], ends[1] * x[:, None]).sum(2)
        assert torch.allclose((slope * x[:, None]).sum(2) + terms.constant, attained, rtol=0, atol=TOLERANCE)
    share = torch.rand(50, 4, 3, generator=generator, dtype=torch.float64)
    x = box.lower + torch.rand(50, 3, generator=generator, dtype=torch.float64) * box.width
    value = ((ends[0] + share * (ends[1] - ends[0])) * x[:, None]).sum(2)
    assert bool((value <= (slope * x[:, None]).sum(2) + terms.constant + TOLERANCE).all())


def test_a_nonnegative_value_meets_the_upper_coefficient_without_loss():
    box = Interval(torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 3.0]]), nonnegative=True)
    terms = resolve(Interval(-torch.ones(1, 1, 2), torch.ones(1, 1, 2)), box)
    assert torch.equal(terms.coefficients[0], torch.ones(1, 1, 2))
    assert float(terms.constant) == 0
