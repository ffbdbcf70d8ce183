"""Whole poisoned trainings that push outputs along the adjoint directions, and what the domain says of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.func import functional_call

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.domains.adjoint.output_bounds import output_combinations
from agt_lightning.domains.adjoint.replay import displacements
from agt_lightning.interval import Interval
from tests.engine.attacks import FEATURES, LOSSES, Attacks, data, network

F64 = torch.float64
POINTS = 4


@dataclass(frozen=True)
class Case:
    """One certified training and the attacks on it."""

    kind: str
    adversary: BoundedAdversary
    hidden: int = 4  # none for a linear head
    rate: float = 0.05
    decay: float = 0.0
    falling: float = 0.0
    epochs: int = 2
    seed: int = 0
    scale: float = 1.0
    domains: tuple[str, ...] = ("ball", "adjoint")


@dataclass
class Outcome:
    """What attacks reached, relative to bounds: 1 is on the bound."""

    outputs: float
    along: float
    distance: float
    radius: float


def trained(case: Case, poisonable=None, loss=None):
    """An engine after certified training, its batches, and the network before."""
    torch.manual_seed(case.seed)
    module = network(case.kind, (case.hidden,) if case.hidden else ())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(case.scale)
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    function = LOSSES[case.kind] if loss is None else loss
    engine = AbstractGradientEngine(
        module,
        lambda m, batch: function(m(batch[0]), batch[1]),
        case.adversary,
        domains=case.domains,
        poisonable=poisonable,
    )
    optimizer = torch.optim.SGD(module.parameters(), lr=case.rate, weight_decay=case.decay)
    steps = data(case.kind, torch.Generator().manual_seed(case.seed)) * case.epochs
    for number, batch in enumerate(steps):
        optimizer.param_groups[0]["lr"] = rate(case, number)
        engine.step([batch], optimizer)
    return engine, steps, start


def rate(case: Case, step: int) -> float:
    return case.rate / (1 + case.falling * step)


def set_of(engine):
    return engine.domains.in_use["adjoint"].parameter_set()


def queries(case: Case):
    """Inputs and the combinations of outputs that are attacked."""
    generator = torch.Generator().manual_seed(case.seed + 1)
    x = torch.randn(POINTS, FEATURES, dtype=F64, generator=generator)
    outputs = 1 if case.kind == "bce" else 3
    rows = torch.eye(outputs, dtype=F64)[torch.arange(POINTS) % outputs]
    if outputs > 1:
        rows[2] = torch.tensor([1.0, -1.0, 0.0], dtype=F64)
    return x, rows


def combinations(recorded, x, rows):
    arithmetic = Arithmetic(recorded.run, F64)
    layers = recorded.recorder.layers(-1)
    return output_combinations(layers, recorded.radius, arithmetic, Interval.point(x), rows)


def adjoints(recorded, directions):
    """The directions before each step and after the last one, in the order of training."""
    trail = [directions]
    for step in recorded.recorder.backward(recorded.loss, recorded.run):
        trail.append(step.before(trail[-1], step.analysis.back(trail[-1])[1]))
    return trail[::-1]


def by_name(directions, names):
    """A direction as tensors by parameter name, with all directions in front."""
    parts = (part for each in directions.parts for part in (each[:, :, :-1], each[:, :, -1]))
    return dict(zip(names, parts, strict=True))


def attack(case: Case, runs: int = 40, stronger: BoundedAdversary | None = None) -> Outcome:
    """Train, bound, and poison ``runs`` trainings in ± the directions, by a stronger adversary if one is given."""
    engine, steps, start = trained(case)
    recorded = set_of(engine)
    x, rows = queries(case)
    asked = combinations(recorded, x, rows)
    along = displacements(recorded.recorder.backward(recorded.loss, recorded.run), asked.directions)
    bounds = asked.bounds(along)
    trail = adjoints(recorded, asked.directions)
    adversary, names = stronger or case.adversary, recorded.recorder.names
    poisoned = _poisoned(case, adversary, engine.module, start, steps, trail, names, runs)
    nominal = dict(engine.module.named_parameters())
    moved = {name: value - nominal[name].detach() for name, value in poisoned.items()}
    final = by_name(asked.directions, names)
    reached = sum(torch.einsum("rn,qn->rq", moved[name].flatten(1), final[name].flatten(1)) for name in names)
    outputs = torch.stack(
        [
            functional_call(engine.module, {name: value[r] for name, value in poisoned.items()}, (x,))
            for r in range(runs)
        ]
    )
    values = (outputs.detach() * rows).sum(dim=2)
    norms = torch.cat([value.flatten(1) for value in moved.values()], dim=1).norm(dim=1)
    return Outcome(
        outputs=_share(values, bounds, bounds.center),
        along=_share(reached, along, torch.zeros_like(along.lower)),
        distance=float(norms.max()) / recorded.radius,
        radius=recorded.radius,
    )


def _share(values, bounds, center):
    up = (values - center) / (bounds.upper - center).clamp(min=1e-300)
    down = (center - values) / (center - bounds.lower).clamp(min=1e-300)
    return float(torch.maximum(up, down).max())


def _poisoned(case, adversary, module, start, steps, trail, names, runs):
    """Parameters of the poisoned runs: each pushes one direction up or down, greedily in every step."""
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    module.load_state_dict(start)
    attacks = Attacks(
        module, case.kind, adversary, case.rate, case.decay, torch.Generator().manual_seed(case.seed), runs
    )
    count = len(trail[0])
    which, sign = torch.arange(runs) // 2 % count, 1.0 - 2.0 * (torch.arange(runs) % 2)
    attacks.attack = 2 + torch.arange(runs) % 2
    attacks.attack[: runs // 8] = 1
    for number, (x, y) in enumerate(steps):
        attacks.rate = rate(case, number)
        direction = by_name(trail[number + 1], names)
        attacks.direction = {
            name: direction[name][which] * sign.reshape(-1, *[1] * (direction[name].ndim - 1)) for name in names
        }
        attacks.step(x, y)
    module.load_state_dict(before)
    return attacks.runs
