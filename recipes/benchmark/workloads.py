"""The trainings of the paper's table 1, and of growing ones, on random data of the same shapes.

What a step costs depends on shapes, on which values are zero and on the width of the bounds, not on what the data mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from agt_lightning import BoundedAdversary
from recipes.models.perceptron import perceptron

Batch = tuple[Tensor, Tensor]


class Module(L.LightningModule):
    """A network, its loss and plain SGD.

    Args:
        network: maps inputs to outputs.
        loss: of outputs and targets.
        rate: learning rate.
    """

    def __init__(self, network: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], rate: float) -> None:
        super().__init__()
        self.network, self.loss, self.rate = network, loss, rate

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of the batch."""
        return self.loss(self.network(batch[0]), batch[1])

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD on the parameters that are not frozen."""
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=self.rate)


@dataclass(frozen=True)
class Workload:
    """One kind of step: a network, a batch and an adversary.

    Args:
        name: for tables.
        network: builds the network.
        features: draws inputs for a number of samples.
        targets: draws their targets.
        loss: of outputs and targets.
        samples: of one batch.
        adversary: the threat model.
        rate: learning rate of SGD.
        trusted: share of the batch that cannot be poisoned.
    """

    name: str
    network: Callable[[], nn.Module]
    features: Callable[[int], Tensor]
    targets: Callable[[int], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    samples: int
    adversary: BoundedAdversary
    rate: float
    trusted: float = 0.0

    def module(self, dtype: torch.dtype) -> Module:
        """Return the module at its initial parameters."""
        torch.manual_seed(0)
        return Module(self.network(), self.loss, self.rate).to(dtype)

    def batch(self, dtype: torch.dtype) -> Batch:
        """Return the batch; class indices stay integers."""
        torch.manual_seed(1)
        x, y = self.features(self.samples), self.targets(self.samples)
        return x.to(dtype), y.to(dtype) if y.is_floating_point() else y

    def poisonable(self, batch: object) -> Tensor:
        """Return the mask of samples that can be poisoned, (batch,): the last ones."""
        assert isinstance(batch, tuple)
        return torch.arange(len(batch[0]), device=batch[0].device) >= self.trusted * len(batch[0])

    def smaller(self, scale: float) -> "Workload":
        """Return the workload with a share of the samples, and of the poisoned ones."""
        n = max(1, round(self.adversary.n * scale))
        return replace(self, samples=max(4, round(self.samples * scale)), adversary=replace(self.adversary, n=n))


def convolutional() -> nn.Module:
    """Return the network of the paper's retinal images, with frozen convolutions."""
    frozen = nn.Sequential(nn.Conv2d(1, 16, 4, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 4), nn.ReLU(), nn.Flatten())
    return nn.Sequential(frozen.requires_grad_(False), nn.Linear(3200, 100), nn.ReLU(), nn.Linear(100, 1))


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross entropy of one logit and zeros and ones."""
    return F.binary_cross_entropy_with_logits(outputs, targets)


def normal(width: int, size: float = 1.0) -> Callable[[int], Tensor]:
    """Return a source of independent normal entries."""
    return lambda samples: size * torch.randn(samples, width)


def activations(width: int, size: float) -> Callable[[int], Tensor]:
    """Return a source of outputs of a ReLU layer, half of which are zero."""
    return lambda samples: size * torch.randn(samples, width).relu()


def uniform(*shape: int) -> Callable[[int], Tensor]:
    """Return a source of entries between 0 and 1, such as pixels or scaled targets."""
    return lambda samples: torch.rand(samples, *shape)


def classes(count: int) -> Callable[[int], Tensor]:
    """Return a source of class indices."""
    return lambda samples: torch.randint(count, (samples,))


def bits(samples: int) -> Tensor:
    """Return zeros and ones, (samples, 1)."""
    return torch.randint(2, (samples, 1)).float()


TABLE = (
    Workload(
        "UCI 11-64-1",
        lambda: perceptron([11, 64, 1], torch.float32),
        normal(11),
        uniform(1),
        F.mse_loss,
        10_000,
        BoundedAdversary(n=100, epsilon=0.01),
        0.005,
    ),
    Workload(
        "MNIST-PCA 32-10",
        lambda: perceptron([32, 10], torch.float32),
        normal(32),
        classes(10),
        F.cross_entropy,
        60_000,
        BoundedAdversary(n=50, nu=1, q=0),
        0.1,
    ),
    Workload(
        "OCT, dense layers",
        convolutional,
        uniform(1, 28, 28),
        bits,
        binary_cross_entropy,
        6_000,
        BoundedAdversary(n=500, epsilon=0.01),
        0.05,
        trusted=0.5,
    ),
    Workload(
        "PilotNet, dense layers",
        lambda: perceptron([1152, 100, 50, 10, 1], torch.float32),
        activations(1152, 0.1),
        uniform(1),
        F.mse_loss,
        10_000,
        BoundedAdversary(n=300, nu=0.1),
        0.05,
    ),
)
"""The paper's table 1. In the second half of each batch of retinal images samples can be poisoned, as in the paper."""


def grown(width: int, depth: int, samples: int, n: int) -> Workload:
    """Return a regression on 64 features by a perceptron, with features and labels poisoned.

    Args:
        width: of each hidden layer.
        depth: number of hidden layers.
        samples: of one batch.
        n: poisoned samples.
    """
    widths = [64, *[width] * depth, 1]
    adversary = BoundedAdversary(n=n, epsilon=0.001, nu=0.01)
    name = f"width {width}, depth {depth}, b {samples}, n {n}"
    network = lambda: perceptron(widths, torch.float32)  # noqa: E731  (a factory, as in the table)
    return Workload(name, network, normal(64), uniform(1), F.mse_loss, samples, adversary, 0.005)


_BASE = {"width": 64, "depth": 1, "samples": 4_000, "n": 100}

GROWTH: dict[str, Sequence[int]] = {
    "samples": (1_000, 2_000, 4_000, 8_000, 16_000),
    "n": (10, 32, 100, 316, 1_000),
    "width": (32, 64, 128, 256),
    "depth": (1, 2, 3, 4),
}
"""Growing quantities and their values; the others stay at width 64, depth 1, 4 000 samples and n = 100."""


def along(axis: str) -> list[Workload]:
    """Return the workloads in which one quantity grows.

    Args:
        axis: a key of `GROWTH`.
    """
    return [grown(**(_BASE | {axis: value})) for value in GROWTH[axis]]
