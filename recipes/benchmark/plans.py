"""What `CertifiedTraining.plan` predicts of a step from parts of its batch, beside what steps then take."""

from collections.abc import Iterator

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F

from agt_lightning import BoundedAdversary, CertifiedTraining
from agt_lightning.lightning.cost import StepCost
from recipes.benchmark.report import Row
from recipes.benchmark.workloads import Workload, classes, uniform
from recipes.data.loader import tensor_loader

STEPS = 4
"""Steps of a training; the first is left out."""


def photographs() -> nn.Module:
    """Return a small network for photographs, all of it trained."""
    layers = [nn.Conv2d(3, 8, 7, stride=4), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10))


PHOTOGRAPHS = Workload(
    "photographs, 224 x 224, convolutions trained",
    photographs,
    uniform(3, 224, 224),
    classes(10),
    F.cross_entropy,
    16,
    BoundedAdversary(n=1, epsilon=0.001),
    0.001,
)


def rows(workloads: list[Workload], training: torch.dtype) -> Iterator[Row]:
    """Predict and measure a step with the domains that apply.

    Args:
        workloads: what is trained.
        training: type of the parameters.

    Yields:
        One row for each workload.
    """
    for workload in workloads:
        module, batch = workload.module(training), workload.batch(training)
        predicted = _callback(workload).plan(module, batch, seconds=0.0, accelerator="cpu").cost
        assert predicted is not None
        measured = _measured(workload, module, batch)
        ratio = predicted.certified / measured.certified
        print(f"{workload.name}: {predicted.certified:.3g} s predicted, {measured.certified:.3g} s", flush=True)
        yield {
            "workload": workload.name,
            "b": workload.samples,
            "predicted s": predicted.certified,
            "measured s": measured.certified,
            "predicted over measured": ratio,
            "plain s": measured.plain,
            "plain steps": measured.factor,
        }


def _callback(workload: Workload) -> CertifiedTraining:
    poisonable = (lambda batch: workload.poisonable(tuple(batch))) if workload.trusted else None
    return CertifiedTraining(workload.adversary, poisonable=poisonable)


def _measured(workload: Workload, module: L.LightningModule, batch: tuple[torch.Tensor, torch.Tensor]) -> StepCost:
    certified = _callback(workload)
    L.Trainer(
        max_epochs=STEPS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[certified],
    ).fit(module, tensor_loader(*batch, batch_size=len(batch[0])))
    assert certified.cost is not None
    return certified.cost
