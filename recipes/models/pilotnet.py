"""PilotNet: convolutions that find the road, and a dense head that steers."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn
from typing_extensions import override

from recipes.models.base import MakeOptimizer, MakeScheduler
from recipes.models.regressor import Regressor

FEATURES = 1152
HEAD = (FEATURES, 100, 50, 10, 1)


def convolutions() -> nn.Sequential:
    """Return the five convolutions, from images ``(batch, 3, 66, 200)`` to features ``(batch, 1152)``.

    Reference:
        Bojarski et al., End to End Learning for Self-Driving Cars, 2016.
    """
    channels = [(3, 24, 5, 2), (24, 36, 5, 2), (36, 48, 5, 2), (48, 64, 3, 1), (64, 64, 3, 1)]
    layers = [(nn.Conv2d(i, o, size, stride=stride), nn.ReLU()) for i, o, size, stride in channels]
    return nn.Sequential(*(layer for pair in layers for layer in pair), nn.Flatten())


class SteeringHead(Regressor):
    """PilotNet's dense layers 1152 → 100 → 50 → 10 → 1 on the features of its frozen convolutions.

    Training starts from the dense layers that were trained together with the convolutions, which the trainer's
    datamodule has: `recipes.data.Steering`.

    Args:
        optimizer: builds the optimizer from the parameters.
        scheduler: builds the learning rate schedule, counted in steps; None for a constant rate.
        dtype: type of the parameters.
    """

    def __init__(
        self,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None = None,
        dtype: Literal["float32", "float64"] = "float32",
    ) -> None:
        super().__init__(FEATURES, HEAD[1:-1], optimizer, scheduler, dtype)

    @override
    def setup(self, stage: str) -> None:
        """Start from the pretrained dense layers."""
        if stage == "fit":
            datamodule: Any = self.trainer.datamodule
            self.net.load_state_dict(datamodule.pretrained.head)

    @override
    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Return the mean squared error of the batch, in squared radians; which samples are new plays no part in it."""
        x, y, _ = batch
        return super().training_step((x, y), batch_idx)
