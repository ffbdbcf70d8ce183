"""A step as the ball domain sees it, with the samples of all processes: all of them take the same step of the radius.

What the radius needs of a sample is small: its features, the results of the head's layers, its target, and how far the
adversary can move them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from agt_lightning.distributed import Entry
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.samples import Poison, Samples
from agt_lightning.domains.base import Step
from agt_lightning.domains.losses import LabelPerturbation, Target
from agt_lightning.errors import UnsoundBoundError
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels

Received = Sequence[Mapping[str, Entry]]
"""Messages of the processes that have something to tell, by rank."""


def gathered(
    step: Step, samples: Samples, target: Target, poison: Poison | None
) -> tuple[Samples, Target, Poison | None]:
    """Samples, targets and poison of all processes, by rank.

    Args:
        step: the step, with weights and poisonable rows of all samples.
        samples: of this process.
        target: of this process.
        poison: of this process; None if none of its samples can be poisoned.
    """
    if step.processes.size == 1:
        return samples, target, poison
    received = step.processes.gather(
        {**_samples_sent(samples), **_target_sent("target", target), **_poison_sent(poison)}
    )
    holders = [message for message in received if "moved/clean" in message or "moved/clean/index" in message]
    together = _samples(received, len(samples.layers)), _target(received, "target")
    return *together, _poison(holders, step, len(samples.layers)) if holders else None


def _samples_sent(samples: Samples) -> dict[str, Entry]:
    message: dict[str, Entry] = {"inputs": samples.inputs}
    message |= {f"layer/{number}": values for number, values in enumerate(samples.layers)}
    return message | {f"box/{number}": box for number, box in enumerate(samples.boxes or ())}


def _poison_sent(poison: Poison | None) -> dict[str, Entry]:
    if poison is None:
        return {}
    labels = poison.labels
    message = _target_sent("moved/clean", labels.clean) | _target_sent("moved/poisoned", labels.poisoned)
    message |= {f"moved/box/{number}": box for number, box in enumerate(poison.boxes or ())}
    if labels.radius is not None:
        message["radius"] = torch.tensor(labels.radius, dtype=torch.float64)
    if poison.moves is not None:
        size = len(labels.clean.index if isinstance(labels.clean, ClassLabels) else labels.clean.lower)
        message |= {"half_widths": poison.moves.half_widths.expand(size, -1), "p": str(poison.moves.p)}
        if poison.moves.scale is not None:
            message["scale"] = poison.moves.scale
    return message


def _target_sent(name: str, target: Target) -> dict[str, Entry]:
    if isinstance(target, Interval):
        return {name: target}
    form = {"flippable": target.flippable, "sources": target.sources, "targets": target.targets}
    return {f"{name}/index": target.index, f"{name}/form": json.dumps(form)}


def _samples(received: Received, layers: int) -> Samples:
    values = tuple(torch.cat(_tensors(received, f"layer/{number}")) for number in range(layers))
    return Samples(torch.cat(_tensors(received, "inputs")), values, _boxes(received, "box", layers))


def _poison(holders: Received, step: Step, layers: int) -> Poison:
    rows = step.samples.poisonable
    every = torch.arange(len(step.samples.weights), device=step.samples.weights.device)
    radii = [float(radius) for radius in _tensors(holders, "radius")]
    radius = max(radii) if len(radii) == len(holders) else None
    labels = LabelPerturbation(_target(holders, "moved/clean"), _target(holders, "moved/poisoned"), radius)
    boxes = _boxes(holders, "moved/box", layers)
    return Poison(every if rows is None else rows, step.adversary.n, labels, _moves(holders), boxes)


def _moves(holders: Received) -> Perturbation | None:
    if all("half_widths" not in message for message in holders):
        return None
    half_widths, scales = _tensors(holders, "half_widths"), _tensors(holders, "scale")
    norms = {message.get("p") for message in holders}
    if len(half_widths) < len(holders) or len(norms) > 1 or len(scales) not in (0, len(holders)):
        raise UnsoundBoundError(
            "Expected the adversary to reach the features of all processes' samples or of none, in the same norm, but "
            "processes differ. Give all of them the same adversary and loss."
        )
    scale = torch.stack(scales).amax(dim=0) if scales else None
    return Perturbation.of(torch.cat(half_widths), scale, float(str(holders[0]["p"])))


def _target(received: Received, name: str) -> Target:
    intervals = _intervals(received, name)
    if intervals:
        return Interval.cat(intervals)
    form = json.loads(str(received[0][f"{name}/form"]))
    sources, targets = (None if form[key] is None else tuple(form[key]) for key in ("sources", "targets"))
    return ClassLabels(torch.cat(_tensors(received, f"{name}/index")), form["flippable"], sources, targets)


def _boxes(received: Received, name: str, layers: int) -> tuple[Interval, ...] | None:
    """Bounds of another domain, if it told them of all samples."""
    boxes = [_intervals(received, f"{name}/{number}") for number in range(layers)]
    return tuple(map(Interval.cat, boxes)) if all(len(box) == len(received) for box in boxes) else None


def _tensors(received: Received, name: str) -> list[Tensor]:
    entries = [message[name] for message in received if name in message]
    return [entry for entry in entries if isinstance(entry, Tensor)]


def _intervals(received: Received, name: str) -> list[Interval]:
    entries = [message[name] for message in received if name in message]
    return [entry for entry in entries if isinstance(entry, Interval)]
