"""A ``log_softmax`` that code computes as ``log(softmax(z))``: bounds end before a probability of a run is zero."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agt_lightning.adversaries import BoundedAdversary
from agt_lightning.bounds import ParameterBounds
from agt_lightning.certificates import CertifiedModel
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.rules.softmax import WrittenLogarithm
from tests.rules.float_laws import build, execute, in_double, require_run_inside, rounded, widened_bounds
from tests.rules.laws import Box, Domain, Setting

aten = torch.ops.aten
SINGLE, DOUBLE = torch.float32, torch.float64
RATE = 0.01


def log_of_softmax(m, z):
    return z.softmax(1).log()


def nll(m, z):
    return F.nll_loss(log_of_softmax(m, z), torch.tensor([0, 1, 2]), reduction="none")


WRITTEN = {"log": log_of_softmax, "nll_loss": nll}
EVERY = pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)


def require_contained(function, apart, grad=1.0, dtype=SINGLE, floats="run"):
    """Raise unless a run at logits so far apart stays inside."""
    setting = Setting("written", aten.log.default, function, (Box((3,)),))
    program = build(setting, dtype, rounded(floats=floats))
    logits = torch.stack([torch.tensor([0.3, -0.9, apart], dtype=dtype).roll(turn) for turn in range(3)])
    seed = torch.full(program.graph.shapes[program.graph.output], grad, dtype=dtype)
    domain = Domain((Interval.point(logits),), {}, Interval.point(seed))
    bounds = widened_bounds(program, in_double(domain))
    require_run_inside(setting, bounds, execute(setting, domain, dtype, lambda value: value.lower))


@EVERY
@pytest.mark.parametrize("apart", [0.0, 10.0, 40.0, 58.0])
def test_logarithms_of_normal_probabilities_are_contained(written, apart):
    require_contained(written, apart)
    require_contained(written, 10 * apart, dtype=DOUBLE)


@EVERY
@pytest.mark.parametrize(("dtype", "apart"), [(SINGLE, 90.0), (SINGLE, 150.0), (DOUBLE, 720.0), (DOUBLE, 800.0)])
def test_probabilities_that_underflow_are_refused(written, dtype, apart):
    with pytest.raises(UncertifiableError, match=r"Use `F.log_softmax`"):
        require_contained(written, apart, dtype=dtype)


@EVERY
def test_quotients_that_overflow_are_refused(written):
    """p is normal, but a gradient of 1e12 divided by it is infinite."""
    with pytest.raises(UncertifiableError, match=r"Use `F.log_softmax`"):
        require_contained(written, 80.0, grad=1e12)
    require_contained(written, 30.0, grad=1e12)


@EVERY
@pytest.mark.parametrize(("apart", "grad"), [(101.0, 1.0), (150.0, 1.0), (80.0, 1e12)])
def test_runs_leave_bounds_that_know_nothing_of_underflow(written, apart, grad, monkeypatch):
    """Planted fault: the fused call is a `log_softmax`, whatever the code computes."""
    monkeypatch.setattr(WrittenLogarithm, "of", lambda *_: None)
    with pytest.raises(AssertionError, match="leaves its bounds"):
        require_contained(written, apart, grad)


def test_runs_in_real_arithmetic_have_no_limit():
    setting = Setting("real", aten.log.default, log_of_softmax, (Box((3,)),))
    program = build(setting, SINGLE, rounded(floats="real"))
    logits = Interval.point(torch.tensor([[0.0, 0.0, 200.0]]).expand(3, 3).double())
    seed = Interval.point(torch.ones(3, 3).double())
    assert widened_bounds(program, Domain((logits,), {}, seed)).output.contains(
        torch.tensor([[-200.0, -200.0, 0.0]] * 3).double()
    )


# --- trainings -------------------------------------------------------------------------------------------------------


def network():
    module = nn.Linear(1, 3, bias=False)
    module.weight.data = torch.tensor([[1.0], [0.0], [-0.2]])
    return module


def training_loss(module, batch):
    return F.nll_loss(module(batch[0]).softmax(1).log(), batch[1])


def stable_loss(module, batch):
    return F.nll_loss(module(batch[0]).log_softmax(1), batch[1])


CLEAN, LABELS = torch.tensor([[40.0], [-3.0], [2.0]]), torch.tensor([0, 1, 2])
POISONED = torch.tensor([[100.0], [-3.0], [2.0]])
"""Logits of the first sample are 120 apart: in single precision the smallest probability is zero."""


def trained(loss, features):
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    loss(module, (features, LABELS)).backward()
    optimizer.step()
    return module.weight.detach()


def certified(loss, epsilon):
    module = network()
    engine = AbstractGradientEngine(module, loss, BoundedAdversary(n=1, epsilon=epsilon))
    engine.step([(CLEAN, LABELS)], torch.optim.SGD(module.parameters(), lr=RATE))
    return engine.box["weight"]


def test_a_training_that_poison_drives_to_a_logarithm_of_zero_is_refused():
    assert trained(training_loss, CLEAN).isfinite().all()
    assert trained(training_loss, POISONED).isnan().any()
    with pytest.raises(UncertifiableError, match=r"a probability can be zero in float32"):
        certified(training_loss, 60.0)


def test_a_log_softmax_of_the_same_logits_is_certified():
    assert certified(stable_loss, 60.0).contains(trained(stable_loss, POISONED).double())


@pytest.mark.parametrize("moved", [-5.0, 5.0])
def test_poisoned_runs_of_a_weaker_adversary_stay_inside(moved):
    features = CLEAN + torch.tensor([[moved], [0.0], [0.0]])
    assert certified(training_loss, 5.0).contains(trained(training_loss, features).double())


class Predictor(nn.Sequential):
    """Logarithms of probabilities of logits that are 120 apart."""

    def __init__(self):
        super().__init__(network())

    def forward(self, x):
        return super().forward(x).softmax(1).log()


def test_outputs_that_are_infinite_are_refused():
    module = Predictor()
    assert module(POISONED).isinf().any()
    model = CertifiedModel(module, ParameterBounds.point(module))
    assert bool(model.certify(CLEAN).certified.all())
    for certify in (model.certify, model.bound_forward):
        with pytest.raises(UncertifiableError, match="a probability can be zero"):
            certify(POISONED)
