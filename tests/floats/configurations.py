"""Random small trainings: network, loss, adversary, optimizer, types, and how bounds are computed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agt_lightning import BoundedAdversary
from agt_lightning.adversaries import Adversary

Batch = tuple[Tensor, Tensor]

ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Softplus, nn.Hardtanh)


@dataclass(frozen=True)
class Configuration:
    """A training that is certified once and executed in many ways.

    Args:
        seed: of everything.
        module: builds the network, the same one each time.
        loss: of module and batch.
        batches: one for each step.
        adversary: the threat model.
        labels: "class" or "number".
        optimizer: class of the optimizer.
        settings: its settings.
        engine: settings of the engine.
        dtype: of parameters and data.
    """

    seed: int
    module: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Batch], Tensor]
    batches: tuple[Batch, ...]
    adversary: Adversary
    labels: str
    optimizer: type[torch.optim.Optimizer]
    settings: dict[str, Any]
    engine: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32


def configuration(seed: int) -> Configuration:
    """Return the configuration of a seed."""
    draw = random.Random(seed)
    dtype = draw.choice([torch.float32, torch.float32, torch.float64])
    labels = draw.choice(["class", "number"])
    outputs = draw.choice([2, 3]) if labels == "class" else draw.choice([1, 2])
    shape, build = draw.choice(NETWORKS)
    activation = draw.choice(ACTIVATIONS)
    size, steps = draw.choice([4, 6, 9]), draw.choice([1, 2, 3])

    def module() -> nn.Module:
        torch.manual_seed(seed)
        made: nn.Module = build(outputs, activation)
        return made.to(dtype).train(False)

    batches = tuple(_batch(draw, shape, size, labels, outputs, dtype) for _ in range(steps))
    method = draw.choice(["ibp", "ibp", "ibp", "tightest", "crown"])
    engine = {
        "method": method,
        "domains": draw.choice([("box",), ("box",), "auto"]),
        "dtype": draw.choice([torch.float64] * 5 + [torch.float32]),
    }
    optimizer, settings = draw.choice(OPTIMIZERS)
    return Configuration(
        seed,
        module,
        draw.choice(LOSSES[labels]),
        batches,
        _adversary(draw, size, labels),
        labels,
        optimizer,
        dict(settings),
        engine,
        dtype,
    )


# --- networks ---------------------------------------------------------------------------------------------------------


def _mlp(outputs: int, activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), activation(), nn.Linear(5, outputs))


def _linear(outputs: int, activation: type[nn.Module]) -> nn.Module:
    return nn.Linear(3, outputs)


def _deep(outputs: int, activation: type[nn.Module]) -> nn.Module:
    layers = [nn.Linear(3, 4), activation(), nn.Linear(4, 4), activation(), nn.Linear(4, outputs)]
    return nn.Sequential(*layers)


def _normalized(outputs: int, activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), activation(), nn.Linear(6, outputs))


def _convolution(outputs: int, activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), activation(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, outputs)
    )


def _pooled(outputs: int, activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.GroupNorm(1, 2), activation(), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(8, outputs)
    )


def _batch_normalized(outputs: int, activation: type[nn.Module]) -> nn.Module:
    norm = nn.BatchNorm1d(4)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.2, 2.0)
    return nn.Sequential(nn.Linear(3, 4), norm, activation(), nn.Linear(4, outputs)).eval()


def _frozen(outputs: int, activation: type[nn.Module]) -> nn.Module:
    backbone = nn.Sequential(nn.Linear(3, 6), activation(), nn.Linear(6, 5), nn.ReLU()).requires_grad_(False)
    return nn.Sequential(backbone, nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, outputs))


def _head(outputs: int, activation: type[nn.Module]) -> nn.Module:
    backbone = nn.Sequential(nn.Linear(3, 6), activation()).requires_grad_(False)
    return nn.Sequential(backbone, nn.Linear(6, outputs))


class _Attention(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(2, 3) for _ in range(3))
        self.head = nn.Linear(3, outputs)

    def forward(self, x: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))
        result: Tensor = self.head(mixed.mean(dim=1))
        return result


def _attention(outputs: int, activation: type[nn.Module]) -> nn.Module:
    return _Attention(outputs)


class _Residual(nn.Module):
    def __init__(self, outputs: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, outputs)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.activation(self.first(x))
        x = x - self.activation(self.second(x)) / 3 + 0.1
        result: Tensor = self.last(x)
        return result


NETWORKS: tuple[tuple[tuple[int, ...], Callable[[int, type[nn.Module]], nn.Module]], ...] = (
    ((3,), _mlp),
    ((3,), _mlp),
    ((3,), _linear),
    ((3,), _deep),
    ((3,), _normalized),
    ((3,), _batch_normalized),
    ((3,), _frozen),
    ((3,), _head),
    ((3,), _Residual),
    ((1, 4, 4), _convolution),
    ((1, 4, 4), _pooled),
    ((3, 2), _attention),
)

# --- losses -----------------------------------------------------------------------------------------------------------


def _cross_entropy(module: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1])


def _smoothed(module: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1], label_smoothing=0.1)


def _log_likelihood(module: nn.Module, batch: Batch) -> Tensor:
    return F.nll_loss(F.log_softmax(module(batch[0]), dim=1), batch[1], reduction="sum") / 7


def _squared(module: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(module(batch[0]), batch[1])


def _by_hand(module: nn.Module, batch: Batch) -> Tensor:
    return 0.3 * (module(batch[0]) - batch[1]).square().sum(dim=1).mean()


def _absolute(module: nn.Module, batch: Batch) -> Tensor:
    return F.l1_loss(module(batch[0]), batch[1])


def _huber(module: nn.Module, batch: Batch) -> Tensor:
    return F.huber_loss(module(batch[0]), batch[1], delta=0.7)


def _smooth(module: nn.Module, batch: Batch) -> Tensor:
    return F.smooth_l1_loss(module(batch[0]), batch[1])


LOSSES = {
    "class": (_cross_entropy, _cross_entropy, _smoothed, _log_likelihood),
    "number": (_squared, _squared, _by_hand, _absolute, _huber, _smooth),
}

# --- optimizers -------------------------------------------------------------------------------------------------------

OPTIMIZERS: tuple[tuple[type[torch.optim.Optimizer], dict[str, Any]], ...] = (
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.05, "weight_decay": 0.1}),
    (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (torch.optim.Adam, {"lr": 0.01}),
    (torch.optim.Adam, {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1}),
    (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5}),
    (torch.optim.Adagrad, {"lr": 0.05}),
)

# --- data -------------------------------------------------------------------------------------------------------------


def _batch(
    draw: random.Random, shape: tuple[int, ...], size: int, labels: str, outputs: int, dtype: torch.dtype
) -> Batch:
    """Draw a batch, in one of several ways that are bad for floating point."""
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    x = torch.randn(size, *shape, generator=generator, dtype=torch.float64)
    kind = draw.choice(["usual", "usual", "cancelling", "large", "mixed", "integers", "tiny", "offset"])
    if kind == "cancelling":
        x.reshape(size, -1)[:, 0] = 1e3
        x.reshape(size, -1)[:, 1] = -1e3
    elif kind == "large":
        x *= 30
    elif kind == "mixed":
        x *= 10.0 ** torch.randint(-6, 3, (size, *[1] * len(shape)), generator=generator).double()
    elif kind == "integers":
        x = x.round()
    elif kind == "tiny":
        x *= 1e-20
    elif kind == "offset":
        x += 100
    if labels == "class":
        return x.to(dtype), torch.randint(0, outputs, (size,), generator=generator)
    y = torch.randn(size, outputs, generator=generator, dtype=torch.float64) * draw.choice([1.0, 1.0, 100.0])
    return x.to(dtype), y.to(dtype)


def _adversary(draw: random.Random, size: int, labels: str) -> Adversary:
    n = draw.choice([0, 1, 1, 2, size])
    epsilon = draw.choice([0.0, 1e-3, 0.05])
    flips = {"nu": 1.0, "q": 0} if labels == "class" else {"nu": draw.choice([0.01, 0.5])}
    others = draw.choice([{}, flips]) if epsilon else flips
    p = draw.choice([float("inf"), float("inf"), 2.0, 1.0]) if epsilon else float("inf")
    return BoundedAdversary(n=n, epsilon=epsilon, p=p, **others)
