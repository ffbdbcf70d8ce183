"""Numbers that were made to leave the bounds: sums that lose all small terms, tiny factors, underflow."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from agt_lightning.aggregation import SampleSet, bounded_descent
from agt_lightning.aggregation.mean_clipping import MeanNormClipping
from agt_lightning.arithmetic import product
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.errors import UncertifiableError, UnsoundBoundError
from agt_lightning.gradients import Elementwise, OuterProduct
from agt_lightning.interval import Interval

STILL = BoundedAdversary(n=0)


def trained(module, loss, batches, optimizer):
    """Train with certification; the engine itself compares the run with its bounds."""
    engine = AbstractGradientEngine(module, loss, STILL)
    for batch in batches:
        engine.step([batch], optimizer)
    return engine.box


class Scaled(nn.Module):
    """A product with one parameter, which meets every position."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x * self.weight


def linear():
    module = nn.Linear(1, 1)
    nn.init.zeros_(module.weight)
    return module


@pytest.mark.parametrize("make", [linear, Scaled], ids=["linear", "elementwise"])
def test_one_sum_over_samples_and_positions(make):
    """Summed one after another, 8191 terms of almost half a unit in the last place of the first one are lost."""
    samples, positions = 16, 512
    x = torch.full((samples, positions, 1), 0.99 * 2.0**-24)
    x[0, 0] = 1.0
    module = make()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    box = trained(module, lambda m, batch: m(batch[0]).sum(dim=(1, 2)).mean(), [(x,)], optimizer)
    total = torch.zeros(())
    for entry in x.flatten():
        total = total + entry / samples
    assert box["weight"].contains(-total.double())
    assert box["weight"].width.max() < 1e-3


class Narrowed(nn.Module):
    """A parameter in double precision that meets its data in single precision: as it is, or changed before."""

    def __init__(self, shape):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape, dtype=torch.float64))

    def forward(self, x):
        return x * (self.weight.float() if self.weight.ndim else self.weight)


@pytest.mark.parametrize("shape", [(1,), ()], ids=["cast", "a single number"])
def test_a_sum_over_samples_in_a_coarser_type_than_the_parameter(shape):
    x = torch.full((4096,), 0.99 * 2.0**-24)
    x[0] = 1.0
    module = Narrowed(shape)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    box = trained(module, lambda m, batch: m(batch[0]).mean(), [(x,)], optimizer)
    total = torch.zeros(())
    for entry in x:
        total = total + entry / len(x)
    assert box["weight"].contains(-total.double().reshape(shape))
    assert box["weight"].width.max() < 1e-6


def test_one_sum_over_samples_and_time_steps_of_a_recurrent_layer():
    """A kernel takes the gradient of a state's weight in one product of all steps."""
    samples = steps = 32
    x = torch.full((samples, steps, 1), 0.99 * 2.0**-24)
    x[0, 1] = 1.0
    module = nn.RNN(1, 1, batch_first=True, nonlinearity="relu")
    for name, value in module.named_parameters():
        nn.init.constant_(value, float("bias" in name))  # the state is 2 from the first step on
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    before = {name: value.detach().double() for name, value in module.named_parameters()}

    def loss(m, batch):
        return (m(batch[0])[0] * batch[1]).sum(dim=(1, 2)).mean()

    box = trained(module, loss, [(torch.ones_like(x), x)], optimizer)
    for name, terms in (("bias_hh_l0", x), ("weight_hh_l0", 2 * x[:, 1:])):
        total = torch.zeros(())
        for entry in sorted((terms / samples).flatten().tolist(), reverse=True):
            total = total + entry
        assert box[name].contains(before[name] - total.double()), name
        assert box[name].width.max() < 1e-3


class Lengths(nn.Module):
    """The norm of each sample, moved by a parameter."""

    def __init__(self, dtype):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(2, dtype=dtype))

    def forward(self, x):
        return torch.linalg.vector_norm(x + self.shift, dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratios", [(0.69, 0.69), (1.2, 0.0), (0.8, 0.69)], ids=str)
def test_norms_of_vectors_whose_squares_underflow(ratios, dtype):
    """Such a vector is the origin for a run, or longer or shorter than it is; no direction is right."""
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    x = torch.tensor([ratios], dtype=dtype).repeat(2, 1) * smallest**0.5
    module = Lengths(dtype)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    box = trained(module, lambda m, batch: m(batch[0]).mean(), [(x,)], optimizer)
    assert box["shift"].contains(module.shift.detach().double())
    assert box["shift"].contains(torch.zeros(2).double())
    assert box["shift"].width.max() < 1.3


def gradients(values):
    """The same values as an element-wise gradient and as a product with ones."""
    outputs = values.mapped(lambda bound: bound.reshape(-1, 1, 1))
    ones = Interval.point(torch.ones_like(outputs.lower))
    return Elementwise(values), OuterProduct(outputs, ones)


@pytest.mark.parametrize("kind", [0, 1], ids=["elementwise", "outer product"])
def test_a_gain_that_takes_back_a_large_term(kind):
    """The total loses small terms beside -100, which a poisoned sample can take back."""
    samples, small = 2**12, 0.49 * 2.0**-46
    clean = torch.full((samples, 1), small, dtype=torch.float64)
    clean[0] = -100.0
    poisoned = clean.clone()
    poisoned[0] = 0.0
    own = Arithmetic(None, torch.float64)
    both = [
        gradients(values)[kind].rounded(own, samples + 18)
        for values in (Interval.point(clean), Interval.trusted(clean, poisoned))
    ]
    bounds = bounded_descent(*both, SampleSet(torch.ones(samples, dtype=torch.float64)), 1, 2**24)
    assert Fraction(bounds.upper.item()) >= Fraction(small) * (samples - 1)


@pytest.mark.parametrize("implementation", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("beta", [0.25, 0.01, 0.001])
def test_adam_with_little_memory(beta, dtype, implementation):
    """Torch keeps ``1 - fl(1 - β1)`` of the old moment, which is no rounding of β1."""
    module = nn.Linear(1, 1, bias=False).to(dtype)
    batches = [(torch.ones(2, 1, dtype=dtype), torch.full((2, 1), slope, dtype=dtype)) for slope in (1.0, 1e-7, 1e-7)]
    optimizer = torch.optim.Adam(module.parameters(), lr=1.0, betas=(beta, 0.999), **implementation)
    box = trained(module, lambda m, b: (m(b[0]) * b[1]).sum(dim=1).mean(), batches, optimizer)
    assert box["weight"].contains(module.weight.double())


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1, weight_decay=1e-4),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("value", [1.234e-37, 1.23e-39])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_decay_that_underflows_at_a_parameter_without_gradient(optimizer, value):
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    nn.init.constant_(module[0].weight, value)
    made = OPTIMIZERS[optimizer](module.parameters())
    box = trained(module, lambda m, b: m(b[0]).sum(dim=1).mean(), 3 * [(-torch.ones(2, 1),)], made)
    assert box["0.weight"].contains(module[0].weight.double())


class Shifted(nn.Module):
    """A product with what is left of a difference."""

    def __init__(self, shift):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("shift", shift)

    def forward(self, x):
        return (x - self.shift) * self.weight


@pytest.mark.parametrize(
    ("x", "shift"),
    [(0.1, torch.tensor(0.1, dtype=torch.float64)), (2.0**24, torch.tensor([2**24 + 1]))],
    ids=["a single number of a wider type", "a large integer"],
)
def test_a_difference_from_a_number_of_another_type(x, shift):
    """Torch rounds such a number to the type of the result first, and nothing is left of the difference."""
    module = Shifted(shift)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    batch = (torch.full((2, 1), x),)
    box = trained(module, lambda m, b: m(b[0]).sum(dim=1).mean(), [batch], optimizer)
    assert module.weight == 1
    assert box["weight"].contains(torch.ones(1))


def test_terms_of_a_loss_that_cancel():
    """The slope of 0.1 is a difference of two that are 10 000 times as large, each of which is rounded."""
    module = linear()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)

    def loss(m, batch):
        losses = m(batch[0]).sum(dim=1)
        return 1000 * losses.mean() - 999.9 * losses.mean()

    box = trained(module, loss, [(torch.ones(4, 1),)], optimizer)
    assert box["weight"].contains(module.weight.double())


def test_runs_whose_numbers_can_overflow_are_refused():
    """exp(100) is a number in the double precision of the bounds, infinite in a run: its gradient is NaN."""
    module = linear()
    nn.init.constant_(module.weight, 50.0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    engine = AbstractGradientEngine(
        module, lambda m, batch: torch.log(1 + torch.exp(m(batch[0]))).mean(), BoundedAdversary(n=1, epsilon=1.0)
    )
    with pytest.raises(UncertifiableError, match="range of float32"):
        engine.step([(torch.tensor([[1.0], [-1.0], [1.1]]),)], optimizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_products_with_intervals_that_end_at_zero(dtype):
    """Center and radius of ``[0, h]`` are as large as its upper end, and so is their rounding."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        point = torch.randn(1, 300, generator=generator, dtype=torch.float64).to(dtype)
        ends = torch.rand(300, 1, generator=generator, dtype=torch.float64).to(dtype)
        bounds = product(Interval.point(point), Interval(torch.zeros_like(ends), ends))
        terms = [Fraction(float(a)) * Fraction(float(b)) for a, b in zip(point[0], ends[:, 0], strict=True)]
        assert Fraction(float(bounds.lower)) <= sum(min(term, 0) for term in terms)
        assert Fraction(float(bounds.upper)) >= sum(max(term, 0) for term in terms)


@pytest.mark.parametrize("size", [1e15, 1e19, 1e20, 1e30])
@pytest.mark.parametrize("foreach", [False, True])
def test_norms_that_overflow_clip_to_zero(size, foreach):
    gradient = torch.tensor([2.0, -2.0, 1.0, 2.0]) * size
    parameter = nn.Parameter(torch.zeros(4))
    parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_([parameter], 1.0, foreach=foreach)
    bounds = MeanNormClipping(1.0).bounds(
        {"w": Interval.point(gradient.double())}, Arithmetic(torch.float32, torch.float64)
    )
    assert bounds["w"].contains(parameter.grad.double())


def test_gains_take_back_what_a_total_in_single_precision_lost():
    """Against fractions."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        clean = torch.randn(64, 1, 1, generator=generator) * 10 ** (4 * torch.rand(64, 1, 1, generator=generator))
        poisoned = clean + 1e-3 * torch.rand(64, 1, 1, generator=generator) * clean.abs()
        ones = Interval.point(torch.ones(64, 1, 1), nonnegative=True)
        gradients = [
            OuterProduct(Interval(clean, high), ones).rounded(Arithmetic(None, torch.float32), 64 + 18)
            for high in (clean, poisoned)
        ]
        bound = bounded_descent(*gradients, SampleSet(torch.ones(64)), 4, 2**24)
        fractions = [
            (Fraction(float(a)), Fraction(float(b))) for a, b in zip(clean.flatten(), poisoned.flatten(), strict=True)
        ]
        gains = sorted((b - a for a, b in fractions), reverse=True)[:4]
        assert Fraction(float(bound.upper)) >= sum(a for a, _ in fractions) + sum(gains)


def poisoned_step(run, own, optimizer, floats="run", domains="box", x=1.0, y=0.0, nu=0.0, epsilon=0.0, inputs=1):
    """Certify one step, and make it with the largest poison; return the bounds, and the poisoned run's parameters."""

    def made():
        module = nn.Linear(inputs, 1, bias=False).to(run)
        nn.init.constant_(module.weight, 1.0 if epsilon else 0.0)
        return module

    def loss(module, batch):
        return nn.functional.mse_loss(module(batch[0]), batch[1])

    features, labels = torch.full((1, inputs), x, dtype=run), torch.full((1, 1), y, dtype=run)
    module, poisoned = made(), made()
    adversary = BoundedAdversary(n=1, nu=nu, epsilon=epsilon)
    engine = AbstractGradientEngine(module, loss, adversary, domains=domains, dtype=own, floats=floats)
    engine.step([(features, labels)], optimizer(module.parameters()))
    poisoner = optimizer(poisoned.parameters())
    loss(poisoned, (features + epsilon, labels + nu)).backward()
    poisoner.step()
    return engine.box["weight"], poisoned.weight.detach().double()


def sgd(rate):
    return lambda parameters: torch.optim.SGD(parameters, rate)


@pytest.mark.parametrize(
    "settings",
    [
        {"run": torch.float64, "own": torch.float64, "domains": "auto", "x": 1e-165, "nu": 1e150, "inputs": 2},
        {"run": torch.float32, "own": torch.float32, "domains": "ball", "x": 1e-24, "nu": 1e15, "inputs": 2},
    ],
    ids=["double", "single"],
)
def test_norms_of_features_whose_squares_underflow(settings):
    bounds, poisoned = poisoned_step(optimizer=sgd(1.0), **settings)
    assert bounds.to(dtype=torch.float64).contains(poisoned)


def test_features_that_are_not_those_of_the_record():
    """One tenth is no number of single precision; a frozen layer that cancels has other outputs in real arithmetic."""
    settings = {"domains": "influence", "floats": "real", "x": 0.1, "nu": 1.0}
    bounds, poisoned = poisoned_step(torch.float64, torch.float32, sgd(0.5), **settings)
    assert bounds.to(dtype=torch.float64).contains(poisoned)
    module = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    module[0].weight.requires_grad_(False).copy_(torch.tensor([[1.0, 1.0, -1.0]]))
    nn.init.zeros_(module[1].weight)
    engine = AbstractGradientEngine(
        module,
        lambda m, batch: nn.functional.mse_loss(m(batch[0]), batch[1]),
        BoundedAdversary(n=1, nu=1.0),
        domains="influence",
        floats="real",
    )
    batch = (torch.tensor([[1e16, 1.0, 1e16]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    engine.step([batch], torch.optim.SGD([module[1].weight], 0.5))
    exact = 2 * Fraction(1, 2) * (Fraction(10**16) + 1 - Fraction(10**16))
    assert engine.box["1.weight"].contains(torch.tensor([[float(exact)]], dtype=torch.float64))


def test_a_rate_that_the_type_of_the_bounds_does_not_hold():
    bounds, poisoned = poisoned_step(torch.float64, torch.float32, sgd(1e-46), nu=1e30)
    assert poisoned != 0
    assert bounds.to(dtype=torch.float64).contains(poisoned)


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        (sgd(1e-10), {"epsilon": 1e20}),
        (lambda parameters: torch.optim.Adam(parameters, 1e-3), {"y": 2.5e20, "nu": 0.6e20}),
        (lambda parameters: torch.optim.RMSprop(parameters, 1e-3, alpha=0.999), {"y": 2.5e20, "nu": 0.6e20}),
        (lambda parameters: torch.optim.Adagrad(parameters, 1e-3), {"y": 2.5e20, "nu": 0.6e20}),
    ],
    ids=["gradient", "Adam", "RMSprop", "Adagrad"],
)
def test_gradients_and_squares_that_overflow_in_the_type_of_the_run_alone(optimizer, settings):
    with pytest.raises(UnsoundBoundError, match="in the range of torch.float32"):
        poisoned_step(torch.float32, torch.float64, optimizer, **settings)


class NearlyZero(nn.Module):
    """One hidden unit whose input, 0.3 - 0.1 - 0.2, is zero in no order of summation for certain."""

    def __init__(self, order):
        super().__init__()
        self.hidden, self.out = nn.Linear(3, 1, bias=False), nn.Linear(1, 1, bias=False)
        self.order = order
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor([[-0.1, -0.2, 0.3]]))
            self.out.weight.fill_(1.0)

    def forward(self, x):
        terms = x * self.hidden.weight.to(x.dtype)
        first, second, third = self.order
        total = (terms[:, first] + terms[:, second]) + terms[:, third]
        return self.out(torch.relu(total[:, None]))


@pytest.mark.parametrize("domains", ["box", "auto"])
def test_a_unit_whose_input_is_zero_up_to_rounding(domains):
    """Some orders of summation have it on, some off; a certified training must contain both gradients."""
    orders, ends = [(0, 1, 2), (0, 2, 1), (1, 2, 0)], []
    for order in orders:
        run = NearlyZero(order)
        (run(torch.ones(1, 3)) - 1.0).square().mean().backward()
        torch.optim.SGD(run.parameters(), lr=0.1).step()
        ends.append(run.hidden.weight.detach())
    assert any(not torch.equal(ends[0], end) for end in ends)
    module = nn.Sequential(nn.Linear(3, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[-0.1, -0.2, 0.3]]))
        module[2].weight.fill_(1.0)
    engine = AbstractGradientEngine(
        module, lambda m, batch: (m(batch[0]) - 1.0).square().mean(), BoundedAdversary(n=0), domains=domains
    )
    engine.step([(torch.ones(1, 3),)], torch.optim.SGD(module.parameters(), lr=0.1))
    for end in ends:
        assert engine.box["0.weight"].contains(end.double(), 0.0)
