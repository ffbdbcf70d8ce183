"""Substituted samples: clipped gradients that are the worst for a direction in the space of parameters."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from agt_lightning import UnboundedAdversary
from tests.fuzz.attacks import Target
from tests.fuzz.check import Parameters, Run
from tests.fuzz.trainings import Batch, Training, snapshot

Directions = list[Parameters]
"""For each step, what parameters are to be led away from; empty if nothing is poisoned."""

_TRIALS = 5
"""Directions that are tried to lead a target on."""


class Substitution:
    """Draws directions, and trains on clipped gradients, n of which are replaced by the worst ones for a direction.

    Args:
        case: the training.
        draw: source of chance.

    Attributes:
        targets: none, since directions are not drawn for one element.
    """

    def __init__(self, case: Training, draw: random.Random) -> None:
        assert isinstance(case.adversary, UnboundedAdversary)
        self.case, self.adversary, self.draw = case, case.adversary, draw
        self.generator = torch.Generator().manual_seed(draw.randrange(2**31))
        self.start = {name: p.detach().double() for name, p in case.module().named_parameters() if p.requires_grad}
        self.targets: list[Target] = []

    def poisoned(self, count: int) -> Iterator[Directions]:
        """Yield directions for so many trainings; the first is clean."""
        yield []
        for _ in range(count - 1):
            one = self._direction()
            again = self.draw.random() < 0.5
            yield [one if again else self._direction() for _ in self.case.steps]

    def led_on(self, target: Target, done: Directions) -> Directions:
        """Return the best of some directions, each other than those of before in one step."""
        tried = [done, [self._toward(target)] * len(self.case.steps), *(self._changed(done) for _ in range(_TRIALS))]
        return max(tried, key=lambda each: float(target.of(self.trained(each)[target.step])))

    def _changed(self, done: Directions) -> Directions:
        changed = list(done) or [self._direction() for _ in self.case.steps]
        changed[self.draw.randrange(len(changed))] = self._direction()
        return changed

    def _toward(self, target: Target) -> Parameters:
        """Return the direction that raises the target most, by plain descent."""
        direction = {name: torch.zeros_like(p) for name, p in self.start.items()}
        direction[target.name].view(-1)[target.index] = target.sign
        return direction

    def _direction(self) -> Parameters:
        """Return a random direction: of all parameters, or of one element."""
        if self.draw.random() < 0.5:
            return {name: torch.randn(p.shape, generator=self.generator).double() for name, p in self.start.items()}
        name = self.draw.choice(list(self.start))
        index, sign = self.draw.randrange(self.start[name].numel()), self.draw.choice([-1.0, 1.0])
        return self._toward(Target(name, index, sign, 0))

    def trained(self, done: Directions) -> Run:
        """Return the parameters after each step of the training."""
        module, run = self.case.module(), list[Parameters]()
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        optimizer = self.case.optimizer(list(named.values()), **self.case.settings)
        for number, batches in enumerate(self.case.steps):
            self.case.prepare(module, optimizer, number)
            moving = {name: p for name, p in named.items() if not self.case.rests(name, number)}
            toward = {name: done[number][name] for name in moving} if done else None
            mean = self._mean(module, moving, batches, toward)
            for name, p in named.items():
                p.grad = mean[name].to(p.dtype) if name in moving else None
            self.case.clip(optimizer)
            optimizer.step()
            run.append(snapshot(module))
        return run

    def _mean(
        self, module: nn.Module, named: dict[str, nn.Parameter], batches: Sequence[Batch], toward: Parameters | None
    ) -> Parameters:
        """Return the mean of clipped gradients, poisoned if there is a direction."""
        found = [
            (bool(mask[row]), self._clipped(self._gradient(module, named, x[row : row + 1], y[row : row + 1])))
            for x, y, mask in batches
            for row in range(len(x))
        ]
        total = {name: torch.stack([gradient[name] for _, gradient in found]).sum(0) for name in named}
        if toward is not None:
            worst = self._clipped({name: 1e6 * -toward[name] for name in named})
            candidates = [gradient for allowed, gradient in found if allowed]
            for gradient in sorted(candidates, key=lambda each: -_inner(toward, each))[: self.adversary.n]:
                total = {name: total[name] - gradient[name] + worst[name] for name in named}
        return {name: value / len(found) for name, value in total.items()}

    def _gradient(self, module: nn.Module, named: dict[str, nn.Parameter], x: Tensor, y: Tensor) -> Parameters:
        twice = [torch.cat([part, part]) for part in (x, y)]  # a single sample can lose its axis to `squeeze`
        loss = self.case.criterion(module(twice[0]), twice[1])
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
        return {name: g.double() for name, g in zip(named, found, strict=True)}

    def _clipped(self, gradient: Parameters) -> Parameters:
        kappa = self.adversary.kappa
        if self.adversary.clip == "value":
            return {name: g.clamp(-kappa, kappa) for name, g in gradient.items()}
        norm = float(torch.stack([g.square().sum() for g in gradient.values()]).sum().sqrt())
        return {name: g * min(1.0, kappa / norm) if norm else g for name, g in gradient.items()}


def _inner(a: Parameters, b: Parameters) -> float:
    return sum(float((a[name] * b[name]).sum()) for name in a)
