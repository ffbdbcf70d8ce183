"""Random certified trainings: network, loss, data, adversary, optimizer, and how bounds are computed."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agt_lightning import AbstractGradientEngine, BoundedAdversary, ParameterBounds, UnboundedAdversary
from agt_lightning.adversaries import Adversary
from agt_lightning.adversaries.several import describe
from agt_lightning.aggregation.mean_clipping import MeanClipping, MeanNormClipping, MeanValueClipping
from agt_lightning.capture.clock import Clock
from agt_lightning.engine.nominal_step import average_gradients
from agt_lightning.errors import UncertifiableError
from tests.fuzz.blocks import BLOCKS, Block
from tests.fuzz.networks import TOKENS, Plan

Batch = tuple[Tensor, Tensor, Tensor]
"""Features or tokens, labels, and which samples can be poisoned."""

Criterion = Callable[[Tensor, Tensor], Tensor]
"""The loss of outputs and labels."""

CLASSES = 3


@dataclass(frozen=True)
class Training:
    """A training that is certified once and poisoned many times.

    Args:
        seed: of everything.
        plan: of the network.
        criterion: the loss.
        loss_name: its name, for reports.
        labels: "class", "number", "soft" or "binary".
        steps: the micro-batches of each step.
        adversary: the threat model.
        optimizer: class of the optimizer.
        settings: its settings.
        rates: factors of the learning rate, one for each step.
        engine: settings of the bounds.
        dtype: of parameters and data.
        companions: other adversaries that the same training is certified for.
        clipping: of the mean gradient; None if it is not clipped.
        resting: names of the parameters that are frozen at each step, besides those that are at all.
    """

    seed: int
    plan: Plan
    criterion: Criterion
    loss_name: str
    labels: str
    steps: tuple[tuple[Batch, ...], ...]
    adversary: Adversary
    optimizer: type[torch.optim.Optimizer]
    settings: dict[str, Any]
    rates: tuple[float, ...]
    engine: dict[str, Any]
    dtype: torch.dtype
    companions: tuple[Adversary, ...] = ()
    clipping: MeanClipping | None = None
    resting: tuple[frozenset[str], ...] = ()

    @property
    def adversaries(self) -> tuple[Adversary, ...]:
        """All adversaries in the order of the engine; with companions, the threat model is not the first."""
        return (*self.companions[:1], self.adversary, *self.companions[1:])

    def alone(self) -> list[Training]:
        """Return the same training for each of its adversaries alone."""
        return [replace(self, adversary=adversary, companions=()) for adversary in self.adversaries]

    def module(self) -> nn.Module:
        """Return the network at its initial parameters."""
        return self.plan.build(self.dtype)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of a micro-batch."""
        return self.criterion(module(batch[0]), batch[1])

    def certified(self, **settings: Any) -> list[ParameterBounds]:
        """Return the bounds after each step.

        Args:
            settings: of the bounds, instead of those of this training.
        """
        return self.certified_on(self.steps, **settings)

    def certified_on(self, steps: Sequence[Sequence[Batch]], **settings: Any) -> list[ParameterBounds]:
        """Return the bounds after each step of training on some micro-batches.

        Args:
            steps: the micro-batches of each step, in this process.
            settings: of the bounds, instead of those of this training; ``processes`` among them.
        """
        return self._certified_for([self.adversary], steps, **settings)[0]

    def certified_for_each(self) -> list[list[ParameterBounds]]:
        """Return the bounds after each step for each of the `adversaries`, all of one training."""
        return self._certified_for(self.adversaries, self.steps)

    def _certified_for(
        self, adversaries: Sequence[Adversary], steps: Sequence[Sequence[Batch]], **settings: Any
    ) -> list[list[ParameterBounds]]:
        module = self.module()
        engine = self._engine(module, **settings)
        optimizer = self.optimizer(_trained(module), **self.settings)
        bounds: list[list[ParameterBounds]] = [[] for _ in adversaries]
        for number, batches in enumerate(steps):
            self.prepare(module, optimizer, number)
            self._step(engine, optimizer, batches, number)
            for found, adversary in zip(bounds, adversaries, strict=True):
                found.append(engine.bounds_of(adversary))
        return bounds

    def _step(
        self, engine: AbstractGradientEngine, optimizer: torch.optim.Optimizer, batches: Sequence[Batch], number: int
    ) -> None:
        """Make a step as the engine does, and clip its mean gradient if the training does."""
        if self.clipping is None:
            engine.step(list(batches), optimizer, epoch=number)
            return
        problems = engine.problems(batches[0], optimizer)
        if problems:
            raise UncertifiableError(problems)
        optimizer.zero_grad()
        observed = []
        for at, batch in enumerate(batches):
            observed.append(engine.observe(batch, Clock(number, number, at), number))
            (self.loss(engine.module, batch) / len(batches)).backward()
        average_gradients(engine.module, engine.processes)
        bounds = engine.bound_gradient(observed)
        engine.verify(bounds, observed, optimizer=optimizer)
        bounds = engine.clip(bounds, self.clipping, optimizer)
        self.clip(optimizer)
        optimizer.step()
        engine.update(bounds, optimizer)

    def clip(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the mean gradient, if the training does."""
        if self.clipping is not None:
            self.clipping.clip([parameter for group in optimizer.param_groups for parameter in group["params"]])

    def operations(self) -> list[str]:
        """Return the names of the operations of the recorded loss."""
        calls = self._engine(self.module()).objective(self.steps[0][0]).program.graph.calls
        return sorted({str(call.op).removeprefix("aten.") for call in calls})

    def _engine(self, module: nn.Module, **settings: Any) -> AbstractGradientEngine:
        config = {"poisonable": _mask, "clipping": self.clipping, **self.engine, **settings}
        return AbstractGradientEngine(module, self.loss, self.adversaries, **config)

    def settings_at(self, step: int) -> dict[str, Any]:
        """Return the optimizer's settings at a step, counted from 0."""
        return {**self.settings, "lr": self.settings["lr"] * self.rates[step]}

    def rests(self, name: str, step: int) -> bool:
        """Return whether a parameter that is trained at other steps is frozen at this one."""
        return bool(self.resting) and name in self.resting[step]

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the learning rate of a step, counted from 0, as a schedule does, and freeze what rests at it."""
        in_optimizer = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, parameter in module.named_parameters():
            if id(parameter) in in_optimizer:
                parameter.requires_grad_(not self.rests(name, step))
        for group in optimizer.param_groups:
            group["lr"] = self.settings_at(step)["lr"]

    def summary(self) -> str:
        """Return what was drawn, in one line."""
        blocks = ", ".join(type(block).__name__ for block in self.plan.build(self.dtype).blocks)  # type: ignore[attr-defined]
        against = ", ".join(map(str, self.adversaries))
        return (
            f"seed {self.seed}: {blocks}; {self.loss_name}; {against}; {self.optimizer.__name__} "
            f"{self.settings} {self.rates}; {self.clipping}; "
            f"{list(map(sorted, self.resting))}; {self.engine}; {self.dtype}"
        )


def _mask(batch: Any) -> Tensor:
    mask: Tensor = batch[2]
    return mask


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of the parameters as they are now, by name."""
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def given_block(seed: int) -> Block:
    """Return the block that the training of a seed has."""
    return BLOCKS[seed % len(BLOCKS)]


def training(seed: int) -> Training:
    """Return the training of a seed; seeds one after another go through all blocks."""
    draw = random.Random(seed)
    style = draw.choice([VARIED, CLEAR])
    dtype = draw.choice([torch.float32, torch.float32, torch.float64])
    labels = draw.choice(style.labels)
    loss_name = draw.choice(style.losses[labels])
    outputs = {"class": CLASSES, "soft": CLASSES, "binary": 1, "number": draw.choice([1, 2])}[labels]
    tokens = draw.random() < 0.08
    plan = Plan(draw.randrange(2**31), outputs, given_block(seed), tokens=tokens, clear=style is CLEAR)
    size = draw.choice(style.sizes)
    parts = draw.choice([1, 1, 1, 2])
    steps = tuple(
        tuple(_batch(draw, plan, size, labels, outputs, dtype) for _ in range(parts))
        for _ in range(draw.choice(style.steps))
    )
    optimizer, settings = draw.choice(style.optimizers)
    adversary = _adversary(draw, style, plan, size * parts, "number" if loss_name in REAL_LABELS else labels)
    steps = tuple(tuple(_in_range(batch, adversary) for batch in step) for step in steps)
    if isinstance(adversary, UnboundedAdversary) and loss_name in ("mse by hand", "mse, summed"):
        loss_name = "mse"  # gradients are clipped without the factor of the whole loss
    return Training(
        seed,
        plan,
        LOSSES[labels][loss_name],
        loss_name,
        labels,
        steps,
        adversary,
        optimizer,
        {**settings, "lr": settings["lr"] * draw.choice([1, 1, 1, 5])},
        tuple(draw.choice([1.0, 1.0, 0.1, 2.0]) for _ in steps) if draw.random() < 0.3 else (1.0,) * len(steps),
        _engine(draw, adversary),
        dtype,
        _companions(random.Random(-1 - seed), style, plan, adversary, size * parts),
        _clipping(random.Random(f"clipping {seed}")),
        _resting(random.Random(f"resting {seed}"), plan, dtype, len(steps)),
    )


def _clipping(draw: random.Random) -> MeanClipping | None:
    """Return a clipping of the mean gradient in some cases; chance is of its own, as for companions."""
    if draw.random() >= _SHARE_CLIPPED:
        return None
    return draw.choice([MeanNormClipping, MeanValueClipping])(draw.choice([0.01, 0.1, 0.5]))


def _resting(draw: random.Random, plan: Plan, dtype: torch.dtype, steps: int) -> tuple[frozenset[str], ...]:
    """Return which trained parameters rest at each step, never all: in some cases of several steps, else none."""
    if draw.random() >= _SHARE_RESTING or steps == 1:
        return ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convolutions with uneven padding
        names = [name for name, parameter in plan.build(dtype).named_parameters() if parameter.requires_grad]
    return tuple(frozenset(draw.sample(names, draw.randrange(len(names)))) for _ in range(steps))


_SHARE_CLIPPED, _SHARE_RESTING = 0.12, 0.12


def _engine(draw: random.Random, adversary: Adversary) -> dict[str, Any]:
    methods = ["ibp"] * 4 + ["tightest", "crown", "crown"]
    domains: Sequence[Any] = [("box",), ("box",), "auto"]
    return {
        "method": draw.choice(methods),
        "domains": draw.choice(domains),
        "dtype": draw.choice([torch.float64] * 9 + [torch.float32]),
        "memory_budget": draw.choice([None, None, 1000]),
    }


# --- losses -----------------------------------------------------------------------------------------------------------


def _one_hot_likelihood(z: Tensor, y: Tensor) -> Tensor:
    return -(F.log_softmax(z, 1) * F.one_hot(y, CLASSES)).sum(1).mean()


def _brier(z: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(torch.softmax(z, 1), F.one_hot(y, CLASSES).to(z.dtype))


def _quantile(z: Tensor, y: Tensor) -> Tensor:
    residual = z - y
    return torch.maximum(0.3 * residual, -0.7 * residual).mean()


def _hinge(z: Tensor, y: Tensor) -> Tensor:
    return (1 - (2 * y - 1) * z).clamp_min(0).mean()


LOSSES: dict[str, dict[str, Criterion]] = {
    "class": {
        "cross_entropy": F.cross_entropy,
        "cross_entropy, smoothed": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
        "one_hot likelihood": _one_hot_likelihood,
        "brier": _brier,
    },
    "soft": {
        "cross_entropy, soft": F.cross_entropy,
        "cross_entropy, soft and smoothed": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.2),
    },
    "number": {
        "mse": F.mse_loss,
        "mse by hand": lambda z, y: 0.3 * (z - y).square().sum(1).mean(),
        "mse, summed": lambda z, y: (z - y).square().sum() / 7,
        "l1": F.l1_loss,
        "huber": lambda z, y: F.huber_loss(z, y, delta=0.4),
        "smooth_l1": lambda z, y: F.smooth_l1_loss(z, y, beta=0.5),
        "quantile": _quantile,
        "linear": lambda z, y: (z * y).mean(),
        "charbonnier": lambda z, y: torch.sqrt((z - y).square() + 0.1).mean(),
    },
    "binary": {
        "bce": F.binary_cross_entropy_with_logits,
        "bce, weighted": lambda z, y: F.binary_cross_entropy_with_logits(z, y, pos_weight=z.new_tensor(2.5)),
        "bce of sigmoid": lambda z, y: F.binary_cross_entropy(torch.sigmoid(z), y),
        "logsigmoid": lambda z, y: -(y * F.logsigmoid(z) + (1 - y) * F.logsigmoid(-z)).mean(),
        "hinge": _hinge,
    },
}
"""Losses by the kind of labels and by name."""

REAL_LABELS = ("logsigmoid", "hinge")
"""Losses of zeros and ones that take other labels as well, so that an adversary moves them as numbers."""

# --- optimizers -------------------------------------------------------------------------------------------------------

OPTIMIZERS: tuple[tuple[type[torch.optim.Optimizer], dict[str, Any]], ...] = (
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.05, "weight_decay": 0.2}),
    (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}),
    (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (torch.optim.SGD, {"lr": 0.05, "maximize": True}),
    (torch.optim.Adam, {"lr": 0.01}),
    (torch.optim.Adam, {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1}),
    (torch.optim.Adam, {"lr": 0.02, "betas": (0.5, 0.9), "eps": 1e-3}),
    (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.3}),
    (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5}),
    (torch.optim.RMSprop, {"lr": 0.01, "eps": 1e-2}),
    (torch.optim.Adagrad, {"lr": 0.05, "lr_decay": 0.1, "weight_decay": 0.1}),
)

# --- styles -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Style:
    """What trainings are drawn from.

    Args:
        labels: their kinds.
        losses: names by the kind of labels.
        sizes: of a micro-batch.
        steps: numbers of steps.
        optimizers: classes and settings.
        poisoned: numbers of samples at most.
        radii: of features.
        labels_alone: share of the adversaries that leave features as they are.
        substituting: share of the adversaries that substitute samples.
    """

    labels: Sequence[str]
    losses: Mapping[str, Sequence[str]]
    sizes: Sequence[int]
    steps: Sequence[int]
    optimizers: Sequence[tuple[type[torch.optim.Optimizer], dict[str, Any]]]
    poisoned: Sequence[int]
    radii: Sequence[float]
    labels_alone: float
    substituting: float


VARIED = Style(
    labels=("class", "class", "number", "number", "soft", "binary"),
    losses={labels: tuple(named) for labels, named in LOSSES.items()},
    sizes=(2, 3, 5, 5, 6),
    steps=(1, 2, 2, 3),
    optimizers=OPTIMIZERS,
    poisoned=(0, 1, 1, 1, 2, 2, 12),
    radii=(1e-3, 0.02, 0.1, 0.1, 0.3, 1.0),
    labels_alone=0.3,
    substituting=0.1,
)
"""Trainings of all kinds."""

CLEAR = Style(
    labels=("number", "number", "number", "binary", "class"),
    losses={"number": ("linear", "linear", "l1"), "binary": ("hinge", "bce"), "class": ("cross_entropy",)},
    sizes=(2, 2, 3),
    steps=(1, 2),
    optimizers=OPTIMIZERS[:5],
    poisoned=(1, 1, 2),
    radii=(0.1, 0.3, 1.0, 1.0, 3.0),
    labels_alone=0.15,
    substituting=0.1,
)
"""Trainings with wide bounds that are nearly attained, so that little hides what a mistake takes from them."""

# --- data and adversaries ---------------------------------------------------------------------------------------------


def _batch(draw: random.Random, plan: Plan, size: int, labels: str, outputs: int, dtype: torch.dtype) -> Batch:
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    if plan.tokens:
        x = torch.randint(0, TOKENS, (size, *plan.shape), generator=generator)
    else:
        x = torch.randn(size, *plan.shape, generator=generator, dtype=torch.float64)
        x = (x * draw.choice([0.2, 1.0, 1.0, 3.0]) + draw.choice([0.0, 0.0, 0.0, -1.0, 1.0])).to(dtype)
    share = draw.choice([1.0, 1.0, 0.6])
    return x, _labels(generator, size, labels, outputs, dtype), torch.rand(size, generator=generator) < share


def _in_range(batch: Batch, adversary: Adversary) -> Batch:
    """Cut features to the range that an adversary keeps."""
    bounds = getattr(adversary, "bounds", None)
    return batch if bounds is None else (batch[0].clamp(*bounds), *batch[1:])


def _labels(generator: torch.Generator, size: int, labels: str, outputs: int, dtype: torch.dtype) -> Tensor:
    if labels == "class":
        return torch.randint(0, outputs, (size,), generator=generator)
    if labels == "binary":
        return torch.randint(0, 2, (size, 1), generator=generator).to(dtype)
    numbers = torch.randn(size, outputs, generator=generator, dtype=torch.float64)
    return (numbers.softmax(1) if labels == "soft" else numbers).to(dtype)


def _adversary(draw: random.Random, style: Style, plan: Plan, size: int, labels: str) -> Adversary:
    n = min(size, draw.choice(style.poisoned))
    if draw.random() < style.substituting:
        return UnboundedAdversary(n=n, kappa=draw.choice([0.05, 0.3, 1.0]), clip=draw.choice(["value", "norm"]))
    moved = _moved_labels(draw, labels)
    if plan.tokens or draw.random() < style.labels_alone:
        return BoundedAdversary(n=n, **moved)
    epsilon: Any = draw.choice(style.radii)
    if draw.random() < 0.15:
        epsilon = epsilon * torch.rand(plan.shape, generator=torch.Generator().manual_seed(draw.randrange(2**31)))
    bounds = draw.choice([{}, {}, {}, {"bounds": (-1.0, 1.5)}])
    p = draw.choice([float("inf"), float("inf"), 2.0, 1.0])
    return BoundedAdversary(n=n, epsilon=epsilon, p=p, **bounds, **draw.choice([{}, moved]))


def _moved_labels(draw: random.Random, labels: str) -> dict[str, Any]:
    if labels in ("class", "binary"):
        some = {"target_classes": (draw.randrange(CLASSES),), "source_classes": (draw.randrange(CLASSES),)}
        return {"nu": 1, "q": 0, **(draw.choice([{}, {}, some]) if labels == "class" else {})}
    return {"nu": draw.choice([0.01, 0.3, 2.0]), "q": draw.choice([float("inf"), 2.0, 1.0])}


def _companions(
    draw: random.Random, style: Style, plan: Plan, adversary: Adversary, size: int
) -> tuple[Adversary, ...]:
    """Return one or two other adversaries of the same training in some cases, none in the others.

    They come from a source of chance of their own, so that a seed draws the same training with and without them.
    """
    if draw.random() >= _SHARE_WITH_COMPANIONS:
        return ()
    found: list[Adversary] = [adversary]
    while len(found) < draw.choice([2, 3]):
        other = _changed(draw, style, plan, adversary, size)
        if describe(other) not in map(describe, found):
            found.append(other)
    return tuple(found[1:])


_SHARE_WITH_COMPANIONS = 0.25


def _changed(draw: random.Random, style: Style, plan: Plan, adversary: Adversary, size: int) -> Adversary:
    """Return an adversary with the same clipping and range of features, other in one or two settings."""
    if isinstance(adversary, UnboundedAdversary):
        return replace(adversary, n=draw.randrange(size + 1))
    assert isinstance(adversary, BoundedAdversary)
    changes: list[dict[str, Any]] = [{"n": draw.randrange(size + 1)}, {"n": min(size, adversary.n + 1)}]
    if adversary.perturbs_features:
        changes += [{"epsilon": draw.choice(style.radii)}, {"p": draw.choice([1.0, 2.0, float("inf")])}]
    elif not plan.tokens:
        changes.append({"epsilon": draw.choice(style.radii)})
    if adversary.perturbs_features and adversary.perturbs_labels:
        without_labels = {"nu": 0.0, "target_classes": None, "source_classes": None}
        changes += [{"epsilon": 0.0, "bounds": None}, without_labels]
    if adversary.perturbs_labels and adversary.q != 0:
        changes.append({"nu": draw.choice([0.01, 0.3, 2.0])})
    if adversary.perturbs_labels and adversary.target_classes is not None:
        changes.append({"target_classes": None, "source_classes": None})
    return replace(adversary, **{**draw.choice(changes), **draw.choice([{}, draw.choice(changes)])})
