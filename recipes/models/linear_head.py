"""One linear layer on given features."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.models.base import MakeOptimizer, MakeScheduler, MulticlassModule


def squared_error(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error over batch and classes.

    Args:
        logits: ``(batch, classes)``.
        target: one-hot vectors of the logits' shape, or class indices ``(batch,)``, which become such vectors.
    """
    if not target.is_floating_point():
        target = F.one_hot(target, logits.shape[-1]).to(logits.dtype)
    return F.mse_loss(logits, target)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": squared_error, "cross_entropy": F.cross_entropy}


class LinearHead(MulticlassModule):
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
        bias: whether each logit has a bias.
        dtype: type of the parameters.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None = None,
        loss: Literal["mse", "cross_entropy"] = "mse",
        zero_init: bool = True,
        bias: bool = True,
        dtype: Literal["float32", "float64"] = "float32",
    ) -> None:
        if loss not in LOSSES:
            raise ValueError(f"Expected `loss` to be one of {', '.join(LOSSES)}, but got {loss!r}.")
        net = nn.Linear(features, classes, bias=bias).to(getattr(torch, dtype))
        if zero_init:
            for parameter in net.parameters():
                nn.init.zeros_(parameter)
        super().__init__(net, classes, LOSSES[loss], optimizer, scheduler)
