"""What each parameter's gains are summed by."""

import pytest
import torch

from agt_lightning.aggregation import AGGREGATIONS, SampleSet, choose, require_aggregation
from agt_lightning.gradients import Elementwise, OuterProduct, Summed
from agt_lightning.interval import Interval


def layer(outputs, inputs, samples=50):
    return OuterProduct(Interval.point(torch.ones(samples, 1, outputs)), Interval.point(torch.ones(samples, 1, inputs)))


NETWORK = {
    "wide": layer(300, 400),
    "narrow": layer(1, 300),
    "bias": Elementwise(Interval.point(torch.ones(50, 300))),
    "shared": Summed([layer(300, 400), layer(300, 400)]),
}
SAMPLES = SampleSet(torch.ones(50))


def test_exact_is_exact_everywhere():
    assert set(choose("exact", NETWORK, NETWORK, SAMPLES).values()) == {"exact"}


def test_moments_are_taken_wherever_there_are_factors():
    sum_methods = choose("moment", NETWORK, NETWORK, SAMPLES)
    assert sum_methods == {"wide": "moment", "narrow": "moment", "bias": "exact", "shared": "exact"}


def test_auto_is_exact_where_that_is_cheap():
    sum_methods = choose("auto", NETWORK, NETWORK, SAMPLES)
    assert sum_methods == {"wide": "moment", "narrow": "exact", "bias": "exact", "shared": "exact"}


def test_few_poisonable_samples_are_cheap():
    few = {"wide": layer(300, 400, samples=1)}
    rows = SampleSet(torch.ones(50), torch.tensor([7]))
    assert choose("auto", {"wide": NETWORK["wide"]}, few, rows) == {"wide": "exact"}


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_without_poison_everything_is_exact(aggregation):
    assert set(choose(aggregation, NETWORK, {}, SAMPLES).values()) == {"exact"}


def test_unknown_aggregation_is_refused():
    with pytest.raises(ValueError, match="Expected `aggregation` to be one of .* but got 'loose'"):
        require_aggregation("loose")
