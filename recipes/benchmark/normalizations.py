"""How wide bounds become with batch normalization in training mode, in evaluation mode, and with groups instead."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from agt_lightning.errors import AgtError
from recipes.benchmark.report import Row

SAMPLES, FEATURES, UNITS, STEPS = 256, 10, 16, 10

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Normalization:
    """A layer before each ReLU.

    Args:
        name: for the table.
        layer: makes it for a number of units.
        evaluates: whether its statistics are those of the first batch, fixed before training.
    """

    name: str
    layer: Callable[[int], nn.Module]
    evaluates: bool = False


NORMALIZATIONS = (
    Normalization("none", lambda units: nn.Identity()),
    Normalization("eval mode", partial(nn.BatchNorm1d, momentum=1.0), evaluates=True),
    Normalization("training mode", nn.BatchNorm1d),
    Normalization("4 groups", partial(nn.GroupNorm, 4)),
    Normalization("1 group", partial(nn.GroupNorm, 1)),
)

SETTINGS = (
    (1, 0.01, BoundedAdversary(n=1, nu=1, q=0)),
    (1, 0.01, BoundedAdversary(n=1, epsilon=0.01)),
    (2, 0.001, BoundedAdversary(n=1, nu=1, q=0)),
    (2, 0.001, BoundedAdversary(n=1, epsilon=0.01)),
)
"""Hidden layers, rate and adversary."""


def rows(steps: int) -> Iterator[Row]:
    """Train with each normalization, and yield one row of mean widths for each setting.

    Args:
        steps: of each training; the tenth is the last of the table in docs/theory.md.
    """
    for depth, rate, adversary in SETTINGS:
        moved = "a flipped label" if adversary.perturbs_labels else f"features moved by {adversary.epsilon}"
        widths = {each.name: _width(each, depth, rate, adversary, steps) for each in NORMALIZATIONS}
        print(f"{depth} hidden, {moved}: {', '.join(f'{name} {told}' for name, told in widths.items())}", flush=True)
        yield {"hidden layers": depth, "rate": rate, "adversary": moved, **widths}


def _width(kind: Normalization, depth: int, rate: float, adversary: BoundedAdversary, steps: int) -> str:
    """Return the mean width after the last step, or the step at which a bound leaves the range of the type."""
    module, batches = _network(kind, depth), _batches(steps)
    if kind.evaluates:
        with torch.no_grad():
            module(batches[0][0])
        module.eval()
    engine = AbstractGradientEngine(module, _loss, adversary)
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    for number, batch in enumerate(batches, start=1):
        try:
            engine.step([batch], optimizer)
            width = engine.bounds.mean_width()
        except AgtError:
            return f"lost at step {number}"
    return f"{width:.1e}"


def _network(kind: Normalization, depth: int) -> nn.Sequential:
    torch.manual_seed(0)
    widths = [FEATURES, *[UNITS] * depth]
    hidden = [
        layer
        for before, after in zip(widths, widths[1:], strict=False)
        for layer in (nn.Linear(before, after), kind.layer(after), nn.ReLU())
    ]
    return nn.Sequential(*hidden, nn.Linear(UNITS, 2))


def _batches(steps: int) -> list[Batch]:
    x = torch.randn(STEPS, SAMPLES, FEATURES, generator=torch.Generator().manual_seed(1))[:steps]
    return [(each, (each[:, 0] + each[:, 1] > 0).long()) for each in x]


def _loss(module: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1])
