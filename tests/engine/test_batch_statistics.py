"""Trainings with batch normalization in training mode stay inside their bounds, and so do their running statistics."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agt_lightning import AbstractGradientEngine, BoundedAdversary, ParameterBounds, UnboundedAdversary
from agt_lightning.certificates import CertifiedModel
from agt_lightning.errors import BoundsMismatchError, UncertifiableError, UnsoundBoundError
from agt_lightning.rules.batch_statistics import BatchRows
from tests.faults import Fault

B, STEPS, CLASSES = 8, 5, 3
MOVED = BoundedAdversary(n=2, epsilon=0.02)
FLIPPED = BoundedAdversary(n=1, nu=1, q=0)
BOTH = BoundedAdversary(n=1, epsilon=0.01, nu=1, q=0)
RATE = {"rows": 1e-4, "images": 5e-3}


def loss(module, batch):
    return F.cross_entropy(module(batch[0]), batch[1])


def network(kind):
    """Layers on rows that are normalized twice, and before the first layer; or a small convolution."""
    torch.manual_seed(0)
    if kind == "rows":
        first = [nn.BatchNorm1d(3, affine=False), nn.Linear(3, 5), nn.BatchNorm1d(5, momentum=0.3), nn.ReLU()]
        return nn.Sequential(*first, nn.Linear(5, CLASSES)).double()
    convolution = [nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*convolution, nn.Linear(8, CLASSES)).double()


def batches(kind):
    generator = torch.Generator().manual_seed(1)
    shape = (3,) if kind == "rows" else (1, 3, 3)
    x = torch.randn(STEPS, B, *shape, dtype=torch.float64, generator=generator)
    return list(zip(x, torch.randint(0, CLASSES, (STEPS, B), generator=generator), strict=True))


def sgd(module, kind):
    return torch.optim.SGD(module.parameters(), lr=RATE[kind], momentum=0.5)


def certified(kind, adversary):
    """Return engine, and bounds after each step."""
    module = network(kind)
    engine = AbstractGradientEngine(module, loss, adversary, domains=("box",))
    optimizer = sgd(module, kind)
    history = []
    for batch in batches(kind):
        engine.step([batch], optimizer)
        history.append(engine.bounds)
    return engine, history


def poisoned(module, batch, adversary, run, generator):
    """Return a batch with other samples in each run: features along a gradient or at random, other labels."""
    x, y = (each.clone() for each in batch)
    chosen = torch.randperm(B, generator=generator)[: adversary.n]
    if adversary.epsilon:
        leaf = x.clone().requires_grad_()
        output = copy.deepcopy(module)(leaf)
        objective = F.cross_entropy(output, y) if run % 3 else output[:, run % CLASSES].square().sum()
        (slope,) = torch.autograd.grad(objective, leaf)
        noise = torch.randn(x.shape, dtype=torch.float64, generator=generator)
        direction = slope if run % 2 else noise
        x[chosen] += (1 if run % 4 < 2 else -1) * adversary.epsilon * direction[chosen].sign()
    if adversary.perturbs_labels:
        y[chosen] = (y[chosen] + 1 + run % 2) % CLASSES
    return x, y


def check(kind, adversary, runs=16):
    """Poison trainings, whose parameters, running statistics and predictions in `eval` mode must be in their bounds."""
    engine, history = certified(kind, adversary)
    generator = torch.Generator().manual_seed(2)
    queries = torch.randn(6, *batches(kind)[0][0].shape[1:], dtype=torch.float64, generator=generator)
    outputs = CertifiedModel(engine.module, engine.bounds).bound_forward(queries)
    for run in range(runs):
        module = network(kind)
        optimizer = sgd(module, kind)
        for step, batch in enumerate(batches(kind)):
            optimizer.zero_grad()
            loss(module, poisoned(module, batch, adversary, run, generator)).backward()
            optimizer.step()
            buffers = dict(module.named_buffers())
            assert history[step].contains(module), f"parameters outside by something after step {step}"
            for name, bounds in history[step].running.items():
                assert bounds.contains(buffers[name]), f"{name} outside by something after step {step}"
        assert outputs.contains(module.eval()(queries)), "outputs outside by something"
    return history


@pytest.mark.parametrize(
    ("kind", "adversary"),
    [("rows", MOVED), ("rows", FLIPPED), ("images", BOTH)],
    ids=["moved rows", "flips", "images of both"],
)
def test_poisoned_trainings_stay_inside(kind, adversary):
    history = check(kind, adversary)
    moved = {name for name, buffer in network(kind).named_buffers() if buffer.is_floating_point()}
    assert history[-1].running.keys() == moved
    assert history[-1].mean_width() < 0.5


def only_clean(self, values):
    return values[: self.samples].sum(dim=0)


def no_poison(self, values):
    total = values[: self.samples].sum(dim=0, keepdim=True)
    return total.expand_as(values)


def parameters_alone(self):
    return {name: bounds.to(dtype=self.dtype) for name, bounds in self.bounds.items()}


def check_images():
    check("images", BOTH, runs=8)


def check_rows():
    check("rows", MOVED, runs=8)


FAULTS = [
    Fault("statistics of clean samples", check_images, only_clean, (BatchRows, "total")),
    Fault("normalized as if nothing were poisoned", check_images, no_poison, (BatchRows, "totals")),
    Fault("predictions by training's own statistics", check_rows, parameters_alone, (CertifiedModel, "_box")),
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_planted_fault_is_noticed(fault):
    fault.require_noticed("outside by")


def test_a_batch_of_its_own_statistics_is_followed():
    """What moves a buffer besides the steps is noticed, before and after it enters a certificate."""
    engine, _ = certified("rows", MOVED)
    module, batch = engine.module, batches("rows")[0]
    bounds = engine.bounds
    CertifiedModel(module, bounds)
    with torch.no_grad():
        module(batch[0] + 1e-3)
    with pytest.raises(UnsoundBoundError, match="something else changed it"):
        engine.require_untouched()
    with pytest.raises(BoundsMismatchError, match="running_mean|have others|has others"):
        CertifiedModel(module, bounds)
    with pytest.raises(UnsoundBoundError, match=r"running_mean.*not what is trained"):
        engine.step([batch], sgd(module, "rows"))


def test_a_state_goes_on_as_if_nothing_had_happened(tmp_path):
    engine, history = certified("rows", MOVED)
    again = AbstractGradientEngine(copy.deepcopy(engine.module), loss, MOVED, domains=("box",))
    again.restore(engine.state())
    assert all(torch.equal(again.bounds.running[k].upper, each.upper) for k, each in engine.bounds.running.items())
    engine.bounds.save(tmp_path / "bounds.safetensors")
    loaded = ParameterBounds.load(tmp_path / "bounds.safetensors")
    loaded.require_weights(engine.module)
    assert loaded.keys() == history[-1].keys()
    assert all(torch.equal(loaded.running[k].lower, each.lower) for k, each in engine.bounds.running.items())
    other = copy.deepcopy(engine.module)
    other[0].running_var *= 1 + 1e-6
    with pytest.raises(BoundsMismatchError, match="running statistics"):
        AbstractGradientEngine(other, loss, MOVED, domains=("box",)).restore(engine.state())


@pytest.mark.slow
def test_statistics_have_their_bounds_under_a_second_name():
    engine, _ = certified("rows", MOVED)
    module, queries = engine.module, torch.randn(4, 3, dtype=torch.float64)
    expected = CertifiedModel(module, engine.bounds).bound_forward(queries)
    module.first, module.second = module[0], module[2]
    module.forward = lambda x: module[4](module[3](module.second(module[1](module.first(x)))))
    outputs = CertifiedModel(module, engine.bounds).bound_forward(queries)
    assert torch.equal(outputs.upper, expected.upper)
    assert torch.equal(outputs.lower, expected.lower)


def twice(module, batch):
    return loss(module, batch) + loss(module, (batch[0] * 2, batch[1]))


REFUSED = {
    "clipped samples": (loss, UnboundedAdversary(n=1, kappa=1.0), {}, "no sample has a gradient of its own"),
    "linear bounds": (loss, MOVED, {"method": "crown"}, 'Use `method="ibp"`'),
    "the ball": (loss, MOVED, {"domains": ("ball",)}, 'The domain `ball` does not cover.*domains=."box".'),
    "one layer twice": (twice, MOVED, {}, "more than once in a step.*one layer for each place"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    function, adversary, settings, message = REFUSED[name]
    module = network("rows")
    engine = AbstractGradientEngine(module, function, adversary, **{"domains": ("box",), **settings})
    with pytest.raises(UncertifiableError, match=message):
        engine.step([batches("rows")[0]], sgd(module, "rows"))


def test_without_running_statistics_nothing_is_predicted():
    module = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, CLASSES)
    ).double()
    engine = AbstractGradientEngine(module, loss, MOVED, domains=("box",))
    engine.step([batches("rows")[0]], sgd(module, "rows"))
    assert engine.bounds.mean_width() > 0
    with pytest.raises(UncertifiableError, match="statistics of the whole batch"):
        CertifiedModel(module, engine.bounds).certify(torch.zeros(2, 3, dtype=torch.float64))
