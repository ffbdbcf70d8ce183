"""Training of the network for scans whose gradients can move little, before it is fine-tuned with certificates."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from agt_lightning.propagation.gradient_width import GradientWidth
from recipes.models.scan_classifier import scan_network

_BATCH = 100
_RATE = 1e-3

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class RobustTraining:
    """Adam with rate 1e-3 on the cross-entropy and the width of its gradient, in batches of 100.

    Both classes are drawn as often, however many images they have.

    Args:
        epochs: each of as many draws, with replacement, as there are images.
        penalty: factor in front of the width; 0 trains as usual.
        epsilon: by how much inputs move in the width, see `GradientWidth`; pixels stay from 0 to 1.
        spread: by how much parameters move in it, relative to their size.
        seed: of the initial parameters and the draws.
    """

    epochs: int = 10
    penalty: float = 0.3
    epsilon: float = 0.5
    spread: float = 0.001
    seed: int = 0

    def run(self, images: Tensor, abnormal: Tensor) -> tuple[nn.Sequential, Tensor]:
        """Train; the random state outside stays as it is.

        Args:
            images: ``(images, 28, 28)`` of type uint8.
            abnormal: ``(images,)``, booleans.

        Returns:
            The network, and for every epoch the mean cross-entropy of its batches in nats, and the width for the first
            100 images after it: ``(epochs, 2)``.
        """
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self.seed)
            network = scan_network()
            width = GradientWidth(network, cross_entropy, epsilon=self.epsilon, spread=self.spread, bounds=(0.0, 1.0))
            optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
            first = (pixels(images[:_BATCH]), abnormal[:_BATCH].float())
            history = []
            for epoch in range(self.epochs):
                draws = balanced(abnormal).split(_BATCH)
                bar = tqdm(draws, desc=f"Pre-training, epoch {epoch + 1} of {self.epochs}", unit="batch", leave=False)
                batches = ((pixels(images[rows]), abnormal[rows].float()) for rows in bar)
                losses = [self._step(network, batch, width, optimizer) for batch in batches]
                history.append([sum(losses) / len(losses), float(width(first).detach())])
        return network, torch.tensor(history)

    def _step(self, network: nn.Sequential, batch: Batch, width: GradientWidth, optimizer: torch.optim.Adam) -> float:
        """Make one step, and return the cross-entropy before it."""
        optimizer.zero_grad()
        loss = cross_entropy(network, batch)
        (loss + self.penalty * width(batch) if self.penalty else loss).backward()
        optimizer.step()
        return float(loss.detach())


def balanced(abnormal: Tensor) -> Tensor:
    """Return as many random positions as there are images, each class with the same chance, ``(images,)``.

    Example:
        >>> drawn = balanced(torch.arange(1000) < 10)
        >>> 400 < int((drawn < 10).sum()) < 600
        True
    """
    shares = torch.where(abnormal, 1 / abnormal.sum(), 1 / (~abnormal).sum())
    return torch.multinomial(shares, len(abnormal), replacement=True)


def pixels(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return bytes ``(batch, 28, 28)`` as numbers from 0 to 1, ``(batch, 1, 28, 28)``."""
    return images[:, None].to(dtype) / 255


def cross_entropy(network: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of a batch of images and classes 0 and 1, in nats."""
    return F.binary_cross_entropy_with_logits(network(batch[0]).squeeze(-1), batch[1])
