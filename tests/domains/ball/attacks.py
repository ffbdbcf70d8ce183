"""The strongest poisoning of one step that gradient ascent finds, computed without the library.

All attacks of all problems run side by side. Axis letters: ``g`` problems, ``a`` attacks, ``b`` samples, ``d``
features, ``h`` hidden units, ``k`` outputs. A movement of the parameters is a flat vector ``δ``, (g, a, P).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.domains.ball.problems import Form, Problems

Parameters = tuple[Tensor, Tensor, Tensor, Tensor]
"""W₁ (g, a, h, d), β₁ (g, a, h), W₂ (g, a, k, h) and β₂ (g, a, k)."""


@dataclass(frozen=True)
class Poisoned:
    """Data as the adversary has it, (g, a, b, ...)."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Found:
    """The best of each attack.

    Args:
        norms: ‖δ⁺‖, (g, a).
        movements: the δ before the step, (g, a, P).
    """

    norms: Tensor
    movements: Tensor


def slope(form: Form, outputs: Tensor, targets: Tensor) -> Tensor:
    """``∂ℓ/∂f``, (..., k)."""
    if form.loss == "softmax":
        hot = torch.nn.functional.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)
        return form.scale * (outputs.softmax(dim=-1) - hot)
    if form.loss == "logistic":
        return form.scale * (outputs.sigmoid() - targets)
    if form.loss == "huber":
        return form.scale * form.slope * (outputs - targets).clamp(-form.delta, form.delta)
    return 2 * form.scale * (outputs - targets)


class OneStep:
    """Attacks on one step of each problem.

    Args:
        problems: what is attacked.
        attacks: number per problem.
        generator: of all random choices.
    """

    def __init__(self, problems: Problems, attacks: int, generator: torch.Generator) -> None:
        self.problems, self.form, self.attacks, self.generator = problems, problems.form, attacks, generator
        p = problems
        self.nominal: Parameters = tuple(
            value[:, None].expand(-1, attacks, *value.shape[1:])
            for value in (p.first, p.first_bias, p.second, p.second_bias)
        )
        self.inputs = p.inputs[:, None].expand(-1, attacks, -1, -1)
        self.targets = p.targets[:, None].expand(-1, attacks, *p.targets.shape[1:])
        self.weights = p.weights[:, None]
        self.radius, self.rate = p.radius[:, None, None], p.rate[:, None, None]
        self.kept = 1 - self.rate * p.decay[:, None, None]
        self.shapes = [value.shape[2:] for value in self.nominal]
        trains = (self.form.hidden, self.form.hidden and self.form.trains_first, True, self.form.trains_second)
        self.trained = torch.cat(
            [torch.full((math.prod(s),), float(t)) for s, t in zip(self.shapes, trains, strict=True)]
        ).double()
        shape = (len(p), attacks, p.inputs.shape[1], self.nominal[1].shape[2])
        # relu'(0) is any value in [0, 1], and another one at each of the three evaluations.
        self.at_zero = [self._choice(shape) for _ in range(3)]
        temperature = 10 ** (-3 * torch.rand(len(p), attacks, 1, 1, generator=generator, dtype=torch.float64))
        temperature[:, ::2] = 0
        size = self.inputs.norm(dim=3, keepdim=True) + 1
        self.temperature = temperature * (self.radius[..., None] + p.epsilon.amax(dim=1)[:, None, None, None]) * size
        self.start = self.gradient(self.nominal, self.inputs, self.targets, 0)

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self.generator)

    def _choice(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(0, 3, shape, generator=self.generator).double() / 2

    def moved(self, movement: Tensor) -> Parameters:
        """``θ + δ``."""
        parts = movement.split([math.prod(s) for s in self.shapes], dim=2)
        return tuple(
            value + part.unflatten(2, shape)
            for value, part, shape in zip(self.nominal, parts, self.shapes, strict=True)
        )

    def forward(self, parameters: Parameters, inputs: Tensor, zero: int) -> tuple[Tensor, Tensor, Tensor]:
        """Slopes of the units, activations and outputs."""
        first, first_bias, second, second_bias = parameters
        if not self.form.hidden:
            return torch.ones_like(inputs), inputs, inputs @ second.mT + second_bias[:, :, None]
        hidden = inputs @ first.mT + first_bias[:, :, None]
        hard = (hidden > 0).double() + (hidden == 0) * self.at_zero[zero]
        soft = torch.sigmoid(hidden / self.temperature.clamp(min=1e-300))
        # The slope as it is, with a derivative as if it were soft: ascent sees switches ahead.
        on = torch.where(self.temperature > 0, hard + soft - soft.detach(), hard)
        active = hidden.clamp(min=0)
        return on, active, active @ second.mT + second_bias[:, :, None]

    def gradient(self, parameters: Parameters, inputs: Tensor, targets: Tensor, zero: int) -> Tensor:
        """``Σ_i w_i ∇ℓ_i``, (g, a, P)."""
        on, active, outputs = self.forward(parameters, inputs, zero)
        pull = slope(self.form, outputs, targets) * self.weights[..., None]
        back = on * (pull @ parameters[2])
        parts = [torch.zeros_like(parameters[0]), torch.zeros_like(parameters[1])]
        if self.form.hidden:
            parts = [back.mT @ inputs, back.sum(dim=2)]
        parts += [pull.mT @ active, pull.sum(dim=2)]
        return torch.cat([part.flatten(2) for part in parts], dim=2) * self.trained

    def along(self, direction: Tensor, parameters: Parameters, poisoned: Poisoned, zero: int) -> Tensor:
        """``w_i ⟨direction, ∇ℓ_i⟩``, (g, a, b)."""
        first, first_bias, second, second_bias = (
            part.unflatten(2, shape)
            for part, shape in zip(
                (direction * self.trained).split([math.prod(s) for s in self.shapes], dim=2), self.shapes, strict=True
            )
        )
        on, active, outputs = self.forward(parameters, poisoned.inputs, zero)
        pull = slope(self.form, outputs, poisoned.targets)
        total = (pull * (active @ second.mT + second_bias[:, :, None])).sum(dim=3)
        if self.form.hidden:
            total = total + (on * (pull @ parameters[2]) * (poisoned.inputs @ first.mT + first_bias[:, :, None])).sum(
                dim=3
            )
        return total * self.weights

    def after(self, movement: Tensor, poisoned: Poisoned, chosen: Tensor) -> Tensor:
        """``δ⁺``, (g, a, P)."""
        parameters = self.moved(movement)
        # A sample is evaluated once: chosen ones as poisoned, the others as they are.
        pick = chosen[..., None]
        inputs = torch.where(pick, poisoned.inputs, self.inputs)
        pick = pick if self.targets.ndim == 4 else chosen
        targets = torch.where(pick, poisoned.targets, self.targets)
        change = self.gradient(parameters, inputs, targets, 1) - self.start
        return self.kept * movement - self.rate * change

    # The adversary's sets.

    def inside(self, movement: Tensor) -> Tensor:
        """The nearest movement in the ball, or in ball and box."""
        movement = movement * self.trained
        if self.form.boxed:
            rho = self.problems.box[:, None, None]
            movement = movement.clamp(-rho, rho)
        norm = movement.norm(dim=2, keepdim=True)
        return movement * (self.radius / norm.clamp(min=1e-300)).clamp(max=1)

    def features(self, moves: Tensor) -> Tensor:
        """Moves of features within reach."""
        epsilon = self.problems.epsilon[:, None, None]
        if self.form.p is None:
            return torch.zeros_like(moves)
        if math.isinf(self.form.p):
            return moves.clamp(-epsilon, epsilon)
        unit = moves / epsilon
        return moves / unit.norm(p=self.form.p, dim=3, keepdim=True).clamp(min=1)

    def labels(self, targets: Tensor) -> Tensor:
        """Numbers within reach."""
        kind, nu = self.form.labels, self.problems.nu[:, None, None, None]
        if kind is None:
            return self.targets.clone()
        if kind == "flip":
            return targets.clamp(0, 1)
        change = (targets - self.targets).clamp(-nu, nu)
        if kind == "ball":
            change = change * (nu / change.norm(dim=3, keepdim=True).clamp(min=1e-300)).clamp(max=1)
        return self.targets + change

    def first_poison(self) -> Poisoned:
        """A random one."""
        epsilon = self.problems.epsilon[:, None, None]
        inputs = self.inputs + self.features(2 * epsilon * self.noise(*self.inputs.shape))
        if self.form.loss == "softmax":
            return Poisoned(inputs, self.targets.clone())
        size = 1.0 if self.form.labels == "flip" else self.problems.nu[:, None, None, None]
        return Poisoned(inputs, self.labels(self.targets + 3 * size * self.noise(*self.targets.shape)))

    def first_movements(self) -> Tensor:
        """Starts of several kinds, one after another along the attacks."""
        count, size = len(self.problems), int(self.trained.shape[0])
        start = self.noise(count, self.attacks, size)
        kinds = torch.arange(self.attacks) % 10
        start[:, kinds == 1] *= torch.rand(count, int((kinds == 1).sum()), 1, generator=self.generator).double()
        start[:, kinds == 1] *= self.radius / start[:, kinds == 1].norm(dim=2, keepdim=True)
        start[:, kinds == 2] = -self.start[:, kinds == 2]
        start[:, kinds == 3] = self.start[:, kinds == 3]
        start[:, kinds == 4] = self.steepest()[:, kinds == 4]
        start[:, kinds == 5] *= -1
        start[:, kinds == 9] = 0
        parts = list(start.split([math.prod(s) for s in self.shapes], dim=2))
        if self.form.hidden:
            parts[2][:, kinds == 6] = 0  # the first layer alone
            parts[0][:, kinds == 7] = 0  # the second layer alone
            for a in (kinds == 8).nonzero().flatten().tolist():
                self._single_unit(parts, a)
        start = torch.cat(parts, dim=2)
        norm = start.norm(dim=2, keepdim=True).clamp(min=1e-300)
        scaled = torch.where((kinds == 1)[:, None], start, start * self.radius / norm)
        return self.inside(scaled)

    def _single_unit(self, parts: list[Tensor], a: int) -> None:
        """One unit moves along one sample, so that it switches there, and its column of W₂ a little."""
        unit = int(torch.randint(0, self.shapes[1][0], (), generator=self.generator))
        sample = int(torch.randint(0, self.inputs.shape[2], (), generator=self.generator))
        sign = 1.0 if bool(torch.rand((), generator=self.generator) < 0.5) else -1.0
        for part in parts:
            part[:, a] = 0
        first = parts[0].unflatten(2, self.shapes[0])
        first[:, a, unit] = sign * self.inputs[:, a, sample]
        parts[1][:, a, unit] = sign
        column = parts[2].unflatten(2, self.shapes[2])
        column[:, a, :, unit] = 0.3 * self.noise(len(self.problems), self.shapes[2][0])

    def steepest(self) -> Tensor:
        """The direction in which the clean gradient changes most, by finite differences."""
        direction = self.noise(len(self.problems), self.attacks, int(self.trained.shape[0])) * self.trained
        for _ in range(8):
            direction = 1e-5 * direction / direction.norm(dim=2, keepdim=True).clamp(min=1e-300)
            change = self.gradient(self.moved(direction), self.inputs, self.targets, 0) - self.start
            direction = torch.where(change.norm(dim=2, keepdim=True) > 0, change, direction)
        return direction

    # Ascent.

    def run(self, steps: int) -> Found:
        """Ascend on everything at once; the set of samples and class labels are chosen greedily in between."""
        movement, poisoned = self.first_movements(), self.first_poison()
        chosen = self._some_samples()
        best, kept = torch.zeros(movement.shape[:2]).double(), movement.clone()
        length = 10 ** (-2 * torch.rand(len(self.problems), self.attacks, 1, generator=self.generator).double())
        for step in range(steps):
            variables = movement.requires_grad_(), poisoned.inputs.requires_grad_(), self._variable(poisoned.targets)
            current = Poisoned(variables[1], variables[2])
            after = self.after(movement, current, chosen)
            norm = after.detach().norm(dim=2)
            better = norm > best
            best, kept = torch.where(better, norm, best), torch.where(better[..., None], movement.detach(), kept)
            direction = (after / norm.clamp(min=1e-300)[..., None]).detach()
            parameters = self.moved(movement.detach())
            pull = -self.along(direction, parameters, current, 2)
            # Samples that are not chosen ascend too, on what they could add.
            goal = (after * direction).sum() + 1e-9 * pull.sum()
            wanted = [v for v in variables if v.requires_grad]
            slopes = dict(zip(map(id, wanted), torch.autograd.grad(goal, wanted, allow_unused=True), strict=True))
            size = length * (1 - step / steps)
            with torch.no_grad():
                clean = -self.along(direction, parameters, Poisoned(self.inputs, self.targets), 2)
                targets, pull = self._relabel(direction, parameters, current, pull, slopes.get(id(variables[2])), size)
                chosen = self._best_samples(pull.detach() - clean, chosen)
                inputs = self._move(variables[1].detach(), slopes[id(variables[1])], size)
                up = slopes[id(variables[0])]
                up = up / up.norm(dim=2, keepdim=True).clamp(min=1e-300)
                movement = self.inside(movement.detach() + size * self.radius * up)
                poisoned = Poisoned(inputs, targets)
        with torch.no_grad():
            norm = self.after(movement, poisoned, chosen).norm(dim=2)
        better = norm > best
        return Found(torch.where(better, norm, best), torch.where(better[..., None], movement.detach(), kept))

    def _variable(self, targets: Tensor) -> Tensor:
        return targets.requires_grad_() if targets.is_floating_point() else targets

    def _some_samples(self) -> Tensor:
        can = self.problems.poisonable[:, None].expand(-1, self.attacks, -1)
        value = torch.rand(can.shape, generator=self.generator).masked_fill(~can, -math.inf)
        return self._largest(value)

    def _largest(self, value: Tensor) -> Tensor:
        top = value.topk(min(self.problems.n, value.shape[2]), dim=2)
        chosen = torch.zeros_like(value, dtype=torch.bool)
        return chosen.scatter_(2, top.indices, top.values > -math.inf)

    def _best_samples(self, gain: Tensor, before: Tensor) -> Tensor:
        can = self.problems.poisonable[:, None].expand_as(gain)
        best = self._largest(gain.masked_fill(~can, -math.inf))
        keep = torch.arange(self.attacks)[None, :, None] % 7 == 6  # some keep their samples
        return torch.where(keep, before, best)

    def _move(self, inputs: Tensor, up: Tensor | None, size: Tensor) -> Tensor:
        if self.form.p is None or up is None:
            return inputs
        epsilon = self.problems.epsilon[:, None, None]
        step = up.sign() if math.isinf(self.form.p) else up / up.norm(dim=3, keepdim=True).clamp(min=1e-300)
        return self.inputs + self.features(inputs - self.inputs + 2 * size[..., None] * epsilon * step)

    def _relabel(
        self,
        direction: Tensor,
        parameters: Parameters,
        current: Poisoned,
        pull: Tensor,
        up: Tensor | None,
        size: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Numbers ascend; classes are tried one by one."""
        targets = current.targets.detach()
        if self.form.labels is None:
            return targets, pull
        if targets.is_floating_point():
            assert up is not None
            limit = 1.0 if self.form.labels == "flip" else self.problems.nu[:, None, None, None]
            step = up / up.norm(dim=3, keepdim=True).clamp(min=1e-300)
            return self.labels(targets + 2 * size[..., None] * limit * step), pull
        best = pull
        for label in range(self.shapes[3][0]):
            attempt = Poisoned(current.inputs, torch.full_like(targets, label))
            gain = -self.along(direction, parameters, attempt, 2)
            targets = torch.where(gain > best, label, targets)
            best = torch.maximum(best, gain)
        return targets, best


def attack(problems: Problems, attacks: int, steps: int, generator: torch.Generator) -> Found:
    """The largest ``‖δ⁺‖`` that each of a number of attacks reaches on every problem."""
    return OneStep(problems, attacks, generator).run(steps)
