"""Adversaries that own sources: real trainings with whole sources poisoned stay inside, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary, UnboundedAdversary
from agt_lightning.aggregation import Choice, SampleSet
from agt_lightning.distributed import SingleProcess
from agt_lightning.engine.nominal_step import LocalGradients, all_samples
from tests.engine.attacks import LOSSES, Attacks, assert_contained, data, network

ADVERSARIES = [
    pytest.param("mse", BoundedAdversary(n=1, epsilon=0.2, nu=0.3, counts="sources"), id="mse-both"),
    pytest.param("ce", BoundedAdversary(n=2, epsilon=0.1, nu=1, q=0, counts="sources"), id="ce-both"),
    pytest.param("ce", UnboundedAdversary(n=1, kappa=0.1, clip="norm", counts="sources"), id="norm-clipping"),
    pytest.param("mse", UnboundedAdversary(n=1, kappa=0.2, counts="sources"), id="value-clipping"),
]
F64 = torch.float64
SOURCES = torch.tensor([5, 2, 5, 2, 5, 8])


class OwnedAttacks(Attacks):
    """Attacks that poison all samples of the sources from which they gain most, where it helps them."""

    def chosen(self, gain):
        ids = SOURCES[: gain.shape[1]]
        member = nn.functional.one_hot(ids.unique(return_inverse=True)[1]).double()
        best = (gain.clamp(min=0) @ member).topk(min(self.adversary.n, member.shape[1]), dim=1).indices
        owned = torch.zeros(len(gain), member.shape[1]).double().scatter_(1, best, 1.0) @ member.T
        return (owned > 0) & (gain > 0)


def engine_of(module, kind, adversary, **settings):
    def loss(m, batch):
        return LOSSES[kind](m(batch["x"]), batch["y"])

    settings = {"domains": ["box"], "sources": "from", "features": "x", "labels": "y"} | settings
    return AbstractGradientEngine(module, loss, adversary, **settings)


def batch_of(x, y):
    return {"x": x, "y": y, "from": SOURCES[: len(x)]}


def largest_reach(kind, adversary, hidden, seed, domains):
    """Train clean, bounded and attacked; the share of the box's half-width that some attack used."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    module = network(kind, hidden)
    rate = (0.05, 0.2)[seed % 2]
    engine = engine_of(module, kind, adversary, domains=domains)
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    attacks = OwnedAttacks(module, kind, adversary, rate, 0.0, generator)
    shares = [0.0]
    for x, y in data(kind, generator):
        attacks.step(x, y)
        engine.step([batch_of(x, y)], optimizer)
        assert_contained(engine, attacks.runs)
        moved = torch.cat([(v - module.get_parameter(k).detach()).flatten(1) for k, v in attacks.runs.items()], dim=1)
        if "ball" in domains:
            radius = engine.domains.in_use["ball"].radius
            assert float(moved.norm(dim=1).max()) <= radius
            shares.append(float(moved.norm(dim=1).max()) / radius)
        else:
            widest = max(float(box.width.max()) for box in engine.box.values())
            shares.append(float(moved.abs().max()) / widest * 2)
    return max(shares)


@pytest.mark.parametrize(("kind", "adversary"), ADVERSARIES)
def test_bounds_contain_runs_with_whole_sources_poisoned(kind, adversary):
    assert max(largest_reach(kind, adversary, hidden, seed, ["box"]) for hidden in ((), (4,)) for seed in (0, 1)) > 0.02


@pytest.mark.parametrize(("kind", "adversary"), ADVERSARIES[:3])
def test_the_ball_contains_runs_with_whole_sources_poisoned(kind, adversary):
    heads = [()] if isinstance(adversary, UnboundedAdversary) else [(), (4,)]
    assert max(largest_reach(kind, adversary, hidden, seed, ["ball"]) for hidden in heads for seed in (0, 1)) > 0.02


@pytest.mark.parametrize("domains", [["box"], ["ball"]], ids=["box", "ball"])
@pytest.mark.parametrize(("kind", "adversary"), ADVERSARIES[:2])
def test_between_samples_of_all_sources_and_samples_one_by_one(kind, adversary, domains):
    """Of n = 1, sources of one sample are that sample; a source of all samples is the batch."""

    def width(sources, counts, n=1):
        torch.manual_seed(1)
        module = network(kind, (4,))
        engine = engine_of(module, kind, replace(adversary, n=n, counts=counts), domains=domains)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        for x, y in data(kind, torch.Generator().manual_seed(1)):
            engine.step([{"x": x, "y": y, "from": sources[: len(x)]}], optimizer)
        return sum(float(box.width.sum()) for box in engine.box.values())

    each, one = torch.arange(6), torch.zeros(6, dtype=torch.int64)
    assert width(each, "sources") == pytest.approx(width(each, "samples"), rel=1e-6)
    assert width(one, "sources") == pytest.approx(width(one, "samples", n=6), rel=1e-6)
    assert width(each, "sources") < width(SOURCES, "sources") < width(one, "sources")


def test_sources_of_micro_batches_belong_together():
    def box(parts):
        torch.manual_seed(1)
        module = network("mse", ())
        engine = engine_of(module, "mse", BoundedAdversary(n=1, epsilon=0.1, counts="sources"))
        engine.step(parts, torch.optim.SGD(module.parameters(), lr=0.1))
        return engine.box["0.weight"]

    x, y = data("mse", torch.Generator().manual_seed(2))[0]
    whole = batch_of(x, y)
    halves = [{key: value[part] for key, value in whole.items()} for part in (slice(0, 3), slice(3, 6))]
    assert torch.allclose(box([whole]).width, box(halves).width, rtol=1e-9)


OWNED = BoundedAdversary(n=1, epsilon=0.1, counts="sources")
INSERTING = UnboundedAdversary(n=1, kappa=0.1, edits="insert-delete")
object.__setattr__(INSERTING, "counts", "sources")  # as an adversary of the user's own may do


@pytest.mark.parametrize(
    ("settings", "adversary", "message"),
    [
        ({"sources": None}, OWNED, "it is not known whose a sample is"),
        ({"domains": ["box", "ball", "adjoint"]}, OWNED, "`adjoint` does not cover adversaries that own sources"),
        (
            {"sources": "y"},
            BoundedAdversary(n=1, nu=1, q=0, counts="sources"),
            "names an entry of the batch that the adversary changes",
        ),
        ({}, INSERTING, "Nothing bounds how many samples a source inserts"),
    ],
    ids=["unnamed", "adjoint", "poisoned", "inserting"],
)
def test_what_is_refused(settings, adversary, message):
    module = network("ce", ())
    batch = batch_of(*data("ce", torch.Generator().manual_seed(2))[0])
    engine = engine_of(module, "ce", adversary, **settings)
    problems = engine.problems(batch, torch.optim.SGD(module.parameters(), lr=0.1))
    assert any(message in problem for problem in problems)


def test_sources_need_not_be_named_where_samples_are_counted():
    module = network("ce", ())
    batch = batch_of(*data("ce", torch.Generator().manual_seed(2))[0])
    engine = engine_of(module, "ce", replace(OWNED, counts="samples"), sources=None)
    assert engine.problems(batch, torch.optim.SGD(module.parameters(), lr=0.1)) == []


@pytest.mark.parametrize(
    ("sources", "error", "message"),
    [
        ("hospital", KeyError, "with the key 'hospital' of `sources`"),
        (lambda batch: batch["x"][:, 0], ValueError, "Expected `sources` to give integers of shape"),
        (lambda batch: batch["from"][:2], ValueError, "Expected `sources` to give integers of shape"),
    ],
)
def test_sources_that_are_no_integers(sources, error, message):
    module = network("ce", ())
    x, y = data("ce", torch.Generator().manual_seed(2))[0]
    engine = engine_of(module, "ce", OWNED, sources=sources)
    with pytest.raises(error, match=message):
        engine.step([batch_of(x, y)], torch.optim.SGD(module.parameters(), lr=0.1))


def test_statistics_of_the_batch_are_refused():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).double()
    batch = batch_of(*data("ce", torch.Generator().manual_seed(2))[0])
    problems = engine_of(module, "ce", OWNED).problems(batch, torch.optim.SGD(module.parameters(), lr=0.1))
    assert any("not covered for an adversary that owns sources" in problem for problem in problems)


def test_settings_of_adversaries():
    with pytest.raises(ValueError, match="`counts` to be 'samples' or 'sources'"):
        BoundedAdversary(n=1, counts="hospitals")
    with pytest.raises(ValueError, match="nothing bounds how many samples a source inserts"):
        UnboundedAdversary(n=1, kappa=1.0, edits="insert-delete", counts="sources")


@pytest.mark.slow
def test_a_deeper_head_takes_the_ball_too():
    module = network("mse", (4, 4))
    engine = engine_of(module, "mse", OWNED, domains=["ball"])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for x, y in data("mse", torch.Generator().manual_seed(2)):
        engine.step([batch_of(x, y)], optimizer)
    assert 0 < engine.domains.in_use["ball"].radius < 1


class Two(SingleProcess):
    """This process and another one, with other samples of the same sources."""

    size = 2

    def gather(self, message):
        return message, {**message, "keys": message["keys"] + 100}


def test_sources_of_processes_belong_together():
    samples = SampleSet(torch.ones(3, dtype=F64), torch.tensor([0, 2]), torch.tensor([5, 2, 7]))
    together = all_samples(Two(), LocalGradients({}, samples, torch.tensor([1, 2, 3]), budget=0))
    assert together.sources.tolist() == [5, 2, 7, 5, 2, 7]
    assert together.choices == 2
    assert Choice(1, together.membership).samples == 2
