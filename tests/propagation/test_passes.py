"""The clean and the poisoned pass over a batch, with and without values that are known before."""

import pytest
import torch
from torch.nn import functional as F

from agt_lightning import BoundedAdversary
from agt_lightning.gradients import Buffers
from agt_lightning.interval import Interval
from agt_lightning.propagation import passes
from agt_lightning.propagation.config import CertificationConfig
from agt_lightning.propagation.loss_capture import LossCapture
from agt_lightning.propagation.passes import BoundedBatch, propagate, propagate_nominal
from agt_lightning.propagation.samples import MicroBatch
from agt_lightning.rules import RULES
from tests.propagation.test_prefix import SUMS, Behind


@pytest.fixture
def captured():
    torch.manual_seed(0)
    module = Behind()
    batch = (torch.randn(5, 2).double(), torch.rand(5, 1).double())
    bounded = LossCapture(RULES).once(module, lambda m, b: F.mse_loss(m(b[0]), 2 * b[1]), batch)
    values, _ = propagate_nominal(bounded, module, MicroBatch(batch), torch.float64)
    return bounded, values


def boxes(module, width):
    return {
        name: Interval(p.detach() - width.get(name, 0.0), p.detach() + width[name])
        if name in width
        else Interval.point(p.detach())
        for name, p in module.named_parameters()
    }


WIDTHS = {
    "nothing moved": {},
    "the head moved": {"head.weight": 0.1},
    "a layer moved that is trained no more": {"frozen.weight": 0.1},
}


def gradients(bounded, width, nominal):
    torch.manual_seed(0)
    module = Behind()
    batch = MicroBatch((torch.randn(5, 2).double(), torch.rand(5, 1).double()))
    adversary = BoundedAdversary(n=1, epsilon=0.1, nu=0.1)
    part = BoundedBatch(bounded, batch, poisonable=None, nominal=nominal, frozen=nominal)
    found = propagate(part, module, boxes(module, width), adversary, CertificationConfig(), SUMS, Buffers())
    return [
        bound
        for part in (found.clean, found.poisoned)
        for gradient in part.values()
        for bound in (gradient.block(0, gradient.elements).lower, gradient.block(0, gradient.elements).upper)
    ]


def check_nominal_values(captured, width):
    bounded, nominal = captured
    pairs = zip(gradients(bounded, width, nominal), gradients(bounded, width, {}), strict=True)
    assert all(torch.equal(*pair) for pair in pairs), "gradients depend on whether nominal values are at hand"


@pytest.mark.parametrize("case", WIDTHS)
def test_nominal_values_change_nothing(captured, case):
    check_nominal_values(captured, WIDTHS[case])


def test_a_layer_without_a_box_is_not_computed_again(captured):
    bounded, nominal = captured
    inputs = {name: nominal[name] for name in bounded.program.graph.parameters}
    (weight,) = (name for name, parameter in bounded.parameters.items() if parameter == "head.weight")
    inputs[weight] = Interval(nominal[weight].lower - 1, nominal[weight].upper)
    shared = passes._unmoved(bounded, inputs, nominal, nominal)
    behind = {call.name for call in bounded.program.graph.calls if call.name in shared}
    assert {call.op.name().split("::")[1] for call in bounded.program.graph.calls if call.name in behind} >= {"tanh"}


def test_taking_all_that_is_not_trained_to_be_unmoved_is_found(captured, monkeypatch):
    """Planted fault: a layer that was trained before has a box, and training it no more does not take that away."""

    def untrained(bounded, inputs, nominal, values):
        return {name: values[name] for name in values.keys() - bounded.dependent - inputs.keys()}

    monkeypatch.setattr(passes, "_unmoved", untrained)
    with pytest.raises(AssertionError, match="nominal values are at hand"):
        check_nominal_values(captured, WIDTHS["a layer moved that is trained no more"])
