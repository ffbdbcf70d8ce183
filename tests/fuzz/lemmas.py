"""Attack single steps of the ball: no poisoned step from any point of the ball may leave the next one; zero tolerance.

python -m tests.fuzz.lemmas --seed 0 --minutes 5
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from agt_lightning.domains.ball import BallDomain
from agt_lightning.errors import AgtError, UncertifiableError
from tests.fuzz.command import fuzz_until_time_is_over

ATTACKS, ASCENTS = 6, 8
"""Points of the ball that are tried in each step, and how often each is improved."""

INSIDE = 1 - 2.0**-20
"""Share of the limits that attacks use, so that rounding of a point or a sample keeps it within them."""

SMALLEST, LARGEST = 1e-4, 1.0
"""Radii from which steps are made."""

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "huber": F.huber_loss,
    "smooth l1": F.smooth_l1_loss,
    "ce": F.cross_entropy,
    "bce": F.binary_cross_entropy_with_logits,
}

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One step of a training whose ball has a radius already.

    Args:
        seed: of everything.
        kind: of the loss.
        widths: of all layers, the data's first.
        dtype: of parameters and data.
        adversary: the threat model.
        batch: features and labels.
        radius: of the ball before the step.
        rate: of the step.
        decay: of the weights.
    """

    seed: int
    kind: str
    widths: tuple[int, ...]
    dtype: torch.dtype
    adversary: BoundedAdversary
    batch: tuple[Tensor, Tensor]
    radius: float
    rate: float
    decay: float

    def module(self) -> nn.Sequential:
        """Return the network before training."""
        torch.manual_seed(self.seed)
        layers = [nn.Linear(i, o) for i, o in zip(self.widths[:-1], self.widths[1:], strict=True)]
        return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1]).to(self.dtype)

    def loss(self, module: nn.Module, batch: Any) -> Tensor:
        """Return the loss of a batch."""
        return LOSSES[self.kind](module(batch[0]), batch[1])


def case_of(seed: int) -> Case:
    """Return the step of a seed."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    kind, dtype = draw.choice(list(LOSSES)), draw.choice([torch.float32, torch.float64])
    inputs, size = draw.randint(1, 3), draw.choice([1, 2, 4, 8])
    outputs = draw.randint(2, 3) if kind == "ce" else draw.randint(1, 2)
    hidden = draw.choice([(), (), (2,), (4,), (3, 3)])
    x = (draw.choice([0.3, 1.0, 2.0]) * torch.randn(size, inputs, generator=generator)).to(dtype)
    nu = draw.choice([0.0, 0.1, 1.0])
    y = torch.randn(size, outputs, generator=generator).to(dtype)
    if kind == "ce":
        y = torch.randint(0, outputs, (size,), generator=generator)
    elif kind == "bce":
        y = (y > 0).to(dtype)
    flips = kind in ("ce", "bce") and nu > 0
    adversary = BoundedAdversary(
        n=draw.randint(0, min(2, size)),
        epsilon=draw.choice([0.0, 0.05, 0.5]),
        p=draw.choice([2, math.inf]),
        nu=1 if flips else nu,
        q=0 if flips else math.inf,
    )
    return Case(
        seed,
        kind,
        (inputs, *hidden, outputs),
        dtype,
        adversary,
        (x, y),
        radius=math.exp(draw.uniform(math.log(SMALLEST), math.log(LARGEST))),
        rate=draw.choice([0.01, 0.1, 0.5, 2.0]),
        decay=draw.choice([0.0, 0.0, 0.3]),
    )


# --- the certified step ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BallStep:
    """A ball before and after a step.

    Args:
        start: the center before.
        end: the center after.
        before: the radius before.
        after: the radius after.
    """

    start: Parameters
    end: Parameters
    before: float
    after: float


def certified_step(case: Case) -> BallStep:
    """Make a step of rate zero, so that there is a ball; give it the radius, and make the step.

    Raises:
        AgtError: if the ball does not cover it.
    """
    module = case.module()
    engine = AbstractGradientEngine(module, case.loss, case.adversary, domains=("ball",))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    engine.step([case.batch], optimizer)
    ball = engine.domains.in_use["ball"]
    assert isinstance(ball, BallDomain)
    ball.ball = replace(ball.ball, radius=case.radius)
    start = _parameters(module)
    optimizer.param_groups[0].update(lr=case.rate, weight_decay=case.decay)
    engine.step([case.batch], optimizer)
    return BallStep(start, _parameters(module), case.radius, ball.radius)


def _parameters(module: nn.Module) -> Parameters:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


# --- attacks -----------------------------------------------------------------------------------------------------


class Attack:
    """A search for a point of the ball, and for data, whose step ends far from the next center.

    Args:
        case: the step.
        step: its balls.
        number: of the attack.
    """

    def __init__(self, case: Case, step: BallStep, number: int) -> None:
        self.case, self.step, self.module = case, step, case.module()
        self.generator = torch.Generator().manual_seed(1000 * case.seed + number)
        self.direction = {name: self._noise(value) for name, value in step.start.items()}
        order = torch.randperm(len(case.batch[0]), generator=self.generator)
        self.rows = order[: case.adversary.n]
        self.x, self.y = (tensor.clone() for tensor in case.batch)
        self._poison(self._noise(self.x), self._noise(self.y))

    def distances(self) -> Iterator[float]:
        """Yield how far each try ends from the next center."""
        for _ in range(ASCENTS):
            yield self.distance()
            self._improve()
        yield self.distance()

    def distance(self) -> float:
        """Make the poisoned step by training itself, and return how far it ends from the next center."""
        self.module.load_state_dict(self.point())
        optimizer = torch.optim.SGD(self.module.parameters(), lr=self.case.rate, weight_decay=self.case.decay)
        self.case.loss(self.module, (self.x, self.y)).backward()
        optimizer.step()
        optimizer.zero_grad()
        return _norm({name: p.detach().double() - self.step.end[name].double() for name, p in _named(self.module)})

    def point(self) -> Parameters:
        """Return the point of the surface in the present direction, moved inside until rounding leaves it there."""
        share = INSIDE * self.step.before / max(_norm(self.direction), 1e-300)
        while True:
            point = {
                name: (value.double() + share * self.direction[name]).to(value.dtype)
                for name, value in self.step.start.items()
            }
            moved = {name: value.double() - self.step.start[name].double() for name, value in point.items()}
            if _norm(moved) <= self.step.before:
                return point
            share = share / 2 if share > 1e-300 else 0.0

    def _improve(self) -> None:
        """Turn to where the distance grows, with other poison, and sometimes with other samples."""
        point = {name: value.requires_grad_() for name, value in self.point().items()}
        x, y = self.x.clone().requires_grad_(), self.y.clone()
        y = y.requires_grad_() if y.is_floating_point() else y
        loss = LOSSES[self.case.kind](functional_call(self.module, point, (x,)), y)
        gradients = torch.autograd.grad(loss, list(point.values()), create_graph=True)
        moved = [
            value - self.case.rate * (gradient + self.case.decay * value) - self.step.end[name]
            for (name, value), gradient in zip(point.items(), gradients, strict=True)
        ]
        square = torch.stack([each.square().sum() for each in moved]).sum()
        inputs = [*point.values(), x, *([y] if y.requires_grad else [])]
        found = torch.autograd.grad(square, inputs, allow_unused=True)
        uphill = [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, found, strict=True)]
        self.direction = {name: value.double() for name, value in zip(point, uphill, strict=False)}
        if _norm(self.direction) == 0:
            self.direction = {name: self._noise(value) for name, value in self.step.start.items()}
        for_x, for_y = uphill[len(point)], uphill[-1] if y.requires_grad else self._noise(self.y)
        if self.case.adversary.n and float(torch.rand((), generator=self.generator)) < 0.5:
            strength = for_x.flatten(1).norm(dim=1) + (for_y.flatten(1).norm(dim=1) if y.requires_grad else 0)
            self.rows = strength.topk(self.case.adversary.n).indices
        self._poison(for_x, for_y)

    def _poison(self, for_x: Tensor, for_y: Tensor) -> None:
        """Move the chosen samples as far as the adversary can, along these directions."""
        adversary, rows = self.case.adversary, self.rows
        self.x, self.y = (tensor.clone() for tensor in self.case.batch)
        if not len(rows):
            return
        along = for_x[rows].double()
        along = along.sign() if math.isinf(adversary.p) else along / along.norm(dim=1, keepdim=True).clamp(min=1e-300)
        self.x[rows] += (INSIDE * adversary.epsilon * along).to(self.x.dtype)
        if not adversary.nu:
            return
        if self.case.kind == "ce":
            self.y[rows] = torch.randint(0, self.case.widths[-1], (len(rows),), generator=self.generator)
        elif self.case.kind == "bce":
            self.y[rows] = (for_y[rows] > 0).to(self.y.dtype)
        else:
            self.y[rows] += (INSIDE * adversary.nu * for_y[rows].double().sign()).to(self.y.dtype)

    def _noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=torch.float64)


def _named(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters())


def _norm(parts: Parameters) -> float:
    """Return the Euclidean norm, without the rounding that would pass for a violation."""
    entries = torch.cat([part.double().flatten() for part in parts.values()]).tolist()
    return math.sqrt(math.fsum(entry**2 for entry in entries))


def violations(seed: int, counts: Counter[str]) -> Iterator[str]:
    """Yield attacks that leave the next ball, and count what was tried."""
    case = case_of(seed)
    try:
        step = certified_step(case)
    except UncertifiableError:
        counts["refused"] += 1
        return
    except AgtError as error:
        counts["stopped"] += 1
        yield f"seed {seed}: {type(error).__name__}: {error}"
        return
    counts["steps"] += 1
    farthest = 0.0
    for number in range(ATTACKS):
        for distance in Attack(case, step, number).distances():
            counts["attacks"] += 1
            farthest = max(farthest, distance)
    counts["within a tenth of the bound"] += int(farthest > 0.9 * step.after)
    counts["within a thousandth of the bound"] += int(farthest > 0.999 * step.after)
    if not farthest <= step.after:
        counts["violations"] += 1
        yield f"seed {seed}: a step ends at {farthest}, outside of {step.after}, from a radius of {step.before}: {case}"


if __name__ == "__main__":
    fuzz_until_time_is_over(violations, __doc__)
