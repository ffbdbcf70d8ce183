"""The domain in the engine: what it records is what was trained, and no run with changed labels leaves its bounds."""

import io
import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agt_lightning import (
    AbstractGradientEngine,
    BoundedAdversary,
    CertifiedModel,
    ParameterBounds,
    UnboundedAdversary,
)
from agt_lightning.aggregation.mean_clipping import MeanNormClipping
from agt_lightning.domains.influence import InfluenceDomain
from agt_lightning.errors import UncertifiableError, UnsoundBoundError
from agt_lightning.propagation.samples import MicroBatch
from tests.domains.influence.attacks import strongest_classes

ROUNDING = 1e-9
"""Rounding of a float64 training; one-sided."""
F64 = torch.float64
SAMPLES, CLASSES, STEPS, BATCH = 12, 3, 6, 5


class Probe(nn.Module):
    """One trained layer behind a frozen one."""

    def __init__(self, outputs=CLASSES, bias=True, dtype=F64):
        super().__init__()
        torch.manual_seed(3)
        self.frozen = nn.Linear(3, 4).requires_grad_(False)
        self.head = nn.Linear(4, outputs, bias=bias)
        self.to(dtype)

    def forward(self, x):
        return self.head(torch.tanh(self.frozen(x)))


def one_hot_loss(module, batch, low=0.0, high=1.0):
    x, y, *_ = batch
    return F.mse_loss(module(x), low + (high - low) * F.one_hot(y, CLASSES).to(x.dtype))


def number_loss(module, batch):
    return F.mse_loss(module(batch[0]), batch[1])


def sum_loss(module, batch):
    return 0.1 * F.mse_loss(module(batch[0]), batch[1], reduction="sum")


def data(dtype=F64):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(SAMPLES, 3, generator=generator, dtype=F64).to(dtype)
    return x, torch.arange(SAMPLES) % CLASSES


def batches(x, y, seed=6):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(len(x), generator=generator)[:BATCH] for _ in range(STEPS)]
    return [(x[chosen], y[chosen]) for chosen in rows]


def rows_of(batch):
    """Names of samples: their rows in the data."""
    return torch.cdist(batch[0].double(), data()[0]).argmin(dim=1)


def queries(dtype=F64, count=8):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(8), dtype=F64).to(dtype)


def sgd(module, **options):
    return torch.optim.SGD([p for p in module.parameters() if p.requires_grad], **{"lr": 0.4, **options})


def rate(step):
    return 0.4 / (1 + 0.2 * step)


def trained(loss, steps, adversary, module=None, domains=("influence",), names=True, **options):
    """An engine after certified training on these batches, with a falling learning rate."""
    module = Probe() if module is None else module
    engine = AbstractGradientEngine(module, loss, adversary, domains=domains, sample_ids=rows_of if names else None)
    optimizer = sgd(module, **options)
    for number, batch in enumerate(steps):
        optimizer.param_groups[0]["lr"] = rate(number)
        engine.step([batch], optimizer)
    return engine


def model_of(engine):
    return CertifiedModel(engine.module, engine.bounds, sets=engine.parameter_sets)


def retrained(loss, steps, module=None, **options):
    """The same training without any certificate."""
    module = Probe() if module is None else module
    optimizer = sgd(module, **options)
    for number, batch in enumerate(steps):
        optimizer.param_groups[0]["lr"] = rate(number)
        optimizer.zero_grad()
        loss(module, batch).backward()
        optimizer.step()
    return module


def flipped(steps, n, generator):
    """n labels of every batch replaced by random classes."""
    poisoned = []
    for x, y in steps:
        rows = torch.randperm(len(y), generator=generator)[:n]
        y = y.clone()
        y[rows] = torch.randint(0, CLASSES, (n,), generator=generator)
        poisoned.append((x, y))
    return poisoned


OPTIONS = {
    "plain": {},
    "momentum": {"momentum": 0.8},
    "dampened": {"momentum": 0.5, "dampening": 0.3},
    "nesterov": {"momentum": 0.7, "nesterov": True, "weight_decay": 0.05},
    "decay": {"weight_decay": 0.1},
}
FLIPS = BoundedAdversary(n=2, nu=1, q=0)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_no_training_with_flipped_labels_leaves_its_bounds(options, bias):
    steps, x = batches(*data()), queries()
    engine = trained(one_hot_loss, steps, FLIPS, Probe(bias=bias), **options)
    model, target = model_of(engine), torch.arange(len(x)) % CLASSES
    outputs, margins = model.bound_forward(x), model.margins(x, target)
    certified = model.certify(x)
    generator = torch.Generator().manual_seed(9)
    for _ in range(60):
        poisoned = retrained(one_hot_loss, flipped(steps, 2, generator), Probe(bias=bias), **options)
        reached = poisoned(x).detach()
        assert outputs.contains(reached, ROUNDING)
        assert margins.contains(reached.gather(1, target[:, None]) - reached, ROUNDING)
        assert model.bounds.contains(poisoned)
        assert bool((reached.argmax(dim=1) == certified.label)[certified.certified].all())


def worst_labels(engine, steps, query, direction):
    """Labels that lower ``direction · f(query)`` most: n of each batch, by the coefficients of each step."""
    record = engine.parameter_sets["influence"]
    features = torch.tanh(engine.module.frozen(query[None])).detach()
    flips = record.labels
    attacked = []
    coefficients = [values[0] for _, values in record.influence.step_coefficients(features)][::-1]
    for (x, y), a in zip(steps, coefficients, strict=True):
        step = record.influence.steps[len(attacked)]
        samples = record.influence.sample_of_row[step.rows]
        chosen = flips.range(direction).loss(a[None], samples)[0].topk(engine.adversary.n).indices
        y = y.clone()
        y[chosen] = strongest_classes(flips, direction, a[chosen], samples[chosen])
        attacked.append((x, y))
    return attacked


def test_bounds_on_outputs_and_margins_are_attained():
    steps, x = batches(*data()), queries(count=3)
    engine = trained(one_hot_loss, steps, FLIPS, momentum=0.5)
    model = model_of(engine)
    target = torch.tensor([0, 1, 2])
    outputs, margins = model.bound_forward(x), model.margins(x, target)
    for number in range(3):
        lowest = torch.eye(CLASSES, dtype=F64)[number]
        poisoned = retrained(one_hot_loss, worst_labels(engine, steps, x[number], lowest), momentum=0.5)
        reached = float(poisoned(x).detach()[number, number])
        assert reached == pytest.approx(float(outputs.lower[number, number]), abs=1e-8)
        rival = (number + 1) % CLASSES
        difference = lowest - torch.eye(CLASSES, dtype=F64)[rival]
        poisoned = retrained(one_hot_loss, worst_labels(engine, steps, x[number], difference), momentum=0.5)
        assert float(poisoned(x).detach()[number] @ difference) == pytest.approx(
            float(margins.lower[number, rival]), abs=1e-8
        )


@pytest.mark.parametrize("q", [1, 2, math.inf])
@pytest.mark.parametrize("loss", [number_loss, sum_loss])
def test_no_training_with_moved_labels_leaves_its_bounds(q, loss):
    x, classes = data()
    y = F.one_hot(classes, CLASSES).to(F64) + 0.1 * x[:, :1]
    steps, points = batches(x, y), queries()
    engine = trained(loss, steps, BoundedAdversary(n=2, nu=0.3, q=q))
    model = model_of(engine)
    outputs, generator = model.bound_forward(points), torch.Generator().manual_seed(1)
    for _ in range(40):
        poisoned = []
        for features, labels in steps:
            move = torch.randn(2, CLASSES, generator=generator, dtype=F64)
            move = 0.3 * move / torch.linalg.vector_norm(move, ord=q, dim=1, keepdim=True)
            poisoned.append((features, labels.index_add(0, torch.randperm(BATCH, generator=generator)[:2], move)))
        module = retrained(loss, poisoned)
        assert outputs.contains(module(points).detach(), ROUNDING)
        assert model.bounds.contains(module)


def test_bounds_alone_are_the_smallest_box():
    steps = batches(*data())
    engine = trained(one_hot_loss, steps, FLIPS)
    recorded = engine.parameter_sets["influence"]
    axes, bounds = torch.eye(5, dtype=F64), engine.box
    for column in range(5):
        lower = 0.0
        for step, a in recorded.influence.of_inputs().step_coefficients(axes[column : column + 1]):
            samples = recorded.influence.sample_of_row[step.rows]
            direction = torch.eye(CLASSES, dtype=F64)[0]
            lower -= float(recorded.labels.range(direction).loss(a, samples)[0].topk(2).values.sum())
        name, entry = ("head.bias", 0) if column == 4 else ("head.weight", (0, column))
        nominal = float(engine.module.get_parameter(name).detach()[entry])
        assert float(bounds[name].lower[entry]) == pytest.approx(nominal + lower, abs=1e-9)
    assert bounds["frozen.weight"].is_point


def test_it_is_tighter_than_box_and_ball_and_decides():
    steps, x = batches(*data()), queries()
    engine = trained(one_hot_loss, steps, FLIPS, domains="auto")
    assert list(engine.domains.in_use) == ["box", "ball", "influence"]
    both = CertifiedModel(engine.module, engine.bounds, sets={"ball": engine.parameter_sets["ball"]})
    model = model_of(engine)
    assert bool((model.bound_forward(x).width < both.bound_forward(x).width).all())
    assert model.deciding_domains(x) == {"box": 0.0, "ball": 0.0, "influence": 1.0}


def test_inputs_with_a_trigger_have_bounds_that_hold_for_every_one():
    engine = trained(one_hot_loss, batches(*data()), FLIPS, domains="auto")
    without = CertifiedModel(engine.module, engine.bounds, sets={"ball": engine.parameter_sets["ball"]})
    x, model = queries(), model_of(engine)
    triggered = model.bound_forward(x, 0.1)
    assert bool((triggered.width <= without.bound_forward(x, 0.1).width).all())
    for sign in (-1.0, 0.0, 1.0):
        moved = model.bound_forward(x + 0.1 * sign)
        assert bool((triggered.lower <= moved.upper).all())
        assert bool((triggered.upper >= moved.lower).all())
        assert triggered.contains(engine.module(x + 0.0999 * sign).detach())


def test_an_adversary_without_labels_leaves_points():
    engine = trained(one_hot_loss, batches(*data()), BoundedAdversary(n=2))
    assert float(model_of(engine).bound_forward(queries()).width.max()) < ROUNDING


def test_a_single_frozen_bias():
    module = Probe()
    module.head.bias.requires_grad_(False)
    steps = batches(*data())
    engine = trained(one_hot_loss, steps, FLIPS, module)
    assert engine.box["head.bias"].width.max() < ROUNDING
    twin = Probe()
    twin.head.bias.requires_grad_(False)
    poisoned = retrained(one_hot_loss, flipped(steps, 2, torch.Generator().manual_seed(2)), twin)
    assert model_of(engine).bound_forward(queries()).contains(poisoned(queries()).detach(), ROUNDING)


@pytest.mark.slow
def test_accumulated_batches_share_one_budget():
    x, y = data()
    module, engine = Probe(), None
    engine = AbstractGradientEngine(module, one_hot_loss, FLIPS, domains=("influence",))
    engine.step([(x[:6], y[:6]), (x[6:], y[6:])], sgd(module))
    whole = Probe()
    other = AbstractGradientEngine(whole, one_hot_loss, FLIPS, domains=("influence",))
    other.step([(x, y)], sgd(whole))
    bounds = model_of(engine).bound_forward(queries())
    assert torch.allclose(bounds.lower, model_of(other).bound_forward(queries()).lower, atol=ROUNDING)


def test_samples_that_cannot_be_poisoned_keep_their_labels():
    x, y = data()
    module = Probe()
    trusted = AbstractGradientEngine(
        module, one_hot_loss, FLIPS, domains=("influence",), poisonable=lambda batch: batch[0][:, 0] > 10
    )
    trusted.step([(x, y)], sgd(module))
    assert float(model_of(trusted).bound_forward(queries()).width.max()) < ROUNDING
    assert model_of(trusted).certified_flips(queries()).tolist() == [0] * 8  # of no samples that could be flipped


# --- which samples are the same ------------------------------------------------------------------------------------


def moved(steps, size=0.01):
    """The same batches with fresh noise in their features, as random augmentation makes it."""
    generator = torch.Generator().manual_seed(3)
    return [(x + size * torch.randn(x.shape, generator=generator, dtype=x.dtype), y) for x, y in steps]


def stepwise(engine, steps, **options):
    optimizer = sgd(engine.module)
    for batch in steps:
        engine.step([batch], optimizer, **options)


def by_parts(engine, steps, epochs):
    """A loop of one's own, with the number of each step's epoch."""
    optimizer = sgd(engine.module)
    for batch, epoch in zip(steps, epochs, strict=True):
        micro_batches = [MicroBatch(batch, epoch=epoch)]
        optimizer.zero_grad()
        engine.loss(engine.module, batch).backward()
        bounds = engine.bound_gradient(micro_batches)
        engine.verify(bounds, micro_batches)
        optimizer.step()
        engine.update(bounds, optimizer)


def influence_engine(**options):
    return AbstractGradientEngine(Probe(), one_hot_loss, FLIPS, domains=("influence",), **options)


@pytest.mark.slow
def test_full_batches_need_no_epoch():
    engine = influence_engine()
    stepwise(engine, [data()] * 3)
    numbered = influence_engine()
    for epoch in range(3):
        stepwise(numbered, [data()], epoch=epoch)
    assert torch.equal(model_of(engine).certified_flips(queries()), model_of(numbered).certified_flips(queries()))


@pytest.mark.parametrize("train", [stepwise, partial(by_parts, epochs=[None] * 3)], ids=["step", "bound_gradient"])
def test_samples_that_change_without_an_epoch_are_not_known(train):
    engine = influence_engine()
    train(engine, moved([data()] * 3))
    with pytest.raises(UncertifiableError, match=r"\(`epoch=`\).*\(`sample_ids`;"):
        model_of(engine).certified_flips(queries())
    assert bool((model_of(engine).bound_forward(queries()).width > 0).all())
    ids = influence_engine(sample_ids=lambda batch: torch.arange(len(batch[1])))
    train(ids, moved([data()] * 3))
    assert len(ids.parameter_sets["influence"].influence.targets) == SAMPLES
    assert model_of(ids).certified_flips(queries()).shape == (8,)


@pytest.mark.slow
def test_mini_batches_need_an_epoch():
    x, y = data()
    halves = [(x[:6], y[:6]), (x[6:], y[6:])]
    unknown, known = influence_engine(), influence_engine()
    stepwise(unknown, halves)
    stepwise(known, halves, epoch=0)
    with pytest.raises(UncertifiableError, match="a step of an unknown epoch"):
        model_of(unknown).certified_flips(queries())
    assert model_of(known).certified_flips(queries()).shape == (8,)


@pytest.mark.parametrize("epochs", [[None, 0], [0, None], [0, 1]], ids=str)
def test_new_samples_are_known_in_the_first_epoch_alone(epochs):
    x, y = data()
    engine = influence_engine()
    by_parts(engine, [(x[:6], y[:6]), (x[6:], y[6:])], epochs)
    assert engine.parameter_sets["influence"].influence.problem is not None


@pytest.mark.slow
def test_a_step_of_two_epochs_is_of_an_unknown_one():
    x, y = data()
    engine = influence_engine()
    optimizer = sgd(engine.module)
    for step in range(2):
        micro_batches = [MicroBatch((x[:4] + step, y[:4]), epoch=0), MicroBatch((x[4:] + step, y[4:]), epoch=1)]
        optimizer.zero_grad()
        for batch in micro_batches:
            (engine.loss(engine.module, batch.data) / 2).backward()
        bounds = engine.bound_gradient(micro_batches)
        engine.verify(bounds, micro_batches)
        optimizer.step()
        engine.update(bounds, optimizer)
    assert "unknown epoch" in engine.parameter_sets["influence"].influence.problem


EQUAL = torch.tensor([0, 1, 2, 0, 3])
"""Rows of the data of a batch with two samples of equal content."""


@pytest.mark.parametrize(
    ("steps", "epochs", "known"),
    [
        ([EQUAL, EQUAL], [0, 1], True),
        ([EQUAL, EQUAL], [None, None], True),
        ([EQUAL[:3], EQUAL[3:]], [0, 0], False),
        ([EQUAL, EQUAL[:3]], [0, 1], False),
        ([EQUAL, EQUAL[1:]], [None, None], False),
        ([EQUAL[:3], EQUAL[:2]], [None, None], False),
    ],
)
def test_samples_of_equal_content_are_counted_only_if_all_have_one_influence(steps, epochs, known):
    x, y = data()
    engine = influence_engine()
    by_parts(engine, [(x[rows], y[rows]) for rows in steps], epochs)
    problem = engine.parameter_sets["influence"].influence.problem
    assert (problem is None) is known


class Wide(nn.Module):
    """One trained layer behind a frozen one whose long sums are rounded in another way in every batch size."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(64, 6).requires_grad_(False)
        self.head = nn.Linear(6, CLASSES)
        self.double()

    def forward(self, x):
        return self.head(torch.tanh(self.frozen(x)))


def wide_engine(steps, *, equal):
    """An engine after steps of two epochs, given by rows; rows 0 and 1 are equal or not."""
    x, y = torch.randn(4, 64, generator=torch.Generator().manual_seed(1), dtype=F64), torch.tensor([1, 1, 0, 2])
    if equal:
        x[1] = x[0]
    engine = AbstractGradientEngine(Wide(), one_hot_loss, FLIPS, domains=("influence",))
    by_parts(engine, [(x[rows], y[rows]) for rows in steps], [0, 0, 1, 1])
    return engine.parameter_sets["influence"].influence


@pytest.mark.slow
def test_equal_samples_are_equal_even_if_frozen_layers_round_them_differently():
    """Else the second epoch would take each of the two for the other one, and flips of one for flips of both."""
    problem = wide_engine([[0, 2, 3], [1], [1, 2, 3], [0]], equal=True).problem
    assert problem is not None
    assert "equal content" in problem


def test_a_sample_is_known_even_if_frozen_layers_round_it_differently():
    influence = wide_engine([[0, 2, 3], [1], [1, 2, 3], [0]], equal=False)
    assert influence.problem is None
    assert len(influence.targets) == 4


def test_a_flip_of_one_of_two_equal_samples_can_be_stronger_than_of_both():
    """Which is why these are refused: the influence of the first step has the other sign in the second."""
    x = data()[0][:1]

    def loss(module, batch):
        return 9 * one_hot_loss(module, batch)

    def output(first, second):
        return float(retrained(loss, [(x, torch.tensor([first])), (x, torch.tensor([second]))])(x)[0, 1].detach())

    changes = [abs(output(*labels) - output(1, 1)) for labels in ((2, 1), (1, 2), (2, 2))]
    assert changes[2] < max(changes[:2])


def test_a_checkpoint_keeps_which_samples_an_epoch_has_had():
    x, y = data()
    engine = influence_engine()
    stepwise(engine, [(x[:6], y[:6])], epoch=0)
    again = AbstractGradientEngine(engine.module, one_hot_loss, FLIPS, domains=("influence",))
    again.restore(engine.state())
    stepwise(again, [(x[5:], y[5:])], epoch=0)
    assert "samples of equal content" in again.parameter_sets["influence"].influence.problem


def test_a_checkpoint_keeps_that_the_epoch_was_unknown():
    engine = influence_engine()
    stepwise(engine, [data()])
    again = AbstractGradientEngine(engine.module, one_hot_loss, FLIPS, domains=("influence",))
    again.restore(engine.state())
    stepwise(again, moved([data()]), epoch=0)
    assert again.parameter_sets["influence"].influence.problem is not None


@pytest.mark.slow
def test_a_name_that_is_drawn_several_times_in_an_epoch_counts_once():
    """Flips of all subsets of samples, each with all its occurrences; augmented each time."""
    x, y = data()
    drawn = [torch.tensor(rows) for rows in ([0, 1, 2], [1, 3, 4], [4, 0, 1], [2, 3, 5], [1, 5, 0])]
    noise = torch.Generator().manual_seed(3)
    steps = [(x[rows] + 0.3 * torch.randn(3, 3, generator=noise, dtype=F64), y[rows], rows) for rows in drawn]
    engine = influence_engine(sample_ids=lambda batch: batch[2])
    stepwise(engine, steps, epoch=0)
    record = engine.domains.record()["in_use"]["influence"]
    assert record["samples"] == 6
    assert record["certified_flips_count"].endswith("a sample is all that has one id")
    assert torch.equal(model_of(engine).certified_flips(queries()), withstood_by_all(steps, y[:6]))


def withstood_by_all(steps, labels):
    """Retrain with every labeling of the samples."""
    nominal = _classes(steps, labels)
    least = torch.full_like(nominal, len(labels))
    for labeling in itertools.product(range(CLASSES), repeat=len(labels)):
        chosen = torch.tensor(labeling)
        flips = int((chosen != labels).sum())
        changed = _classes(steps, chosen) != nominal
        least = torch.where(changed, least.clamp(max=flips - 1), least)
    return least


def _classes(steps, labels):
    module = Probe()
    optimizer = sgd(module)
    for x, _, rows in steps:
        optimizer.zero_grad()
        one_hot_loss(module, (x, labels[rows])).backward()
        optimizer.step()
    return module(queries()).argmax(dim=1)


# --- rounding and self-check ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_float32_module_is_covered_with_its_rounding():
    x, y = data(torch.float32)
    steps, points = batches(x, y), queries(torch.float32)
    engine = trained(one_hot_loss, steps, FLIPS, Probe(dtype=torch.float32), momentum=0.5)
    model = model_of(engine)
    bounds, generator = model.bound_forward(points), torch.Generator().manual_seed(4)
    assert bounds.dtype == torch.float32
    for _ in range(20):
        poisoned = retrained(one_hot_loss, flipped(steps, 2, generator), Probe(dtype=torch.float32), momentum=0.5)
        assert bounds.contains(poisoned(points).detach(), 1e-5)
    double = trained(one_hot_loss, batches(*data()), FLIPS, momentum=0.5)
    assert torch.equal(model.certified_flips(points), model_of(double).certified_flips(queries()))


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("factor", [2.0, 1.001])
def test_wrong_slopes_are_caught(monkeypatch, dtype, factor):
    bound_step = InfluenceDomain.bound_step

    def wrong(self, step, value_bounds):
        recorded = bound_step(self, step, value_bounds)
        object.__setattr__(recorded, "slopes", factor * recorded.slopes)
        return recorded

    monkeypatch.setattr(InfluenceDomain, "bound_step", wrong)
    x, y = data(dtype)
    engine = trained(one_hot_loss, batches(x, y), FLIPS, Probe(dtype=dtype), domains=("ball", "influence"))
    model = model_of(engine)
    for certificate in (model.bound_forward, model.certify, model.certified_flips):
        with pytest.raises(UnsoundBoundError, match="a step was recorded wrongly"):
            certificate(queries(dtype))
    with pytest.raises(UnsoundBoundError, match="a step was recorded wrongly"):
        engine.parameter_sets["influence"].parameters(engine.parameter_sets["influence"].head_of(engine.module))


@pytest.mark.parametrize("fault", ["features", "targets", "rate"])
def test_other_faults_of_the_record_are_caught(monkeypatch, fault):
    def wrong(self, features, targets, slopes, settings, *, original=None, **rest):
        if fault == "features":
            features = features + 0.01
        elif fault == "targets":
            targets = targets.roll(1, dims=0)
        else:
            settings = type(settings)(settings.rate * 0.9)
            rest["bias_settings"] = settings
        return append(self, features, targets, slopes, settings, **rest)

    from agt_lightning.domains.influence.recorder import HeadRecorder

    append = HeadRecorder.append
    monkeypatch.setattr(HeadRecorder, "append", wrong)
    engine = trained(one_hot_loss, batches(*data()), FLIPS, domains=("ball", "influence"), names=False)
    with pytest.raises(UnsoundBoundError, match="Expected the recorded training to end in the outputs"):
        model_of(engine).bound_forward(queries())


def test_parameters_that_moved_after_training_are_caught():
    engine = trained(one_hot_loss, batches(*data()), FLIPS, domains="auto")
    with torch.no_grad():
        engine.module.head.bias += 1e-6
    with pytest.raises(UnsoundBoundError, match="Something besides the recorded steps"):
        CertifiedModel(
            engine.module, ParameterBounds(engine.bounds), sets={"influence": engine.parameter_sets["influence"]}
        ).certified_flips(queries())


# --- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"momentum": 0.8}])
def test_an_interrupted_training_gives_the_same_certificate(options):
    steps, x = batches(*data()), queries()
    whole = trained(one_hot_loss, steps, FLIPS, **options)
    module = Probe()
    optimizer = sgd(module, **options)
    first = AbstractGradientEngine(module, one_hot_loss, FLIPS, domains=("influence",), sample_ids=rows_of)
    for number, batch in enumerate(steps[:3]):
        optimizer.param_groups[0]["lr"] = rate(number)
        first.step([batch], optimizer)
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second = AbstractGradientEngine(module, one_hot_loss, FLIPS, domains=("influence",), sample_ids=rows_of)
    second.restore(torch.load(file, weights_only=True))
    for number, batch in enumerate(steps[3:], start=3):
        optimizer.param_groups[0]["lr"] = rate(number)
        second.step([batch], optimizer)
    for name, bounds in whole.box.items():
        assert torch.equal(bounds.lower, second.box[name].lower)
    assert torch.equal(model_of(whole).certified_flips(x), model_of(second).certified_flips(x))
    assert second.domains.record() == whole.domains.record()


def test_a_checkpoint_before_the_first_step():
    engine = AbstractGradientEngine(Probe(), one_hot_loss, FLIPS, domains=("influence",))
    other = AbstractGradientEngine(Probe(), one_hot_loss, FLIPS, domains=("influence",))
    other.restore(engine.state())
    assert "influence" not in other.parameter_sets
    assert other.bounds.contains(other.module)


# --- refusals ------------------------------------------------------------------------------------------------------


def refusal(loss=one_hot_loss, adversary=FLIPS, module=None, optimizer=None, batch=None, clipping=None):
    module = Probe() if module is None else module
    optimizer = sgd if optimizer is None else optimizer
    engine = AbstractGradientEngine(module, loss, adversary, domains=("influence",), clipping=clipping)
    return "\n".join(engine.problems(data() if batch is None else batch, optimizer(module)))


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, CLASSES)).to(F64)


def mixed_labels(module, batch):
    x, y = batch
    return F.mse_loss(module(x), F.one_hot(y, CLASSES).to(x.dtype) * x[:, :1])


def leaking_labels(module, batch):
    x, y = batch
    hidden = torch.tanh(module.frozen(x)) + y[:, :1]
    return F.mse_loss(module.head(hidden), y)


def scaled_numbers(module, batch):
    return F.mse_loss(module(batch[0]), 2 * batch[1])


def equal_targets(module, batch):
    x, y = batch
    return F.mse_loss(module(x), 0 * F.one_hot(y, CLASSES).to(x.dtype))


NUMBERS = (data()[0], data()[0])
MOVED = BoundedAdversary(n=1, nu=0.1)
REFUSALS = {
    "features": ({"adversary": BoundedAdversary(n=1, epsilon=0.1, nu=1, q=0)}, "set `epsilon=0`"),
    "unbounded": ({"adversary": UnboundedAdversary(n=1, kappa=1.0)}, "needs a `BoundedAdversary`"),
    "loss": (
        {"loss": lambda module, batch: F.cross_entropy(module(batch[0]), batch[1])},
        "train with `mse_loss`",
    ),
    "layers": (
        {"module": two_layers(), "optimizer": lambda m: torch.optim.SGD(m.parameters(), lr=0.1)},
        "freeze all but the last linear layer",
    ),
    "optimizer": ({"optimizer": lambda m: torch.optim.Adam(m.head.parameters())}, "covers `torch.optim.SGD` alone"),
    "maximize": ({"optimizer": partial(sgd, maximize=True)}, "Set `maximize=False`"),
    "clipping": ({"clipping": MeanNormClipping(1.0)}, "does not cover clipping of the mean gradient"),
    "part": ({"optimizer": lambda m: torch.optim.SGD([m.head.weight], lr=0.1)}, "head.bias is not there. Add it"),
    "mixed": ({"loss": mixed_labels}, "compute them from one label"),
    "leak": ({"loss": leaking_labels, "batch": NUMBERS, "adversary": MOVED}, "keep them out of its input"),
    "scaled": ({"loss": scaled_numbers, "batch": NUMBERS, "adversary": MOVED}, "Compute the targets in the data set"),
    "targets": ({"loss": equal_targets}, "give each class its own"),
    "classes": ({"adversary": BoundedAdversary(n=1, nu=1, q=0, target_classes=(7,))}, "Expected classes in 0..2"),
}


@pytest.mark.parametrize(("setup", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_is_not_covered_is_refused_with_a_way_out(setup, message):
    assert message in refusal(**setup)


def test_a_foreign_momentum_is_refused():
    module = Probe()
    optimizer = sgd(module, momentum=0.9)
    one_hot_loss(module, data()).backward()
    optimizer.step()
    assert "hold steps" in refusal(module=module, optimizer=lambda _: optimizer).replace("holds", "hold")


@pytest.mark.slow
def test_what_applies_is_not_refused():
    assert refusal() == ""
    assert refusal(partial(one_hot_loss, low=-1.0)) == ""
    assert refusal(number_loss, MOVED, batch=NUMBERS) == ""


def test_auto_tells_why_it_is_left_out():
    engine = AbstractGradientEngine(Probe(), one_hot_loss, BoundedAdversary(n=1, epsilon=0.1), domains="auto")
    assert engine.problems(data(), sgd(engine.module)) == []
    assert "epsilon=0" in engine.domains.excluded["influence"]
    assert list(engine.domains.in_use) == ["box", "ball"]


def test_ids_are_integers_one_per_sample():
    with pytest.raises(ValueError, match=r"Expected `sample_ids` to give integers of shape \(12,\), but got torch"):
        step_with_ids(lambda batch: torch.zeros(len(batch[1])))


def test_two_targets_under_one_id_end_the_domain():
    with pytest.raises(UncertifiableError, match="Give each sample an id of its own"):
        step_with_ids(lambda batch: torch.arange(len(batch[1])), data(), (data()[0], data()[1].roll(1)))


def test_one_id_twice_in_a_step_is_refused():
    with pytest.raises(UncertifiableError, match="have the name of another one in it"):
        step_with_ids(lambda batch: torch.zeros(len(batch[1]), dtype=torch.int64))


def step_with_ids(ids, *steps):
    module = Probe()
    engine = AbstractGradientEngine(module, one_hot_loss, FLIPS, domains=("influence",), sample_ids=ids)
    for batch in steps or [data()]:
        engine.step([batch], sgd(module))
