"""Where bounds of one loss or one function are loose: the share of the width of derivatives that sampling attains.

python -m tests.fuzz.shares

The derivative with respect to four numbers, each within 0.1 or 1 of a random one, is bounded and sampled. A share of
one means that bounds are attained; losses and functions of which nothing in this range moves the derivative are left
out. The training fuzzer measures shares, too, but of whole networks, where neighbors are not told apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from agt_lightning.interval import Interval
from agt_lightning.propagation.loss_capture import LossCapture
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.rules import RULES
from tests.fuzz.blocks import BLOCKS
from tests.fuzz.report import say
from tests.fuzz.trainings import CLASSES, LOSSES

RADII = (0.1, 1.0)
CENTERS, POINTS = 30, 4096

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps outputs (samples, units) and labels to the loss."""


class _Shifted(nn.Module):
    """The function ``x + w`` for parameters w of zero, whose gradients are the derivatives at x."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(units, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Add the parameters."""
        return x + self.w


def objective(loss: Loss, batch: tuple[Tensor, Tensor]) -> BoundedObjective:
    """Return the loss as a program."""
    module = _Shifted(batch[0].shape[1])
    return LossCapture(RULES).of(module, lambda layer, data: loss(layer(data[0]), data[1]), batch)


def derivative_bounds(loss: Loss, labels: Tensor, box: Interval) -> Interval:
    """Return bounds on the derivatives of each sample's loss over a box (samples, units).

    Args:
        loss: what is differentiated.
        labels: of each sample.
        box: of the outputs.
    """
    batch = (box.center, labels)
    bounded, module = objective(loss, batch), _Shifted(box.shape[1])
    inputs = bounded.inputs(module, batch, {"w": Interval.point(module.w.detach())}, torch.float64)
    (features,) = (name for name, position in bounded.graph.leaves.items() if position == 0)
    values = bounded.forward({**inputs, features: box})
    gradient = bounded.gradients(values, len(labels), torch.float64)["w"]
    return gradient.block(0, gradient.elements).rearranged(lambda bound: bound.T)


def attained_share(loss: Loss, label: Tensor, units: int, radius: float) -> float:
    """Return the mean share of the width of derivatives that samples attain; NaN if no derivative moves.

    Args:
        loss: what is differentiated.
        label: of all samples, (1, ...).
        units: number of outputs.
        radius: of the box around random centers.
    """
    draw = torch.Generator().manual_seed(0)
    centers = 1.5 * torch.randn(CENTERS, units, generator=draw, dtype=torch.float64)
    bounds = derivative_bounds(loss, _repeated(label, CENTERS), Interval(centers - radius, centers + radius))
    places = 2 * torch.rand(POINTS, units, generator=draw, dtype=torch.float64) - 1
    places[: POINTS // 2] = places[: POINTS // 2].sign()
    batch = (centers[:2], _repeated(label, 2))
    weight = objective(loss, batch).sample_weight(POINTS)
    sampled = torch.stack([_derivatives(loss, label, center + radius * places) for center in centers]) / weight
    width = bounds.width
    shares = ((sampled.amax(dim=1) - sampled.amin(dim=1)) / width)[width > 1e-9]
    return float(shares.mean())


def _repeated(label: Tensor, count: int) -> Tensor:
    return label.expand(count, *label.shape[1:]).contiguous()


def _derivatives(loss: Loss, label: Tensor, points: Tensor) -> Tensor:
    moving = points.requires_grad_()
    (derivatives,) = torch.autograd.grad(loss(moving, _repeated(label, len(points))), moving)
    return derivatives


def subjects() -> Iterator[tuple[str, Loss, Tensor, int]]:
    """Yield the name, loss, label and number of outputs of losses, and of means of functions of vectors."""
    labels = {
        "class": torch.tensor([1]),
        "soft": torch.tensor([[0.2, 0.7, 0.1]], dtype=torch.float64),
        "number": torch.tensor([[0.3]], dtype=torch.float64),
        "binary": torch.tensor([[1.0]], dtype=torch.float64),
    }
    for kind, losses in LOSSES.items():
        for name, loss in losses.items():
            yield f"loss: {name}", loss, labels[kind], CLASSES if kind in ("class", "soft") else 1
    for block in BLOCKS:
        module = block.build(random.Random(0), (4,)) if 1 in block.ranks else None
        if module is not None and not any(True for _ in module.parameters()):
            yield block.name, _mean_of(module.double().eval()), labels["number"], 4


def _mean_of(module: nn.Module) -> Loss:
    weights = torch.tensor([1.0, -0.5, 0.7, 0.3], dtype=torch.float64)

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        outputs = module(x).flatten(1)
        return (outputs * weights[torch.arange(outputs.shape[1]) % len(weights)]).sum(dim=1).mean()

    return loss


def main() -> None:
    """Print a line for each, the loosest first."""
    torch.set_num_threads(1)
    rows = []
    for name, loss, label, units in subjects():
        shares = [attained_share(loss, label, units, radius) for radius in RADII]
        rows.append((min(shares), name, shares))
    for _, name, shares in sorted(row for row in rows if row[0] == row[0]):
        say(f"| {name} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")


if __name__ == "__main__":
    main()
