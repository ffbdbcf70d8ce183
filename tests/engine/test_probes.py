"""The recorded step is compared with the step itself where an adversary can lead training."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agt_lightning.adversaries import BoundedAdversary, UnboundedAdversary
from agt_lightning.engine import AbstractGradientEngine, probes
from agt_lightning.errors import UncertifiableError

MARGIN = 1e-3
"""Distance of a threshold from the largest clean value."""

FEATURES = BoundedAdversary(n=1, epsilon=0.1)
LABELS = BoundedAdversary(n=1, nu=0.1)
ANYTHING = UnboundedAdversary(n=1, kappa=1.0)
ADVERSARIES = pytest.mark.parametrize("adversary", [FEATURES, LABELS, ANYTHING], ids=["features", "labels", "anything"])


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(7)
    return torch.randn(8, 3, generator=generator), torch.randn(8, 1, generator=generator)


def squared_error(module, batch):
    return F.mse_loss(module(batch[0]), batch[1])


def problems(module, batch, loss, adversary, trained=None):
    engine = AbstractGradientEngine(module, loss, adversary, trained=trained)
    return "\n".join(engine.problems(batch, torch.optim.SGD(module.parameters(), lr=0.1)))


@ADVERSARIES
def test_plain_steps_agree(adversary, network, batch):
    assert not problems(network, batch, squared_error, adversary)


@ADVERSARIES
def test_a_branch_of_the_step_that_the_recorded_loss_lacks(adversary, network, batch):
    """The loss is recorded without the branch that skips a batch of a large loss."""
    limit = squared_error(network, batch).item() + MARGIN

    def skips(module, batch):
        loss = squared_error(module, batch)
        return 0 * loss if loss.item() > limit else loss

    found = problems(network, batch, squared_error, adversary, trained=skips)
    assert "different gradients" in found
    assert "a batch that is skipped or weighed by its loss" in found


@pytest.mark.parametrize("adversary", [FEATURES, ANYTHING], ids=["features", "anything"])
def test_a_branch_that_recording_does_not_take(adversary, network, batch):
    limit = batch[0].abs().max() + MARGIN

    def loss(module, batch):
        large = type(batch[0]) is torch.Tensor and bool(batch[0].abs().max() > limit)  # no tensor is that in recordings
        return squared_error(module, batch) * (0.1 if large else 1.0)

    assert "torch.compiler.is_compiling" in problems(network, batch, loss, adversary)


def test_a_threshold_of_weights(network, batch):
    limit = max(parameter.norm().item() for parameter in network.parameters()) + MARGIN

    def trained(module, batch):
        large = max(parameter.norm().item() for parameter in module.parameters()) > limit
        return squared_error(module, batch) * (0.1 if large else 1.0)

    assert "different gradients" in problems(network, batch, squared_error, FEATURES, trained)


@ADVERSARIES
def test_a_hook_inside_of_the_model(adversary, network, batch):
    outputs = network(batch[0])
    (slope,) = torch.autograd.grad(F.mse_loss(outputs, batch[1]), [outputs])
    limit = slope.abs().max().item() + MARGIN

    def clipped(module, batch):
        outputs = module(batch[0])
        if outputs.requires_grad:
            outputs.register_hook(lambda gradient: gradient.clamp(-limit, limit))
        return F.mse_loss(outputs, batch[1])

    assert "different gradients" in problems(network, batch, squared_error, adversary, trained=clipped)


class Limited(torch.autograd.Function):
    """The identity, with a limit to its gradient that no gradient here reaches."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clamp(-1e9, 1e9)


def test_a_function_with_its_own_backward_pass(network, batch):
    def loss(module, batch):
        return F.mse_loss(Limited.apply(module(batch[0])), batch[1])

    assert "`Limited` is a `torch.autograd.Function`" in problems(network, batch, squared_error, FEATURES, trained=loss)


def test_flipped_labels(batch):
    torch.manual_seed(0)
    network = nn.Linear(3, 3)
    labels = torch.tensor([0, 0, 0, 1, 1, 0, 0, 2])

    def weighed(module, batch):
        loss = F.cross_entropy(module(batch[0]), batch[1])
        return loss * (0.5 if (batch[1] == 2).sum() > 1 else 1.0)

    def plain(module, batch):
        return F.cross_entropy(module(batch[0]), batch[1])

    flips = BoundedAdversary(n=1, nu=1, q=0)
    assert "different gradients" in problems(network, (batch[0], labels), plain, flips, trained=weighed)
    assert not problems(network, (batch[0], labels), plain, BoundedAdversary(n=0, nu=1, q=0), trained=weighed)


def test_trusted_samples_stay(network, batch):
    """A threshold that only a trusted sample could cross is none."""
    limit = batch[0].abs().max()

    def loss(module, batch):
        return squared_error(module, batch) * (0.1 if batch[0][0].abs().max() > limit else 1.0)

    def poisonable(batch):
        return torch.arange(len(batch[0])) > 0

    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    engine = AbstractGradientEngine(network, squared_error, FEATURES, trained=loss, poisonable=poisonable)
    assert not engine.problems(batch, optimizer)
    engine = AbstractGradientEngine(network, squared_error, FEATURES, trained=loss)
    assert engine.problems(batch, optimizer)


def test_large_batches_are_probed_in_part(network, monkeypatch):
    sizes = []

    def loss(module, batch):
        sizes.append(len(batch[0]))
        return squared_error(module, batch) * (0.1 if batch[0].abs().max() > limit else 1.0)

    x, y = torch.randn(500, 3), torch.randn(500, 1)
    x[123] = 10.0
    limit = 10.0 + MARGIN
    monkeypatch.setattr(probes, "LARGEST_GRAPH", 1000)
    assert "a batch that the adversary can make" in problems(network, (x, y), squared_error, FEATURES, trained=loss)
    assert sizes
    assert max(sizes) <= probes.PART


def test_probes_leave_no_trace(network, batch):
    seen = []

    def loss(module, batch):
        seen.append(module)
        batch[0].mul_(1.0)
        return squared_error(module, batch)

    (squared_error(network, batch)).backward()
    kept = {name: (p.detach().clone(), p.grad, p.grad.clone()) for name, p in network.named_parameters()}
    entries, state = [entry.clone() for entry in batch], torch.get_rng_state()
    assert not problems(network, batch, squared_error, FEATURES, trained=loss)
    assert seen
    assert network not in seen
    assert all(map(torch.equal, entries, batch))
    assert torch.equal(state, torch.get_rng_state())
    for name, parameter in network.named_parameters():
        value, gradient, copy = kept[name]
        assert torch.equal(parameter, value)
        assert parameter.grad is gradient
        assert torch.equal(gradient, copy)


def test_dropout_draws_the_same_masks(batch):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 1))
    assert not problems(network, batch, squared_error, FEATURES)


def noisy(module, batch):
    return F.mse_loss(module(batch[0] + 0.1 * torch.randn_like(batch[0])), batch[1])


def test_random_numbers_are_the_same_in_step_and_recording(network, batch):
    assert not problems(network, batch, noisy, FEATURES)


def test_a_threshold_of_a_step_that_draws_random_numbers(network, batch):
    state = torch.get_rng_state()
    limit = noisy(network, batch).item() + MARGIN
    torch.set_rng_state(state)

    def skips(module, batch):
        loss = noisy(module, batch)
        return 0 * loss if loss.item() > limit else loss

    assert "different gradients" in problems(network, batch, noisy, FEATURES, trained=skips)


def test_an_engine_of_its_own_loop_knows_which_numbers_it_drew(network, batch):
    """A step that draws numbers for itself first would otherwise be bounded with those."""

    def draws_more(module, batch):
        torch.randn(3)
        return noisy(module, batch)

    engine = AbstractGradientEngine(network, noisy, FEATURES)
    engine.loss = draws_more  # of a recording, the first would be part
    with pytest.raises(UncertifiableError, match="draws random numbers besides those that the loss reads"):
        engine.step([batch], torch.optim.SGD(network.parameters(), lr=0.1))


def test_an_engine_of_its_own_loop_refuses_too(network, batch):
    limit = batch[0].abs().max() + MARGIN

    def loss(module, batch):
        large = type(batch[0]) is torch.Tensor and bool(batch[0].abs().max() > limit)  # no tensor is that in recordings
        return squared_error(module, batch) * (0.1 if large else 1.0)

    with pytest.raises(UncertifiableError, match="different gradients"):
        AbstractGradientEngine(network, loss, FEATURES).step([batch], torch.optim.SGD(network.parameters(), lr=0.1))


def logarithms(module, batch):
    """Binary cross entropy, written by logarithms that have no bounds where a sigmoid is close to one."""
    p = module(batch[0]).sigmoid()
    return -(batch[1] * p.log() + (1 - batch[1]) * (1 - p).log()).mean()


def saturating(bias):
    module = nn.Linear(1, 1).double()
    nn.init.constant_(module.weight, 1.5)
    nn.init.constant_(module.bias, bias)
    return module, (torch.ones(8, 1, dtype=torch.float64), torch.zeros(8, 1, dtype=torch.float64))


@pytest.mark.parametrize("floats", ["run", "real"])
@pytest.mark.parametrize("bias", [4.0, 6.0, 8.0])
def test_probes_where_a_loss_has_no_bounds_are_no_problem_if_no_adversary_gets_there(bias, floats):
    """Far probes have logits of about 30, where ``1 - sigmoid(f)`` is rounding."""
    module, batch = saturating(bias)
    engine = AbstractGradientEngine(module, logarithms, FEATURES, floats=floats)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    assert engine.problems(batch, optimizer) == []
    engine.step([batch], optimizer)


def test_a_loss_without_bounds_where_an_adversary_gets_is_refused_before_the_first_step():
    module, batch = saturating(6.0)
    engine = AbstractGradientEngine(module, logarithms, BoundedAdversary(n=1, epsilon=16.0))
    (problem,) = engine.problems(batch, torch.optim.SGD(module.parameters(), lr=0.1))
    assert "`aten.log`" in problem
    assert "can reach zero" in problem
