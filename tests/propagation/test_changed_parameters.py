"""Parameters that are changed before they meet the data: bounds of the change, and gradients taken back through it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.errors import UncertifiableError, UnsoundBoundError
from agt_lightning.gradients import Elementwise, PulledBack
from agt_lightning.interval import Interval
from agt_lightning.propagation import ibp
from tests.engine.attacks import LOSSES, Attacks, assert_contained, data
from tests.faults import Fault

WIDTH = 4
INDEX = torch.tensor([2, 0, 2, 1])


class Changed(nn.Module):
    """One parameter, made into a weight or a shift by calls on it alone."""

    def __init__(self, shape, change):
        super().__init__()
        self.value = nn.Parameter(torch.rand(shape) + 0.2)
        self.change = change

    def forward(self, x):
        return self.change(x, self.value)


CHANGES = {
    "temperature": lambda: Changed((1,), lambda x, p: x * p.exp()),
    "square": lambda: Changed((WIDTH,), lambda x, p: x * p**2 + p.square()),
    "positions": lambda: Changed((1, 6), lambda x, p: x + p[:, 1:5]),
    "table": lambda: Changed((3,), lambda x, p: x * p[INDEX]),
    "row": lambda: Changed((WIDTH,), lambda x, p: x - p[None]),
    "tied halves": lambda: Changed((2,), lambda x, p: x * torch.cat([p, -p])),
    "copies": lambda: Changed((1, 1), lambda x, p: x * p.expand(1, WIDTH) + p.repeat(1, WIDTH)),
    "gain of a weight": lambda: Changed((WIDTH, 1), lambda x, p: x @ (torch.eye(WIDTH, dtype=x.dtype) * p.sigmoid())),
    "transposed": lambda: Changed((3, WIDTH), lambda x, p: torch.tanh(x @ p.mT) @ p),
    "single number": lambda: Changed((), lambda x, p: x * p.exp() + p.expand(WIDTH)),
    "choices": lambda: Changed((2, WIDTH), lambda x, p: x * torch.maximum(*p) + p[0].masked_fill(INDEX > 1, 0.5)),
    "image": lambda: Changed((1, 1, 2), lambda x, p: x * F.interpolate(p, WIDTH).flatten()),
    "quotient": lambda: Changed((WIDTH,), lambda x, p: x / (1 + p.abs())),
    "twice and alone": lambda: Changed((WIDTH,), lambda x, p: x * (2 * p) + p * p.tanh()),
}


def module_of(name):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, WIDTH), CHANGES[name](), nn.Linear(WIDTH, 3)).double()


def engine_of(module, adversary=None, **settings):
    adversary = adversary or BoundedAdversary(n=2, epsilon=0.1)
    return AbstractGradientEngine(module, lambda m, b: LOSSES["ce"](m(b[0]), b[1]), adversary, **settings)


@pytest.mark.thinned(5)
@pytest.mark.parametrize("method", ["ibp", "tightest"])
@pytest.mark.parametrize("name", CHANGES)
def test_bounds_contain_every_poisoned_run(name, method):
    if method != "ibp" and name not in ("temperature", "transposed"):
        pytest.skip("forward bounds are the same")
    adversary, generator = BoundedAdversary(n=2, epsilon=0.1, nu=1, q=0), torch.Generator().manual_seed(0)
    module = module_of(name)
    engine, optimizer = engine_of(module, adversary, method=method), torch.optim.SGD(module.parameters(), lr=0.05)
    attacks = Attacks(module, "ce", adversary, 0.05, 0.0, generator)
    for x, y in data("ce", generator)[:3]:
        attacks.step(x, y)
        engine.step([(x, y)], optimizer)
        assert_contained(engine, attacks.runs)
    moved = attacks.runs["1.value"] - module.get_parameter("1.value").detach()
    assert float(moved.abs().max()) > 1e-6  # the attacks reach the changed parameter


def require_autograd(name="twice and alone"):
    """Raise unless gradients of single samples, of width zero, are those of autograd."""
    module = module_of(name)
    engine = engine_of(module, BoundedAdversary(n=0), floats="real")
    x, y = data("ce", torch.Generator().manual_seed(1))[0]
    weights = {key: value.detach() for key, value in module.named_parameters()}

    def loss(values, x, y):
        return F.cross_entropy(functional_call(module, values, (x[None],)), y[None])

    exact = vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, y)["1.value"].mean(0)
    before = module.get_parameter("1.value").detach().clone()
    try:
        engine.step([(x, y)], torch.optim.SGD(module.parameters(), lr=1.0))
    except UnsoundBoundError as error:  # the engine compares both as well
        raise AssertionError("another gradient") from error
    box = engine.bounds["1.value"]
    assert torch.allclose(before - box.center, exact, rtol=1e-9, atol=1e-12), "another gradient"
    assert float(box.width.max()) < 1e-9


@pytest.mark.parametrize("name", CHANGES)
def test_without_an_adversary_the_gradient_is_that_of_autograd(name):
    require_autograd(name)


def test_domains_that_need_the_parameters_themselves_are_left_out():
    module = nn.Sequential(nn.Linear(3, WIDTH), Changed((WIDTH, 3), lambda x, p: x.relu() @ (2 * p))).double()
    engine = engine_of(module, domains=("box", "ball"))
    with pytest.raises(UncertifiableError, match="ball"):
        engine.step(data("ce", torch.Generator().manual_seed(1))[:1], torch.optim.SGD(module.parameters(), lr=0.1))


def test_products_of_two_parameters_are_refused_with_a_way_out():
    module = nn.Sequential(nn.Linear(3, WIDTH), Changed((WIDTH, WIDTH), lambda x, p: x @ (p @ p))).double()
    engine = AbstractGradientEngine(module, lambda m, b: m(b[0]).square().mean(), BoundedAdversary(n=1, epsilon=0.1))
    with pytest.raises(UncertifiableError, match="changes a parameter before it meets the data.*move elements"):
        engine.step([(torch.ones(2, 3).double(),)], torch.optim.SGD(module.parameters(), lr=0.1))


def test_a_power_without_bounds_is_refused_for_parameters_as_well():
    module = nn.Sequential(nn.Linear(3, WIDTH), Changed((WIDTH,), lambda x, p: x * p**0)).double()
    engine = AbstractGradientEngine(module, lambda m, b: m(b[0]).square().mean(), BoundedAdversary(n=1, epsilon=0.1))
    with pytest.raises(UncertifiableError, match="exponent 0. Write the constant itself"):
        engine.step([(torch.ones(2, 3).double(),)], torch.optim.SGD(module.parameters(), lr=0.1))


def test_rounding_of_sums_over_samples_is_relative_to_what_is_added():
    """Two entries that cancel after the change: a run adds up each of them over all samples first."""
    result = Elementwise(Interval.point(torch.tensor([[1.0, -1.0]], dtype=torch.float64).expand(8, 2)))
    gradient = PulledBack(
        result, lambda each: each.mapped(lambda bound: bound.sum(1, keepdim=True)), (1,), torch.float32
    )
    arithmetic = Arithmetic(torch.float32, torch.float64)
    wide = gradient.rounded(arithmetic, 8).total(torch.ones(8, dtype=torch.float64))
    assert float(wide.width) >= 16 * arithmetic.run_relative(8)


def only_the_last_use(uses):
    return uses[-1]


def without_slope(rule, site, position, values, gradient):
    return gradient.rearranged(lambda bound: bound.reshape(len(bound), *values[site.call.inputs[position]].shape))


FAULTS = [
    Fault("one use of two", require_autograd, only_the_last_use, (ibp, "_summed")),
    Fault("no slope", lambda: require_autograd("temperature"), without_slope, (ibp, "_back")),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_wrong_way_back_is_noticed(fault):
    fault.require_noticed("another gradient")
