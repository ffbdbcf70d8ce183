"""The domain with a box in the engine: what it certifies and refuses, checkpoints, and runs in floating point."""

import copy
import io

import pytest
import torch
from torch import nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary, CertifiedModel
from agt_lightning.domains.adjoint.boxed import BoxedTrajectory
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from tests.domains.adjoint.boxed.trainings import Case, queries, set_of, trained
from tests.engine.attacks import FEATURES, LOSSES, data

F64 = torch.float64
FEATURES_ALONE = BoundedAdversary(n=1, epsilon=0.01)
TWO_CLASSES = Case("ce", FEATURES_ALONE)
STRONG = BoundedAdversary(n=2, epsilon=0.03)


def model_of(engine):
    return CertifiedModel(engine.module, engine.bounds, sets=engine.parameter_sets)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_certificates_use_the_tighter_bound(kind):
    engine = trained(Case(kind, STRONG, hidden=8, steps=4, scale=1.5))[0]
    x, target = queries(TWO_CLASSES), torch.tensor([0, 1, 1, 0])
    with_set, alone = model_of(engine), CertifiedModel(engine.module, engine.bounds)
    assert isinstance(set_of(engine), BoxedTrajectory)
    outputs = engine.module(x).detach()
    one, other = ((each.margins(x, target) if kind == "ce" else each.bound_forward(x)) for each in (with_set, alone))
    assert float((one.width - other.width).max()) <= 1e-12
    assert float(one.width.sum()) < 0.99 * float(other.width.sum())
    assert with_set.bound_forward(x).contains(outputs)
    assert kind == "bce" or one.contains(outputs.gather(1, target[:, None]) - outputs)


@pytest.mark.slow
def test_boxes_by_adjoints_lie_in_those_of_the_box_domain():
    recorded = set_of(trained(Case("ce", STRONG, hidden=8, steps=4, scale=1.5))[0])
    weight = recorded.recorder.widths[-1][0]
    assert bool((recorded.box.first[:, :-1] <= weight).all())
    assert float(recorded.box.first[:, :-1].sum()) < 0.99 * float(weight.sum())


def test_long_trainings_keep_the_boxes_of_the_box_domain(monkeypatch):
    monkeypatch.setattr("agt_lightning.domains.adjoint.boxed.trajectory.FEW_STEPS", 2)
    recorded = set_of(trained(TWO_CLASSES)[0])
    torch.testing.assert_close(recorded.box.first[:, :-1], recorded.recorder.widths[-1][0])
    assert all(step.geometry.output_reach is None for step in recorded.steps)
    cut = set_of(trained(Case("ce", FEATURES_ALONE, steps=2))[0])
    assert cut.steps[1].geometry.output_reach is not None


def test_nobody_poisons_nothing_moves():
    none = trained(TWO_CLASSES, poisonable=lambda batch: torch.zeros(len(batch[0]), dtype=torch.bool))[0]
    assert float(set_of(none).output(Interval.point(queries(TWO_CLASSES))).width.max()) < 1e-6


def test_frozen_biases_and_layers_without_biases_are_covered():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(FEATURES, 4, bias=False), nn.ReLU(), nn.Linear(4, 1)).double()
    module[2].bias.requires_grad_(False)
    engine = AbstractGradientEngine(
        module, lambda m, batch: LOSSES["bce"](m(batch[0]), batch[1]), FEATURES_ALONE, domains=("box", "adjoint")
    )
    optimizer = torch.optim.SGD(module.parameters(), 0.3)
    for batch in data("bce", torch.Generator().manual_seed(0))[:2]:
        engine.step([batch], optimizer)
    assert float(set_of(engine).box.first[:, -1].max()) == 0
    x = queries(TWO_CLASSES)
    assert model_of(engine).bound_forward(x).contains(module(x).detach())


def test_float_runs_are_wider_and_contain_the_module():
    widths = []
    for floats in ("real", "run"):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, 2))
        engine = AbstractGradientEngine(
            module,
            lambda m, batch: LOSSES["ce"](m(batch[0]), batch[1]),
            FEATURES_ALONE,
            domains=("box", "adjoint"),
            floats=floats,
        )
        optimizer = torch.optim.SGD(module.parameters(), 0.3)
        for x, y in data("ce", torch.Generator().manual_seed(0))[:2]:
            engine.step([(x.float(), y % 2)], optimizer)
        x = queries(TWO_CLASSES).float()
        model = CertifiedModel(module, engine.bounds, sets=engine.parameter_sets, floats=floats)
        margins = model.margins(x, torch.zeros(len(x), dtype=torch.long))
        outputs = module(x).detach()
        assert margins.contains(outputs[:, :1] - outputs)
        widths.append(float(margins.width.sum()))
    assert widths[0] < widths[1]


def test_more_outputs_are_refused():
    module = nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    engine = AbstractGradientEngine(
        module, lambda m, batch: LOSSES["ce"](m(batch[0]), batch[1]), FEATURES_ALONE, domains=("box", "adjoint")
    )
    with pytest.raises(UncertifiableError, match="but there are 3 outputs"):
        engine.step([data("ce", torch.Generator().manual_seed(0))[0]], torch.optim.SGD(module.parameters(), 0.1))


@pytest.mark.slow
def test_a_restored_record_goes_on_as_if_nothing_had_happened():
    whole, batches, start = trained(TWO_CLASSES)
    modules = [nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, 2)).double() for _ in range(2)]
    modules[0].load_state_dict(start)
    first, second = (
        AbstractGradientEngine(
            module,
            lambda m, batch: LOSSES["ce"](m(batch[0]), batch[1]),
            FEATURES_ALONE,
            domains=("box", "adjoint"),
            method="tightest",
        )
        for module in modules
    )
    rates = [TWO_CLASSES.rate / (1 + TWO_CLASSES.falling * step) for step in range(3)]
    for rate, batch in zip(rates[:2], batches[:2], strict=True):
        first.step([batch], torch.optim.SGD(modules[0].parameters(), rate))
    file = io.BytesIO()
    torch.save((first.state(), modules[0].state_dict()), file)
    file.seek(0)
    state, parameters = torch.load(file, weights_only=True)
    modules[1].load_state_dict(parameters)
    second.restore(state)
    second.step([batches[2]], torch.optim.SGD(modules[1].parameters(), rates[2]))
    x = Interval.point(queries(TWO_CLASSES))
    torch.testing.assert_close(set_of(whole).output(x).lower, set_of(second).output(x).lower, rtol=1e-9, atol=0)


def test_a_record_that_begins_in_a_box_is_refused():
    engine, batches, _ = trained(TWO_CLASSES)
    engine.domains.in_use["adjoint"].recorder = None
    with pytest.raises(UncertifiableError, match="no point before the first step"):
        engine.step([batches[0]], torch.optim.SGD(engine.module.parameters(), 0.1))


def test_a_box_that_changes_between_steps_is_refused():
    engine, batches, _ = trained(TWO_CLASSES)
    box = engine.domains.in_use["box"]
    box.tighten({name: Interval.point(each.center) for name, each in box.box().items()})
    with pytest.raises(UncertifiableError, match="box has changed since the last step"):
        engine.step([batches[0]], torch.optim.SGD(engine.module.parameters(), 0.1))


def test_the_rounding_of_training_itself_is_in_boxes_by_adjoints():
    """The same training in double precision, which stands for real arithmetic, ends elsewhere than in single."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, 1))
    exact = copy.deepcopy(module).double()
    engine = AbstractGradientEngine(
        module,
        lambda m, batch: LOSSES["bce"](m(batch[0]), batch[1]),
        BoundedAdversary(n=0),
        domains=("box", "adjoint"),
        floats="real",
        dtype=F64,
    )
    optimizers = [torch.optim.SGD(each.parameters(), 0.3) for each in (module, exact)]
    for x, y in data("bce", torch.Generator().manual_seed(0))[:2]:
        engine.step([(x.float(), y.float())], optimizers[0])
        optimizers[1].zero_grad()
        LOSSES["bce"](exact(x.float().double()), y).backward()
        optimizers[1].step()
    moved = (exact[0].weight - module[0].weight.double()).abs().detach()
    assert float(moved.max()) > 1e-10
    assert bool((moved <= set_of(engine).box.first[:, :-1]).all())
