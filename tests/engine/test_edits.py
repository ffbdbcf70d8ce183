"""Trainings from whose batches samples are deleted, and into which others are inserted, for real."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from agt_lightning import AbstractGradientEngine, UnboundedAdversary
from agt_lightning.aggregation import BatchEdits
from agt_lightning.domains import box
from agt_lightning.engine import nominal_step

F64 = torch.float64
ROUNDING = 1e-9
FEATURES, CLASSES, EPOCHS, RATE = 3, 3, 2, 0.3
SIZES = (5, 4)
LOSSES = {
    "mean": lambda out, y: nn.functional.cross_entropy(out, y),
    "sum": lambda out, y: 0.1 * nn.functional.cross_entropy(out, y, reduction="sum"),
    "sum over length": lambda out, y: nn.functional.cross_entropy(out, y, reduction="sum") / len(y),
}
WEIGHTS = {"mean": lambda size: 1 / size, "sum": lambda size: 0.1, "sum over length": lambda size: 1 / size}


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, CLASSES)).double()


def batches():
    generator = torch.Generator().manual_seed(2)
    return [
        (
            torch.randn(size, FEATURES, generator=generator, dtype=F64),
            torch.randint(0, CLASSES, (size,), generator=generator),
        )
        for size in SIZES
    ]


def strangers(generator, count=40):
    """Samples to insert: large and small, of all classes."""
    scale = torch.tensor([0.1, 1.0, 10.0, 1e3], dtype=F64)[torch.arange(count) % 4, None]
    x = scale * torch.randn(count, FEATURES, generator=generator, dtype=F64)
    return x, torch.arange(count) % CLASSES


class Run:
    """One training that is pushed along a direction by the best edits of each batch."""

    def __init__(self, module, adversary, seed):
        self.module, self.adversary, self.generator = module, adversary, torch.Generator().manual_seed(seed)
        self.parameters = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        flat = torch.zeros(sum(parameter.numel() for parameter in self.parameters.values()), dtype=F64)
        if seed % 3:
            flat[torch.randint(0, len(flat), (), generator=self.generator)] = 1.0 if seed % 2 else -1.0
        else:
            flat = torch.randn(flat.shape, generator=self.generator, dtype=F64)
        self.direction = flat

    def clipped(self, x, y):
        """Each sample's clipped gradient, (samples, parameters)."""

        def loss(parameters, x, y):
            return nn.functional.cross_entropy(functional_call(self.module, parameters, (x[None],)), y[None])

        found = vmap(grad(loss), in_dims=(None, 0, 0))(self.parameters, x, y)
        rows = torch.cat([part.flatten(1) for part in found.values()], dim=1)
        kappa = self.adversary.kappa
        if self.adversary.clip == "value":
            return rows.clamp(-kappa, kappa)
        return rows * (kappa / rows.norm(dim=1, keepdim=True)).clamp(max=1.0)

    def step(self, x, y, weight):
        """Train on the batch with the edits that serve the direction best, each number of deletions tried."""
        new_x, new_y = strangers(self.generator)
        own, new = self.clipped(x, y), self.clipped(new_x, new_y)
        pushes = [-(rows @ self.direction) for rows in (own, new)]
        tried = []
        for gone in range(min(self.adversary.n, len(x) - 1) + 1):
            kept = pushes[0].argsort()[gone:]
            for came in {0, self.adversary.n - gone}:
                best = pushes[1].argsort(descending=True)[:came]
                total = weight(len(kept) + came) * torch.cat([own[kept], new[best]]).sum(dim=0)
                tried.append((float(-(total @ self.direction)), total))
        self.move(max(tried, key=lambda pair: pair[0])[1])

    def move(self, total):
        for name, parameter in self.parameters.items():
            part, total = total[: parameter.numel()], total[parameter.numel() :]
            self.parameters[name] = parameter - RATE * part.reshape(parameter.shape)


def largest_excess(kind, clip, n=2, runs=6):
    """By how much poisoned runs leave the box, and the largest share of its width that they reach."""
    module = network()
    adversary = UnboundedAdversary(n=n, kappa=0.3, clip=clip, edits="insert-delete")
    loss = LOSSES[kind]
    engine = AbstractGradientEngine(module, lambda m, batch: loss(m(batch[0]), batch[1]), adversary)
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    attacks = [Run(network(), adversary, seed) for seed in range(runs)]
    for _ in range(EPOCHS):
        for x, y in batches():
            engine.step([(x, y)], optimizer)
            for attack in attacks:
                attack.step(x, y, WEIGHTS[kind])
    excess, share = -torch.inf, 0.0
    for name, interval in engine.box.items():
        for attack in attacks:
            value = attack.parameters[name]
            excess = max(excess, float(torch.maximum(value - interval.upper, interval.lower - value).max()))
            moved = (value - module.get_parameter(name).detach()).abs() / interval.width.clamp(min=1e-12)
            share = max(share, float(moved.max()))
    return excess, share


@pytest.mark.parametrize(
    ("kind", "clip"), [("mean", "value"), ("mean", "norm"), ("sum", "value"), ("sum over length", "norm")]
)
def test_no_insertion_or_deletion_leaves_the_box(kind, clip):
    excess, share = largest_excess(kind, clip)
    assert excess <= ROUNDING
    assert share > 0.03  # the attacks do something


def test_one_step_reaches_its_bounds():
    """From a point, at single elements, a step's bounds are attained but for how far a real gradient reaches κ."""
    module, (x, y) = network(), batches()[0]
    adversary = UnboundedAdversary(n=2, kappa=0.05, edits="insert-delete")
    engine = AbstractGradientEngine(module, lambda m, batch: LOSSES["mean"](m(batch[0]), batch[1]), adversary)
    engine.step([(x, y)], torch.optim.SGD(module.parameters(), lr=RATE))
    reached = 0.0
    for seed in (1, 2, 4, 5, 7, 8, 10, 11):
        attack = Run(network(), adversary, seed)
        attack.step(x, y, WEIGHTS["mean"])
        for name, interval in engine.box.items():
            value = attack.parameters[name]
            assert bool((value <= interval.upper).all() & (value >= interval.lower).all())
            room = torch.minimum(interval.upper - value, value - interval.lower) / interval.width.clamp(min=1e-12)
            reached = max(reached, 1 - 2 * float(room.min()))
    assert reached > 0.999


FAULTS = {
    "nothing is inserted": lambda n, weights: BatchEdits(n, {k: w for k, w in weights.items() if k < 0} or weights),
    "one edit less": lambda n, weights: BatchEdits(n - 1, {k: weights[k] for k in range(1 - n, n)}),
    "half of the weight": lambda n, weights: BatchEdits(n, {k: 0.7 * w for k, w in weights.items()}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_mistakes_are_noticed(monkeypatch, fault):
    edits = BatchEdits
    made = FAULTS[fault]

    class Faulty:
        changes = staticmethod(edits.changes)

        def __new__(cls, n, weights):
            return made(n, weights)

    monkeypatch.setattr(nominal_step, "BatchEdits", Faulty)
    with pytest.raises(Exception, match=r"assert|excess|outside|Expected") as caught:
        test_one_step_reaches_its_bounds()
    assert caught.type.__name__ in ("AssertionError", "UnsoundBoundError")


def test_substitutions_in_place_do_not_cover_insertions(monkeypatch):
    """Planted mistake: the bounds of half as many substitutions, which leave the size of the batch as it is."""
    honest = box.unbounded_descent

    def in_place(gradient, samples, edits, clipping, budget, arithmetic):
        return honest(gradient, samples, edits.n // 2, clipping, budget, arithmetic)

    monkeypatch.setattr(box, "edited_descent", in_place)
    with pytest.raises(AssertionError):
        test_one_step_reaches_its_bounds()


def test_more_edits_are_never_tighter():
    widths = []
    for n in (0, 1, 2):
        module = network()
        adversary = UnboundedAdversary(n=n, kappa=0.3, edits="insert-delete")
        engine = AbstractGradientEngine(module, lambda m, batch: LOSSES["mean"](m(batch[0]), batch[1]), adversary)
        engine.step([batches()[0]], torch.optim.SGD(module.parameters(), lr=RATE))
        widths.append(engine.bounds.mean_width())
    assert widths == sorted(widths)
    assert widths[0] < 1e-9 < widths[1]


@pytest.mark.slow
def test_both_kinds_of_edits_are_certified_beside_one_training():
    module = network()
    adversaries = [UnboundedAdversary(n=2, kappa=0.3, edits=edits) for edits in ("replace", "insert-delete")]
    engine = AbstractGradientEngine(module, lambda m, batch: LOSSES["mean"](m(batch[0]), batch[1]), adversaries)
    batch = batches()[0]
    engine.step([batch], torch.optim.SGD(module.parameters(), lr=RATE))
    for adversary in adversaries:
        alone = AbstractGradientEngine(network(), lambda m, batch: LOSSES["mean"](m(batch[0]), batch[1]), adversary)
        alone.step([batch], torch.optim.SGD(alone.module.parameters(), lr=RATE))
        both = engine.bounds_of(adversary)
        assert both.mean_width() == pytest.approx(alone.bounds.mean_width())
