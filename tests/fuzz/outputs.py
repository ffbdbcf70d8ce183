"""Bounds on outputs by the adjoint of random trainings of heads, and poisoned runs that push outputs; zero tolerance.

python -m tests.fuzz.outputs --seed 0 --minutes 10
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import override

from agt_lightning import CertifiedModel
from agt_lightning.errors import AgtError, UncertifiableError
from agt_lightning.interval import Interval
from tests.fuzz.attacks import Attacker, Steps
from tests.fuzz.command import fuzz_until_time_is_over
from tests.fuzz.networks import Chain, Network, Plan
from tests.fuzz.runs import trained
from tests.fuzz.trainings import LOSSES, VARIED, Training, _adversary, _batch, _in_range, given_block

POINTS = 3
"""Inputs whose outputs are bounded."""

RUNS, LED_ON = 10, 6
"""Poisoned trainings that do not know of the bounds, and those that go on from the ones which came closest."""

STYLE = replace(VARIED, substituting=0.0, radii=(1e-3, 0.02, 0.1, 0.3))

HEAD_LOSSES = {
    "class": ("cross_entropy", "cross_entropy, smoothed", "one_hot likelihood"),
    "number": ("mse", "mse by hand", "mse, summed"),
    "binary": ("bce", "bce of sigmoid"),
}
"""Those that the adjoint covers."""


class HeadNetwork(Network):
    """Blocks, one of which flattens samples, and a linear layer."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.last(x)
        return result


class HeadPlan(Plan):
    """A frozen block, in some cases, and a trained head of one linear layer or two."""

    @override
    def _built(self, draw: random.Random) -> Network:
        chain = Chain(draw, self.shape)
        if draw.random() < 0.4:
            chain.add_block(self.given)
        width = torch.Size(chain.shape).numel()
        chain.add(nn.Flatten(), (width,))
        hidden = draw.choice([0, 0, 2, 3, 6])
        if hidden:
            scale, layer = draw.choice([0.3, 1.0, 1.0, 3.0]), nn.Linear(width, hidden, bias=draw.random() < 0.8)
            with torch.no_grad():
                layer.weight.mul_(scale)
            chain.blocks += [layer, nn.ReLU()]
        return HeadNetwork(chain.blocks, hidden or width, self.outputs)

    @override
    def _frozen(self, draw: random.Random, network: Network) -> list[nn.Parameter]:
        head = max(number for number, block in enumerate(network.blocks) if isinstance(block, nn.Flatten))
        resting = [network.last.bias] if draw.random() < 0.2 else []
        return [p for block in list(network.blocks)[:head] for p in block.parameters()] + resting


def head_training(seed: int) -> Training:
    """Return the training of a seed."""
    draw = random.Random(f"outputs {seed}")
    labels = draw.choice(["class", "number", "binary"])
    loss_name = draw.choice(HEAD_LOSSES[labels])
    outputs = {"class": 3, "binary": 1}.get(labels, draw.choice([1, 2]))
    plan = HeadPlan(draw.randrange(2**31), outputs, given_block(seed))
    dtype, size = draw.choice([torch.float32, torch.float64]), draw.choice([2, 3, 5, 6])
    parts = draw.choice([1, 1, 2])
    adversary = _adversary(draw, STYLE, plan, size * parts, labels)
    steps = tuple(
        tuple(_in_range(_batch(draw, plan, size, labels, outputs, dtype), adversary) for _ in range(parts))
        for _ in range(draw.choice([1, 2, 3, 5]))
    )
    return Training(
        seed,
        plan,
        LOSSES[labels][loss_name],
        loss_name,
        labels,
        steps,
        adversary,
        torch.optim.SGD,
        {"lr": draw.choice([0.02, 0.1, 0.1, 0.5]), "weight_decay": draw.choice([0.0, 0.0, 0.2])},
        tuple(draw.choice([1.0, 0.3, 2.0]) for _ in steps),
        {"domains": draw.choice([("ball", "adjoint"), ("box", "ball", "adjoint")])},
        dtype,
    )


@dataclass(frozen=True, eq=False)
class OutputTarget:
    """A combination of outputs of one input, to be raised or lowered.

    Args:
        module: in double precision.
        points: inputs, of which blocks may need more than one, (POINTS, ...).
        at: number of the input.
        row: the combination, (K,).
        sign: 1 to raise it, -1 to lower it.
        step: the last one.
    """

    module: nn.Module
    points: Tensor
    at: int
    row: Tensor
    sign: float
    step: int

    def of(self, parameters: dict[str, Tensor]) -> Tensor:
        """Return what the attack maximizes."""
        outputs: Tensor = functional_call(self.module, parameters, (self.points,))
        return self.sign * (outputs[self.at] @ self.row)


class OutputAttacker(Attacker):
    """Poisoned data that push outputs.

    Args:
        case: the training.
        points: inputs, (POINTS, ...).
    """

    def __init__(self, case: Training, points: Tensor) -> None:
        super().__init__(case, random.Random(case.seed + 1))
        self.points = points.double()

    @override
    def target(self) -> Any:
        at, outputs = self.draw.randrange(len(self.points)), self.case.plan.outputs
        row = torch.eye(outputs, dtype=torch.float64)[self.draw.randrange(outputs)]
        if outputs > 1 and self.draw.random() < 0.5:
            row = row - torch.eye(outputs, dtype=torch.float64)[self.draw.randrange(outputs)]
        sign, last = self.draw.choice([-1.0, 1.0]), len(self.clean) - 1
        self.targets.append(OutputTarget(self.module, self.points, at, row, sign, last))  # type: ignore[arg-type]
        return self.targets[-1]

    def runs(self) -> Iterator[Steps]:
        """Yield poisoned data for all trainings; the first is clean."""
        done = list(self.poisoned(RUNS))
        yield from done
        for number, target in enumerate(self.targets[:LED_ON]):
            yield self.led_on(target, done[1 + number % (len(done) - 1)])


def violations(seed: int, counts: Counter[str]) -> list[str]:
    """Return what leaves its bounds in the training of a seed, and count what became of it."""
    case = head_training(seed)
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(POINTS, *case.plan.shape, generator=generator, dtype=torch.float64).to(case.dtype)
    try:
        module, bounds, margins = _certified(case, points)
    except UncertifiableError as error:
        counts["diverged" if "diverged" in str(error) else "refused"] += 1
        return []
    except AgtError as error:
        counts["stopped"] += 1
        return [f"stopped: {error}\n    {case.summary()}"]
    counts["certified trainings"] += 1
    found = []
    for number, steps in enumerate(OutputAttacker(case, points).runs()):
        module.load_state_dict({**module.state_dict(), **trained(case, steps)[-1]})
        outputs = module(points).detach()
        counts["poisoned trainings"] += 1
        found += [f"run {number}: {what}\n    {case.summary()}" for what in _outside(outputs, bounds, margins)]
    return found


def _certified(case: Training, points: Tensor) -> tuple[nn.Module, Interval, Interval | None]:
    """Return the network, and bounds on outputs and on margins of the first class."""
    module = case.module()
    engine = case._engine(module)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], **case.settings)
    for number, batches in enumerate(case.steps):
        case.prepare(module, optimizer, number)
        case._step(engine, optimizer, batches, number)
    sets = {"adjoint": engine.parameter_sets["adjoint"]}  # without the ball, whose bounds would hide faults
    model = CertifiedModel(module, engine.bounds, sets=sets)
    several = case.plan.outputs > 1
    return module, model.bound_forward(points), model.margins(points, _first(points)) if several else None


def _first(points: Tensor) -> Tensor:
    return torch.zeros(len(points), dtype=torch.int64)


def _outside(outputs: Tensor, bounds: Interval, margins: Interval | None) -> Iterator[str]:
    """Yield what is outside; differences of rounded outputs are taken exactly, in double precision."""
    for name, values, interval in (
        ("output", outputs, bounds),
        ("margin", outputs.double()[:, :1] - outputs.double(), margins),
    ):
        if interval is None:
            continue
        lower, upper = interval.lower.double(), interval.upper.double()
        excess = torch.maximum(lower - values.double(), values.double() - upper)
        excess = torch.where(excess.isfinite(), excess, torch.inf)
        if bool((excess > 0).any()):
            worst, width = int(excess.argmax()), (upper - lower).flatten()
            yield f"{name} {worst} outside by {float(excess.max()):.3g} of {float(width[worst]):.3g}"


if __name__ == "__main__":
    fuzz_until_time_is_over(violations, __doc__)
