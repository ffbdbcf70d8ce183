"""Reports on bounds: wrong, loose and infinite ones are found where they begin, with their line and submodule."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from agt_lightning.capture.dropout import RandomState
from agt_lightning.errors import UncertifiableError, UnsoundBoundError
from agt_lightning.interval import Interval
from agt_lightning.propagation.diagnose import diagnose
from agt_lightning.rules import RULES
from agt_lightning.rules.base import Rule
from tests.engine.test_convolutional_networks import NETWORKS, data, network, optimizer_for

F = nn.functional
ADVERSARY = BoundedAdversary(n=1, epsilon=0.05)


class Network(nn.Module):
    """Each call on a line of its own."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 6)
        self.tail = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))

    def forward(self, x):
        hidden = self.first(x)
        hidden = torch.sigmoid(hidden)  # the planted call
        return self.tail(hidden)


def loss(module, batch):
    return F.cross_entropy(module(batch[0]), batch[1])


def batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, 2, (5,), generator=generator)


def trained(dtype=torch.float64, steps=2):
    """An engine after a few steps, and its module."""
    torch.manual_seed(1)
    module = Network().to(dtype)
    engine = AbstractGradientEngine(module, loss, ADVERSARY)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(steps):
        engine.step([batch(dtype)], optimizer)
    return engine, module


SIGMOID, TANH = torch.ops.aten.sigmoid.default, torch.ops.aten.tanh.default


@dataclasses.dataclass(frozen=True)
class Planted(Rule):
    """A rule with other bounds."""

    rule: Rule
    change: Callable[[Interval], Interval]

    def forward(self, site, inputs):
        return self.change(self.rule.forward(site, inputs))

    def backward(self, site, grad, inputs, output):
        return self.rule.backward(site, grad, inputs, output)


def planted(op, change):
    return {**RULES, op: Planted(RULES[op], change)}


def objective_with(module, table):
    return AbstractGradientEngine(module, loss, ADVERSARY, rules=table).objective(batch())


def report_with(change):
    """The report on an honest training, with bounds by a table in which the rule of sigmoid is changed."""
    engine, module = trained()
    bounded = objective_with(module, planted(SIGMOID, change))
    return diagnose(bounded, module, batch(), engine.box, run=(module, batch()))


def shifted(bounds):
    return Interval.trusted(bounds.lower + 0.1, bounds.upper + 0.1)


def loosened(bounds):
    return Interval.trusted(bounds.lower - 50, bounds.upper + 50)


def infinite(bounds):
    lower = bounds.lower.clone()
    lower[2, 3] = -torch.inf
    return Interval.trusted(lower, bounds.upper)


def crossed(bounds):
    return Interval.trusted(bounds.upper + 1, bounds.lower)


def test_a_wrong_rule_is_found_at_its_line():
    report = report_with(shifted)
    found = report.first_outside
    assert found is not None
    assert found.call.op is SIGMOID
    assert "test_diagnose.py:" in found.call.source
    assert "torch.sigmoid(hidden)" in found.call.source
    assert 0 < found.excess.distance <= 0.1
    assert len(found.excess.index) == 2
    assert not report.inputs
    assert f"← first value outside, at {found.excess.index}" in str(report)


def test_a_wrong_backward_rule_is_found_at_its_line():
    """The gradient of the call before is outside, and that of the call itself is not."""
    engine, module = trained()
    tilted = Tilted(RULES[TANH], lambda bounds: Interval.trusted(bounds.lower + 0.1, bounds.upper + 0.1))
    bounded = objective_with(module, {**RULES, TANH: tilted})
    report = diagnose(bounded, module, batch(), engine.box, run=(module, batch()))
    assert report.first_outside is None
    found = report.first_gradient_outside
    assert found.call.module == "tail.0"
    assert 0 < found.gradient_excess.distance <= 0.1
    assert [call.call.module for call in report.calls if call.gradient_excess is None] == ["tail.1", "tail.2"]
    assert "← first gradient outside, at " in str(report)


@dataclasses.dataclass(frozen=True)
class Tilted(Planted):
    """A rule with other bounds of the gradient."""

    def forward(self, site, inputs):
        return self.rule.forward(site, inputs)

    def backward(self, site, grad, inputs, output):
        return [self.change(gradient) for gradient in self.rule.backward(site, grad, inputs, output)]


def test_a_loose_rule_has_the_widest_growth():
    report = report_with(loosened)
    assert report.widest_growth.call.op is SIGMOID
    assert report.first_outside is None


def test_infinite_bounds_are_found_where_they_begin():
    report = report_with(infinite)
    assert report.first_infinite.call.op is SIGMOID
    assert "← first bound that is NaN or infinite" in str(report)


def test_infinite_gradients_are_found_where_they_begin():
    """Two layers with huge weights: tanh keeps values finite, and gradients pass through both."""
    engine, module = trained()
    assert diagnose(engine.objective(batch()), module, batch(), engine.box).first_infinite is None
    wide = {name: Interval(engine.box[name].lower - 1e200, engine.box[name].upper + 1e200) for name in HUGE}
    report = diagnose(engine.objective(batch()), module, batch(), {**engine.box, **wide})
    assert all(call.width < torch.inf for call in report.calls)
    assert report.first_infinite.call.op is SIGMOID


HUGE = ("tail.0.weight", "tail.2.weight")


@pytest.mark.parametrize("method", ["ibp", "crown", "tightest"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_honest_runs_stay_inside(dtype, method):
    engine, module = trained(dtype=dtype)
    x, y = batch(dtype)
    generator = torch.Generator().manual_seed(3)
    bounded = engine.objective((x, y))
    for _ in range(5):
        moved = x + 0.05 * (2 * torch.rand(x.shape, generator=generator).to(dtype) - 1).sign()
        parameters = {
            name: bounds.lower + bounds.width * torch.rand(bounds.shape, generator=generator).to(bounds.dtype)
            for name, bounds in engine.box.items()
        }
        poisoned = diagnose(
            bounded, module, (x, y), engine.box, (parameters, (moved, y)), adversary=ADVERSARY, method=method
        )
        assert poisoned.first_outside is None
        assert poisoned.first_gradient_outside is None
        assert not poisoned.inputs
        clean = diagnose(bounded, module, (x, y), engine.box, (module, (x, y)), method=method)
        assert clean.first_outside is None
        assert clean.first_gradient_outside is None


@pytest.mark.parametrize("name", NETWORKS)
def test_honest_runs_of_convolutional_networks_stay_inside(name):
    module, adversary = network(name), NETWORKS[name].adversary
    example = data(name, torch.Generator().manual_seed(1))[0]
    engine = AbstractGradientEngine(module, loss, adversary)
    engine.step([example], optimizer_for(module))
    report = diagnose(engine.objective(example), module, example, engine.box, (module, example), adversary=adversary)
    assert report.first_outside is None
    assert report.first_gradient_outside is None


def test_dropout_is_diagnosed_with_the_masks_of_its_step():
    module = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.5), nn.Linear(6, 2)).double()
    engine = AbstractGradientEngine(module, loss, ADVERSARY)
    bounded = engine.objective(batch())
    report = diagnose(bounded, module, batch(), engine.box, (module, batch()), state=RandomState.now())
    assert report.first_outside is None
    assert [call.call.module for call in report.calls] == ["0", "1", "2"]


def test_a_run_that_the_bounds_do_not_cover_is_named():
    engine, module = trained()
    x, y = batch()
    other = Network().double()
    report = diagnose(engine.objective((x, y)), module, (x, y), engine.box, (other, (x + 0.2, y)), adversary=ADVERSARY)
    assert set(report.inputs) == {0, *dict(module.named_parameters())}
    assert report.first_outside.call.module == "first"
    assert "batch entry 0 of the run lies outside of its bounds by 1.5e-01" in str(report)


def test_the_report_has_a_line_for_each_call_with_bounds():
    engine, module = trained()
    report = diagnose(engine.objective(batch()), module, batch(), engine.box)
    assert [call.call.module for call in report.calls] == ["first", "", "tail.0", "tail.1", "tail.2"]
    assert len(str(report).splitlines()) == 6
    assert report.calls[0].growth > 0
    assert all(call.gradient_width > 0 and call.excess is None for call in report.calls)


def test_points_grow_by_rounding_alone():
    engine, module = trained(steps=0)
    report = diagnose(engine.objective(batch()), module, batch(), engine.box, (module, batch()))
    assert report.calls[0].growth is None
    assert all(call.width < 1e-10 for call in report.calls)
    assert report.first_outside is None
    assert report.first_gradient_outside is None


# --- errors inside of rules have an address ---------------------------------------------------------------------------


def test_crossed_bounds_are_named_with_call_and_line():
    engine, module = trained()
    bounded = objective_with(module, planted(TANH, crossed))
    values = bounded.forward(bounded.inputs(module, batch(), engine.box, torch.float64))
    where = r"^`aten\.linear` at test_diagnose\.py:\d+ .* in `tail\.2`: Expected lower bounds below upper ones"
    with pytest.raises(UnsoundBoundError, match=where):
        bounded.gradients(values, 5, torch.float64)


@dataclasses.dataclass(frozen=True)
class Refusing(Rule):
    error: Exception

    def forward(self, site, inputs):
        raise self.error

    def backward(self, site, grad, inputs, output):
        raise self.error


@pytest.mark.parametrize("error", [UnsoundBoundError("reason"), UncertifiableError(["reason"])], ids=["unsound", "not"])
def test_errors_of_a_rule_are_named_with_call_and_line(error):
    engine, module = trained()
    bounded = objective_with(module, {**RULES, TANH: Refusing(error)})
    inputs = bounded.inputs(module, batch(), engine.box, torch.float64)
    where = r"`aten\.tanh` at test_diagnose\.py:\d+ `return self\.tail\(hidden\)` in `tail\.1`: reason"
    with pytest.raises(type(error), match=where):
        bounded.forward(inputs)
    honest = engine.objective(batch()).forward(inputs)
    with pytest.raises(type(error), match=where):
        bounded.gradients(honest, 5, torch.float64)


def test_enclosures_that_do_not_meet_are_named_with_call_and_line():
    engine, module = trained()
    bounded = engine.objective(batch())
    inputs = bounded.inputs(module, batch(), engine.box, torch.float64)
    tanh = next(call for call in bounded.program.graph.calls if call.op is TANH)
    far = Interval.point(torch.full((5, 6), 3.0, dtype=torch.float64))
    with pytest.raises(UnsoundBoundError, match=r"^`aten\.tanh` at .* in `tail\.1`: Expected finite bounds"):
        bounded.forward(inputs, within={tanh.name: far})
