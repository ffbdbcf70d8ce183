"""The strongest remainder and poison of one step that ascent finds, by automatic differentiation alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad, vmap

from tests.domains.adjoint.problems import F64, Problem, flat


def along(problem: Problem, vector: Tensor, direction: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """``c · ∇ℓ_i``, (b,)."""

    def loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return problem.losses(theta, x[None], y[None])[0]

    return vmap(grad(loss), in_dims=(None, 0, 0))(vector, inputs, targets) @ direction


def curved(problem: Problem, direction: Tensor) -> Tensor:
    """``H c`` at the nominal parameters."""
    theta = problem.nominal.clone().requires_grad_()
    total = (problem.weights * problem.losses(theta, problem.inputs, problem.targets)).sum()
    (gradient,) = torch.autograd.grad(total, theta, create_graph=True)
    (product,) = torch.autograd.grad(gradient @ direction, theta)
    return product * problem.trained


class Attack:
    """Movements δ of the parameters, side by side, with poison that is chosen for each.

    Args:
        problem: the step.
        direction: c, as one vector.
        sign: s, +1 or -1.
        count: number of movements.
        poisons: whether samples are poisoned.
    """

    def __init__(self, problem: Problem, direction: Tensor, sign: float, count: int = 48, poisons: bool = True):
        self.problem, self.direction, self.sign, self.count = problem, direction * problem.trained, sign, count
        self.poisons = poisons and (problem.form.labels is not None or problem.form.p is not None)
        self.curved = curved(problem, self.direction)
        self.start = along(problem, problem.nominal, self.direction, problem.inputs, problem.targets)
        self.generator = torch.Generator().manual_seed(problem.seed + 7)

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=F64, generator=self.generator)

    def value(self, movement: Tensor, inputs: Tensor, targets: Tensor, chosen: Tensor) -> Tensor:
        """``s c · (r + p)`` of one movement, with every sample's poison in ``inputs`` and ``targets``."""
        problem = self.problem
        theta = problem.nominal + movement
        clean = along(problem, theta, self.direction, problem.inputs, problem.targets)
        worst = along(problem, theta, self.direction, inputs, targets)
        total = problem.weights * (torch.where(chosen, worst, clean) - self.start)
        return self.sign * (total.sum() - self.curved @ movement)

    def gains(self, movement: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        problem = self.problem
        theta = problem.nominal + movement
        clean = along(problem, theta, self.direction, problem.inputs, problem.targets)
        return self.sign * problem.weights * (along(problem, theta, self.direction, inputs, targets) - clean)

    def movements(self) -> Tensor:
        """Starts: random, one unit, aimed at kinks of single pairs, the second layer alone; some inside the ball."""
        problem = self.problem
        start = self.noise(self.count, len(problem.nominal)) * problem.trained
        first, second = problem.split(start)
        first, second = first.clone(), second.clone()
        hidden = problem.geometry.hidden
        for a in range(self.count):
            kind = a % 6
            if kind in (1, 2):
                i = int(torch.randint(0, len(hidden), (), generator=self.generator))
                j = int(torch.randint(0, hidden.shape[1], (), generator=self.generator))
                keep = second[a, :, j].clone() * (kind - 1)
                first[a], second[a] = 0, 0
                first[a, j] = -torch.sign(hidden[i, j] + 1e-300) * problem.geometry.inputs[i]
                second[a, :, j] = 0.3 * keep
            if kind == 3:
                second[a] = 0
            if kind == 4:
                first[a] = 0
        start = flat(first, second) * problem.trained
        size = torch.rand(self.count, 1, dtype=F64, generator=self.generator)
        size[::2] = 1.0
        return start / start.norm(dim=1, keepdim=True).clamp(min=1e-300) * problem.radius * size

    def features(self, moves: Tensor) -> Tensor:
        """Moves of features within reach, from any numbers (a, b, d)."""
        problem, p = self.problem, self.problem.form.p
        if p is None:
            return torch.zeros_like(moves)
        widths = problem.half_widths
        if p == float("inf"):
            return torch.maximum(torch.minimum(moves, widths), -widths)
        unit = moves / widths[0]
        inside = moves / unit.norm(p=p, dim=2, keepdim=True).clamp(min=1)
        return torch.maximum(torch.minimum(inside, widths), -widths)

    def labels(self, up: Tensor) -> Tensor:
        """The label that each sample gets, in the direction of any numbers (a, b, K)."""
        problem, kind = self.problem, self.problem.form.labels
        targets = problem.targets.expand(self.count, *problem.targets.shape)
        if kind is None:
            return targets
        if problem.classes:
            return up.argmax(dim=2)
        if kind == "flip":
            return (up > 0).double()
        if kind == "box":
            return targets + problem.nu * torch.sign(up)
        return targets + problem.nu * up / up.norm(dim=2, keepdim=True).clamp(min=1e-300)

    def run(self, steps: int = 30) -> float:
        """The largest value found."""
        problem = self.problem
        movement, best = self.movements(), -torch.inf
        shape = (self.count, *problem.inputs.shape)
        moves, up = self.features(problem.epsilon * self.noise(*shape)), self.noise(*shape[:2], problem.outputs)
        for step in range(steps):
            inputs = problem.inputs + moves
            if step % 4 == 1 or not self.poisons:
                targets = self.labels(up)
            else:
                targets, up = self.best_labels(movement, inputs, up)
            chosen = self.choose(movement, inputs, targets)
            variables = movement.clone().requires_grad_(), inputs.clone().requires_grad_()
            values = vmap(self.value)(variables[0], variables[1], targets, chosen)
            best = max(best, float(values.detach().max()))
            others = vmap(self.gains)(variables[0], variables[1], targets)
            ascent = torch.autograd.grad(values.sum() + 1e-9 * others.sum(), variables)
            length = 0.5 * (1 - step / steps)
            movement = self.inside(movement + length * problem.radius * unit(ascent[0]))
            if problem.form.p is not None:
                direction = ascent[1] / ascent[1].abs().amax(dim=2, keepdim=True).clamp(min=1e-300)
                size = 3.0 if step % 3 == 0 else 0.5
                moves = self.features(moves + size * problem.epsilon * direction)
        return best

    def best_labels(self, movement: Tensor, inputs: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Labels that serve best at these movements and features."""
        if self.problem.form.labels is None:
            return self.labels(up), up
        candidates = [self.noise(*up.shape) for _ in range(6)] + [up]
        gains = torch.stack([vmap(self.gains)(movement, inputs, self.labels(each)) for each in candidates])
        index = gains.argmax(dim=0)[None, :, :, None].expand(1, *up.shape)
        best = torch.stack(candidates).gather(0, index)[0]
        return self.labels(best), best

    def choose(self, movement: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """The n samples that gain most."""
        problem, chosen = self.problem, torch.zeros(self.count, len(self.problem.inputs), dtype=torch.bool)
        if not self.poisons:
            return chosen
        gains = vmap(self.gains)(movement, inputs, targets)
        can = torch.zeros(len(problem.inputs), dtype=torch.bool)
        can[problem.poisonable] = True
        gains = gains.masked_fill(~can, -torch.inf)
        top = gains.topk(min(problem.form.n, int(can.sum())), dim=1)
        return chosen.scatter_(1, top.indices, top.values > 0)

    def inside(self, movement: Tensor) -> Tensor:
        movement = movement * self.problem.trained
        norm = movement.norm(dim=1, keepdim=True).clamp(min=1e-300)
        return movement * (self.problem.radius / norm).clamp(max=1)


def unit(values: Tensor) -> Tensor:
    return values / values.norm(dim=1, keepdim=True).clamp(min=1e-300)
