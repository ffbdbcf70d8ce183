"""Attack random steps of torch's optimizers inside their boxes, one and several in a row; zero tolerance.

python -m tests.fuzz.optimizers --seed 0 --minutes 5

Each case draws an optimizer, settings at their extremes, a box of parameters and a box of gradients for each step. Runs
start in the box and take gradients in theirs: at corners, inside, small first and large late, and where earlier rounds
came closest to an end of the box after the last step, for every element on its own. Torch's own optimizer makes every
run in its loop, its `foreach` and its `fused` implementation. Parameters and the state that torch keeps must lie in the
boxes of the counterpart after every step. The state of a step is that of earlier ones, never drawn: AMSGrad's maximum
is at least v, and m is bounded by v, so most of what lies in the intervals of a state can be no state of a run.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from agt_lightning.errors import UnsoundBoundError
from agt_lightning.interval import Interval, check_finite_and_ordered
from agt_lightning.optimizers import OPTIMIZERS, AbstractOptimizer, OptimizerState
from agt_lightning.optimizers.base import require_in_range
from agt_lightning.optimizers.checked_update import arithmetic_of
from tests.fuzz.command import Given
from tests.fuzz.report import say

Settings = dict[str, object]

ELEMENTS = 16
"""Elements of a parameter, each with boxes of its own."""

RUNS = 24
"""Poisoned runs of a case at once."""

_RATES = (0.0, 1e-46, 1e-12, 1e-3, 0.1, 0.3, 1.0, 10.0, 1e3, -1e-3, -0.1, -1.0)
_DECAYS = (0.0, 0.0, 1e-40, 1e-4, 0.3, 0.9999, 1.0, 10.0)
_BETAS = ((0.9, 0.999), (0.5, 0.9), (0.9, 0.9), (0.0, 0.99), (0.9, 0.0), (0.001, 0.9), (0.99, 0.5), (0.5, 0.25))
_EPS = (1e-46, 1e-12, 1e-8, 1e-3, 1.0)

_OWN: dict[type[torch.optim.Optimizer], dict[str, tuple[object, ...]]] = {
    torch.optim.SGD: {"momentum": (0.0, 0.5, 0.9, 1.0), "dampening": (0.0, 0.4, 1.0, 1.5), "nesterov": (False, True)},
    torch.optim.Adam: {
        "betas": _BETAS,
        "eps": _EPS,
        "amsgrad": (False, True),
        "decoupled_weight_decay": (False, False, True),
    },
    torch.optim.AdamW: {"betas": _BETAS, "eps": _EPS, "amsgrad": (False, True)},
    torch.optim.RMSprop: {"alpha": (0.99, 0.5, 0.0), "eps": _EPS, "momentum": (0.0, 0.9)},
    torch.optim.Adagrad: {"lr_decay": (0.0, 0.3), "eps": _EPS, "initial_accumulator_value": (0.0, 1e-30, 0.5)},
}

_IMPLEMENTATIONS: dict[str, Settings] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"foreach": False, "fused": True},
}


@dataclass(frozen=True)
class Case:
    """Steps of an optimizer, each with its settings, and boxes.

    Args:
        seed: of all that is drawn.
        kind: the optimizer.
        flags: settings of the first step.
        changes: what a schedule sets before each step.
        start: box of the parameter.
        gradients: box of the gradient of each step.
        run: type of the runs.
        own: type of the bounds.
    """

    seed: int
    kind: type[torch.optim.Optimizer]
    flags: Settings
    changes: Sequence[Settings]
    start: Interval
    gradients: Sequence[Interval]
    run: torch.dtype
    own: torch.dtype

    def __str__(self) -> str:
        types = f"{self.run} in {self.own}".replace("torch.", "")
        return f"seed {self.seed}: {self.kind.__name__} {self.flags}, then {list(self.changes)}, {types}"

    def optimizer(self, parameter: Tensor, **implementation: object) -> torch.optim.Optimizer:
        """Return the optimizer; schedules may set rates that its constructor refuses."""
        return self.kind([parameter], **{**self.flags, "lr": 1.0}, **implementation)  # type: ignore[call-arg]

    @property
    def implementations(self) -> dict[str, Settings]:
        """Implementations that torch has for these settings."""
        tensor_rate = any(isinstance(change.get("lr"), Tensor) for change in self.changes)
        lacking = {"fused"} if self.kind is torch.optim.RMSprop else set()
        return {n: i for n, i in _IMPLEMENTATIONS.items() if n not in lacking | ({"foreach"} if tensor_rate else set())}


@dataclass(frozen=True)
class Violation:
    """A number of a run outside its bounds.

    Args:
        case: where.
        implementation: of torch.
        step: after which, from zero.
        name: parameter or moment.
        excess: distance to the bounds.
        width: of the bounds there.
    """

    case: Case
    implementation: str
    step: int
    name: str
    excess: float
    width: float


@dataclass
class Attack:
    """Where runs start in the box of the parameter, and where their gradients lie in theirs, from zero to one."""

    start: Tensor
    gradients: Tensor
    draw: torch.Generator = field(repr=False)

    @classmethod
    def drawn(cls, case: Case) -> Attack:
        """Return corners, points inside, and gradients that change their end once."""
        draw = torch.Generator().manual_seed(case.seed)
        start = torch.rand(RUNS, ELEMENTS, generator=draw, dtype=torch.float64).round()
        shares = torch.rand(len(case.gradients), RUNS, ELEMENTS, generator=draw, dtype=torch.float64)
        shares[:, : RUNS // 2] = shares[:, : RUNS // 2].round()
        change = torch.randint(0, len(shares) + 1, (RUNS // 4, ELEMENTS), generator=draw)
        late = (torch.arange(len(shares))[:, None, None] >= change).double()
        first = torch.randint(0, 2, (RUNS // 4, 1), generator=draw).double()
        shares[:, : RUNS // 4] = (late - first).abs()
        return cls(start, shares, draw)

    def bred(self, reached: Tensor) -> Attack:
        """Return variations of the runs that came closest to each end, element by element.

        Args:
            reached: parameters after the last step, (runs, elements).
        """
        order = reached.argsort(dim=0)
        rank = torch.randint(0, 3, (RUNS, ELEMENTS), generator=self.draw)
        low = torch.arange(RUNS)[:, None] % 2 == 0
        parent = order.gather(0, torch.where(low, rank, RUNS - 1 - rank))
        start = self.start.gather(0, parent)
        shares = self.gradients.gather(1, parent.expand_as(self.gradients))
        moves = torch.randn(shares.shape, generator=self.draw, dtype=torch.float64)
        moves *= 10.0 ** -torch.randint(0, 8, shares.shape, generator=self.draw)
        some = torch.rand(shares.shape, generator=self.draw) < 0.3
        flipped = torch.rand(start.shape, generator=self.draw) < 0.1
        moved = torch.where(some, shares + moves, shares).clamp(0, 1)
        return Attack(torch.where(flipped, 1 - start, start), moved, self.draw)


def case(seed: int) -> Case:
    """Draw a case."""
    draw = random.Random(seed)
    tensors = torch.Generator().manual_seed(seed)
    kind = draw.choice(list(_OWN))
    run = draw.choice((torch.float32, torch.float64))
    own = torch.float32 if run == torch.float32 and draw.random() < 0.2 else torch.float64
    flags: Settings = {name: draw.choice(values) for name, values in _OWN[kind].items()}
    flags |= {"weight_decay": draw.choice(_DECAYS), "maximize": draw.random() < 0.3}
    if flags.get("nesterov"):
        flags |= {"dampening": 0.0, "momentum": flags["momentum"] or 0.9}
    steps = draw.choice((1, 1, 2, 3, 4, 8))
    rate, scheduled, tensor = draw.choice(_RATES), draw.random() < 0.4, draw.random() < 0.1
    changes = []
    for _ in range(steps):
        changes.append({"lr": torch.tensor(rate) if tensor else rate})
        if scheduled:
            rate = draw.choice(_RATES)
            changes[-1] |= _changed(draw, flags)
    small = (
        torch.finfo(run).tiny
        if draw.random() < 0.1
        else 10.0 ** draw.choice((15, 0, -3, -12, -25, *((120, -120) if run == torch.float64 else ())))
    )
    sizes = [small * 10.0 ** draw.choice((0, 0, 1, 3)) for _ in range(steps)]
    boxes = [_box(tensors, size, draw.choice((0.0, 1e-6, 0.3, 2.0)), run) for size in sizes]
    start = _box(tensors, draw.choice((1e-38, 1e-6, 1.0, 1e4, 1e12)), draw.choice((0.0, 1e-6, 0.5)), run)
    as_bounds = [Interval(box.lower.to(own), box.upper.to(own)) for box in (start, *boxes)]
    return Case(seed, kind, flags, changes, as_bounds[0], as_bounds[1:], run, own)


def _changed(draw: random.Random, flags: Settings) -> Settings:
    """Change what schedules move; RMSprop has no momentum later if it has none at first."""
    changed: Settings = {}
    if "betas" in flags:
        changed["betas"] = draw.choice(_BETAS)
    if flags.get("momentum"):
        changed["momentum"] = draw.choice((0.1, 0.5, 0.95, *((0.0,) if "dampening" in flags else ())))
    if draw.random() < 0.3:
        changed["weight_decay"] = draw.choice(_DECAYS)
    return changed


def _box(draw: torch.Generator, size: float, width: float, dtype: torch.dtype) -> Interval:
    """Return intervals whose ends are numbers of a type; some are points, touch zero or are zero."""
    center = size * torch.randn(ELEMENTS, generator=draw, dtype=torch.float64)
    center *= 10.0 ** torch.randint(-3, 3, (ELEMENTS,), generator=draw)
    radius = width * center.abs() * torch.rand(ELEMENTS, generator=draw, dtype=torch.float64)
    center[0], radius[0] = 0.0, 0.0
    radius[1], center[2] = 0.0, radius[2]
    radius[3] = radius[3] * 100
    return Interval.trusted((center - radius).to(dtype), (center + radius).to(dtype))


def bounded(case: Case, counterpart: AbstractOptimizer) -> Iterator[tuple[OptimizerState, Interval]]:
    """Yield state and box after each step as a certified training has them, until one could overflow."""
    parameter = torch.nn.Parameter(case.start.lower.to(case.run))
    optimizer = case.optimizer(parameter)
    group, box = optimizer.param_groups[0], case.start
    state = counterpart.initial(group, box)
    for change, gradient in zip(case.changes, case.gradients, strict=True):
        group.update(change)
        if counterpart.problems(optimizer):
            return
        arithmetic = arithmetic_of(parameter, group, case.own)
        try:
            state, box = counterpart.step(group, state, box, gradient, arithmetic)
            for bounds in (box, *state.moments.values()):
                check_finite_and_ordered(bounds, "a bound")
                require_in_range(arithmetic, bounds, "a bound")
        except UnsoundBoundError as error:
            if "do not meet" in str(error) or "exceeds" in str(error):
                raise
            return
        yield state, box


def runs(case: Case, attack: Attack, implementation: Settings) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Yield parameters and moments of torch's runs after each step."""
    parameter = torch.nn.Parameter(_point(case.start, attack.start, case.run))
    optimizer = case.optimizer(parameter, **implementation)
    for change, gradient, share in zip(case.changes, case.gradients, attack.gradients, strict=True):
        optimizer.param_groups[0].update(change)
        parameter.grad = _point(gradient, share, case.run)
        optimizer.step()
        kept = {name: moment for name, moment in optimizer.state[parameter].items() if isinstance(moment, Tensor)}
        yield parameter.detach().clone(), kept


def _point(box: Interval, share: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers of a type between bounds of that type."""
    lower, upper = box.lower.double(), box.upper.double()
    return torch.minimum(torch.maximum(lower + share * (upper - lower), lower), upper).to(dtype)


def violations(case: Case, counterpart: AbstractOptimizer | None = None, rounds: int = 3) -> Iterator[Violation]:
    """Attack the boxes of a case, and yield the worst violation of every step that has one."""
    counterpart = OPTIMIZERS[case.kind]() if counterpart is None else counterpart
    boxes = list(bounded(case, counterpart))
    if not boxes:
        return
    for implementation, flags in case.implementations.items():
        attack = Attack.drawn(case)
        for number in range(rounds):
            for step, ((state, box), (values, moments)) in enumerate(zip(boxes, runs(case, attack, flags))):  # noqa: B905
                pairs = {"parameter": (box, values)}
                pairs |= {n: (state.moments[n], moments[n]) for n in counterpart.moments if n in moments}
                for name, (bounds, numbers) in pairs.items():
                    if found := _outside(bounds, numbers):
                        yield Violation(case, implementation, step, name, *found)
            if number < rounds - 1:
                attack = attack.bred(values.double())


def _outside(bounds: Interval, numbers: Tensor) -> tuple[float, float] | None:
    lower, upper, exact = bounds.lower.double(), bounds.upper.double(), numbers.double()
    beyond = torch.maximum(lower - exact, exact - upper)
    beyond = torch.where(exact.isfinite(), beyond, torch.inf)
    excess, place = beyond.flatten().max(dim=0)
    return (float(excess), float((upper - lower)[place % ELEMENTS])) if excess > 0 else None


def main() -> None:
    """Print a line for each violation, and what was done."""
    given = Given.parsed(__doc__, minutes=5.0)
    torch.set_num_threads(1)
    outside, tried = 0, Counter[str]()
    for seed in given.seeds():
        drawn = case(seed)
        worst: Violation | None = None
        for violation in violations(drawn):
            worst = violation if worst is None or violation.excess > worst.excess else worst
        if worst is not None:
            outside += 1
            say(
                f"OUTSIDE {worst.case}: {worst.name} by {worst.excess:.3g} (width {worst.width:.3g}) after step "
                f"{worst.step}, {worst.implementation}"
            )
        tried[drawn.kind.__name__] += 1
    counts = ", ".join(f"{name} {count}" for name, count in sorted(tried.items()))
    say(f"{sum(tried.values())} cases from seed {given.seed} ({counts}): {outside} outside")
    sys.exit(outside > 0)


if __name__ == "__main__":
    main()
