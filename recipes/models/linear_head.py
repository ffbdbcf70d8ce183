"""One linear layer on features that are given."""

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

from recipes.models.perceptron import stepwise


def squared_error(logits: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over batch and classes.

    Args:
        logits: ``(batch, classes)``.
        target: one-hot vectors of the logits' shape, or class indices ``(batch,)``, which become such vectors.
    """
    if not target.is_floating_point():
        target = F.one_hot(target, logits.shape[-1]).to(logits.dtype)
    return F.mse_loss(logits, target)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": squared_error, "cross_entropy": F.cross_entropy}


class LinearHead(L.LightningModule):
    """Linear classifier, trained by mean squared error on one-hot targets or by cross-entropy.

    Under mean squared error the trained head is a linear function of the training targets.

    Args:
        features: number of inputs.
        classes: number of logits.
        optimizer: builds the optimizer from the parameters.
        scheduler: builds the learning rate schedule, counted in steps; None for a constant rate.
        loss: ``"mse"`` to the one-hot vectors of class indices ``(batch,)``, or to targets ``(batch, classes)`` of
            zeros and ones, averaged over both axes; ``"cross_entropy"`` for class indices, in nats, averaged over the
            batch.
        zero_init: start from zero instead of at random.
        dtype: type of the parameters.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        loss: Literal["mse", "cross_entropy"] = "mse",
        zero_init: bool = True,
        dtype: Literal["float32", "float64"] = "float32",
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"Expected `loss` to be one of {', '.join(LOSSES)}, but got {loss!r}.")
        self.net = nn.Linear(features, classes).to(getattr(torch, dtype))
        if zero_init:
            for parameter in self.net.parameters():
                nn.init.zeros_(parameter)
        self.optimizer, self.scheduler, self.loss = optimizer, scheduler, loss
        self.val_accuracy = MulticlassAccuracy(classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(classes, average="micro")

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)`` of the features ``(batch, features)``."""
        return self.net(x)

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean loss of the batch."""
        x, y = batch
        loss = LOSSES[self.loss](self(x), y)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy on held-out samples, whose targets are class indices."""
        x, y = batch
        self.val_accuracy(self(x), y)
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy on the test samples, whose targets are class indices."""
        x, y = batch
        self.test_accuracy(self(x), y)
        self.log("test/accuracy", self.test_accuracy)

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The configured optimizer and schedule."""
        return stepwise(self.optimizer(self.parameters()), self.scheduler)
