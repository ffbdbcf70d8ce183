"""What is certified about a trained model on its test set, as one number per name."""

from collections.abc import Iterable

import lightning as L
import torch
from torch import Tensor

from agt_lightning import CertifiedModel, Interval
from agt_lightning.certificates.objectives import squared_error_bounds
from agt_lightning.metrics.functional import certified_mse


def accuracy_certificate(
    model: CertifiedModel, module: L.LightningModule, batches: Iterable[tuple[Tensor, Tensor]], epsilon: float = 0.0
) -> dict[str, float]:
    """Accuracy of the nominal model and a lower bound on that of every model within the bounds.

    A sample counts as certified if its nominal prediction is right and no model within the bounds predicts otherwise;
    that is decided by bounds on differences of logits (`CertifiedModel.certify`), tighter than those of the logits.

    Args:
        model: the module under its parameter bounds.
        module: the trained classifier.
        batches: test inputs and integer classes.
        epsilon: how far test inputs may be moved as well, in the maximum norm (a backdoor trigger).
    """
    correct, certified = [], []
    for x, y in batches:
        certification = model.certify(x.to(module.device), epsilon=epsilon)
        right = certification.label.cpu() == y.cpu()
        correct.append(right)
        certified.append(right & certification.certified.cpu())
    return {"nominal accuracy": _rate(correct), "certified accuracy": _rate(certified)}


def _rate(outcomes: list[Tensor]) -> float:
    return torch.cat(outcomes).double().mean().item()


@torch.no_grad()
def mse_certificate(
    model: CertifiedModel, module: L.LightningModule, batches: Iterable[tuple[Tensor, Tensor]], epsilon: float = 0.0
) -> dict[str, float]:
    """Mean squared error of the nominal model, and the bounds between which that of every other model lies.

    Args:
        model: the module under its parameter bounds.
        module: the trained regressor.
        batches: test inputs and targets.
        epsilon: how far test inputs may be moved as well, in the maximum norm (a backdoor trigger).
    """
    outputs, lower, upper, targets = [], [], [], []
    for x, y in batches:
        bounds = model.bound_forward(x.to(module.device), epsilon=epsilon)
        outputs.append(module(x.to(module.device)).cpu())
        lower.append(bounds.lower.cpu())
        upper.append(bounds.upper.cpu())
        targets.append(y.cpu())
    target, reachable = torch.cat(targets), Interval(torch.cat(lower), torch.cat(upper))
    return {
        "best MSE": squared_error_bounds(reachable, target).lower.mean().item(),
        "nominal MSE": (torch.cat(outputs) - target).square().mean().item(),
        "worst MSE": certified_mse(reachable.lower, reachable.upper, target).item(),
    }
