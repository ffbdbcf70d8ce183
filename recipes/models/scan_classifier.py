"""The small network for scans: two convolutions that stay as they are, and a dense head that is trained."""

from typing import Any, Literal

import torch
from torch import nn
from typing_extensions import override

from recipes.models.base import BinaryModule, MakeOptimizer, MakeScheduler
from recipes.models.perceptron import perceptron

HEAD = (3200, 100, 1)


def scan_network() -> nn.Sequential:
    """Return convolutions and dense head, from images ``(batch, 1, 28, 28)`` to logits ``(batch, 1)``, in float32.

    Reference:
        Gowal et al., On the Effectiveness of Interval Bound Propagation, 2018, the small network.
    """
    convolutions = [nn.Conv2d(1, 16, 4, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(nn.Sequential(*convolutions), perceptron(HEAD, torch.float32))


class ScanClassifier(BinaryModule):
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

    @override
    def setup(self, stage: str) -> None:
        """Start from the pre-trained network."""
        if stage == "fit":
            datamodule: Any = self.trainer.datamodule
            self.net.load_state_dict(datamodule.pretrained.network)
