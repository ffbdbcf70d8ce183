"""The ball beside a training: where its center is, what it covers, and when it gives up."""

import copy
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agt_lightning import AbstractGradientEngine, BoundedAdversary, CertifiedModel, ParameterBounds, UncertifiableError
from agt_lightning.aggregation.mean_clipping import MeanValueClipping
from agt_lightning.domains.ball import BallDomain, ParameterBall
from agt_lightning.domains.ball.analysis import BallAnalysis
from agt_lightning.interval import Interval
from agt_lightning.propagation.samples import MicroBatch


def loss(module, batch):
    return F.mse_loss(module(batch[0]), batch[1])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).double()


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(20, width, generator=generator, dtype=torch.float64) for width in (2, 1)]
    return draw[0], draw[1]


def trained(module, domains=("ball",), steps=2):
    engine = AbstractGradientEngine(module, loss, BoundedAdversary(n=2, nu=0.3), domains=domains)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(steps):
        engine.step([batch(step)], optimizer)
    return engine, optimizer


def test_the_center_stays_where_training_ended():
    """Another module inside the box is no center: the ball around it would miss what lies on the other side."""
    module = network()
    engine, _ = trained(module)
    x = torch.randn(5, 2, dtype=torch.float64)
    ball = engine.parameter_sets["ball"]
    expected = CertifiedModel(module, engine.bounds, sets={"ball": ball}).bound_forward(x)
    moved = copy.deepcopy(module)
    with torch.no_grad():
        moved[2].bias += ball.radius / 2
    claimed = ParameterBounds(dict(engine.bounds))  # without the digest of the weights, which would refuse others
    around_moved = CertifiedModel(moved, claimed, sets={"ball": ball}).bound_forward(x)
    assert torch.allclose(around_moved.lower, expected.lower, rtol=0, atol=1e-12)
    with torch.no_grad():
        module[2].bias += ball.radius / 2  # the module itself, after training
    kept = CertifiedModel(module, claimed, sets={"ball": engine.parameter_sets["ball"]}).bound_forward(x)
    assert torch.allclose(kept.lower, expected.lower, rtol=0, atol=1e-12)


def test_a_resumed_ball_knows_which_parameters_it_is_for():
    module = network()
    engine, _ = trained(module)
    resumed = AbstractGradientEngine(module, loss, BoundedAdversary(n=2, nu=0.3), domains=("ball",))
    resumed.restore(engine.state())
    assert resumed.parameter_sets["ball"].radius == engine.parameter_sets["ball"].radius
    module[0].requires_grad_(False)
    optimizer = torch.optim.SGD(module[2].parameters(), lr=0.1)
    assert any("other parameters" in problem for problem in resumed.problems(batch(), optimizer))


def test_clipping_that_the_ball_was_not_told_of_is_refused():
    module = network()
    engine, optimizer = trained(module)
    micro = MicroBatch(batch())
    loss(module, micro.data).backward()
    descent = engine.bound_gradient([micro])
    with pytest.raises(UncertifiableError, match="Give `clipping` to the engine"):
        engine.clip(descent, MeanValueClipping(0.1), optimizer)


def test_a_rate_that_comes_to_differ_ends_the_ball():
    module = network()
    optimizer = torch.optim.SGD([{"params": module[0].parameters()}, {"params": module[2].parameters()}], lr=0.1)
    engine = AbstractGradientEngine(module, loss, BoundedAdversary(n=2, nu=0.3), domains=("ball",))
    engine.step([batch()], optimizer)
    optimizer.param_groups[1]["lr"] = 0.2
    with pytest.raises(UncertifiableError, match="different settings"):
        engine.step([batch()], optimizer)


def test_beside_a_box_it_is_left_out_instead():
    module = network()
    optimizer = torch.optim.SGD([{"params": module[0].parameters()}, {"params": module[2].parameters()}], lr=0.1)
    engine = AbstractGradientEngine(module, loss, BoundedAdversary(n=2, nu=0.3), domains="auto")
    engine.step([batch()], optimizer)
    optimizer.param_groups[1]["lr"] = 0.2
    engine.step([batch(1)], optimizer)
    assert "ball" not in engine.parameter_sets
    assert "different settings" in engine.domains.excluded["ball"]
    assert engine.bounds.contains(module)


def test_truncated_labels_do_not_keep_their_radius():
    """``y.long().float()`` can jump by one where y moves by a little: the ball of labels is not that of targets."""
    module = network()
    x = torch.randn(20, 2, dtype=torch.float64)
    labels = torch.randint(0, 4, (20, 1)).double() - 0.01
    engine = AbstractGradientEngine(
        module,
        lambda m, b: F.mse_loss(m(b[0]), b[1].long().double()),
        BoundedAdversary(n=2, nu=0.02, q=2),
        domains=("ball",),
    )
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    try:
        engine.step([(x, labels)], optimizer)
    except (UncertifiableError, ValueError):
        return  # refused is sound as well
    twin = network()
    poisoned = labels.clone()
    poisoned[:2] += 0.02
    F.mse_loss(twin(x), poisoned.long().double()).backward()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter -= 0.1 * parameter.grad
    distance = torch.cat([(p - q).flatten() for p, q in zip(twin.parameters(), module.parameters(), strict=True)])
    assert float(distance.norm()) <= engine.parameter_sets["ball"].radius * (1 + 1e-9)


@pytest.mark.parametrize("p", [1, 2, float("inf")])
def test_moves_of_raw_features_are_those_of_the_box_around_them(p):
    """Limits that no feature comes near make the ball read the box of poisoned features."""

    def radius(epsilon, **limits):
        module = network()
        adversary = BoundedAdversary(n=2, epsilon=epsilon, p=p, **limits)
        engine = AbstractGradientEngine(module, loss, adversary, domains=("ball",))
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for step in range(3):
            engine.step([batch(step)], optimizer)
        return engine.parameter_sets["ball"].radius

    for epsilon in (0.1, torch.tensor([0.05, 0.2])):
        assert radius(epsilon) == pytest.approx(radius(epsilon, bounds=(-100.0, 100.0)), rel=1e-12)


@pytest.mark.slow
def test_a_failing_computation_loses_the_ball_alone(monkeypatch):
    def fail(*_):
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(BallAnalysis, "step_constants", fail)
    module = network()
    engine, _ = trained(module, domains="auto", steps=1)
    assert "cannot be computed: no convergence" in engine.domains.excluded["ball"]
    with pytest.raises(UncertifiableError, match="no convergence"):
        trained(network(), steps=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_box_contains_the_ball_in_any_type(dtype):
    """A center much smaller than the radius: rounding is relative to the radius."""
    module = nn.Linear(1, 1, bias=False).double()
    for radius in (0.1, 1 / 3, 1e-3 / 7):
        for center in (radius * (1 + 1e-7), 1e-12, 1.0):
            ball = ParameterBall(radius, {"weight": torch.tensor([[center]]).to(dtype)})
            box = ball.box(module, dtype)["weight"]
            middle = Fraction(float(ball.centers["weight"]))
            assert Fraction(float(box.lower)) <= middle - Fraction(radius)
            assert Fraction(float(box.upper)) >= middle + Fraction(radius)


def test_a_type_that_does_not_hold_the_center_rounds_it_outward():
    """A point must be one: bounds of width zero beside a frozen parameter left it out."""
    module = nn.Linear(1, 1).double()
    with torch.no_grad():
        module.weight.fill_(1 / 3)
        module.bias.fill_(1 / 3)
    for radius in (0.0, 1e-12):
        box = ParameterBall(radius, {"weight": module.weight.detach().clone()}).box(module, torch.float32)
        for name, parameter in module.named_parameters():
            assert not box[name].is_point
            assert box[name].lower.double() < parameter < box[name].upper.double()


@pytest.mark.parametrize("width", [1, 40])
def test_a_type_that_does_not_hold_the_center_bounds_its_outputs(width):
    module = nn.Sequential(nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.div_(3)
    wide = {name: Interval(p.detach() - 1, p.detach() + 1) for name, p in module.named_parameters()}
    ball = ParameterBall(0.0, {name: p.detach().clone() for name, p in module.named_parameters()}, "real")
    bounds = ParameterBounds(wide, floats="real")
    model = CertifiedModel(module, bounds, sets={"ball": ball}, dtype=torch.float32)
    x = torch.randn(50, width, dtype=torch.float64)
    outputs = model.bound_forward(x)
    assert outputs.contains(module(x))
    assert float(outputs.width.max()) < 1e-2


@pytest.mark.slow
def test_real_runs_and_those_on_hardware_differ_in_single_precision():
    radii = {}
    for floats in ("real", "run"):
        module = network().float()
        engine = AbstractGradientEngine(module, loss, BoundedAdversary(n=2, nu=0.3), domains=("ball",), floats=floats)
        x, y = batch()
        engine.step([(x.float(), y.float())], torch.optim.SGD(module.parameters(), lr=0.1))
        radii[floats] = engine.parameter_sets["ball"].radius
    assert radii["real"] * (1 + 1e-7) < radii["run"] < radii["real"] * 1.01


def test_a_ball_around_other_parameters_supplies_nothing(monkeypatch):
    """The box must not use it even in the very step in which the ball is lost."""
    supplied = []
    whole = BallDomain.bound_values

    def recorded(self, step):
        supplied.append(whole(self, step))
        return supplied[-1]

    monkeypatch.setattr(BallDomain, "bound_values", recorded)
    module = network()
    engine = AbstractGradientEngine(module, loss, BoundedAdversary(n=2, nu=0.3), domains="auto")
    head = torch.optim.SGD(module[2].parameters(), lr=0.1)
    module[0].requires_grad_(False)
    assert not engine.problems(batch(), head)  # approved before anything was trained
    module[0].requires_grad_(True)
    engine.step([batch()], torch.optim.SGD(module.parameters(), lr=0.1))
    assert supplied[-1]
    module[0].requires_grad_(False)
    engine.bound_gradient([batch()])  # without `problems`, which would have left the ball out
    assert supplied[-1] == []
    assert "other parameters" in engine.domains.excluded["ball"]
