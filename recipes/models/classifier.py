"""A multilayer perceptron for classes."""

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from recipes.models.base import MakeOptimizer, MakeScheduler, MulticlassModule
from recipes.models.perceptron import perceptron


class Classifier(MulticlassModule):
    """ReLU perceptron trained by cross-entropy, in nats.

    Args:
        features: number of inputs.
        hidden: widths of the hidden layers.
        classes: number of logits.
        optimizer: builds the optimizer from the parameters.
        scheduler: builds the learning rate schedule, counted in steps; None for a constant rate.
        dtype: type of the parameters.
    """

    def __init__(
        self,
        features: int,
        hidden: Iterable[int],
        classes: int,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None = None,
        dtype: Literal["float32", "float64"] = "float32",
    ) -> None:
        net = perceptron([features, *hidden, classes], getattr(torch, dtype))
        super().__init__(net, classes, F.cross_entropy, optimizer, scheduler)
        self.train_accuracy = MulticlassAccuracy(classes, average="micro")

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of the batch, and log the accuracy."""
        x, y = batch
        logits = self(x)
        loss = self.loss(logits, y)
        self.log("train/loss", loss, prog_bar=True)
        self.train_accuracy(logits, y)
        self.log("train/accuracy", self.train_accuracy, on_step=True, on_epoch=False)
        return loss
