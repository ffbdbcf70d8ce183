"""Width of gradient bounds: that it bounds gradients, and that torch differentiates it."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agt_lightning import UncertifiableError
from agt_lightning.propagation.gradient_width import GradientWidth

ROUNDING = 1e-9
EPSILON, SPREAD = 0.05, 0.02
FAR = 0.3  # some gradient is that part of the way from the center to a bound: the interval is not much too wide


def dense():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2), nn.Tanh(), nn.Conv2d(2, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1)
    )


NETWORKS = {"dense": (dense, (3,)), "convolutional": (convolutional, (1, 7, 7))}


def logistic(module, batch):
    return F.binary_cross_entropy_with_logits(module(batch[0]).squeeze(-1), batch[1])


@pytest.fixture(params=NETWORKS)
def problem(request):
    """A network with a batch of five, of inputs from 0 to 1."""
    build, shape = NETWORKS[request.param]
    torch.manual_seed(3)
    network = build().double()
    return network, (torch.rand(5, *shape, dtype=torch.float64), torch.tensor([0.0, 1, 1, 0, 1], dtype=torch.float64))


def width_of(network, **settings):
    return GradientWidth(network, logistic, dtype=torch.float64, **{"epsilon": EPSILON, "spread": SPREAD} | settings)


def gradient_at(network, batch):
    network.zero_grad()
    logistic(network, batch).backward()
    return {name: p.grad.clone() for name, p in network.named_parameters()}


def moved(network, batch, generator, bounds=None):
    """The gradient at one point of the inputs' and parameters' reach, at a corner of it every other time."""
    twin = {name: p.detach().clone() for name, p in network.named_parameters()}

    def draw(like):
        share = 2 * torch.rand(like.shape, generator=generator, dtype=like.dtype) - 1
        return share.sign() if generator.initial_seed() % 2 else share

    with torch.no_grad():
        for name, p in network.named_parameters():
            p.add_(SPREAD * twin[name].abs() * draw(p))
    x = batch[0] + EPSILON * draw(batch[0])
    found = gradient_at(network, (x if bounds is None else x.clamp(*bounds), batch[1]))
    with torch.no_grad():
        for name, p in network.named_parameters():
            p.copy_(twin[name])
    return found


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_the_interval_contains_every_gradient_in_reach(problem, bounds):
    network, batch = problem
    with torch.no_grad():
        interval = width_of(network, bounds=bounds).interval(batch)
    farthest = 0.0
    for seed in range(100):
        for name, value in moved(network, batch, torch.Generator().manual_seed(seed), bounds).items():
            assert interval[name].contains(value, ROUNDING), name
            farthest = max(farthest, float(((value - interval[name].center).abs() / interval[name].radius).max()))
    assert farthest > FAR


def test_a_batch_that_cannot_move_has_its_gradient_and_no_width(problem):
    network, batch = problem
    width = width_of(network, epsilon=0.0, spread=0.0)
    expected = gradient_at(network, batch)
    for name, bounds in width.interval(batch).items():
        torch.testing.assert_close(bounds.lower, expected[name])
        assert bounds.is_point
    assert float(width(batch).detach()) == 0.0


def test_the_width_is_the_root_mean_square_over_all_parameters(problem):
    network, batch = problem
    width = width_of(network)
    entries = [x for bounds in width.interval(batch).values() for x in (bounds.upper - bounds.lower).flatten().tolist()]
    assert len(entries) == sum(p.numel() for p in network.parameters())
    assert width(batch).item() == pytest.approx(math.sqrt(sum(x * x for x in entries) / len(entries)))


@pytest.mark.parametrize("settings", [{"epsilon": 0.0}, {"spread": 0.0}, {}, {"bounds": (0.0, 1.0)}], ids=str)
def test_its_derivative_is_that_of_finite_differences(problem, settings):
    """Along random directions; where a unit switches within the step the difference means nothing, so it is small."""
    network, batch = problem
    width = width_of(network, **settings)
    width(batch).backward()
    derivatives = [p.grad.clone() for p in network.parameters()]
    step = 1e-7
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in network.parameters()]

        def at(distance, directions=directions):
            with torch.no_grad():
                for p, direction in zip(network.parameters(), directions, strict=True):
                    p.add_(distance * direction)
                found = width(batch).item()
                for p, direction in zip(network.parameters(), directions, strict=True):
                    p.sub_(distance * direction)
            return found

        expected = (at(step) - at(-step)) / (2 * step)
        slope = sum(float((g * d).sum()) for g, d in zip(derivatives, directions, strict=True))
        assert slope == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_more_reach_is_more_width(problem):
    network, batch = problem
    widths = [
        width_of(network, epsilon=e, spread=s)(batch).item()
        for e, s in ((0.0, 0.0), (0.05, 0.0), (0.05, 0.02), (0.1, 0.02))
    ]
    assert widths == sorted(set(widths))


def test_descent_makes_it_smaller(problem):
    network, batch = problem
    width = width_of(network)
    before = width(batch).item()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        width(batch).backward()
        optimizer.step()
    assert width(batch).item() < 0.9 * before


def test_frozen_parameters_have_no_width_and_stand_still(problem):
    network, batch = problem
    first = network[0]
    first.requires_grad_(False)
    width = width_of(network)
    assert "0.weight" not in width.interval(batch)
    width(batch).backward()
    assert first.weight.grad is None


def test_nothing_is_converted_in_a_way_that_torch_warns_of(problem):
    network, batch = problem
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        width_of(network)(batch).backward()


def test_batches_of_other_sizes_are_recorded_again(problem):
    network, (x, y) = problem
    width = width_of(network)
    sizes = [width((x[:n], y[:n])).item() for n in (2, 5, 2)]
    assert sizes[0] == sizes[2] != sizes[1]


def test_a_loss_without_bounds_is_refused():
    network = nn.Linear(2, 1)
    with pytest.raises(UncertifiableError):
        GradientWidth(network, lambda m, x: torch.linalg.svd(m(x)).S.sum(), epsilon=0.1)(torch.ones(3, 2))


@pytest.mark.parametrize("settings", [{"epsilon": -1.0}, {"spread": -0.1}, {"spread": math.nan}])
def test_radii_are_checked(settings):
    with pytest.raises(ValueError, match=f"Expected `{next(iter(settings))}`"):
        GradientWidth(nn.Linear(2, 1), logistic, **settings)
