r"""Attacks that push single parameters and pairs of them, inside what is certified (figure 7).

Household power consumption, 11 → 50 → 1, rate .02 / (1 + .5 t). Against each adversary the box of the paper and the box
and ball together are computed, then for each pair of parameters eight attacks are trained, one for each ± and each
diagonal. **An attack outside the bounds raises.** Writes ``trajectories.csv``, ``table.md`` and ``figure.png``.

    python -m recipes.attack_parameters --root path/to/data
    python -m recipes.attack_parameters --redraw outputs/attack_parameters/trajectories.csv
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from agt_lightning import BoundedAdversary
from recipes.attacks.certified import Reachable, along, reachable, require_inside
from recipes.attacks.poisons import Push
from recipes.attacks.task import Parameters, Task, untouched
from recipes.attacks.tidy import read, write
from recipes.data import Household
from recipes.figures.parameter_attacks import draw_parameter_attacks
from recipes.models.perceptron import perceptron
from recipes.strengths import describe

DOMAINS: Mapping[str, Sequence[str]] = {"box": ("box",), "box and ball": ("box", "ball")}
PUSHES = {"+x": (1, 0), "−x": (-1, 0), "+y": (0, 1), "−y": (0, -1), "+x+y": (1, 1), "+x−y": (1, -1)} | {
    "−x+y": (-1, 1),
    "−x−y": (-1, -1),
}
COLUMNS = ("adversary", "pair", "kind", "name", "step", "x_lower", "x_upper", "y_lower", "y_upper")

Entry = tuple[str, int]
"""A parameter's name and an index into it, flattened."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m recipes.attack_parameters``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=None, help="folder with the data of household power consumption")
    parser.add_argument("--steps", type=int, default=30, help="steps of training")
    parser.add_argument("--n", type=int, default=2000, help="poisoned samples of each batch")
    parser.add_argument("--batch-size", type=int, default=10_000, help="samples of each batch")
    parser.add_argument("--hidden", type=int, default=50, help="hidden units")
    parser.add_argument("--seed", type=int, default=0, help="of the initial parameters and the choice of pairs")
    parser.add_argument("--output", type=Path, default=Path("outputs/attack_parameters"), help="folder to write")
    parser.add_argument("--redraw", type=Path, default=None, help="trajectories to draw again, without training")
    chosen = parser.parse_args(arguments)
    path = chosen.output / "trajectories.csv"
    if chosen.redraw is None:
        ratios = run(chosen, path)
        (chosen.output / "table.md").write_text(ratios + "\n")
        print(ratios)
    draw_parameter_attacks(read(chosen.redraw or path), chosen.output / "figure.png")
    print(f"Written to {chosen.output}")


def run(chosen: argparse.Namespace, path: Path) -> str:
    """Train all attacks, write their trajectories, and return the table of effects."""
    batches = full_batches(chosen.root, chosen.batch_size)
    rows: list[Mapping[str, object]] = []
    lines = ["| adversary | pair | largest effect | box | ratio | box and ball | ratio |", f"|{'---|' * 7}"]
    for adversary in (BoundedAdversary(n=chosen.n, epsilon=0.02), BoundedAdversary(n=chosen.n, nu=0.05)):
        torch.manual_seed(chosen.seed)
        network = perceptron([batches[0][0].shape[1], chosen.hidden, 1], torch.float64)
        rates = [0.02 / (1 + 0.5 * step) for step in range(chosen.steps)]
        task = Task(network, F.mse_loss, batches, rates, adversary)
        reaches = {name: reachable(task, domains) for name, domains in DOMAINS.items()}
        for pair in pairs(task, chosen.seed):
            found = paths(task, pair)
            for reach in reaches.values():
                for attack, trajectory in found.items():
                    require_inside(reach, trajectory, f"{attack} of {label(pair)}")
            rows += tidy(describe(adversary), pair, found, reaches)
            lines.append(ratio_line(describe(adversary), pair, found, reaches))
            print(lines[-1], flush=True)
            write(path, COLUMNS, rows)
    return "\n".join(lines)


def full_batches(root: Path | None, size: int) -> list[tuple[Tensor, Tensor]]:
    """Training batches of household power consumption that have all their samples, targets ``(b, 1)``."""
    data = Household(root=root, batch_size=size)
    data.prepare_data()
    data.setup("fit")
    return [(x, y[:, None]) for x, y in data.train_dataloader() if len(x) == size]


def pairs(task: Task, seed: int) -> list[tuple[Entry, Entry]]:
    """Two entries at random of the first weight, of its bias, and of the last weight."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {name: parameter.numel() for name, parameter in task.network.named_parameters()}
    names = [name for name, size in sizes.items() if size > 1]
    drawn = {name: torch.randperm(sizes[name], generator=generator)[:2].tolist() for name in names}
    return [((name, first), (name, second)) for name, (first, second) in drawn.items()]


def paths(task: Task, pair: tuple[Entry, Entry]) -> dict[str, Sequence[Parameters]]:
    """The training without poison and the eight attacks on a pair."""
    assert isinstance(task.adversary, BoundedAdversary)
    found: dict[str, Sequence[Parameters]] = {"clean": task.attacked(untouched)}
    for attack, signs in PUSHES.items():
        push = direction(found["clean"][0], pair, signs)
        found[attack] = task.attacked(Push(task.adversary, task.losses, push))
    return found


def direction(parameters: Parameters, pair: tuple[Entry, Entry], signs: tuple[int, int]) -> Parameters:
    """The signs at the entries of a pair, zero elsewhere."""
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
    """The attack with the largest effect in relation to its bound after the last step, as a row of a table."""
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
    """Rows of ``trajectories.csv``: attacks as points, certified bounds as boxes, step by step."""
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
    """The entries of a pair, as in ``0.weight[3], 0.weight[7]``."""
    return ", ".join(f"{name}[{index}]" for name, index in pair)


if __name__ == "__main__":
    main()
