"""The small network for scans: two convolutions that stay as they are, and a dense head that is trained."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import BinaryAccuracy
from typing_extensions import override

from recipes.models.base import ConfiguredModule, MakeOptimizer, MakeScheduler
from recipes.models.perceptron import perceptron

HEAD = (3200, 100, 1)


def scan_network() -> nn.Sequential:
    """Return convolutions and dense head, from images ``(batch, 1, 28, 28)`` to logits ``(batch, 1)``, in float32.

    Reference:
        Gowal et al., On the Effectiveness of Interval Bound Propagation, 2018, the small network.
    """
    convolutions = [nn.Conv2d(1, 16, 4, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(nn.Sequential(*convolutions), perceptron(HEAD, torch.float32))


class ScanClassifier(ConfiguredModule):
    """`scan_network` with frozen convolutions, which classifies scans as normal or abnormal by the sign of a logit.

    Training starts from the network that the trainer's datamodule has trained on clean images: `recipes.data.Scans` or
    `recipes.data.Pneumonia`.

    Args:
        optimizer: builds the optimizer from the parameters of the head.
        scheduler: builds the learning rate schedule, counted in steps; None for a constant rate.
        dtype: type of the parameters.
    """

    def __init__(
        self,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None = None,
        dtype: Literal["float32", "float64"] = "float32",
    ) -> None:
        net = scan_network().to(getattr(torch, dtype))
        net[0].requires_grad_(False)
        super().__init__(net, optimizer, scheduler)
        self.test_accuracy = BinaryAccuracy()

    @override
    def setup(self, stage: str) -> None:
        """Start from the pre-trained network."""
        if stage == "fit":
            datamodule: Any = self.trainer.datamodule
            self.net.load_state_dict(datamodule.pretrained.network)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(batch,)`` of images ``(batch, 1, 28, 28)`` from 0 to 1; positive means abnormal."""
        return self.net(x).squeeze(-1)

    @override
    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of the batch, in nats; entries after images and classes have no part in it."""
        x, y, *_ = batch
        loss = F.binary_cross_entropy_with_logits(self(x), y)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    @override
    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Log the accuracy on the test images."""
        x, y, *_ = batch
        self.test_accuracy(self(x), y.int())
        self.log("test/accuracy", self.test_accuracy)
