"""What of a batch the adversary reaches before any trained parameter enters."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agt_lightning import BoundedAdversary
from agt_lightning.interval import Interval
from agt_lightning.objective import BoundedObjective
from agt_lightning.passes import FrozenReach, MicroBatch, propagate_nominal
from agt_lightning.rules import RULES


class Behind(nn.Module):
    """A trained layer behind a frozen one."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(2, 3).double().requires_grad_(False)
        self.head = nn.Linear(3, 1).double()

    def forward(self, x):
        return self.head(torch.tanh(self.frozen(x)))


@pytest.fixture
def captured():
    torch.manual_seed(0)
    module = Behind()
    batch = (torch.randn(5, 2).double(), torch.rand(5, 1).double())
    bounded = BoundedObjective.capture(module, lambda m, b: F.mse_loss(m(b[0]), 2 * b[1]), batch, RULES)
    values, _ = propagate_nominal(bounded, module, MicroBatch(batch), torch.float64)
    return bounded, values


ROWS = torch.tensor([1, 4])


@pytest.mark.parametrize("rows", [None, ROWS], ids=["all", "some"])
@pytest.mark.parametrize(
    "adversary",
    [BoundedAdversary(n=1, epsilon=0.1), BoundedAdversary(n=1, nu=0.2), BoundedAdversary(n=1, epsilon=0.1, nu=0.2)],
    ids=["features", "labels", "both"],
)
def test_it_is_what_the_poisoned_inputs_give(captured, adversary, rows):
    bounded, values = captured
    reach = FrozenReach(bounded, values, adversary, rows)
    poisoned = bounded.poisoned(values, adversary, rows)
    frozen = bounded.program.samples - bounded.dependent - bounded.skipped
    assert len(frozen) >= 5  # two leaves, the frozen layer, its tanh, the doubled labels
    whole = reach._reachable
    for name in frozen:
        assert torch.equal(reach[name].lower, whole[name].lower)
        assert torch.equal(reach[name].upper, whole[name].upper)
    for leaf in bounded.program.graph.leaves:
        assert torch.equal(reach[leaf].upper, poisoned[leaf].upper)
        assert isinstance(reach[leaf], Interval)


def test_what_the_adversary_cannot_touch_is_not_computed_again(captured):
    bounded, values = captured
    reach = FrozenReach(bounded, values, BoundedAdversary(n=1, nu=0.2), ROWS)
    (feature,) = bounded.objective.features
    assert torch.equal(reach[feature].lower, values[feature].lower[ROWS])
    assert "_reachable" not in vars(reach)


def test_what_depends_on_a_trained_parameter_is_no_part_of_it(captured):
    bounded, values = captured
    reach = FrozenReach(bounded, values, BoundedAdversary(n=1, epsilon=0.1), None)
    trained = next(name for name in bounded.dependent if name in values and name in bounded.program.samples)
    with pytest.raises(KeyError):
        reach[trained]
