"""Runs of torch's own optimizers inside a box of parameters and boxes of gradients."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor

from agt_lightning.interval import Interval
from agt_lightning.optimizers import OPTIMIZERS, AbstractOptimizer, OptimizerState

LOOSE = 1e-12
"""More than the rounding of one update on either side, for values of size four; far below any fault."""

CONTAINMENT = 1e-9
"""Far above the float64 rounding of a dozen steps (1e-13), far below any fault (1e-4)."""

Update = Callable[[Mapping[str, object], Interval, Interval], Interval]

SETTINGS = (
    {"lr": 0.3},
    {"lr": 0.3, "weight_decay": 0.5},
    {"lr": 1.0, "weight_decay": 1.0},
    {"lr": 2.0, "weight_decay": 0.9},
)
"""With and without decay, 1 - αλ zero and negative."""


def torch_step(value: Tensor, gradient: Tensor, settings: Mapping[str, float]) -> Tensor:
    """One step of `torch.optim.SGD`."""
    parameter = torch.nn.Parameter(value.clone())
    parameter.grad = gradient.clone()
    torch.optim.SGD([parameter], **settings).step()
    return parameter.detach()


def check_sgd(update: Update) -> None:
    """The updated box is the smallest that contains torch's update of every corner."""
    generator = torch.Generator().manual_seed(0)
    for settings in SETTINGS:
        ends = torch.randn(4, 6, generator=generator, dtype=torch.float64)
        box, gradient = (Interval(pair.amin(dim=0), pair.amax(dim=0)) for pair in (ends[:2], ends[2:]))
        group = torch.optim.SGD([torch.nn.Parameter(ends[0])], **settings).param_groups[0]
        got = update(group, box, gradient)
        corners = itertools.product((box.lower, box.upper), (gradient.lower, gradient.upper))
        values = torch.stack([torch_step(value, slope, settings) for value, slope in corners])
        for name, beyond in (("lower", values.amin(dim=0) - got.lower), ("upper", got.upper - values.amax(dim=0))):
            least, most = float(beyond.min()), float(beyond.max())
            assert least >= 0, f"SGD with {settings}: torch leaves the {name} bound by {-least:.3g}"
            assert most <= LOOSE, f"SGD with {settings}: the {name} bound is {most:.3g} beyond torch"


@dataclass(frozen=True)
class Setting:
    """An optimizer with flags."""

    kind: type[torch.optim.Optimizer]
    flags: Mapping[str, object]

    def optimizer(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        return self.kind(parameters, **self.flags)

    @property
    def counterpart(self) -> AbstractOptimizer:
        return OPTIMIZERS[self.kind]()

    def __str__(self) -> str:
        return "-".join([self.kind.__name__, *(f"{name}={value}" for name, value in self.flags.items())])


_O = torch.optim
OPTIMIZER_SETTINGS = [
    Setting(kind, {"lr": 0.1, **flags})
    for kind, variants in {
        _O.SGD: (
            {},
            {"momentum": 0.9},
            {"momentum": 0.9, "dampening": 0.4},
            {"momentum": 0.5, "dampening": 1.5},
            {"momentum": 0.8, "nesterov": True},
            {"momentum": 0.9, "weight_decay": 0.3},
            {"momentum": 0.9, "dampening": 0.4, "weight_decay": 0.3, "maximize": True},
            {"momentum": 0.8, "nesterov": True, "weight_decay": 0.2, "maximize": True},
            {"maximize": True, "weight_decay": 0.2},
        ),
        _O.Adam: (
            {},
            {"betas": (0.5, 0.6)},
            {"betas": (0.9, 0.5), "eps": 0.3},
            {"betas": (0.0, 0.9)},
            {"betas": (0.7, 0.0)},
            {"betas": (0.7, 0.49)},
            {"eps": 1.0},
            {"weight_decay": 0.3},
            {"maximize": True, "weight_decay": 0.1},
            {"amsgrad": True, "betas": (0.6, 0.7)},
            {"amsgrad": True, "maximize": True, "eps": 0.1},
            {"weight_decay": 0.3, "decoupled_weight_decay": True},
        ),
        _O.AdamW: (
            {},
            {"weight_decay": 0.5, "betas": (0.6, 0.9)},
            {"weight_decay": 15.0, "maximize": True},
            {"amsgrad": True, "betas": (0.3, 0.8)},
        ),
        _O.RMSprop: (
            {},
            {"alpha": 0.5, "eps": 0.2},
            {"momentum": 0.9},
            {"momentum": 0.5, "weight_decay": 0.3, "maximize": True, "alpha": 0.9},
            {"weight_decay": 0.2},
        ),
        _O.Adagrad: (
            {},
            {"lr_decay": 0.3},
            {"initial_accumulator_value": 0.5, "eps": 0.1},
            {"weight_decay": 0.3, "maximize": True, "lr_decay": 0.1},
        ),
    }.items()
    for flags in variants
    if set(flags) <= set(signature(kind).parameters)  # torch 2.6 has no `decoupled_weight_decay`
]
"""Every flag with a meaning, alone and together."""


def torch_run(setting: Setting, start: Tensor, gradients: Sequence[Tensor]) -> list[Tensor]:
    """Parameters after each step of torch's own optimizer."""
    parameter = torch.nn.Parameter(start.clone())
    optimizer = setting.optimizer([parameter])
    values = []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        values.append(parameter.detach().clone())
    return values


def abstract_run(
    setting: Setting, start: Interval, gradients: Sequence[Interval], counterpart: AbstractOptimizer | None = None
) -> tuple[OptimizerState, list[Interval]]:
    """Boxes after each step of the counterpart."""
    counterpart = setting.counterpart if counterpart is None else counterpart
    group = setting.optimizer([torch.nn.Parameter(start.lower.clone())]).param_groups[0]
    state, box, boxes = counterpart.initial(group, start), start, []
    for gradient in gradients:
        state, box = counterpart.step(group, state, box, gradient)
        boxes.append(box)
    return state, boxes


def gradient_boxes(seed: int, steps: int, width: float, columns: int = 12) -> list[Interval]:
    """Gradient intervals; some straddle zero, some touch it, some never do, some columns are exactly zero."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(steps, columns, generator=generator, dtype=torch.float64)
    radius = width * torch.rand(steps, columns, generator=generator, dtype=torch.float64)
    centers[:, : columns // 3] = centers[:, : columns // 3].abs() + 1.0
    radius[:, 0] = 0.0
    centers[:, 1], radius[:, 1] = 0.0, 0.0
    centers[:, 2] = radius[:, 2]
    return [Interval.trusted(c - r, c + r) for c, r in zip(centers, radius, strict=True)]


def sequences(gradients: Sequence[Interval], count: int, seed: int) -> list[Tensor]:
    """Gradient sequences, each step of shape (count, columns).

    A third at corners, a third inside, a third the worst ones for adaptive optimizers: small first and large late, or
    in the other direction, with one change of ends.
    """
    generator = torch.Generator().manual_seed(seed)
    steps, columns = len(gradients), gradients[0].shape[0]
    share = torch.rand(steps, count, columns, generator=generator, dtype=torch.float64)
    third = count // 3
    share[:, :third] = share[:, :third].round()
    change = torch.randint(0, steps + 1, (third, columns), generator=generator)
    late = (torch.arange(steps)[:, None, None] >= change).double()
    flip = torch.randint(0, 2, (third, 1), generator=generator).double()
    share[:, third : 2 * third] = (late - flip).abs()
    bounds = zip(gradients, share, strict=True)
    return [interval.lower + s * interval.width for interval, s in bounds]


def check_containment(setting: Setting, counterpart: AbstractOptimizer | None = None) -> None:
    """Every torch run on gradients inside their intervals stays inside the boxes."""
    for seed, width in ((0, 0.05), (1, 0.5), (2, 2.0)):
        gradients = gradient_boxes(seed, 12, width)
        generator = torch.Generator().manual_seed(seed)
        center = torch.randn(gradients[0].shape[0], generator=generator, dtype=torch.float64)
        start = Interval(center - 0.1 * (seed > 0), center + 0.1 * (seed > 0))
        _, boxes = abstract_run(setting, start, gradients, counterpart)
        share = torch.rand(300, len(center), generator=generator, dtype=torch.float64).round()
        runs = torch_run(setting, start.lower + share * start.width, sequences(gradients, 300, seed))
        for step, (box, values) in enumerate(zip(boxes, runs, strict=True)):
            excess = float(torch.maximum(box.lower - values, values - box.upper).max())
            assert excess <= CONTAINMENT, f"{setting} leaves its box at step {step} by {excess:.3g}"


def check_points(setting: Setting, counterpart: AbstractOptimizer | None = None) -> None:
    """Intervals of width zero give torch's own parameters up to rounding."""
    gradients = [Interval.point(interval.lower) for interval in gradient_boxes(3, 12, 1.0)]
    start = torch.linspace(-2, 2, gradients[0].shape[0], dtype=torch.float64)
    _, boxes = abstract_run(setting, Interval.point(start), gradients, counterpart)
    runs = torch_run(setting, start, [interval.lower for interval in gradients])
    for step, (box, value) in enumerate(zip(boxes, runs, strict=True)):
        error = float(torch.maximum((box.lower - value).abs(), (box.upper - value).abs()).max())
        assert error <= CONTAINMENT, f"{setting} differs from torch at step {step} by {error:.3g}"


def check_monotone(setting: Setting) -> None:
    """Wider gradients, or a wider start, never give a tighter box."""
    narrow = gradient_boxes(4, 12, 0.5)
    generator = torch.Generator().manual_seed(5)
    wide = [
        Interval.trusted(interval.lower - extra[0], interval.upper + extra[1])
        for interval in narrow
        for extra in [torch.rand(2, interval.shape[0], generator=generator, dtype=torch.float64)]
    ]
    start = torch.zeros(narrow[0].shape[0], dtype=torch.float64)
    inner, outer = Interval.point(start), Interval(start - 0.2, start + 0.2)
    small, large = abstract_run(setting, inner, narrow)[1], abstract_run(setting, outer, wide)[1]
    for step, (box, larger) in enumerate(zip(small, large, strict=True)):
        excess = float(torch.maximum(larger.lower - box.lower, box.upper - larger.upper).max())
        assert excess <= CONTAINMENT, f"{setting} is tighter for wider gradients at step {step} by {excess:.3g}"
