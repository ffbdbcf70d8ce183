"""The domain in the engine: what it covers and refuses, checkpoints, processes' data, floats, and certificates."""

import io
from fractions import Fraction

import pytest
import torch
from torch import nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary, CertifiedModel, UnboundedAdversary
from agt_lightning.domains.adjoint import replay
from agt_lightning.domains.adjoint.directions import Directions
from agt_lightning.domains.adjoint.replay import displacements
from agt_lightning.errors import BoundsMismatchError, UncertifiableError, UnsoundBoundError
from agt_lightning.interval import Interval
from tests.domains.adjoint.trainings import Case, combinations, queries, set_of, trained
from tests.engine.attacks import LOSSES, data, network

F64 = torch.float64
LABELS = BoundedAdversary(n=1, nu=0.1)
CASE = Case("mse", LABELS, epochs=1)


def model_of(engine):
    return CertifiedModel(engine.module, engine.bounds, sets=engine.parameter_sets)


def bounds_of(engine, case=CASE):
    x, rows = queries(case)
    return set_of(engine).combinations(Interval.point(x), rows)


def one_step(module, adversary=LABELS, loss="mse", domains=("ball", "adjoint"), optimizer=None, **options):
    engine = AbstractGradientEngine(
        module, lambda m, batch: LOSSES[loss](m(batch[0]), batch[1]), adversary, domains=domains, **options
    )
    engine.step(
        [data(loss, torch.Generator().manual_seed(0))[0]], optimizer or torch.optim.SGD(module.parameters(), 0.1)
    )
    return engine


class Frozen(nn.Module):
    """A trained head on frozen features; its last bias is frozen as well."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(3, 5, dtype=F64).requires_grad_(False)
        self.head = network("mse", (4,))
        self.head[0] = nn.Linear(5, 4, dtype=F64)
        self.head[2].bias.requires_grad_(False)

    def forward(self, x):
        return self.head(torch.tanh(self.frozen(x)))


# --- what it covers ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_certificates_take_the_tighter_bound_output_by_output():
    case = Case("mse", LABELS, domains=("box", "ball", "adjoint"))
    engine = trained(case)[0]
    x = torch.randn(6, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    together = model_of(engine).bound_forward(x)
    alone = CertifiedModel(engine.module, engine.bounds).bound_forward(x)
    rows = torch.eye(3, dtype=F64).repeat(6, 1)
    wide = Interval.point(x.repeat_interleave(3, dim=0))
    adjoint = set_of(engine).combinations(wide, rows).rearranged(lambda bound: bound.reshape(6, 3))
    assert bool((together.width <= torch.minimum(alone.width, adjoint.width) + 1e-12).all())
    assert model_of(engine).deciding_domains(x)["adjoint"] > 0.5
    assert together.contains(engine.module(x).detach())


def test_margins_are_tighter_than_differences_of_outputs():
    engine = trained(Case("ce", BoundedAdversary(n=1, nu=1, q=0), rate=0.02))[0]
    x = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    model, target = model_of(engine), torch.arange(5) % 3
    margins, outputs = model.margins(x, target), model.bound_forward(x)
    rows = torch.arange(5)
    differences = outputs.lower[rows, target][:, None] - outputs.upper
    others = torch.ones(5, 3).scatter(1, target[:, None], 0.0).bool()
    assert bool((margins.lower >= differences)[others].all())
    nominal = engine.module(x).detach()
    assert margins.contains(nominal[rows, target][:, None] - nominal)


def test_frozen_features_and_a_frozen_bias_are_covered():
    module = Frozen()
    engine = one_step(module, BoundedAdversary(n=1, epsilon=0.05, nu=0.05))
    x = torch.randn(4, 3, dtype=F64)
    assert set_of(engine).recorder.trained == (True, False)
    assert model_of(engine).bound_forward(x).contains(module(x).detach())
    assert model_of(engine).deciding_domains(x)["adjoint"] > 0


def test_layers_without_biases_are_covered():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False)).double()
    engine = one_step(module, BoundedAdversary(n=1, epsilon=0.05))
    x = torch.randn(4, 3, dtype=F64)
    assert set_of(engine).recorder.names == ("0.weight", None, "2.weight", None)
    assert model_of(engine).bound_forward(x).contains(module(x).detach())


@pytest.mark.slow
def test_samples_that_cannot_be_poisoned_add_nothing():
    none = trained(CASE, poisonable=lambda batch: torch.zeros(len(batch[0]), dtype=torch.bool))[0]
    assert float(bounds_of(none).width.max()) < 1e-9
    some = trained(CASE, poisonable=lambda batch: torch.arange(len(batch[0])) < 2)[0]
    assert bool((bounds_of(some).width < bounds_of(trained(CASE)[0]).width).all())


def test_bounds_of_float_runs_are_wider_and_contain_the_module():
    widths = []
    for floats in ("real", "run"):
        torch.manual_seed(0)
        module = network("mse", (4,)).float()
        x, y = data("mse", torch.Generator().manual_seed(0))[0]
        engine = AbstractGradientEngine(
            module,
            lambda m, batch: LOSSES["mse"](m(batch[0]), batch[1]),
            LABELS,
            domains=("ball", "adjoint"),
            floats=floats,
        )
        engine.step([(x.float(), y.float())], torch.optim.SGD(module.parameters(), 0.1))
        queried = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
        model = CertifiedModel(module, engine.bounds, sets=engine.parameter_sets, floats=floats)
        bounds = model.bound_forward(queried)
        assert bounds.contains(module(queried).detach())
        widths.append(bounds.width)
    assert bool((widths[0] < widths[1]).all())


@pytest.mark.slow
def test_micro_batches_are_one_batch():
    x, y = data("mse", torch.Generator().manual_seed(0))[0]
    bounds = []
    for parts in ([(x, y)], [(x[:3], y[:3]), (x[3:], y[3:])]):
        torch.manual_seed(0)
        module = network("mse", (4,))
        engine = AbstractGradientEngine(
            module, lambda m, batch: LOSSES["mse"](m(batch[0]), batch[1]), LABELS, domains=("ball", "adjoint")
        )
        engine.step(parts, torch.optim.SGD(module.parameters(), 0.1))
        bounds.append(bounds_of(engine))
    torch.testing.assert_close(bounds[0].width, bounds[1].width, rtol=1e-9, atol=0)


def test_each_sample_is_stored_once():
    engine, steps, _ = trained(Case("mse", LABELS, epochs=3))
    recorder = set_of(engine).recorder
    assert recorder.samples == sum(len(x) for x, _ in steps[: len(steps) // 3])
    assert len(recorder.entries) == len(steps)
    assert len(recorder.parameters) == len(steps) + 1


# --- what it refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: one_step(network("mse", (4,)), domains=("adjoint",)), "needs the radius of the ball"),
        (lambda: one_step(network("mse", (4, 4))), "3 layers are trained"),
        (lambda: one_step(network("huber", (4,)), loss="huber"), "second derivative of a Huber loss jumps"),
        (lambda: one_step(network("mse", (4,)), dtype=torch.float32), "double precision"),
    ],
    ids=["no-ball", "deep", "huber", "type"],
)
def test_what_is_not_covered_is_refused(make, message):
    with pytest.raises(UncertifiableError, match=message):
        make()


def test_momentum_is_refused():
    module = network("mse", (4,))
    with pytest.raises(UncertifiableError, match="The adjoint domain does not cover `momentum`"):
        one_step(module, optimizer=torch.optim.SGD(module.parameters(), 0.1, momentum=0.9))


def test_all_reasons_are_given_at_once():
    adversary = UnboundedAdversary(n=1, kappa=0.5)
    with pytest.raises(UncertifiableError) as refused:
        one_step(network("mse", (4, 4)), adversary, domains=("adjoint",))
    assert len([problem for problem in refused.value.problems if "adjoint" in problem]) == 3


def test_auto_leaves_it_out():
    assert "adjoint" not in one_step(network("mse", (4,)), domains="auto").domains.in_use


# --- checkpoints and changed modules -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "adversary"),
    [("mse", BoundedAdversary(n=1, epsilon=0.02, p=2, nu=0.05)), ("ce", BoundedAdversary(n=1, nu=1, q=0))],
)
def test_a_restored_record_goes_on_as_if_nothing_had_happened(kind, adversary):
    case = Case(kind, adversary, epochs=1, rate=0.02)
    whole, steps, start = trained(case)
    first = network(kind, (case.hidden,))
    engines = []
    first.load_state_dict(start)
    for module in (first, network(kind, (case.hidden,))):
        engines.append(
            AbstractGradientEngine(
                module, lambda m, batch: LOSSES[kind](m(batch[0]), batch[1]), adversary, domains=case.domains
            )
        )
    optimizer = torch.optim.SGD(first.parameters(), case.rate)
    for batch in steps[:2]:
        engines[0].step([batch], optimizer)
    file = io.BytesIO()
    torch.save((engines[0].state(), first.state_dict()), file)
    file.seek(0)
    state, parameters = torch.load(file, weights_only=True)
    engines[1].module.load_state_dict(parameters)
    engines[1].restore(state)
    optimizer = torch.optim.SGD(engines[1].module.parameters(), case.rate)
    for batch in steps[2:]:
        engines[1].step([batch], optimizer)
    one, other = bounds_of(whole, case), bounds_of(engines[1], case)
    torch.testing.assert_close(one.lower, other.lower, rtol=1e-9, atol=0)
    torch.testing.assert_close(one.upper, other.upper, rtol=1e-9, atol=0)


def by_hand(outputs, labels):
    """Binary cross entropy of probabilities, whose logits a run may compute only within limits."""
    chance = torch.sigmoid(outputs)
    return -(labels * torch.log(chance) + (1 - labels) * torch.log(1 - chance)).mean()


@pytest.mark.parametrize(
    ("kind", "loss"),
    [("ce", lambda out, y: nn.functional.cross_entropy(out, y, label_smoothing=0.9)), ("bce", by_hand)],
    ids=["smoothed", "by-hand"],
)
def test_a_restored_record_has_the_same_loss(kind, loss):
    engine, steps, _ = trained(Case(kind, BoundedAdversary(n=1, epsilon=0.002), epochs=1, rate=0.01), loss=loss)
    other = AbstractGradientEngine(
        engine.module, lambda m, batch: loss(m(batch[0]), batch[1]), engine.adversary, domains=("ball", "adjoint")
    )
    file = io.BytesIO()
    torch.save(engine.state(), file)
    file.seek(0)
    other.restore(torch.load(file, weights_only=True))
    case = Case(kind, engine.adversary)
    assert vars(set_of(other).loss) == vars(set_of(engine).loss)
    assert torch.equal(bounds_of(other, case).lower, bounds_of(engine, case).lower)
    other.step([steps[0]], torch.optim.SGD(other.module.parameters(), 0.01))


@pytest.mark.parametrize(
    "adversary", [LABELS, BoundedAdversary(n=1, epsilon=0.05), BoundedAdversary(n=1, epsilon=0.05, nu=0.1)]
)
def test_steps_of_which_the_adversary_can_change_different_things_are_recorded(adversary):
    """No sample of the second batch can be poisoned, and half-widths of frozen features are those of each sample."""
    engine = AbstractGradientEngine(
        Frozen(),
        lambda m, batch: LOSSES["mse"](m(batch[0]), batch[1]),
        adversary,
        domains=("ball", "adjoint"),
        poisonable=lambda batch: batch[2],
    )
    optimizer = torch.optim.SGD(engine.module.parameters(), 0.05)
    steps = data("mse", torch.Generator().manual_seed(0))
    masks = [torch.arange(len(x)) < count for (x, _), count in zip(steps, (3, 0, 1, 4, 0), strict=True)]
    for (x, y), mask in zip(steps, masks, strict=True):
        engine.step([(x, y, mask)], optimizer)
    recorder = set_of(engine).recorder
    assert recorder.samples == sum(len(x) for x, _ in steps)
    for entry, (x, y), mask in zip(recorder.entries, steps, masks, strict=True):
        recorded = recorder._data(entry)
        torch.testing.assert_close(recorded.samples.inputs, torch.tanh(engine.module.frozen(x)).detach())
        assert torch.equal(recorded.target.lower, y)
        assert (0 if recorded.poison is None else len(recorded.poison.rows)) == int(mask.sum())
    x = torch.randn(4, 3, dtype=F64)
    bounds = model_of(engine).bound_forward(x)
    other = AbstractGradientEngine(
        engine.module, engine.loss, adversary, domains=("ball", "adjoint"), poisonable=lambda batch: batch[2]
    )
    other.restore(engine.state())
    torch.testing.assert_close(model_of(other).bound_forward(x).lower, bounds.lower, rtol=1e-12, atol=0)


def test_a_module_that_was_changed_is_refused():
    engine = trained(CASE)[0]
    with torch.no_grad():
        engine.module[0].bias += 1e-6
    with pytest.raises((UnsoundBoundError, BoundsMismatchError)):
        model_of(engine).bound_forward(torch.randn(3, 3, dtype=F64))


def test_sets_of_an_earlier_step_do_not_go_on_with_the_training():
    engine, steps, _ = trained(CASE)
    earlier = set_of(engine)
    bounds, count = bounds_of(engine), len(steps)
    engine.step([steps[0]], torch.optim.SGD(engine.module.parameters(), CASE.rate))
    x, rows = queries(CASE)
    earlier._found.clear()
    again = earlier.combinations(Interval.point(x), rows)
    assert len(earlier.recorder.entries) == count
    assert torch.equal(again.lower, bounds.lower)
    with pytest.raises(UnsoundBoundError, match="end in the module's parameters"):
        CertifiedModel(engine.module, engine.bounds, sets={"adjoint": earlier}).bound_forward(x)


def test_nan_raises():
    recorded = set_of(trained(CASE)[0])
    asked = combinations(recorded, *queries(CASE))
    recorded.recorder.parameters[1][0][0, 0] = float("nan")
    with pytest.raises(Exception, match="finite|NaN|nan"):
        displacements(recorded.recorder.backward(recorded.loss, recorded.run), asked.directions)


def test_bounds_of_the_same_inputs_are_kept():
    recorded = set_of(trained(CASE)[0])
    x, rows = queries(CASE)
    assert recorded.combinations(Interval.point(x), rows) is recorded.combinations(Interval.point(x), rows)


def test_the_certificate_names_the_domain():
    engine = trained(CASE)[0]
    record = engine.domains.record()["in_use"]["adjoint"]
    assert record["steps"] == 5
    assert record["samples"] > 0


# --- runs in floating point --------------------------------------------------------------------------------------


def test_runs_in_another_order_stay_inside_bounds_of_rounding():
    """Hardly any poison, so the bounds are those of rounding: float32 trainings that sum in another order."""
    adversary = BoundedAdversary(n=1, nu=1e-30)
    steps = [(x.float(), y.float()) for x, y in data("mse", torch.Generator().manual_seed(3)) * 2]
    torch.manual_seed(3)
    module = network("mse", (6,)).float()
    start = {name: value.clone() for name, value in module.state_dict().items()}
    engine = AbstractGradientEngine(
        module, lambda m, batch: LOSSES["mse"](m(batch[0]), batch[1]), adversary, domains=("ball", "adjoint")
    )
    optimizer = torch.optim.SGD(module.parameters(), 0.2)
    for batch in steps:
        engine.step([batch], optimizer)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    bounds, outputs = model_of(engine).bound_forward(x), []
    for seed in range(8):
        other = network("mse", (6,)).float()
        other.load_state_dict(start)
        moved = torch.optim.SGD(other.parameters(), 0.2)
        for features, labels in steps:
            order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
            moved.zero_grad()
            LOSSES["mse"](other(features[order]), labels[order]).backward()
            moved.step()
        outputs.append(other(x).detach())
        assert bounds.contains(outputs[-1])
    assert float((torch.stack(outputs).std(dim=0)).max()) > 0  # they do differ
    assert float(bounds.width.max()) < 1e-2


def test_bounds_scale_with_directions_however_small():
    recorded = set_of(trained(CASE)[0])
    directions = combinations(recorded, *queries(CASE)).directions
    factor = torch.tensor([1e-180], dtype=F64)
    ordinary, tiny = (
        displacements(recorded.recorder.backward(recorded.loss, recorded.run), each)
        for each in (directions, directions.scaled(factor))
    )
    torch.testing.assert_close(tiny.upper / 1e-180, ordinary.upper, rtol=1e-6, atol=0)


def test_sums_over_many_steps_are_rounded_up(monkeypatch):
    """After a step that adds one, each of the others adds what is lost beside it."""
    steps, least = 2**15, 2.0**-54
    monkeypatch.setattr(
        replay, "_step", lambda step, directions, pool: (torch.full((1, 2), step, dtype=F64), directions)
    )
    direction = Directions((torch.tensor([[[0.5, 0.0]]], dtype=F64),))
    bound = displacements([1.0, *[least] * steps], direction)
    assert Fraction(float(bound.upper)) >= 1 + steps * Fraction(least)
    assert float(bound.upper) < 1 + 1e-10
