"""Poisoned data for a training: random points and corners, and ascent through the training, for one parameter each."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agt_lightning import BoundedAdversary
from tests.fuzz.trainings import CLASSES, Batch, Training
from tests.fuzz.unrolled import Parameters, State, unrolled

Steps = tuple[tuple[Batch, ...], ...]
"""The micro-batches of each step."""


@dataclass(frozen=True)
class Target:
    """One element of a parameter, to be raised or lowered.

    Args:
        name: of the parameter.
        index: of the element in the flattened parameter.
        sign: 1 to raise it, -1 to lower it.
        step: number of the step after which it counts, from 0.
    """

    name: str
    index: int
    sign: float
    step: int

    def of(self, parameters: Parameters) -> Tensor:
        """Return what the attack maximizes."""
        return self.sign * parameters[self.name].flatten()[self.index]


class Attacker:
    """Draws poisoned data within the limits of a bounded adversary.

    Args:
        case: the training.
        draw: source of chance.

    Attributes:
        targets: what the attacks so far have raised or lowered.
    """

    def __init__(self, case: Training, draw: random.Random) -> None:
        assert isinstance(case.adversary, BoundedAdversary)
        self.case, self.adversary, self.draw = case, case.adversary, draw
        self.generator = torch.Generator().manual_seed(draw.randrange(2**31))
        module = case.plan.build(torch.float64)
        self.module: nn.Module = module
        self.start = {n: p.detach().requires_grad_() for n, p in module.named_parameters() if p.requires_grad}
        self.targets: list[Target] = []
        self.clean: Steps = tuple(tuple((_double(x), _double(y), m) for x, y, m in step) for step in case.steps)

    def poisoned(self, count: int) -> Iterator[Steps]:
        """Yield poisoned data for so many trainings, in turns of all kinds; the first is clean."""
        yield self.case.steps
        kinds = (self._ascent, self._random, self._greedy, self._corner)
        for number in range(count - 1):
            yield self._stored(kinds[number % len(kinds)]())

    def _random(self) -> Steps:
        return self._moved(lambda x: torch.rand(x.shape, generator=self.generator).double() * 2 - 1, inside=True)

    def _corner(self) -> Steps:
        return self._moved(lambda x: torch.randn(x.shape, generator=self.generator).double(), inside=False)

    def _moved(self, toward, *, inside: bool) -> Steps:  # type: ignore[no-untyped-def]
        steps = []
        for step in self.clean:
            rows = self._rows([torch.rand(len(x), generator=self.generator) for x, _, _ in step], step)
            steps.append(
                tuple(
                    self._shift(batch, chosen, toward(batch[0]), toward(batch[1]), inside=inside)
                    for batch, chosen in zip(step, rows, strict=True)
                )
            )
        return tuple(steps)

    def target(self) -> Target:
        """Draw an element of a trained parameter, and remember it."""
        name = self.draw.choice(list(self.start))
        index, sign = self.draw.randrange(self.start[name].numel()), self.draw.choice([-1.0, 1.0])
        target = Target(
            name, index, sign, self.draw.choice([self.draw.randrange(len(self.clean)), len(self.clean) - 1])
        )
        self.targets.append(target)
        return target

    def _greedy(self) -> Steps:
        """Poison one step after another for the parameters right after it."""
        target, steps = self.target(), []
        parameters: Parameters = self.start
        state: State = {}
        for number, step in enumerate(self.clean):
            poisoned = self._improved(target, parameters, state, (step,), (step,), number)
            after, state = unrolled(self.case, self.module, parameters, state, poisoned, number)
            parameters = {name: value.detach().requires_grad_() for name, value in after.items()}
            state = {name: {k: v.detach() for k, v in values.items()} for name, values in state.items()}
            steps += poisoned
        return tuple(steps)

    def _ascent(self) -> Steps:
        """Poison all steps up to the target's together; from a random corner, twice."""
        target, steps = self.target(), self._corner()
        head, tail = steps[: target.step + 1], steps[target.step + 1 :]
        for _ in range(2):
            head = self._improved(target, self.start, {}, self.clean[: target.step + 1], head, 0)
        return head + tail

    def led_on(self, target: Target, done: Steps) -> Steps:
        """Return data that lead a target no less far than some data do: twice, the best of several moves.

        Args:
            target: to be raised or lowered.
            done: poisoned data.
        """
        head = tuple(tuple((_double(x), _double(y), m) for x, y, m in step) for step in done[: target.step + 1])
        for _ in range(2):
            head = max(self._moves(target, head), key=lambda each: self._value(target, self.start, {}, each, 0))
        return self._stored(head + done[target.step + 1 :])

    def _moves(self, target: Target, steps: Steps) -> Iterator[Steps]:
        """Yield some data and others near to them.

        Functions turn and jump inside of the limits, where a gradient to the corners does not lead; so moves are of
        several lengths, and some are random.
        """
        yield steps
        yield self._improved(target, self.start, {}, self.clean[: len(steps)], steps, 0)
        yield from (self._blended(steps, self._directions(steps), share) for share in (1.0, 0.3, 0.05))
        try:
            slopes = self._slopes(target, self.start, {}, steps, 0)
        except RuntimeError:  # attention has no second derivative
            return
        yield from (self._blended(steps, slopes, share) for share in (0.5, 0.1))

    def _value(self, target: Target, parameters: Parameters, state: State, steps: Steps, first: int) -> float:
        return float(target.of(unrolled(self.case, self.module, parameters, state, steps, first)[0]).detach())

    def _directions(self, steps: Steps) -> list[list[tuple[Tensor, Tensor]]]:
        """Return random directions for features and labels of all micro-batches."""

        def direction(t: Tensor) -> Tensor:
            return torch.randn(t.shape, generator=self.generator).double()

        return [[(direction(x), direction(y)) for x, y, _ in step] for step in steps]

    def _blended(self, steps: Steps, toward: list[list[tuple[Tensor, Tensor]]], share: float) -> Steps:
        """Move the poisoned samples by a share of the way to the surfaces of their balls; labels that flip stay.

        Balls are convex, so that all points on the way are within them.
        """
        made = []
        for step, clean, directions in zip(steps, self.clean, toward, strict=False):
            batches = []
            for (x, y, mask), origin, direction in zip(step, clean, directions, strict=True):
                moved = (x != origin[0]).flatten(1).any(1) | (y != origin[1]).reshape(len(y), -1).any(1)
                far_x, far_y, _ = self._shift(origin, moved.nonzero().flatten(), *direction, inside=False)
                y = y if self.adversary.q == 0 else _between(y, far_y, share)
                batches.append((_between(x, far_x, share), y, mask))
            made.append(tuple(batches))
        return tuple(made)

    def _improved(
        self, target: Target, parameters: Parameters, state: State, clean: Steps, at: Steps, first: int
    ) -> Steps:
        """Return the poisoned data that the gradient at some data points to."""
        try:
            slopes = self._slopes(target, parameters, state, at, first)
        except RuntimeError:  # attention has no second derivative
            return self._corner()[first : first + len(clean)]
        steps = []
        for step, of_step in zip(clean, slopes, strict=True):
            gains = [self._gain(batch, *slope) for batch, slope in zip(step, of_step, strict=True)]
            rows = self._rows(gains, step)
            pairs = zip(step, rows, of_step, strict=True)
            steps.append(tuple(self._shift(batch, chosen, *slope, inside=False) for batch, chosen, slope in pairs))
        return self._flipped(target, parameters, state, tuple(steps), first)

    def _slopes(
        self, target: Target, parameters: Parameters, state: State, steps: Steps, first: int
    ) -> list[list[tuple[Tensor, Tensor]]]:
        """Return the gradients for features and labels of all micro-batches; zero for integers."""
        leaves = [[tuple(_leaf(t) for t in batch[:2]) + batch[2:] for batch in step] for step in steps]
        after, _ = unrolled(self.case, self.module, parameters, state, leaves, first)  # type: ignore[arg-type]
        flat = [t for step in leaves for batch in step for t in batch[:2] if t.requires_grad]
        found = torch.autograd.grad(target.of(after), flat, allow_unused=True, materialize_grads=True) if flat else ()
        slopes = iter(found)

        def slope(t: Tensor) -> Tensor:
            return next(slopes).nan_to_num() if t.requires_grad else torch.zeros(t.shape, dtype=torch.float64)

        return [[(slope(batch[0]), slope(batch[1])) for batch in step] for step in leaves]

    def _gain(self, batch: Batch, by_x: Tensor, by_y: Tensor) -> Tensor:
        """Return by how much moving each sample is worth, (b,)."""
        gain = torch.zeros(len(batch[0]), dtype=torch.float64)
        if self.adversary.perturbs_features and batch[0].is_floating_point():
            move = self._within(by_x, self.adversary.p) * self.adversary.epsilon
            gain = gain + (move * by_x).flatten(1).sum(1)
        if self.adversary.perturbs_labels and self.adversary.q != 0:
            gain = gain + self.adversary.nu * (self._within(by_y, self.adversary.q) * by_y).flatten(1).sum(1)
        return gain + 1e-12 * torch.rand(gain.shape, generator=self.generator)

    def _rows(self, gains: Sequence[Tensor], step: Sequence[Batch]) -> list[Tensor]:
        """Return the n samples of a step that are worth most, as positions in each micro-batch."""
        order = sorted(
            ((float(g), part, row) for part, gain in enumerate(gains) for row, g in enumerate(gain)), reverse=True
        )
        allowed = [(part, row) for _, part, row in order if bool(step[part][2][row])][: self.adversary.n]
        return [torch.tensor([row for p, row in allowed if p == part], dtype=torch.long) for part in range(len(step))]

    def _shift(self, batch: Batch, rows: Tensor, to_x: Tensor, to_y: Tensor, *, inside: bool) -> Batch:
        """Move the chosen samples along directions, to the surface of their balls or to somewhere inside."""
        x, y, mask = batch
        x, y = x.clone(), y.clone()
        share = torch.rand((), generator=self.generator).double() if inside else 1.0
        if len(rows) and self.adversary.perturbs_features and x.is_floating_point():
            epsilon = torch.as_tensor(self.adversary.epsilon, dtype=torch.float64)
            x[rows] += share * epsilon * self._within(to_x[rows], self.adversary.p)
            if self.adversary.bounds is not None:
                x[rows] = x[rows].clamp(*self.adversary.bounds)
        if len(rows) and self.adversary.perturbs_labels:
            if self.adversary.q == 0:
                y[rows] = torch.stack([self._other_label(label) for label in y[rows]])
            else:
                y[rows] += share * self.adversary.nu * self._within(to_y[rows], self.adversary.q)
        return x, y, mask

    def _within(self, direction: Tensor, p: float) -> Tensor:
        """Return the steepest move of each sample in the unit ball of a norm."""
        flat = direction.flatten(1)
        if p == float("inf"):
            return direction.sign()
        if p == 1:
            largest = flat.abs().argmax(1, keepdim=True)
            return torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign()).reshape(direction.shape)
        flat = flat / flat.abs().amax(1, keepdim=True).clamp(min=1e-300)
        norm = torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp(min=1e-30)
        return (flat / norm * (1 - 1e-15)).reshape(direction.shape)

    def _other_label(self, label: Tensor) -> Tensor:
        """Return a label that a flip can make of this one."""
        source, target = self.adversary.source_classes, self.adversary.target_classes
        if source is not None and int(label) not in source:
            return label
        classes = range(CLASSES if self.case.labels == "class" else 2) if target is None else target
        return torch.full_like(label, self.draw.choice(list(classes)))

    def _flipped(self, target: Target, parameters: Parameters, state: State, steps: Steps, first: int) -> Steps:
        """Try a few other sets of flips, and keep the best."""
        if self.adversary.q != 0 or not self.adversary.perturbs_labels or not self.adversary.n:
            return steps
        tried = [steps, *(self._with_flips(steps, first) for _ in range(4))]
        return max(tried, key=lambda each: self._value(target, parameters, state, each, first))

    def _with_flips(self, steps: Steps, first: int) -> Steps:
        """Choose samples anew, flip their labels, and move their features where the others' had gone."""
        made = []
        for step, clean in zip(steps, self.clean[first:], strict=False):
            rows = self._rows([torch.rand(len(x), generator=self.generator) for x, _, _ in step], step)
            pairs = zip(clean, rows, step, strict=True)
            made.append(
                tuple(
                    self._shift(batch, chosen, _direction(moved[0], batch[0]), batch[1].double(), inside=False)
                    for batch, chosen, moved in pairs
                )
            )
        return tuple(made)

    def _stored(self, steps: Steps) -> Steps:
        """Return data in the types of the training; what the cast moves out of a ball is within its rounding."""
        return tuple(
            tuple((x.to(kept[0].dtype), y.to(kept[1].dtype), m) for (x, y, m), kept in zip(step, clean, strict=True))
            for step, clean in zip(steps, self.case.steps, strict=True)
        )


def _direction(moved: Tensor, clean: Tensor) -> Tensor:
    apart = (moved - clean).double()
    return torch.where(apart == 0, torch.ones_like(apart), apart)


def _between(start: Tensor, end: Tensor, share: float) -> Tensor:
    return torch.lerp(start, end, share) if start.is_floating_point() else start


def _double(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t


def _leaf(t: Tensor) -> Tensor:
    return t.detach().clone().requires_grad_() if t.is_floating_point() else t
