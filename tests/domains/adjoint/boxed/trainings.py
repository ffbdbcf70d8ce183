"""Whole poisoned trainings that push outputs along the adjoint directions, and what the boxed domain says of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from agt_lightning.interval import Interval
from tests.engine.attacks import FEATURES, LOSSES, Attacks, data

F64 = torch.float64
POINTS = 4


@dataclass(frozen=True)
class Case:
    """One certified training of a head with one output (bce) or two classes (ce), and the attacks on it."""

    kind: str
    adversary: BoundedAdversary
    hidden: int = 4
    rate: float = 0.5
    decay: float = 0.0
    falling: float = 0.3
    steps: int = 3
    seed: int = 0
    scale: float = 1.0
    method: str = "tightest"


@dataclass
class Outcome:
    """What attacks reached, relative to bounds: 1 is on the bound."""

    outputs: float
    parameters: float
    before: float


def trained(case: Case, poisonable=None, **options):
    """An engine after certified training, its batches, and the network before."""
    torch.manual_seed(case.seed)
    module = nn.Sequential(
        nn.Linear(FEATURES, case.hidden, dtype=F64),
        nn.ReLU(),
        nn.Linear(case.hidden, 2 if case.kind == "ce" else 1, dtype=F64),
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(case.scale)
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    engine = AbstractGradientEngine(
        module,
        lambda m, batch: LOSSES[case.kind](m(batch[0]), batch[1]),
        case.adversary,
        domains=("box", "adjoint"),
        method=case.method,
        poisonable=poisonable,
        **options,
    )
    optimizer = torch.optim.SGD(module.parameters(), lr=case.rate, weight_decay=case.decay)
    batches = [
        (x, y % 2 if case.kind == "ce" else y)
        for x, y in data(case.kind, torch.Generator().manual_seed(case.seed))[: case.steps]
    ]
    for number, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = rate(case, number)
        engine.step([batch], optimizer)
    return engine, batches, start


def rate(case: Case, step: int) -> float:
    return case.rate / (1 + case.falling * step)


def set_of(engine):
    return engine.domains.in_use["adjoint"].parameter_set()


def queries(case: Case):
    return torch.randn(POINTS, FEATURES, dtype=F64, generator=torch.Generator().manual_seed(case.seed + 1))


def attack(case: Case, runs: int = 40, stronger: BoundedAdversary | None = None) -> Outcome:
    """Train, bound, and poison ``runs`` trainings in ± the directions, by a stronger adversary if one is given."""
    engine, batches, start = trained(case)
    recorded, x = set_of(engine), queries(case)
    bounds = recorded.output(Interval.point(x))
    trail = [recorded.final_outputs(Interval.point(x)).directions]
    for step in reversed(recorded.steps):
        trail.append(step.bounds(trail[-1])[1])
    trail = trail[::-1]
    attacks = Attacks(
        engine.module,
        case.kind,
        stronger or case.adversary,
        case.rate,
        case.decay,
        torch.Generator().manual_seed(case.seed),
        runs,
    )
    attacks.runs = {name: value.expand(runs, *value.shape).clone() for name, value in start.items()}
    attacks.classes = 2
    which, sign = torch.arange(runs) // 2 % POINTS, 1.0 - 2.0 * (torch.arange(runs) % 2)
    attacks.attack = 2 + torch.arange(runs) % 2
    attacks.attack[: runs // 8] = 1
    before = 0.0
    for number, batch in enumerate(batches):
        attacks.rate = rate(case, number)
        direction = by_name(trail[number + 1], recorded.outputs)
        attacks.direction = {
            name: each[which] * sign.reshape(-1, *[1] * (each.ndim - 1)) for name, each in direction.items()
        }
        before = max(before, _share_of_box(recorded.steps[number].geometry, attacks.runs))
        attacks.step(*batch)
    outputs = torch.stack(
        [functional_call(engine.module, {k: v[r] for k, v in attacks.runs.items()}, (x,)) for r in range(runs)]
    ).detach()
    values = outputs[:, :, -1] - (outputs[:, :, 0] if case.kind == "ce" else 0.0)
    nominal = recorded.final_outputs(Interval.point(x)).nominal
    up = (values - nominal) / (bounds.upper - nominal).clamp(min=1e-300)
    down = (nominal - values) / (nominal - bounds.lower).clamp(min=1e-300)
    final = _share(attacks.runs, recorded.recorder.layers(-1), recorded.box)
    return Outcome(float(torch.maximum(up, down).max()), final, before)


def by_name(directions, outputs):
    """A direction as tensors by parameter name, with all directions in front."""
    last = directions.second[:, None]
    last = torch.cat([-last, last], dim=1) if outputs == 2 else last
    return {
        "0.weight": directions.first[:, :, :-1],
        "0.bias": directions.first[:, :, -1],
        "2.weight": last[:, :, :-1],
        "2.bias": last[:, :, -1],
    }


def _share_of_box(geometry, runs):
    """How far runs use the box before a step, and the bounds on the outputs of its samples."""
    whole, inputs = geometry.whole, geometry.whole.data.samples.inputs
    hidden = torch.einsum("rjd,id->rij", runs["0.weight"], inputs) + runs["0.bias"][:, None]
    outputs = torch.einsum("rij,rkj->rik", hidden.relu(), runs["2.weight"]) + runs["2.bias"][:, None]
    moved = outputs[:, :, -1] - (outputs[:, :, 0] if outputs.shape[2] == 2 else 0.0) - geometry.outputs
    reached = float((moved.abs() / geometry.reach.clamp(min=1e-12)).max())
    return max(reached, _share(runs, whole.ball.layers, geometry.box))


def _share(runs, layers, box):
    first = torch.cat([layers[0].weight, layers[0].bias[:, None]], dim=1)
    second = torch.cat([layers[1].weight, layers[1].bias[:, None]], dim=1)
    rows = torch.cat([runs["0.weight"], runs["0.bias"][:, :, None]], dim=2) - first
    last = torch.cat([runs["2.weight"], runs["2.bias"][:, :, None]], dim=2) - second
    last = last[:, -1] - (last[:, 0] if last.shape[1] == 2 else 0.0)
    moved = ((rows, box.first), (rows @ box.basis, box.rotated), (last, box.second))
    return max(float((value.abs() / width.clamp(min=1e-12)).max()) for value, width in moved)
