r"""An unbounded adversary that keeps a model from learning one point, inside what is certified (figure 8).

Household power consumption, 11 → 50 → 1, every entry of a sample's gradient cut to [-κ, κ], rate .1 / (1 + 2 t). The
adversary replaces n samples of each batch by the features of one held-out point, with labels of its own: random,
constant, or the true one, which makes the model fit the point faster. **An attack outside the bounds raises.** Writes
``losses.csv``, ``table.md`` and ``figure.png``.

    python -m recipes.attack_collision --root path/to/data
    python -m recipes.attack_collision --redraw outputs/attack_collision/losses.csv
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from agt_lightning import CertifiedModel, UnboundedAdversary
from agt_lightning.certificates.objectives import squared_error_bounds
from recipes.attacks.certified import reachable, require_between, require_inside
from recipes.attacks.parameters import full_batches
from recipes.attacks.poisons import Collision
from recipes.attacks.task import Parameters, Task, untouched
from recipes.attacks.tidy import read, write
from recipes.figures.collisions import draw_collisions
from recipes.models.perceptron import perceptron

COLUMNS = ("kind", "name", "step", "loss", "lower", "upper")
CONSTANTS = (-1.0, 0.0, 1.0, 2.0)
SPREADS = (1.0, 100.0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m recipes.attack_collision``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=None, help="folder with the data of household power consumption")
    parser.add_argument("--steps", type=int, default=50, help="steps of training")
    parser.add_argument("--n", type=int, default=1000, help="poisoned samples of each batch")
    parser.add_argument("--kappa", type=float, default=0.05, help="clipping level")
    parser.add_argument("--batch-size", type=int, default=10_000, help="samples of each batch")
    parser.add_argument("--hidden", type=int, default=50, help="hidden units")
    parser.add_argument("--seed", type=int, default=0, help="of the initial parameters and of the attacks")
    parser.add_argument("--output", type=Path, default=Path("outputs/attack_collision"), help="folder to write")
    parser.add_argument("--redraw", type=Path, default=None, help="losses to draw again, without training")
    chosen = parser.parse_args(arguments)
    path = chosen.output / "losses.csv"
    if chosen.redraw is None:
        table = run(chosen, path)
        (chosen.output / "table.md").write_text(table + "\n")
        print(table)
    draw_collisions(read(chosen.redraw or path), chosen.output / "figure.png")
    print(f"Written to {chosen.output}")


def run(chosen: argparse.Namespace, path: Path) -> str:
    """Train all attacks, write the loss of the target point after every step, and return the table of effects."""
    *batches, (held_out, targets) = full_batches(chosen.root, chosen.batch_size)
    x, y = held_out[:1], targets[:1]  # of the last batch, on which nothing is trained
    torch.manual_seed(chosen.seed)
    network = perceptron([x.shape[1], chosen.hidden, 1], torch.float64)
    rates = [0.1 / (1 + 2 * step) for step in range(chosen.steps)]
    task = Task(network, F.mse_loss, batches, rates, UnboundedAdversary(n=chosen.n, kappa=chosen.kappa))
    certified = reachable(task, ("box",), partial(loss_bounds, x=x, y=y))
    losses = {"clean": [loss(task, parameters, x, y) for parameters in task.attacked(untouched)]}
    for name, label in labels(y, chosen.seed).items():
        generator = torch.Generator().manual_seed(chosen.seed)
        trajectory = task.attacked(Collision(chosen.n, x[0], label, generator))
        require_inside(certified, trajectory, name)
        losses[name] = [loss(task, parameters, x, y) for parameters in trajectory]
        for step, value in zip(certified, losses[name], strict=True):
            require_between(step.observed, value, name)
    bounds = [step.observed for step in certified]
    write(path, COLUMNS, tidy(losses, bounds))
    return table(losses, bounds[-1])


def labels(y: Tensor, seed: int) -> dict[str, Callable[[int], Tensor]]:
    """Labels ``(n, 1)`` of the adversary, by name of the attack.

    Args:
        y: the target point's own, ``(1, 1)``.
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
    """Squared error at the target point."""
    with torch.no_grad():
        return float((functional_call(task.network, dict(parameters), (x,)) - y).square())


def loss_bounds(model: CertifiedModel, x: Tensor, y: Tensor) -> dict[str, float]:
    """Bounds on the squared error at the target point."""
    bounds = squared_error_bounds(model.bound_forward(x), y)
    return {"lower": float(bounds.lower), "upper": float(bounds.upper)}


def tidy(losses: Mapping[str, Sequence[float]], bounds: Sequence[Mapping[str, float]]) -> list[dict[str, object]]:
    """Rows of ``losses.csv``."""
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
    """The target's loss after the last step, and how much of what is certified the attack achieves."""
    clean = losses["clean"][-1]
    lines = ["| attack | loss of the target point | certified | effect / certified |", f"|{'---|' * 4}"]
    for name, values in losses.items():
        effect, limit = values[-1] - clean, (bounds["upper"] if values[-1] >= clean else bounds["lower"]) - clean
        ratio = "–" if name == "clean" else f"{effect / limit:.3f}"
        lines.append(f"| {name} | {values[-1]:.5f} | {bounds['lower']:.5f} to {bounds['upper']:.5f} | {ratio} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
