"""One training on the same global batches, in one process or divided among several."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from agt_lightning import AbstractGradientEngine
from agt_lightning.distributed import SINGLE_PROCESS, TorchProcessGroup
from agt_lightning.domains.adjoint import RecordedTrajectory
from agt_lightning.interval import Interval
from tests.engine.attacks import LOSSES

FEATURES, BATCH, STEPS = 4, 6, 3


@dataclass(frozen=True)
class Case:
    """``micro`` batches make a step; the first ``frozen`` layers are not trained; ``options`` are the engine's.

    With ``mirrored``, all processes train on the first one's part.
    """

    loss: str
    adversary: Any
    outputs: int = 3
    hidden: tuple[int, ...] = (5,)
    optimizer: str = "sgd"
    micro: int = 1
    frozen: int = 0
    uneven: bool = False
    mirrored: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def build(case: Case) -> nn.Sequential:
    torch.manual_seed(3)
    widths = [FEATURES, *case.hidden, case.outputs]
    layers = [nn.Linear(i, o, dtype=torch.float64) for i, o in zip(widths[:-1], widths[1:], strict=True)]
    for layer in layers[: case.frozen]:
        layer.requires_grad_(False)
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])


def optimizer_of(case: Case, module: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for p in module.parameters() if p.requires_grad]
    if case.optimizer == "momentum":
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01)
    if case.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=0.01)
    return torch.optim.SGD(parameters, lr=0.1)


def batches(case: Case) -> list[list[dict[str, Tensor]]]:
    """Global batches by step and micro-batch: x, y, which samples can be poisoned, and their numbers."""
    generator = torch.Generator().manual_seed(11)
    steps = []
    for step in range(STEPS):
        micros = []
        for micro in range(case.micro):
            x = torch.randn(BATCH, FEATURES, dtype=torch.float64, generator=generator)
            index = torch.randint(0, case.outputs, (BATCH,), generator=generator)
            y = torch.randn(BATCH, case.outputs, dtype=torch.float64, generator=generator)
            if case.loss == "ce":
                y = index
            elif case.loss == "bce":
                y = (y > 0).double()
            ids = torch.arange(BATCH) + BATCH * (step * case.micro + micro)
            poisonable = torch.arange(BATCH) % 3 != step % 3
            micros.append({"x": x, "y": y, "poisonable": poisonable, "ids": ids})
        steps.append(micros)
    return steps


def part(batch: dict[str, Tensor], rank: int, size: int, uneven: bool) -> dict[str, Tensor]:
    """This process's samples; all processes have the same number, unless they are to be uneven."""
    if uneven and size > 1:
        ends = [0, *range(1, size), BATCH]
        return {key: value[ends[rank] : ends[rank + 1]] for key, value in batch.items()}
    return {key: value[rank * BATCH // size : (rank + 1) * BATCH // size] for key, value in batch.items()}


def train(case: Case, processes=None) -> dict[str, Any]:
    """Bounds, parameters, radius and bytes sent after a few steps, in this process."""
    processes = processes or (
        TorchProcessGroup(torch.device("cpu")) if torch.distributed.is_initialized() else SINGLE_PROCESS
    )
    module = build(case)

    def loss(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return LOSSES[case.loss](module(batch["x"]), batch["y"])

    engine = AbstractGradientEngine(module, loss, case.adversary, processes=processes, **case.options)
    optimizer = optimizer_of(case, module)
    for step in batches(case):
        rank = 0 if case.mirrored else processes.rank
        engine.step([part(micro, rank, processes.size, case.uneven) for micro in step], optimizer)
    box = engine.box | _outputs(engine)
    return {
        "lower": {name: interval.lower for name, interval in box.items()},
        "upper": {name: interval.upper for name, interval in box.items()},
        "radius": engine.domains.metrics().get("radius"),
        "parameters": {name: p.detach() for name, p in module.named_parameters()},
        "sent": getattr(processes, "sent", 0),
        "state": engine.state(),
    }


def _outputs(engine: AbstractGradientEngine) -> dict[str, Interval]:
    """Bounds of the adjoint domain on outputs at a few points, if it is in use."""
    trajectory = engine.parameter_sets.get("adjoint")
    if not isinstance(trajectory, RecordedTrajectory):
        return {}
    points = torch.randn(3, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return {"outputs": trajectory.combinations(Interval.point(points), torch.eye(3, dtype=torch.float64))}
