"""Numbers that were made so that outputs tie, although what is before them differs: nothing may be certified."""

import pytest
import torch
from torch import nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary, CertifiedModel
from agt_lightning.bounds import ParameterBounds
from agt_lightning.certificates.task import Task
from agt_lightning.errors import BoundsMismatchError

SINGLE, DOUBLE = torch.float32, torch.float64


class Outputs(nn.Module):
    """A linear layer of one input, and what follows it."""

    def __init__(self, weights, tail, dtype):
        super().__init__()
        self.linear = nn.Linear(1, len(weights), bias=False).to(dtype)
        self.tail = tail
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor(weights, dtype=DOUBLE)[:, None])

    def forward(self, x):
        return self.tail(self.linear(x))


def log_of_sigmoids(z):
    return torch.log(torch.sigmoid(z))


TIES = {
    "cast": ([1.0, 1 + 1e-12], lambda z: z.float(), DOUBLE, 1.0),
    "softmax of a cast": ([1e6, 1e6 + 1e-3], lambda z: torch.softmax(z.float(), 1), DOUBLE, 1.0),
    "cast of a softmax": ([0.01, 0.01 + 2e-8, -50.0], lambda z: torch.softmax(z, 1).double(), SINGLE, 1.0),
    "cast of a log-softmax": ([0.01, 0.01 + 2e-8, -50.0], lambda z: torch.log_softmax(z, 1).double(), SINGLE, 1.0),
    "underflow": ([1e-10, 1.2e-10], lambda z: z, SINGLE, 1e-35),
}


@pytest.mark.parametrize("method", ["ibp", "crown"])
@pytest.mark.parametrize("case", TIES)
def test_outputs_that_tie_are_not_certified(case, method):
    weights, tail, dtype, x = TIES[case]
    module, x = Outputs(weights, tail, dtype).eval(), torch.full((1, 1), x, dtype=dtype)
    outputs = module(x)
    assert outputs[0, 0] == outputs[0, 1]
    assert not CertifiedModel(module, ParameterBounds.point(module), method).certify(x).certified.any()


def test_a_sigmoid_that_rounds_to_one_half_decides_nothing():
    module = Outputs([1e-9], lambda z: torch.sigmoid(z).double(), SINGLE).eval()
    assert module(torch.ones(1, 1)) == 0.5
    assert not CertifiedModel(module, ParameterBounds.point(module)).certify(torch.ones(1, 1)).certified.any()


def test_logarithms_of_sigmoids_that_tie_are_not_certified():
    """They are scores of classes if the loss compares them with class labels."""

    def loss(module, batch):
        return nn.functional.cross_entropy(module(batch[0]), batch[1])

    module, x = Outputs([17.0, 18.0], log_of_sigmoids, SINGLE), torch.ones(1, 1)
    batch = (x, torch.tensor([1]))
    assert module(x)[0, 0] == module(x)[0, 1]
    engine = AbstractGradientEngine(module, loss, BoundedAdversary(n=0))
    engine.step([batch], torch.optim.SGD(module.parameters(), 0.0))
    bounded = engine.objective(batch)
    task = Task.of(bounded.objective, bounded.parameters)
    assert not CertifiedModel(module, engine.bounds, task=task).certify(x).certified.any()


def test_flips_are_not_counted_for_outputs_that_tie():
    """The outputs of the head differ by less than a log-softmax can tell; as outputs they differ enough."""

    def loss(module, batch):
        return nn.functional.mse_loss(module.linear(batch[0]), 2 * nn.functional.one_hot(batch[1], 2).float())

    x, y = torch.tensor([[1.0], [1.125], [1.25], [1.375]]), torch.ones(4, dtype=torch.long)
    flips = BoundedAdversary(n=0, nu=1, q=0)
    for tail, expected in ((lambda z: z, 4), (lambda z: torch.log_softmax(z, dim=1), 0)):
        module = Outputs([0.0, 1e-8], tail, SINGLE)
        engine = AbstractGradientEngine(module, loss, flips, domains="influence")
        engine.step([(x, y)], torch.optim.SGD(module.parameters(), 1e-30))
        certified = CertifiedModel(module, engine.bounds, sets=engine.parameter_sets)
        outputs = module(torch.ones(1, 1))
        assert bool(outputs[0, 0] == outputs[0, 1]) == (expected == 0)
        assert certified.certified_flips(torch.ones(1, 1)).item() == expected


@pytest.mark.parametrize(("dtype", "weight", "x"), [(SINGLE, 1e-25, 1e30), (DOUBLE, 1e-200, 1e300)])
@pytest.mark.parametrize("between", [nn.Identity(), nn.ReLU()], ids=["linear", "relu"])
def test_coefficients_of_linear_forms_that_underflow(dtype, weight, x, between):
    module = nn.Sequential(nn.Linear(1, 1, bias=False), between, nn.Linear(1, 1, bias=False)).to(dtype)
    for parameter in module.parameters():
        nn.init.constant_(parameter, weight)
    inputs = torch.full((1, 1), x, dtype=dtype)
    model = CertifiedModel(module, ParameterBounds.point(module), "crown", dtype=dtype)
    assert model.bound_forward(inputs, epsilon=x / 100).contains(module(inputs).detach())


def test_the_norm_of_a_tiny_row():
    module = nn.Linear(2, 1, bias=False).double()
    nn.init.ones_(module.weight)
    inputs, moved = torch.zeros(1, 2, dtype=DOUBLE), torch.tensor([[1e-170, 0.0]], dtype=DOUBLE)
    for method in ("ibp", "crown"):
        model = CertifiedModel(module, ParameterBounds.point(module), method)
        assert model.bound_forward(inputs, epsilon=1e-170, p=2).contains(module(moved).detach())


def test_bounds_in_real_arithmetic_are_not_carried_on_as_those_of_runs():
    module = nn.Linear(1, 1)
    real = AbstractGradientEngine(module, lambda m, batch: m(batch[0]).mean(), BoundedAdversary(n=0), floats="real")
    run = AbstractGradientEngine(module, lambda m, batch: m(batch[0]).mean(), BoundedAdversary(n=0))
    with pytest.raises(BoundsMismatchError, match="real arithmetic|floats"):
        run.restore(real.state())
    real.restore(run.state())
