"""Learning rates that follow from the features, never from the labels."""

import lightning as L
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

_CHUNK = 16_384


@torch.no_grad()
def mse_rate(features: Tensor, outputs: int, weight_decay: float = 0.0, *, bias: bool = True) -> float:
    """Return 1 / λ, λ the largest eigenvalue of the Hessian of a linear head's mean squared error over the whole batch.

    For N rows x̂ = (x, 1), or x̂ = x without a bias, and K outputs, `torch.nn.functional.mse_loss` averages over N K
    squares, and the Hessian for each output is 2 / (N K) X̂ᵀX̂ plus ``weight_decay``. At this rate no step of gradient
    descent overshoots in any direction. Labels have no part in it, so flipped labels do not change the rate.

    Args:
        features: training features ``(samples, width)`` of the full batch.
        outputs: number of outputs, K.
        weight_decay: that of the optimizer, coupled as in `torch.optim.SGD`, on weight and bias alike.
        bias: whether the head has a bias.

    Raises:
        ValueError: if there are no samples, or ``outputs`` or ``weight_decay`` make no sense.
    """
    if features.ndim != 2 or len(features) == 0 or outputs < 1 or weight_decay < 0:
        raise ValueError(
            "Expected features of shape (samples, width), at least one output and a weight decay of at least 0, but "
            f"got the shape {tuple(features.shape)}, {outputs} outputs and a weight decay of {weight_decay}."
        )
    width = features.shape[1] + int(bias)
    gram = torch.zeros(width, width, dtype=torch.float64, device=features.device)
    for chunk in features.split(_CHUNK):
        rows = F.pad(chunk.double(), (0, int(bias)), value=1.0)
        gram += rows.T @ rows
    largest = 2 / (len(features) * outputs) * float(torch.linalg.eigvalsh(gram)[-1])
    return 1 / (largest + weight_decay)


def settled(config: DictConfig, datamodule: L.LightningDataModule) -> DictConfig:
    """Return the configuration with the two settings of a linear head that depend on its features.

    These are their number and the learning rate, which is multiplied by `mse_rate`.

    Args:
        config: with the learning rate in units of 1 / λ, λ the largest eigenvalue of the Hessian over all samples.
        datamodule: features for a linear head; prepared and set up here.
    """
    datamodule.prepare_data()
    datamodule.setup("fit")
    features, _ = datamodule.splits["train"]
    changed = config.copy()
    changed.model.features = features.shape[1]
    rate = mse_rate(features, config.model.classes, config.optimizer.weight_decay, bias=config.model.bias)
    changed.optimizer.lr = config.optimizer.lr * rate
    return changed
