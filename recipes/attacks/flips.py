"""Random label flips while a pretrained network is fine-tuned, inside what is certified (figure 9).

The paper's figure is on OCTMNIST. **This one is on PneumoniaMNIST, a stand-in.**
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from agt_lightning import BoundedAdversary, CertifiedModel
from recipes.attacks.certified import reachable, require_between, require_inside
from recipes.attacks.poisons import RandomFlips
from recipes.attacks.task import Batch, Task
from recipes.data import Pneumonia
from recipes.figures.flip_attacks import draw_flip_attacks

COLUMNS = ("n", "kind", "name", "accuracy", "lower", "upper")
PNEUMONIA = 1
SOURCES = {"random flips": None, "pneumonia to normal": PNEUMONIA}


@dataclass(frozen=True)
class FlipAttacks:
    """Flips of n labels, the same at every step, while a head is trained by full-batch steps of rate 0.05 / (1 + 5 t).

    Labels are flipped at random, or those of pneumonia alone, as in the paper those of the new disease. Beside the
    accuracy of the attacked models is the certified worst and best accuracy against any n flips at each step.

    Args:
        strengths: numbers of flips of each step.
        domains: of the certificate, ``"box"``, ``"ball"`` or both.
        attacks: seeds of each kind of attack.
        steps: of training.
    """

    strengths: Sequence[int]
    domains: Sequence[str]
    attacks: int
    steps: int
    file: str = "accuracies.csv"

    def run(self, datamodule: Pneumonia, path: Path) -> str:
        """Certify and attack every strength, write the accuracies, and return the table of effects."""
        rows = []
        for row in self._rows(datamodule):
            rows.append(row)
            pd.DataFrame(rows, columns=COLUMNS).to_csv(path, index=False)
        return table(rows)

    def _rows(self, datamodule: Pneumonia) -> Iterator[dict[str, object]]:
        train, test = features(datamodule, "train"), features(datamodule, "test")
        head = datamodule.network[1]
        for n in self.strengths:
            adversary = BoundedAdversary(n=n, nu=1, q=0)
            rates = [0.05 / (1 + 5 * step) for step in range(self.steps)]
            task = Task(head, F.binary_cross_entropy_with_logits, [train], rates, adversary)
            certified = reachable(task, self.domains, partial(accuracy_bounds, x=test[0], y=test[1]))
            yield {"n": n, "kind": "bounds", "name": " and ".join(self.domains), **certified[-1].observed}
            for name, source in SOURCES.items():
                for seed in range(self.attacks if n else 1):
                    trajectory = task.attacked(RandomFlips(n, seed, source))
                    attack = f"{name}, n = {n}, seed {seed}"
                    require_inside(certified, trajectory, attack)
                    attacked = _accuracy(functional_call(head, dict(trajectory[-1]), (test[0],)), test[1])
                    require_between(certified[-1].observed, attacked, attack)
                    yield {"n": n, "kind": "attack", "name": name} | dict.fromkeys(COLUMNS[3:], attacked)
            print(f"n = {n}: {certified[-1].observed}", flush=True)

    def draw(self, rows: pd.DataFrame, path: Path) -> Path:
        """Draw the accuracies inside their band."""
        return draw_flip_attacks(rows, path)


@torch.no_grad()
def features(datamodule: Pneumonia, part: str) -> Batch:
    """Return the features of images behind the frozen convolutions, and their classes ``(b, 1)``."""
    images, classes = datamodule.splits[part]
    return datamodule.network[0](images), classes[:, None]


def accuracy_bounds(model: CertifiedModel, x: Tensor, y: Tensor) -> dict[str, float]:
    """Return the accuracy, and that of the worst and the best model within the bounds, each sample on its own."""
    certification = model.certify(x, threshold=0.0)
    target = y.flatten().long()
    right = certification.label == target
    return {
        "accuracy": _mean(right),
        "lower": _mean(right & certification.certified),
        "upper": _mean(certification.possible.gather(1, target[:, None])),
    }


def _accuracy(logits: Tensor, y: Tensor) -> float:
    return _mean((logits > 0) == (y > 0.5))


def _distance(clean: float, accuracy: float) -> float:
    return abs(accuracy - clean)


def _mean(outcomes: Tensor) -> float:
    return outcomes.double().mean().item()


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return for every n the certified range, the accuracy farthest from that without poison, and its share."""
    lines = [
        f"| n | certified | {' | '.join(SOURCES)} | largest change / certified |",
        f"|{'---|' * (3 + len(SOURCES))}",
    ]
    for bounds in (row for row in rows if row["kind"] == "bounds"):
        clean, lower, upper = (float(str(bounds[name])) for name in COLUMNS[3:])
        found = [
            [float(str(row["accuracy"])) for row in rows if row["n"] == bounds["n"] and row["name"] == name]
            for name in SOURCES
        ]
        farthest = [max(accuracies, key=partial(_distance, clean)) for accuracies in found]
        limits = [upper - clean if accuracy >= clean else lower - clean for accuracy in farthest]
        shares = [(accuracy - clean) / limit for accuracy, limit in zip(farthest, limits, strict=True) if limit]
        cells = " | ".join(f"{accuracy:.3f}" for accuracy in farthest)
        ratio = f"{max(shares):.3f}" if shares else "–"
        lines.append(f"| {bounds['n']} | {lower:.3f} to {upper:.3f} | {cells} | {ratio} |")
    return "\n".join(lines)
