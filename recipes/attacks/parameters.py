"""Attacks that push single parameters and pairs of them, inside what is certified (figure 7)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from agt_lightning import BoundedAdversary
from recipes.attacks.certified import Reachable, along, reachable, require_inside
from recipes.attacks.poisons import Push
from recipes.attacks.task import Parameters, Task, untouched
from recipes.data import Household
from recipes.figures.parameter_attacks import draw_parameter_attacks
from recipes.models.perceptron import perceptron
from recipes.runs.run import describe

DOMAINS: Mapping[str, Sequence[str]] = {"box": ("box",), "box and ball": ("box", "ball")}
PUSHES = {"+x": (1, 0), "−x": (-1, 0), "+y": (0, 1), "−y": (0, -1), "+x+y": (1, 1), "+x−y": (1, -1)} | {
    "−x+y": (-1, 1),
    "−x−y": (-1, -1),
}
COLUMNS = ("adversary", "pair", "kind", "name", "step", "x_lower", "x_upper", "y_lower", "y_upper")

Entry = tuple[str, int]
"""A parameter's name and an index into it, flattened."""


@dataclass(frozen=True)
class ParameterAttacks:
    """Pushes of pairs of parameters while household power consumption is learned, rate 0.02 / (1 + 0.5 t).

    Against moved features and against moved labels, the paper's box and the box and ball together are computed; then
    for each pair of parameters eight attacks are trained, one for each ± and each diagonal.

    Args:
        n: poisoned samples of each batch.
        steps: of training.
        hidden: hidden units.
        seed: of the initial parameters and of the choice of pairs.
    """

    n: int
    steps: int
    hidden: int
    seed: int
    file: str = "trajectories.csv"

    def run(self, datamodule: Household, path: Path) -> str:
        """Train all attacks, write their trajectories, and return the table of effects."""
        batches = full_batches(datamodule)
        rows: list[Mapping[str, object]] = []
        lines = ["| adversary | pair | largest effect | box | ratio | box and ball | ratio |", f"|{'---|' * 7}"]
        for adversary in (BoundedAdversary(n=self.n, epsilon=0.02), BoundedAdversary(n=self.n, nu=0.05)):
            task = self._task(batches, adversary)
            reaches = {name: reachable(task, domains) for name, domains in DOMAINS.items()}
            for pair in pairs(task, self.seed):
                found = paths(task, pair)
                for reach in reaches.values():
                    for attack, trajectory in found.items():
                        require_inside(reach, trajectory, f"{attack} of {label(pair)}")
                rows += tidy(describe(adversary), pair, found, reaches)
                lines.append(ratio_line(describe(adversary), pair, found, reaches))
                print(lines[-1], flush=True)
                pd.DataFrame(rows, columns=COLUMNS).to_csv(path, index=False)
        return "\n".join(lines)

    def _task(self, batches: Sequence[tuple[Tensor, Tensor]], adversary: BoundedAdversary) -> Task:
        torch.manual_seed(self.seed)
        network = perceptron([batches[0][0].shape[1], self.hidden, 1], torch.float64)
        rates = [0.02 / (1 + 0.5 * step) for step in range(self.steps)]
        return Task(network, F.mse_loss, batches, rates, adversary)

    def draw(self, rows: pd.DataFrame, path: Path) -> Path:
        """Draw trajectories and boxes."""
        return draw_parameter_attacks(rows, path)


def full_batches(data: Household) -> list[tuple[Tensor, Tensor]]:
    """Return the training batches that have all their samples, targets ``(b, 1)``."""
    return [(x, y[:, None]) for x, y in data.train_dataloader() if len(x) == data.batch_size]


def pairs(task: Task, seed: int) -> list[tuple[Entry, Entry]]:
    """Return two entries at random of the first weight, of its bias, and of the last weight."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {name: parameter.numel() for name, parameter in task.network.named_parameters()}
    names = [name for name, size in sizes.items() if size > 1]
    drawn = {name: torch.randperm(sizes[name], generator=generator)[:2].tolist() for name in names}
    return [((name, first), (name, second)) for name, (first, second) in drawn.items()]


def paths(task: Task, pair: tuple[Entry, Entry]) -> dict[str, Sequence[Parameters]]:
    """Return the training without poison and the eight attacks on a pair."""
    assert isinstance(task.adversary, BoundedAdversary)
    found: dict[str, Sequence[Parameters]] = {"clean": task.attacked(untouched)}
    for attack, signs in PUSHES.items():
        push = direction(found["clean"][0], pair, signs)
        found[attack] = task.attacked(Push(task.adversary, task.losses, push))
    return found


def direction(parameters: Parameters, pair: tuple[Entry, Entry], signs: tuple[int, int]) -> Parameters:
    """Return the signs at the entries of a pair, zero elsewhere."""
    entries = {name: torch.zeros_like(parameters[name]) for name, _ in pair}
    for (name, index), sign in zip(pair, signs, strict=True):
        entries[name].view(-1)[index] = sign
    return entries


def ratio_line(
    adversary: str,
    pair: tuple[Entry, Entry],
    found: Mapping[str, Sequence[Parameters]],
    reaches: Mapping[str, Sequence[Reachable]],
) -> str:
    """Return the attack with the largest effect in relation to its bound after the last step, as a row of a table."""
    parameters = found["clean"][-1]
    cells, effects = [], []
    for reach in reaches.values():
        last, results = reach[-1], []
        for attack, signs in PUSHES.items():
            pushed = direction(parameters, pair, signs)
            results.append((along(pushed, found[attack][-1], last.center), last.farthest(pushed)))
        effect, bound = max(results, key=lambda result: result[0] / result[1])
        effects.append(effect)
        cells += [f"{bound:.2e}", f"{effect / bound:.3f}"]
    return f"| {adversary} | {label(pair)} | {max(effects):.2e} | {' | '.join(cells)} |"


def tidy(
    adversary: str,
    pair: tuple[Entry, Entry],
    found: Mapping[str, Sequence[Parameters]],
    reaches: Mapping[str, Sequence[Reachable]],
) -> Iterator[dict[str, object]]:
    """Return the rows of ``trajectories.csv``: attacks as points, certified bounds as boxes, step by step."""
    common = {"adversary": adversary, "pair": label(pair)}
    for attack, trajectory in found.items():
        for step, parameters in enumerate(trajectory):
            ends = [float(parameters[name].view(-1)[index]) for name, index in pair for _ in range(2)]
            yield common | _row("attack", attack, step, ends)
    for domains, reach in reaches.items():
        for step, certified in enumerate(reach):
            yield common | _row("bounds", domains, step, _ends(certified, pair))
            if certified.radius is not None:
                center = [float(certified.center[name].view(-1)[index]) for name, index in pair]
                ends = [value + sign * certified.radius for value in center for sign in (-1, 1)]
                yield common | _row("ball", domains, step, ends)


def _ends(certified: Reachable, pair: tuple[Entry, Entry]) -> list[float]:
    assert certified.box is not None
    return [
        float(end.view(-1)[index])
        for name, index in pair
        for end in (certified.box[name].lower, certified.box[name].upper)
    ]


def _row(kind: str, name: str, step: int, ends: Sequence[float]) -> dict[str, object]:
    return {"kind": kind, "name": name, "step": step} | dict(zip(COLUMNS[-4:], ends, strict=True))


def label(pair: tuple[Entry, Entry]) -> str:
    """Return the entries of a pair, as in ``0.weight[3], 0.weight[7]``."""
    return ", ".join(f"{name}[{index}]" for name, index in pair)
