"""A multilayer perceptron for one real value."""

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from recipes.models.base import ConfiguredModule, MakeOptimizer, MakeScheduler
from recipes.models.perceptron import perceptron


class Regressor(ConfiguredModule):
    """ReLU perceptron with one output, trained by mean squared error.

    Args:
        features: number of inputs.
        hidden: widths of the hidden layers.
        optimizer: builds the optimizer from the parameters.
        scheduler: builds the learning rate schedule, counted in steps; None for a constant rate.
        dtype: type of the parameters.
    """

    def __init__(
        self,
        features: int,
        hidden: Iterable[int],
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None = None,
        dtype: Literal["float32", "float64"] = "float32",
    ) -> None:
        super().__init__(perceptron([features, *hidden, 1], getattr(torch, dtype)), optimizer, scheduler)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return predictions ``(batch,)`` for the inputs ``(batch, features)``."""
        return self.net(x).squeeze(-1)

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean squared error of the batch."""
        loss = self._squared_error(batch)
        self.log("train/mse", loss, prog_bar=True)
        return loss

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the mean squared error on held-out samples."""
        self.log("val/mse", self._squared_error(batch), prog_bar=True, batch_size=len(batch[0]))

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the mean squared error on the test samples."""
        self.log("test/mse", self._squared_error(batch), batch_size=len(batch[0]))

    def _squared_error(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x), y)
