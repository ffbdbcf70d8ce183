"""An unbounded adversary that keeps a model from learning one point, inside what is certified (figure 8)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from agt_lightning import CertifiedModel, UnboundedAdversary
from agt_lightning.certificates.goals import squared_error_bounds
from recipes.attacks.certified import reachable, require_between, require_inside
from recipes.attacks.parameters import full_batches
from recipes.attacks.poisons import Collision
from recipes.attacks.task import Parameters, Task, untouched
from recipes.data import Household
from recipes.figures.collisions import draw_collisions
from recipes.models.perceptron import perceptron

COLUMNS = ("kind", "name", "step", "loss", "lower", "upper")
CONSTANTS = (-1.0, 0.0, 1.0, 2.0)
SPREADS = (1.0, 100.0)


@dataclass(frozen=True)
class CollisionAttacks:
    """Collisions with one point while household power consumption is learned, rate 0.1 / (1 + 2 t).

    Every entry of a sample's gradient is cut to [-κ, κ]. The adversary replaces n samples of each batch by the features
    of one held-out point, with labels of its own: random, constant, or the true one, which makes the model fit the
    point faster.

    Args:
        n: poisoned samples of each batch.
        kappa: clipping level.
        steps: of training.
        hidden: hidden units.
        seed: of the initial parameters and of the attacks.
    """

    n: int
    kappa: float
    steps: int
    hidden: int
    seed: int
    file: str = "losses.csv"

    def run(self, datamodule: Household, path: Path) -> str:
        """Train all attacks, write the loss of the target point after every step, and return the table of effects."""
        *batches, (held_out, targets) = full_batches(datamodule)
        x, y = held_out[:1], targets[:1]  # of the last batch, on which nothing is trained
        task = self._task(batches)
        certified = reachable(task, ("box",), partial(loss_bounds, x=x, y=y))
        losses = {"clean": [loss(task, parameters, x, y) for parameters in task.attacked(untouched)]}
        for name, label in labels(y, self.seed).items():
            generator = torch.Generator().manual_seed(self.seed)
            trajectory = task.attacked(Collision(self.n, x[0], label, generator))
            require_inside(certified, trajectory, name)
            losses[name] = [loss(task, parameters, x, y) for parameters in trajectory]
            for step, value in zip(certified, losses[name], strict=True):
                require_between(step.observed, value, name)
        bounds = [step.observed for step in certified]
        pd.DataFrame(tidy(losses, bounds), columns=COLUMNS).to_csv(path, index=False)
        return table(losses, bounds[-1])

    def _task(self, batches: Sequence[tuple[Tensor, Tensor]]) -> Task:
        torch.manual_seed(self.seed)
        network = perceptron([batches[0][0].shape[1], self.hidden, 1], torch.float64)
        rates = [0.1 / (1 + 2 * step) for step in range(self.steps)]
        return Task(network, F.mse_loss, batches, rates, UnboundedAdversary(n=self.n, kappa=self.kappa))

    def draw(self, rows: pd.DataFrame, path: Path) -> Path:
        """Draw the losses inside their band."""
        return draw_collisions(rows, path)


def labels(y: Tensor, seed: int) -> dict[str, Callable[[int], Tensor]]:
    """Return labels ``(n, 1)`` of the adversary, by name of the attack.

    Args:
        y: label of the target point, ``(1, 1)``.
        seed: of the random ones.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(spread: float, n: int) -> Tensor:
        return spread * torch.randn(n, 1, generator=generator, dtype=y.dtype)

    constants = {f"label {value:g}": partial(_constant, y.new_full((1, 1), value)) for value in CONSTANTS}
    spreads = {f"random labels, spread {spread:g}": partial(noise, spread) for spread in SPREADS}
    return {"true label": partial(_constant, y), **constants, **spreads}


def _constant(value: Tensor, n: int) -> Tensor:
    return value.expand(n, 1)


def loss(task: Task, parameters: Parameters, x: Tensor, y: Tensor) -> float:
    """Return the squared error at the target point."""
    with torch.no_grad():
        return float((functional_call(task.network, dict(parameters), (x,)) - y).square())


def loss_bounds(model: CertifiedModel, x: Tensor, y: Tensor) -> dict[str, float]:
    """Return bounds on the squared error at the target point."""
    bounds = squared_error_bounds(model.bound_forward(x), y)
    return {"lower": float(bounds.lower), "upper": float(bounds.upper)}


def tidy(losses: Mapping[str, Sequence[float]], bounds: Sequence[Mapping[str, float]]) -> list[dict[str, object]]:
    """Return the rows of ``losses.csv``."""
    attacks = [
        {"kind": "attack", "name": name, "step": step, "loss": value, "lower": value, "upper": value}
        for name, values in losses.items()
        for step, value in enumerate(values)
    ]
    certified = [
        {"kind": "bounds", "name": "box", "step": step, "loss": losses["clean"][step], **ends}
        for step, ends in enumerate(bounds)
    ]
    return [*attacks, *certified]


def table(losses: Mapping[str, Sequence[float]], bounds: Mapping[str, float]) -> str:
    """Return the target's loss after the last step, and the share of the certified change that each attack achieves."""
    clean = losses["clean"][-1]
    lines = ["| attack | loss of the target point | certified | effect / certified |", f"|{'---|' * 4}"]
    for name, values in losses.items():
        effect, limit = values[-1] - clean, (bounds["upper"] if values[-1] >= clean else bounds["lower"]) - clean
        ratio = "–" if name == "clean" else f"{effect / limit:.3f}"
        lines.append(f"| {name} | {values[-1]:.5f} | {bounds['lower']:.5f} to {bounds['upper']:.5f} | {ratio} |")
    return "\n".join(lines)
