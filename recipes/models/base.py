"""The parts that the LightningModules of the recipes share: optimizer, schedule and accuracy."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import lightning as L
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy
from typing_extensions import override

MakeOptimizer: TypeAlias = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler: TypeAlias = Callable[[Optimizer], LRScheduler]


class ConfiguredModule(L.LightningModule):
    """A network ``net`` with a configured optimizer, and a schedule that advances after every step.

    Args:
        net: the network; parameters that need no gradient are not handed to the optimizer.
        optimizer: builds the optimizer from the parameters.
        scheduler: builds the learning rate schedule, counted in steps; None for a constant rate.
    """

    def __init__(self, net: nn.Module, optimizer: MakeOptimizer, scheduler: MakeScheduler | None) -> None:
        super().__init__()
        self.net, self.optimizer, self.scheduler = net, optimizer, scheduler

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the configured optimizer and schedule."""
        optimizer = self.optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}


class MulticlassModule(ConfiguredModule):
    """A network with one logit per class, whose accuracy is logged on held-out samples.

    Args:
        net: from features ``(batch, features)`` to logits ``(batch, classes)``.
        classes: number of logits.
        loss: of logits and targets, averaged over the batch.
        optimizer: see `ConfiguredModule`.
        scheduler: see `ConfiguredModule`.
    """

    def __init__(
        self,
        net: nn.Module,
        classes: int,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None,
    ) -> None:
        super().__init__(net, optimizer, scheduler)
        self.loss = loss
        self.val_accuracy = MulticlassAccuracy(classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(classes, average="micro")

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(batch, classes)`` of the features ``(batch, features)``."""
        return self.net(x)

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss of the batch."""
        x, y = batch
        loss = self.loss(self(x), y)
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


class BinaryModule(ConfiguredModule):
    """A network with one logit, positive for class 1, trained by binary cross-entropy, in nats.

    Batches are inputs, classes 0 and 1 as floating point numbers ``(batch,)``, and entries that play no part.

    Args:
        net: from inputs to logits ``(batch, 1)``.
        optimizer: see `ConfiguredModule`.
        scheduler: see `ConfiguredModule`.
    """

    def __init__(self, net: nn.Module, optimizer: MakeOptimizer, scheduler: MakeScheduler | None) -> None:
        super().__init__(net, optimizer, scheduler)
        self.test_accuracy = BinaryAccuracy()

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(batch,)``."""
        return self.net(x).squeeze(-1)

    @override
    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of the batch."""
        x, y, *_ = batch
        loss = F.binary_cross_entropy_with_logits(self(x), y)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    @override
    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Log the accuracy on the test samples."""
        x, y, *_ = batch
        self.test_accuracy(self(x), y.int())
        self.log("test/accuracy", self.test_accuracy)
