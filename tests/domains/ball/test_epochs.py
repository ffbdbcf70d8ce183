"""The ball for n samples of the data set: against all ways to spread them over steps, and against real trainings."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from agt_lightning.domains.ball import domain as ball_domain
from agt_lightning.domains.ball import radius as ball_radius
from agt_lightning.domains.ball.gathering import epoch_of
from agt_lightning.domains.ball.radius import Push, StepConstants, next_radii, next_radius
from agt_lightning.domains.ball.remainder import Remainder
from tests.engine.attacks import LOSSES, Attacks, network
from tests.faults import Fault, require_checks_pass

BATCHES, SIZE, EPOCHS = 3, 4, 2
FLIPS = BoundedAdversary(n=2, epsilon=0.1, nu=1, q=0, per="dataset")
MOVES = BoundedAdversary(n=1, epsilon=0.2, nu=0.3, per="dataset")
CLOSE = 1e-10


def random_steps(generator, count, n):
    """Constants of some steps whose pushes grow with the number of samples, less and less."""
    for _ in range(count):
        sizes, energies, rests = (torch.rand(n + 1, generator=generator).sort(descending=True).values for _ in range(3))
        sums = [[0.0, *values[1:].cumsum(0).tolist()] for values in (sizes, energies, rests)]
        trace, monotone = torch.rand(2, generator=generator).tolist()
        yield StepConstants(
            trace=3 * trace,
            norm=lambda trace=trace: 2 * trace,
            remainders=(Remainder(monotone=0.1 * monotone, discord=0.01),),
            poison=sums[0][-1],
            energy=sums[1][-1],
            rest=0.1 * sums[2][-1],
            pushes=[Push(p, e, 0.1 * r) for p, e, r in zip(*sums, strict=True)],
        )


def check_all_allocations(step_of=next_radii):
    """Three steps of an epoch: the largest radius of all ways to spread n samples, for each number that was spent."""
    generator = torch.Generator().manual_seed(1)
    for n in range(4):
        steps = list(random_steps(generator, 3, n))
        radii = (0.5,) * (n + 1)
        for constants in steps:
            radii = step_of(radii, constants, 0.4, 0.05)
        for spent in range(n + 1):
            found = []
            for shares in itertools.product(range(spent + 1), repeat=3):
                if sum(shares) > spent:
                    continue
                radius = 0.5
                for share, constants in zip(shares, steps, strict=True):
                    push = constants.pushes[share]
                    alone = replace(constants, poison=push.poison, energy=push.energy, rest=push.rest)
                    radius = next_radius(radius, alone, 0.4, 0.05)
                found.append(radius)
            assert radii[spent] == pytest.approx(max(found), rel=CLOSE), "differs from the worst allocation"


def spent_again(radii, constants, rate, decay):
    """Each step may spend all n."""
    return tuple(next_radius(each, constants, rate, decay) for each in radii)


def never_spent_together(radii, constants, rate, decay):
    """The worst of spending all here, or nothing."""
    none, every = (replace(constants, pushes=[push]) for push in (constants.pushes[0], constants.pushes[-1]))
    first, last = (next_radii(radii[:1], each, rate, decay)[0] for each in (none, every))
    rest = [next_radii((each,), none, rate, decay)[0] for each in radii]
    return tuple(max(each, last if k == len(radii) - 1 else first) for k, each in enumerate(rest))


FAULTS = [
    Fault("n of each step", check_all_allocations, spent_again),
    Fault("all or none", check_all_allocations, never_spent_together),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_the_oracle_notices_a_broken_piece(fault):
    fault.require_noticed("differs from")


def test_the_radius_is_that_of_the_worst_allocation():
    require_checks_pass(FAULTS)


def test_bounds_that_are_no_numbers_end_in_infinity():
    constants = next(random_steps(torch.Generator().manual_seed(1), 1, 1))
    broken = replace(constants, pushes=[Push(), Push(math.nan, 1.0)])
    assert next_radii((0.1, 0.1), broken, 0.1, 0.0)[1] == math.inf


# --- in trainings -------------------------------------------------------------------------------------------------


def data_set(kind, generator):
    x = torch.randn(BATCHES * SIZE, 3, dtype=torch.float64, generator=generator)
    y = torch.randint(0, 3, (len(x),), generator=generator)
    return x, y if kind == "ce" else torch.randn(len(x), 3, dtype=torch.float64, generator=generator)


class ThroughoutAttacks(Attacks):
    """Attacks whose runs poison the same samples in all epochs, each in the step that it is in."""

    def begin(self, samples):
        picks = torch.rand(self.count, samples, generator=self.generator).argsort(dim=1)[:, : self.adversary.n]
        self.owned = torch.zeros(self.count, samples, dtype=torch.bool).scatter_(1, picks, value=True)

    def chosen(self, gain):
        return self.owned[:, self.rows] & (gain > 0)


def trained(kind, hidden, adversary, *, epochs=EPOCHS, numbered=True, seed=0, batches=BATCHES, attacked=False):
    """Train in epochs; the radius, and the largest distance of an attack's run from the nominal one."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    module, rate = network(kind, hidden), 0.01 if hidden else 0.1
    engine = AbstractGradientEngine(
        module, lambda m, batch: LOSSES[kind](m(batch[0]), batch[1]), adversary, domains=["ball"]
    )
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    attacks = ThroughoutAttacks(module, kind, adversary, rate, 0.0, generator)
    x, y = data_set(kind, generator)
    attacks.begin(len(x))
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for rows in order.chunk(batches):
            if attacked:
                attacks.rows = rows
                attacks.step(x[rows], y[rows])
            engine.step([(x[rows], y[rows])], optimizer, epoch=epoch if numbered else None)
    radius = engine.domains.in_use["ball"].radius
    moved = torch.cat([(v - module.get_parameter(k).detach()).flatten(1) for k, v in attacks.runs.items()], dim=1)
    return radius, float(moved.norm(dim=1).max())


@pytest.mark.parametrize(("kind", "adversary"), [("ce", FLIPS), ("mse", MOVES)], ids=["ce", "mse"])
@pytest.mark.parametrize("hidden", [(), (4,), (4, 4)], ids=["linear", "hidden", "deep"])
def test_runs_with_samples_poisoned_throughout_stay_inside(kind, adversary, hidden):
    radius, reached = trained(kind, hidden, adversary, attacked=True)
    assert 0.01 * radius < reached <= radius


@pytest.mark.parametrize("hidden", [(), (4,)], ids=["linear", "hidden"])
def test_samples_that_are_counted_over_an_epoch_move_less(hidden):
    each = replace(FLIPS, per="batch")
    known, unknown = (trained("ce", hidden, FLIPS, numbered=numbered)[0] for numbered in (True, False))
    per_batch = trained("ce", hidden, each)[0]
    assert known < 0.75 * per_batch
    assert unknown == pytest.approx(per_batch, rel=CLOSE)


def test_an_epoch_of_one_step_is_a_step():
    """What is changed in one epoch is changed in the next one, too."""
    each = trained("ce", (4,), replace(FLIPS, per="batch"), batches=1)[0]
    assert trained("ce", (4,), FLIPS, batches=1)[0] == pytest.approx(each, rel=CLOSE)


@pytest.mark.slow
def test_all_samples_of_an_epoch_are_those_of_its_batches():
    every = replace(FLIPS, n=BATCHES * SIZE)
    each = trained("ce", (4,), replace(every, per="batch"))[0]
    assert trained("ce", (4,), every)[0] == pytest.approx(each, rel=CLOSE)


def test_an_epoch_that_is_never_begun_anew_is_noticed(monkeypatch):
    begin = ball_domain.BallDomain._begin_epoch
    monkeypatch.setattr(
        ball_domain.BallDomain,
        "_begin_epoch",
        lambda self, number: begin(self, number) if not self.radius else setattr(self, "_epoch", number),
    )
    with pytest.raises(AssertionError):
        test_an_epoch_of_one_step_is_a_step()


def test_a_checkpoint_begins_an_epoch():
    module = nn.Linear(3, 3, dtype=torch.float64)

    def engine_of(module):
        return AbstractGradientEngine(
            module, lambda m, batch: LOSSES["ce"](m(batch[0]), batch[1]), FLIPS, domains=["ball"]
        )

    engine = engine_of(module)
    x, y = data_set("ce", torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    engine.step([(x[:4], y[:4])], optimizer, epoch=0)
    ball = engine.domains.in_use["ball"]
    state = ball.state()
    assert ball._radii[0] < ball._radii[-1] == state["radius"]
    ball.restore(state)
    assert ball._radii == (state["radius"],) * (FLIPS.n + 1)


def test_a_sample_that_is_named_again_begins_an_epoch():
    """Views of one picture, say, in several steps of an epoch."""

    def radius(per, ids=None):
        torch.manual_seed(1)
        module = nn.Linear(3, 3, dtype=torch.float64)
        engine = AbstractGradientEngine(
            module,
            lambda m, batch: LOSSES["ce"](m(batch[0]), batch[1]),
            replace(FLIPS, n=1, per=per),
            domains=["ball"],
            sample_ids=None if ids is None else lambda batch: batch[2],
        )
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        x, y = data_set("ce", torch.Generator().manual_seed(1))
        for rows in torch.arange(len(x)).chunk(BATCHES):
            engine.step([(x[rows], y[rows], rows if ids is None else ids[rows])], optimizer, epoch=0)
        return engine.domains.in_use["ball"].radius

    assert radius("dataset", torch.arange(12) % SIZE) == pytest.approx(radius("batch"), rel=CLOSE)
    assert radius("dataset", torch.arange(12)) == radius("dataset") < 0.9 * radius("batch")


def test_a_ball_that_is_told_no_adversary_counts_in_each_step():
    def radius(told):
        torch.manual_seed(1)
        module = nn.Linear(3, 3, dtype=torch.float64)
        engine = AbstractGradientEngine(
            module, lambda m, batch: LOSSES["ce"](m(batch[0]), batch[1]), FLIPS, domains=["ball"]
        )
        engine.domains.in_use["ball"].adversary = told
        engine.domains.in_use["ball"]._begin_epoch(None)
        x, y = data_set("ce", torch.Generator().manual_seed(1))
        engine.step([(x[:4], y[:4])], torch.optim.SGD(module.parameters(), lr=0.1), epoch=0)
        return engine.domains.in_use["ball"].radius

    assert radius(None) == pytest.approx(radius(FLIPS), rel=CLOSE)


def test_many_samples_are_counted_in_each_step():
    assert not ball_domain.counts_in_epochs(replace(FLIPS, n=101))
    assert not ball_domain.counts_in_epochs(replace(FLIPS, counts="sources"))
    assert ball_radius.Push() == Push(0.0, 0.0, 0.0)


def test_the_epoch_of_several_processes_is_unknown():
    """Each draws its samples once, and two could draw the same one in different steps."""

    def step(processes, *epochs):
        parts = [SimpleNamespace(batch=SimpleNamespace(epoch=epoch)) for epoch in epochs]
        return SimpleNamespace(parts=parts, processes=SimpleNamespace(size=processes))

    assert epoch_of(step(1, 3, 3)) == 3
    assert epoch_of(step(1, 3, 4)) is None
    assert epoch_of(step(1, None)) is None
    assert epoch_of(step(2, 3, 3)) is None
