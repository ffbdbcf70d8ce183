r"""What each part of the ball's step gains: household power consumption, one part taken out at a time.

Every variant is sound, only wider. Prints certified over nominal error on held-out minutes, and the radius.

    python -m recipes.ball_ablation --root path/to/data
"""

import argparse
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agt_lightning import AbstractGradientEngine, BoundedAdversary, CertifiedModel
from agt_lightning.certificates import squared_error_bounds
from agt_lightning.domains.ball import domain, kinks
from agt_lightning.domains.ball.hidden import poison
from agt_lightning.domains.ball.kinks import Pairs
from agt_lightning.domains.ball.radius import StepConstants, next_radius
from recipes.data import Household
from recipes.models.perceptron import perceptron

ADVERSARIES = (
    BoundedAdversary(n=200, epsilon=0.01),
    BoundedAdversary(n=200, nu=0.02),
    BoundedAdversary(n=1000, nu=0.02),
)


def without_energy(radius: float, constants: StepConstants, rate: float, decay: float) -> float:
    """The plain step alone."""
    return next_radius(radius, replace(constants, energy=math.inf), rate, decay)


def without_monotone(radius: float, constants: StepConstants, rate: float, decay: float) -> float:
    """Monotone kinks at first order, like the others."""
    remainder = constants.remainder + constants.monotone
    return next_radius(radius, replace(constants, remainder=remainder, monotone=0.0), rate, decay)


def without_sharing(dual: Callable[[float], float], largest: float) -> float:
    """Every unit moves by R."""
    return dual(0.0)


def without_knapsack(pairs: Pairs, values: Tensor, costs: Tensor, budget: Tensor) -> Tensor:
    """All unsure units switch."""
    return pairs.sums(values, len(budget))


VARIANTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "all": nullcontext,
    "no energy argument": lambda: patch.object(domain, "next_radius", without_energy),
    "monotone kinks at first order": lambda: patch.object(domain, "next_radius", without_monotone),
    "every unit moves by R": lambda: patch.object(kinks, "_smallest", without_sharing),
    "no knapsack": lambda: patch.object(poison, "knapsack", without_knapsack),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m recipes.ball_ablation``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=None, help="folder with the data of household power consumption")
    parser.add_argument("--steps", type=int, default=92, help="steps of training")
    chosen = parser.parse_args(arguments)
    data = Household(root=chosen.root)
    data.prepare_data()
    data.setup("fit")
    train = list(data.train_dataloader())
    held_out = next(iter(data.val_dataloader()))
    for name, taken_out in VARIANTS.items():
        with taken_out():
            cells = [certified(adversary, train, held_out, chosen.steps) for adversary in ADVERSARIES]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def certified(
    adversary: BoundedAdversary, train: Sequence[Sequence[Tensor]], held_out: Sequence[Tensor], steps: int
) -> str:
    """Certified over nominal error after training, and the radius."""
    torch.manual_seed(0)
    network = perceptron([11, 64, 1], torch.float64)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.005)
    engine = AbstractGradientEngine(network, squared_error, adversary, domains=("ball",))
    for step in range(steps):
        engine.step([tuple(train[step % len(train)])], optimizer)
    assert engine.ball is not None
    x, y = held_out[0], held_out[1][:, None]
    reachable = CertifiedModel(network, engine.bounds, ball=engine.ball).bound_forward(x)
    worst, nominal = squared_error_bounds(reachable, y).upper.mean(), F.mse_loss(network(x), y)
    return f"{float(worst / nominal.detach()):.3f} ({engine.ball.radius:.1e})"


def squared_error(module: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """Mean squared error of one output."""
    return F.mse_loss(module(batch[0]).squeeze(-1), batch[1])


if __name__ == "__main__":
    main()
