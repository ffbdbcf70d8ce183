"""Attacks that push the network's output at single test points, inside what the adjoint domain certifies."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad

from agt_lightning import AbstractGradientEngine, BoundedAdversary, CertifiedModel
from recipes.attacks.certified import require_between
from recipes.attacks.parameters import full_batches
from recipes.attacks.poisons import Push
from recipes.attacks.task import Batch, Parameters, Poison, Task, untouched
from recipes.data import Household
from recipes.figures.output_attacks import draw_output_attacks
from recipes.models.perceptron import perceptron
from recipes.runs.run import describe

COLUMNS = ("adversary", "point", "target", "nominal", "lower", "upper", "attack_lower", "attack_upper")
SIGNS: Mapping[str, int] = {"attack_lower": -1, "attack_upper": 1}


@dataclass(frozen=True)
class OutputAttacks:
    """Pushes of outputs while household power consumption is learned at a constant rate.

    For each of some test rows and both signs, an attack poisons every step in the direction that moves that one output
    most: its gradient, carried backward through the training without poison by Hessian-vector products. The attacked
    trainings are plain autograd; each must stay between the bounds of ball and adjoint.

    Args:
        n: poisoned samples of each batch.
        epsilon: radius of the attacks on features.
        nu: radius of the attacks on targets.
        steps: of training.
        rate: learning rate.
        hidden: hidden units.
        points: number of test rows, evenly apart.
        seed: of the initial parameters.
    """

    n: int
    epsilon: float
    nu: float
    steps: int
    rate: float
    hidden: int
    points: int
    seed: int
    file: str = "outputs.csv"

    def run(self, datamodule: Household, path: Path) -> str:
        """Train all attacks, write their outputs, and return the table of effects."""
        datamodule.setup("test")
        x, y = (torch.cat(parts) for parts in zip(*datamodule.test_dataloader(), strict=True))
        chosen = torch.linspace(0, len(x) - 1, self.points).long()
        batches, rows = full_batches(datamodule), []
        for adversary in (BoundedAdversary(n=self.n, epsilon=self.epsilon), BoundedAdversary(n=self.n, nu=self.nu)):
            torch.manual_seed(self.seed)
            network = perceptron([x.shape[1], self.hidden, 1], torch.float64)
            task = Task(network, F.mse_loss, batches, [self.rate] * self.steps, adversary)
            for row in self._attacked(task, x[chosen], y[chosen]):
                rows.append({"adversary": describe(adversary)} | row)
                pd.DataFrame(rows, columns=COLUMNS).to_csv(path, index=False)
        return table(pd.DataFrame(rows, columns=COLUMNS))

    def _attacked(self, task: Task, x: Tensor, y: Tensor) -> Iterator[dict[str, object]]:
        lower, upper = certified_outputs(task, x)
        nominal = task.attacked(untouched)
        for point in range(len(x)):
            query = x[point : point + 1]
            pushes = list(directions(task, nominal, query))
            row: dict[str, object] = {
                "point": point,
                "target": float(y[point]),
                "nominal": output(task, nominal, query),
            }
            row |= {"lower": lower[point], "upper": upper[point]}
            for name, sign in SIGNS.items():
                attacked = output(task, task.attacked(_Scheduled(_pushes(task, pushes, sign))), query)
                require_between({"lower": lower[point], "upper": upper[point]}, attacked, f"{name} of point {point}")
                row[name] = attacked
            print(effects(row), flush=True)
            yield row

    def draw(self, rows: pd.DataFrame, path: Path) -> Path:
        """Draw certified intervals with the attacked outputs in them."""
        return draw_output_attacks(rows, path)


def certified_outputs(task: Task, x: Tensor) -> tuple[list[float], list[float]]:
    """Return bounds of ball and adjoint on the outputs of all poisoned trainings, for inputs ``(points, features)``."""
    module = copy.deepcopy(task.network)
    optimizer = torch.optim.SGD(module.parameters(), lr=task.rates[0])
    engine = AbstractGradientEngine(module, task.loss, task.adversary, domains=("ball", "adjoint"))
    for step, rate in enumerate(task.rates):
        optimizer.param_groups[0]["lr"] = rate
        engine.step([task.batch(step)], optimizer)
    bounds = CertifiedModel(module, engine.bounds, sets=engine.parameter_sets).bound_forward(x)
    return bounds.lower.flatten().tolist(), bounds.upper.flatten().tolist()


def output(task: Task, path: Sequence[Parameters], x: Tensor) -> float:
    """Return the output for one input ``(1, features)`` after the last step of a path."""
    with torch.no_grad():
        return float(functional_call(task.network, dict(path[-1]), (x,)))


def directions(task: Task, nominal: Sequence[Parameters], x: Tensor) -> Iterator[Parameters]:
    """Return ``c_{t+1}`` for the steps t = 0, 1, …: the gradient of the output, carried back through later steps.

    Args:
        task: the training.
        nominal: its parameters before the first step and after each, without poison.
        x: one input, ``(1, features)``.
    """
    direction = grad(lambda values: functional_call(task.network, values, (x,)).sum())(dict(nominal[-1]))
    carried = [direction]
    for step in reversed(range(1, len(task.rates))):
        direction = _before(task, step, dict(nominal[step]), direction)
        carried.append(direction)
    yield from reversed(carried)


def _before(task: Task, step: int, values: dict[str, Tensor], direction: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``(I - α H) c``."""
    inputs, target = task.batch(step)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return task.loss_function(functional_call(task.network, parameters, (inputs,)), target)

    def slope(parameters: dict[str, Tensor]) -> Tensor:
        gradients = grad(loss)(parameters)
        return torch.stack([(gradients[name] * direction[name]).sum() for name in direction]).sum()

    curved = grad(slope)(values)
    return {name: value - task.rates[step] * curved[name] for name, value in direction.items()}


def _pushes(task: Task, directions: Sequence[Parameters], sign: int) -> Iterator[Poison]:
    assert isinstance(task.adversary, BoundedAdversary)
    for direction in directions:
        yield Push(task.adversary, task.losses, {name: sign * value for name, value in direction.items()})


@dataclass(frozen=True)
class _Scheduled:
    """Another poison at each step."""

    poisons: Iterator[Poison]

    def __call__(self, module: nn.Module, batch: Batch) -> Batch:
        return next(self.poisons)(module, batch)


def effects(row: Mapping[str, Any]) -> str:
    """Return how far both attacks moved an output, and how far they could at most, as one line."""
    down, up = row["nominal"] - row["attack_lower"], row["attack_upper"] - row["nominal"]
    least, most = row["nominal"] - row["lower"], row["upper"] - row["nominal"]
    return f"point {row['point']}: down {down:.2e} of {least:.2e}, up {up:.2e} of {most:.2e}"


def table(rows: pd.DataFrame) -> str:
    """Return effects of the attacks in relation to their bounds, and squared errors, in markdown."""
    lines = ["| adversary | points | mean effect / bound | largest | MSE | attacked | certified |", f"|{'---|' * 7}"]
    for adversary, found in rows.groupby("adversary", sort=False):
        effects = pd.concat(
            [
                (found["attack_upper"] - found["nominal"]) / (found["upper"] - found["nominal"]),
                (found["nominal"] - found["attack_lower"]) / (found["nominal"] - found["lower"]),
            ]
        )
        errors = [
            worst_error(found, *ends)
            for ends in (("nominal", "nominal"), ("attack_lower", "attack_upper"), ("lower", "upper"))
        ]
        numbers = " | ".join(f"{error:.5f}" for error in errors)
        lines.append(f"| {adversary} | {len(found)} | {effects.mean():.3f} | {effects.max():.3f} | {numbers} |")
    return "\n".join(lines)


def worst_error(rows: pd.DataFrame, lower: str, upper: str) -> float:
    """Return the mean over points of the larger squared error of two columns."""
    errors = [(rows[column] - rows["target"]) ** 2 for column in (lower, upper)]
    return float(pd.concat(errors, axis=1).max(axis=1).mean())
