"""Poisoned trainings for real: torch's own optimizer and kernels, in the parameters' type."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from agt_lightning import UnboundedAdversary
from tests.fuzz.attacks import Attacker, Steps, Target
from tests.fuzz.trainings import Training

Parameters = dict[str, Tensor]


def poisoned_runs(case: Training, count: int) -> tuple[list[Parameters], list[Target]]:
    """Return the parameters after so many poisoned trainings, and what they raised or lowered; the first one is clean.

    Args:
        case: the training.
        count: of trainings.
    """
    draw = random.Random(case.seed + 1)
    if isinstance(case.adversary, UnboundedAdversary):
        return [_substituted(case, case.adversary, draw, poison=number > 0) for number in range(count)], []
    attacker = Attacker(case, draw)
    return [trained(case, steps) for steps in attacker.poisoned(count)], attacker.targets


def trained(case: Training, steps: Steps) -> Parameters:
    """Return the parameters after a training on some data."""
    module = case.module()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = case.optimizer(parameters, **case.settings)
    for batches in steps:
        optimizer.zero_grad()
        for batch in batches:
            (case.loss(module, batch) / len(batches)).backward()
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def _substituted(case: Training, adversary: UnboundedAdversary, draw: random.Random, *, poison: bool) -> Parameters:
    """Train on clipped gradients of the samples, n of which are replaced by the worst clipped ones for a direction."""
    module = case.module()
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimizer = case.optimizer(list(named.values()), **case.settings)
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    direction = _direction(named, generator, draw)
    for batches in case.steps:
        size = sum(len(x) for x, _, _ in batches)
        total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in named.items()}
        candidates = []
        for x, y, mask in batches:
            for row in range(len(x)):
                gradient = _clipped(adversary, _gradient(case, named, module, (x[row : row + 1], y[row : row + 1])))
                total = {name: total[name] + gradient[name] for name in total}
                if bool(mask[row]):
                    worth = sum(float((direction[name] * gradient[name]).sum()) for name in total)
                    candidates.append((worth, gradient))
        worst = _clipped(adversary, {name: 1e6 * -direction[name] for name in total})
        if poison:
            for _, gradient in sorted(candidates, key=lambda pair: -pair[0])[: adversary.n]:
                total = {name: total[name] - gradient[name] + worst[name] for name in total}
        for name, p in named.items():
            p.grad = (total[name] / size).to(p.dtype)
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def _direction(named: dict[str, Tensor], generator: torch.Generator, draw: random.Random) -> Parameters:
    """Return a direction in the space of parameters: random, or one element."""
    if draw.random() < 0.5:
        return {name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in named.items()}
    zeros = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in named.items()}
    chosen = zeros[draw.choice(list(named))].view(-1)
    chosen[draw.randrange(len(chosen))] = draw.choice([-1.0, 1.0])
    return zeros


def _gradient(
    case: Training, named: dict[str, Tensor], module: torch.nn.Module, sample: tuple[Tensor, Tensor]
) -> Parameters:
    twice = [torch.cat([part, part]) for part in sample]  # a single sample can lose its axis to `squeeze`
    loss = case.criterion(module(twice[0]), twice[1])
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
    return {name: g.double() for name, g in zip(named, found, strict=True)}


def _clipped(adversary: UnboundedAdversary, gradient: Parameters) -> Parameters:
    if adversary.clip == "value":
        return {name: g.clamp(-adversary.kappa, adversary.kappa) for name, g in gradient.items()}
    norm = float(torch.stack([g.square().sum() for g in gradient.values()]).sum().sqrt())
    return {name: g * min(1.0, adversary.kappa / norm) if norm else g for name, g in gradient.items()}
