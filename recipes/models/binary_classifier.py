"""A multilayer perceptron that tells two classes apart by the sign of one logit."""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchmetrics.classification import BinaryAccuracy
from typing_extensions import override

from recipes.models.base import BinaryModule, MakeOptimizer, MakeScheduler
from recipes.models.perceptron import perceptron


class BinaryClassifier(BinaryModule):
    """ReLU perceptron with one logit, trained by binary cross-entropy.

    Args:
        features: number of inputs.
        hidden: widths of the hidden layers.
        optimizer: builds the optimizer from the parameters.
        scheduler: builds the learning rate schedule, counted in steps; None for a constant rate.
        zero_output: start the output layer from zero instead of at random: every logit starts from zero, and the first
            step moves the output layer alone.
        dtype: type of the parameters.
    """

    def __init__(
        self,
        features: int,
        hidden: Iterable[int],
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None = None,
        zero_output: bool = False,
        dtype: Literal["float32", "float64"] = "float32",
    ) -> None:
        net = perceptron([features, *hidden, 1], getattr(torch, dtype))
        if zero_output:
            for parameter in net[-1].parameters():
                nn.init.zeros_(parameter)
        super().__init__(net, optimizer, scheduler)
        self.val_accuracy = BinaryAccuracy()

    @override
    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Log the accuracy on held-out samples."""
        x, y, *_ = batch
        self.val_accuracy(self(x), y.int())
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)
