"""A multilayer perceptron for classes."""

from collections.abc import Callable, Iterable
from typing import Literal

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from recipes.models.perceptron import perceptron, stepwise


class Classifier(L.LightningModule):
    """ReLU perceptron trained by cross-entropy.

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
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        dtype: Literal["float32", "float64"] = "float32",
    ) -> None:
        super().__init__()
        self.net = perceptron([features, *hidden, classes], getattr(torch, dtype))
        self.optimizer, self.scheduler = optimizer, scheduler
        self.train_accuracy = MulticlassAccuracy(classes, average="micro")
        self.val_accuracy = MulticlassAccuracy(classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(classes, average="micro")

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)`` of the inputs ``(batch, features)``."""
        return self.net(x)

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy of the batch, in nats."""
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.log("train/loss", loss, prog_bar=True)
        self.train_accuracy(logits, y)
        self.log("train/accuracy", self.train_accuracy, on_step=True, on_epoch=False)
        return loss

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy on held-out samples."""
        x, y = batch
        self.val_accuracy(self(x), y)
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy on the test samples."""
        x, y = batch
        self.test_accuracy(self(x), y)
        self.log("test/accuracy", self.test_accuracy)

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The configured optimizer and schedule."""
        return stepwise(self.optimizer(self.parameters()), self.scheduler)
