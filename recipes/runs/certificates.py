"""Certified quantities of a trained model on its test set, as one number per name."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from agt_lightning import CertifiedModel, Interval
from agt_lightning.certificates.goals import squared_error_bounds
from agt_lightning.metrics import BackdoorAccuracy
from agt_lightning.metrics.functional import certified_mse
from recipes.runs.flips import CertifiedFlips


def accuracy_certificate(
    model: CertifiedModel,
    module: L.LightningModule,
    batches: Iterable[tuple[Tensor, Tensor]],
    epsilon: float = 0.0,
    every: int = 1,
) -> dict[str, float]:
    """Return the accuracy of the nominal model and a lower bound on that of every model within the bounds.

    A sample counts as certified if its nominal prediction is right and no model within the bounds predicts otherwise;
    that is decided by bounds on differences of logits (`CertifiedModel.certify`), tighter than those of the logits.

    Args:
        model: the module under its parameter bounds.
        module: the trained classifier.
        batches: test inputs and integer classes.
        epsilon: how far test inputs may be moved as well, in the maximum norm (a backdoor trigger).
        every: distance of the test samples that both are about: 1 for all, 10 for every tenth.
    """
    correct, certified = [], []
    for x, y in some_of(batches, every):
        certification = model.certify(x.to(module.device), epsilon=epsilon)
        right = certification.label.cpu() == y.cpu()
        correct.append(right)
        certified.append(right & certification.certified.cpu())
    return {"nominal accuracy": _rate(correct), "certified accuracy": _rate(certified)}


def some_of(batches: Iterable[tuple[Tensor, Tensor]], every: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every so many of the samples of some batches, all of them together; the batches themselves for 1.

    Domains whose bounds take a replay of the training replay it once for each batch.

    Raises:
        ValueError: if ``every`` is below 1.

    Example:
        >>> ten = torch.arange(10)
        >>> [x.tolist() for x, _ in some_of([(ten, ten), (ten + 10, ten)], every=4)]
        [[0, 4, 8, 12, 16]]
    """
    if every < 1:
        raise ValueError(f"Expected `every` to be at least 1, but got {every}.")
    if every == 1:
        yield from batches
        return
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    yield x[::every], y[::every]


def _rate(outcomes: list[Tensor]) -> float:
    return torch.cat(outcomes).double().mean().item()


@torch.no_grad()
def scans_certificate(
    model: CertifiedModel, module: L.LightningModule, batches: Iterable[Sequence[Tensor]], epsilon: float = 0.0
) -> dict[str, float]:
    """Return nominal and certified accuracy of all scans, of the new class and of the others, and backdoor accuracy.

    Args:
        model: the module under its parameter bounds.
        module: the trained classifier, with one logit.
        batches: test images, classes 0 and 1, and which images are of the new class.
        epsilon: size of a backdoor's trigger, in the maximum norm; for the backdoor accuracy alone.
    """
    right, certified, of_new, backdoors = [], [], [], BackdoorAccuracy()
    for x, y, new in batches:
        certification = model.certify(x.to(module.device))
        right.append(certification.label.cpu() == y.long().cpu())
        certified.append(right[-1] & certification.certified.cpu())
        of_new.append(new.cpu())
        reachable = model.bound_forward(x.to(module.device), epsilon=epsilon)
        backdoors.update(reachable.lower.cpu(), reachable.upper.cpu(), y.long().cpu())
    is_new, found = torch.cat(of_new), {}
    for name, outcomes in (("nominal", torch.cat(right)), ("certified", torch.cat(certified))):
        found[f"{name} accuracy"] = _rate([outcomes])
        found[f"{name} accuracy, new class"] = _rate([outcomes[is_new]])
        found[f"{name} accuracy, other classes"] = _rate([outcomes[~is_new]])
    return found | {"backdoor accuracy": backdoors.compute().item()}


def width_certificate(
    model: CertifiedModel, module: L.LightningModule, batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Return the mean width of the parameters' bounds, ``(1 / |θ|) Σ (θ_U - θ_L)`` of figure 3.

    Args:
        model: the module under its parameter bounds.
        module: the trained module.
        batches: of the test; not looked at.
    """
    return {"mean width": model.bounds.mean_width()}


@torch.no_grad()
def mse_certificate(
    model: CertifiedModel,
    module: L.LightningModule,
    batches: Iterable[tuple[Tensor, Tensor]],
    epsilon: float = 0.0,
    every: int = 1,
) -> dict[str, float]:
    """Return the mean squared error of the nominal model, and bounds on that of every model within the bounds.

    Args:
        model: the module under its parameter bounds.
        module: the trained regressor.
        batches: test inputs and targets.
        epsilon: how far test inputs may be moved as well, in the maximum norm (a backdoor trigger).
        every: distance of the test samples that all are about: 1 for all, 10 for every tenth.
    """
    outputs, lower, upper, targets = [], [], [], []
    for x, y in some_of(batches, every):
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


@torch.no_grad()
def flips_certificate(
    model: CertifiedModel,
    module: L.LightningModule,
    batches: Iterable[tuple[Tensor, Tensor]],
    path: str | Path,
    every: int = 1,
    at: Sequence[int] = (),
) -> dict[str, float]:
    """Return certified numbers of flipped labels of the whole training set, and the certified accuracy at some of them.

    The median is over all certified test samples, wrong predictions with their flips as they are: certified is that
    the prediction stays, not that it is right. Certified accuracy counts right predictions alone.

    Args:
        model: the module with the record of its training.
        module: the trained linear head.
        batches: test inputs and integer classes.
        path: the file to write, one row for each certified test sample.
        every: distance of the test samples that are certified: 1 for all, 10 for every tenth. The accuracy without
            flips is that of all.
        at: numbers of flips for which the certified accuracy is returned.
    """
    if every < 1:
        raise ValueError(f"Expected `every` to be at least 1, but got {every}.")
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    correct = module(x.to(module.device)).argmax(dim=-1).cpu() == y.cpu()
    flips = model.certified_flips(x[::every].to(module.device)).cpu()
    curve = CertifiedFlips("certified accuracy", flips, correct[::every])
    curve.save(Path(path), torch.arange(len(x))[::every])
    return {
        "nominal accuracy": _rate([correct]),
        "median certified flips": curve.median,
        **{f"certified accuracy at {n} flips": curve.certified_accuracy(n) for n in at},
    }
