"""Single steps of small networks, built without the engine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from agt_lightning.domains.adjoint.directions import Directions, hidden_values
from agt_lightning.domains.adjoint.one_hidden import OneHiddenStep
from agt_lightning.domains.ball.layers import REAL, Layer, LayerBall
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.step_data import Poison, Samples, StepData
from agt_lightning.domains.losses import LabelPerturbation, LogisticLoss, SoftmaxLoss, SquaredError
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels

F64 = torch.float64


@dataclass(frozen=True)
class Form:
    """What a problem is about."""

    loss: str = "mse"  # of two outputs; mse1: of one; ce: of three classes; ce2: of two; bce
    labels: str | None = None  # box, ball or flip
    p: float | None = None  # of poisoned features
    samples: int = 6
    features: int = 2
    units: int = 3
    n: int = 2
    biases: tuple[bool, bool] = (True, True)
    some: bool = False  # whether only some samples can be poisoned
    own_widths: bool = False
    doubled: bool = False  # whether a unit is exactly at zero for every sample
    close: float | None = None  # preactivation of the first unit for the first sample
    inner: bool = False  # whether directions move the first layer alone
    smoothing: float = 0.0  # of class labels
    second_scale: float = 1.0  # of the last weight; zero leaves jumps to the movement of that weight


@dataclass(frozen=True)
class Problem:
    """One step of one network."""

    form: Form
    seed: int
    radius: float
    epsilon: float = 0.05
    nu: float = 0.1

    def __post_init__(self) -> None:
        """Draw everything in one order, whatever is read first."""
        for name in ("inputs", "layers", "weights", "targets", "half_widths"):
            getattr(self, name)

    @cached_property
    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=F64, generator=self.generator)

    @property
    def outputs(self) -> int:
        """K."""
        return {"bce": 1, "mse1": 1, "mse": 2, "ce2": 2, "ce": 3}[self.form.loss]

    @property
    def classes(self) -> bool:
        """Whether targets are class labels."""
        return self.form.loss in ("ce", "ce2")

    @cached_property
    def layers(self) -> tuple[Layer, Layer]:
        form = self.form
        first, second = self.noise(form.units, form.features), form.second_scale * self.noise(self.outputs, form.units)
        if form.doubled:
            first[0] = 0.0
        biases = [0.3 * self.noise(len(each)) for each in (first, second)]
        if form.doubled:
            biases[0][0] = 0.0
        if form.close is not None:
            biases[0][0] = form.close - first[0] @ self.inputs[0]
        return Layer(first, biases[0], form.biases[0]), Layer(second, biases[1], form.biases[1])

    @cached_property
    def inputs(self) -> Tensor:
        return self.noise(self.form.samples, self.form.features)

    @cached_property
    def weights(self) -> Tensor:
        return torch.rand(self.form.samples, dtype=F64, generator=self.generator) / self.form.samples

    @cached_property
    def targets(self) -> Tensor:
        if self.classes:
            return torch.randint(0, self.outputs, (self.form.samples,), generator=self.generator)
        if self.form.loss == "bce":
            return (self.noise(self.form.samples, 1) > 0).double()
        return self.noise(self.form.samples, self.outputs)

    @cached_property
    def loss(self):
        if self.classes:
            return SoftmaxLoss(1.0, smoothing=self.form.smoothing)
        return LogisticLoss(1.0) if self.form.loss == "bce" else SquaredError(0.5)

    @cached_property
    def poisonable(self) -> Tensor:
        return torch.arange(0, self.form.samples, 2 if self.form.some else 1)

    @cached_property
    def half_widths(self) -> Tensor:
        """Of every sample, (b, d)."""
        widths = self.epsilon * (0.5 + torch.rand(self.form.features, dtype=F64, generator=self.generator))
        if not self.form.own_widths:
            return widths.expand(self.form.samples, -1)
        return widths * (0.5 + torch.rand(self.form.samples, 1, dtype=F64, generator=self.generator))

    def target(self, rows: Tensor):
        if self.classes:
            return ClassLabels(self.targets[rows])
        return Interval.point(self.targets[rows])

    def poisoned_targets(self):
        clean = self.target(self.poisonable)
        if self.classes:
            return ClassLabels(clean.index, self.form.labels == "flip")
        if self.form.labels == "flip":
            return Interval.trusted(torch.zeros_like(clean.lower), torch.ones_like(clean.lower))
        return clean.widened(self.nu) if self.form.labels else clean

    @cached_property
    def step_data(self) -> StepData:
        form, rows = self.form, self.poisonable
        features = None
        if form.p is not None:
            widths = self.half_widths[rows] if form.own_widths else self.half_widths[:1]
            features = Perturbation(widths, None if form.p == float("inf") else self.half_widths[0], form.p)
        radius = self.nu if form.labels == "ball" else None
        labels = LabelPerturbation(self.target(rows), self.poisoned_targets(), radius)
        poison = Poison(rows, form.n, labels, features) if form.labels or features else None
        return StepData(Samples(self.inputs, ()), self.target(torch.arange(form.samples)), poison)

    @cached_property
    def geometry(self) -> OneHiddenStep:
        return OneHiddenStep(LayerBall(self.layers, self.radius, REAL), self.step_data, self.weights, self.loss)

    def directions(self, count: int) -> Directions:
        """Gradients of outputs at random points, and random directions."""
        rows = self.noise(count, self.outputs)
        found = Directions.of_outputs(self.layers, self.noise(count, self.form.features), rows)
        other = Directions(tuple(self.noise(*part.shape) for part in found.parts))
        mixed = Directions((found.first.clone(), found.second.clone()))
        mixed.first[::2], mixed.second[::2] = other.first[::2], other.second[::2]
        for part, trained in ((mixed.first, self.form.biases[0]), (mixed.second, self.form.biases[1])):
            part[:, :, -1] *= trained
        return Directions((mixed.first, 0.0 * mixed.second)) if self.form.inner else mixed

    @property
    def nominal(self) -> Tensor:
        """θ as one vector."""
        first, second = self.layers
        return flat(
            torch.cat([first.weight, first.bias[:, None]], 1), torch.cat([second.weight, second.bias[:, None]], 1)
        )

    @cached_property
    def trained(self) -> Tensor:
        """Which entries of it are trained, as 0 or 1."""
        first, second = (torch.ones(len(layer.weight), layer.weight.shape[1] + 1, dtype=F64) for layer in self.layers)
        first[:, -1], second[:, -1] = float(self.form.biases[0]), float(self.form.biases[1])
        return flat(first, second)

    def split(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        units, features = self.layers[0].weight.shape
        first, second = vector.split([units * (features + 1), self.outputs * (units + 1)], dim=-1)
        return first.unflatten(-1, (units, features + 1)), second.unflatten(-1, (self.outputs, units + 1))

    def outputs_of(self, vector: Tensor, inputs: Tensor) -> Tensor:
        """f, (b, K)."""
        first, second = self.split(vector)
        hidden = inputs @ first[:, :-1].T + first[:, -1]
        return hidden.relu() @ second[:, :-1].T + second[:, -1]

    def losses(self, vector: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each sample, (b,)."""
        outputs = self.outputs_of(vector, inputs)
        if self.classes:
            label, share = outputs.gather(1, targets[:, None])[:, 0], self.form.smoothing
            return outputs.logsumexp(dim=1) - (1 - share) * label - share * outputs.mean(dim=1)
        if self.form.loss == "bce":
            return (torch.nn.functional.softplus(outputs) - targets * outputs).sum(dim=1)
        return 0.5 * (outputs - targets).square().sum(dim=1)


def flat(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first.flatten(-2), second.flatten(-2)], dim=-1)


def outputs_of(layers, inputs):
    return hidden_values(layers[1], hidden_values(layers[0], inputs).relu())
