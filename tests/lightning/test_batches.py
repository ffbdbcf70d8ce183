"""Batches of every size, accumulated or not, with rates and decays of every kind: nothing is dropped."""

import pytest
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR

from agt_lightning import AbstractGradientEngine, BoundedAdversary, CertifiedTraining, Interval

EQUAL = 1e-12
"""Two float64 computations of the same box."""

ADVERSARY = BoundedAdversary(n=2, epsilon=0.05, nu=0.1)
DOUBLE = torch.float64


def loss_of(module, batch):
    x, y = batch
    return F.mse_loss(module(x), y)


def clone(module, factory):
    twin = factory().double()
    twin.load_state_dict(module.state_dict())
    return twin


def assert_same_box(box, other):
    for name, bounds in box.items():
        assert torch.allclose(bounds.lower, other[name].lower, rtol=EQUAL, atol=EQUAL), name
        assert torch.allclose(bounds.upper, other[name].upper, rtol=EQUAL, atol=EQUAL), name
        assert bounds.width.max() > 0


@pytest.fixture
def double(regressor):
    torch.manual_seed(3)
    return regressor().double()


SIZES = {"short last": 10, "one sample last": 9, "full": 8, "one batch": 3}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_every_batch_counts(size, fit, loader, double, regressor):
    """The callback's box is that of the engine, stepped by hand over every batch."""
    data = loader(size=size, dtype=DOUBLE)
    twin = clone(double, regressor)
    certified = CertifiedTraining(ADVERSARY)
    fit(double, data, certified)
    engine = AbstractGradientEngine(twin, loss_of, ADVERSARY)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for batch in data:
        engine.step([batch], optimizer)
    assert certified.engine.steps == len(data)
    assert_same_box(certified.engine.box, engine.box)


@pytest.mark.parametrize(("size", "batch_size"), [(9, 4), (3, 1)], ids=["last of one", "all of one"])
def test_a_squeezed_batch_of_one(size, batch_size, fit, loader, double, regressor):
    class Squeezed(regressor):
        def training_step(self, batch, batch_idx):
            x, y = batch
            return F.mse_loss(self(x).squeeze(), y.squeeze())

    squeezed = clone(double, Squeezed)
    adversary = BoundedAdversary(n=1, epsilon=0.01)
    kept, lost = CertifiedTraining(adversary), CertifiedTraining(adversary)
    data = loader(size=size, batch_size=batch_size, dtype=DOUBLE)
    fit(double, data, kept)
    fit(squeezed, data, lost)
    assert_same_box(kept.engine.box, lost.engine.box)


@pytest.mark.slow
def test_more_poison_than_samples_is_the_whole_batch(fit, loader, double, regressor):
    twin = clone(double, regressor)
    whole, more = (CertifiedTraining(BoundedAdversary(n=n, epsilon=0.05)) for n in (4, 100))
    fit(double, loader(dtype=DOUBLE), whole)
    fit(twin, loader(dtype=DOUBLE), more)
    assert_same_box(whole.engine.box, more.engine.box)


@pytest.mark.slow
def test_more_poison_is_never_tighter(fit, loader, double, regressor):
    widths = []
    for n in (0, 1, 2, 4):
        certified = CertifiedTraining(BoundedAdversary(n=n, epsilon=0.05))
        fit(clone(double, regressor), loader(dtype=DOUBLE), certified)
        widths.append(certified.bounds.mean_width())
    assert widths == sorted(widths)
    assert widths[0] < 1e-12


@pytest.mark.slow
def test_accumulated_gradients_keep_their_divisor(fit, loader, double, regressor):
    """Three batches, two a step: the last step has one batch and is still halved."""
    data = loader(size=12, dtype=DOUBLE)
    twin = clone(double, regressor)
    certified = CertifiedTraining(ADVERSARY)
    fit(double, data, certified, accumulate_grad_batches=2)
    engine = AbstractGradientEngine(twin, loss_of, ADVERSARY)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    batches = list(data)
    for group in (batches[:2], batches[2:]):
        problems = engine.problems(group[0], optimizer)
        assert problems == []
        descent = engine.bound_gradient(group, 0.5)
        optimizer.zero_grad()
        for batch in group:
            (0.5 * loss_of(twin, batch)).backward()
        engine.verify(descent, group, 0.5)
        optimizer.step()
        engine.update(descent, optimizer)
    assert certified.engine.steps == 2
    assert_same_box(certified.engine.box, engine.box)


@pytest.mark.slow
def test_accumulated_batches_share_one_budget(fit, loader, double, regressor):
    """n counts the poisoned samples of a step: two half batches are one whole."""
    twin = clone(double, regressor)
    whole, halves = CertifiedTraining(ADVERSARY), CertifiedTraining(ADVERSARY)
    fit(double, loader(size=8, batch_size=8, dtype=DOUBLE), whole)
    fit(twin, loader(size=8, batch_size=4, dtype=DOUBLE), halves, accumulate_grad_batches=2)
    assert_same_box(whole.engine.box, halves.engine.box)


SCHEDULES = {
    "per step": {"interval": "step"},
    "per epoch": {"interval": "epoch"},
    "every second step": {"interval": "step", "frequency": 2},
}


@pytest.mark.parametrize("settings", SCHEDULES.values(), ids=SCHEDULES)
def test_schedules_groups_and_decay_are_read_at_each_step(settings, fit, loader, double, regressor):
    class Scheduled(regressor):
        def configure_optimizers(self):
            groups = [
                {"params": self.net[0].parameters(), "weight_decay": 0.1},
                {"params": self.net[2].parameters(), "lr": 0.02, "weight_decay": 0.0},
            ]
            optimizer = torch.optim.SGD(groups, lr=0.1)
            schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, **settings}}

    module = clone(double, Scheduled)
    plain, n0 = clone(double, Scheduled), clone(double, Scheduled)
    certified, exact = CertifiedTraining(ADVERSARY), CertifiedTraining(BoundedAdversary(n=0))
    data = loader(size=10, dtype=DOUBLE)
    fit(plain, data, max_epochs=2)
    fit(module, data, certified, max_epochs=2)
    fit(n0, data, exact, max_epochs=2)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, module.get_parameter(name))
        assert torch.equal(parameter, n0.get_parameter(name))
    assert exact.bounds.mean_width() < 1e-12
    assert certified.engine.steps == 6


def test_a_zero_rate_keeps_the_box(fit, loader, double):
    double.rate = 0.0
    certified = CertifiedTraining(ADVERSARY)
    fit(double, loader(dtype=DOUBLE), certified)
    assert certified.bounds.mean_width() == 0.0


def test_a_rate_that_is_a_tensor(fit, loader, double):
    double.configure_optimizers = lambda: torch.optim.SGD(double.parameters(), lr=torch.tensor(0.1))
    certified = CertifiedTraining(ADVERSARY)
    fit(double, loader(dtype=DOUBLE), certified)
    assert certified.bounds.contains(double)


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_bounds_come_in_the_parameters_type(precision, fit, loader, regressor):
    module = regressor()
    certified = CertifiedTraining(ADVERSARY)
    fit(module, loader(), certified, precision=precision)
    parameter = module.net[0].weight
    assert certified.bounds["net.0.weight"].dtype == parameter.dtype
    assert certified.bounds.contains(module)
    assert isinstance(certified.bounds["net.0.weight"], Interval)


@pytest.mark.slow
def test_many_epochs_with_a_decaying_rate(fit, loader, double):
    double.configure_optimizers = lambda: (
        [optimizer := torch.optim.SGD(double.parameters(), lr=0.05)],
        [ExponentialLR(optimizer, 0.9)],
    )
    certified = CertifiedTraining(BoundedAdversary(n=1, epsilon=0.01))
    fit(double, loader(dtype=DOUBLE), certified, max_epochs=5)
    assert certified.engine.steps == 10
    assert certified.bounds.contains(double)


@pytest.mark.slow
def test_shuffled_batches(fit, loader, double):
    certified = CertifiedTraining(ADVERSARY)
    fit(double, loader(size=10, dtype=DOUBLE, shuffle=True), certified, max_epochs=2)
    assert certified.bounds.contains(double)
