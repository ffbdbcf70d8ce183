r"""Random label flips while a pretrained network is fine-tuned, inside what is certified (figure 9).

The paper's figure is on OCTMNIST. **This one is on PneumoniaMNIST, a stand-in**: the convolutions are trained on 1 500
images and frozen, the head 3200 → 100 → 1 is trained on 3 208 others by four full-batch steps of rate
.05 / (1 + 5 t). The adversary flips n labels, the same at every step: random ones, or random ones of pneumonia alone,
as in the paper those of the new disease. Beside the accuracy of the attacked models stand the certified worst and best
accuracy against any n flips at each step. **An attack outside the bounds raises.** Writes ``accuracies.csv``,
``table.md`` and ``figure.png``.

    python -m recipes.attack_flips --root path/to/data
    python -m recipes.attack_flips --domains box --strengths 100 200
    python -m recipes.attack_flips --redraw outputs/attack_flips/accuracies.csv
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from agt_lightning import BoundedAdversary, CertifiedModel
from recipes.attacks.certified import reachable, require_between, require_inside
from recipes.attacks.poisons import RandomFlips
from recipes.attacks.task import Batch, Task
from recipes.attacks.tidy import read, write
from recipes.figures.flip_attacks import draw_flip_attacks
from recipes.pneumonia_domains import PRETRAINING, STEPS, load, pretrained

COLUMNS = ("n", "kind", "name", "accuracy", "lower", "upper")
PNEUMONIA = 1
SOURCES = {"random flips": None, "pneumonia to normal": PNEUMONIA}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m recipes.attack_flips``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder with medmnist/pneumoniamnist.npz")
    parser.add_argument("--strengths", type=int, nargs="+", default=list(range(0, 1001, 50)), help="flips per step")
    parser.add_argument("--domains", nargs="+", choices=("box", "ball"), default=["ball"], help="what is certified by")
    parser.add_argument("--attacks", type=int, default=2, help="seeds of each kind of attack")
    parser.add_argument(
        "--samples", type=int, default=None, help="the first so many images to fine-tune on; all if not set"
    )
    parser.add_argument("--pretraining", type=int, default=PRETRAINING, help="images for the convolutions")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the initial parameters")
    parser.add_argument("--output", type=Path, default=Path("outputs/attack_flips"), help="folder to write")
    parser.add_argument("--redraw", type=Path, default=None, help="accuracies to draw again, without training")
    chosen = parser.parse_args(arguments)
    path = chosen.output / "accuracies.csv"
    if chosen.redraw is None:
        rows = []
        for row in run(chosen):
            rows.append(row)
            write(path, COLUMNS, rows)
        lines = table(rows)
        (chosen.output / "table.md").write_text(lines + "\n")
        print(lines)
    draw_flip_attacks(read(chosen.redraw or path), chosen.output / "figure.png")
    print(f"Written to {chosen.output}")


def run(chosen: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Certify and attack every strength; rows of ``accuracies.csv``."""
    head, train, test = fine_tuning(chosen.root, chosen.pretraining, chosen.samples, chosen.seed)
    for n in chosen.strengths:
        adversary = BoundedAdversary(n=n, nu=1, q=0)
        rates = [0.05 / (1 + 5 * step) for step in range(STEPS)]
        task = Task(head, F.binary_cross_entropy_with_logits, [train], rates, adversary)
        certified = reachable(task, chosen.domains, partial(accuracy_bounds, x=test[0], y=test[1]))
        yield {"n": n, "kind": "bounds", "name": " and ".join(chosen.domains), **certified[-1].observed}
        for name, source in SOURCES.items():
            for seed in range(chosen.attacks if n else 1):
                trajectory = task.attacked(RandomFlips(n, seed, source))
                attack = f"{name}, n = {n}, seed {seed}"
                require_inside(certified, trajectory, attack)
                attacked = _accuracy(functional_call(head, dict(trajectory[-1]), (test[0],)), test[1])
                require_between(certified[-1].observed, attacked, attack)
                yield {"n": n, "kind": "attack", "name": name} | dict.fromkeys(COLUMNS[3:], attacked)
        print(f"n = {n}: {certified[-1].observed}", flush=True)


def fine_tuning(root: Path, pretraining: int, samples: int | None, seed: int) -> tuple[nn.Module, Batch, Batch]:
    """The dense head with its training and test data, as they come out of the frozen convolutions.

    Args:
        root: folder with the images.
        pretraining: how many images to train the whole network on.
        samples: how many others to train the head on; None for all that pretraining leaves.
        seed: of the split and the initial parameters.
    """
    images, labels = load(root, "train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))  # it comes by class
    clean, kept = order[:pretraining], order[pretraining:][:samples]
    network = pretrained(images[clean], labels[clean], seed)
    frozen, head = network[:5], network[5:]
    test_images, test_labels = load(root, "test")
    with torch.no_grad():
        return head, (frozen(images[kept]), labels[kept]), (frozen(test_images), test_labels)


def accuracy_bounds(model: CertifiedModel, x: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy, and that of the worst and the best model within the bounds, each sample on its own."""
    certification = model.certify(x)
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
    """For every n the certified range, the accuracy that each kind of attack changes most, and that change's share."""
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


if __name__ == "__main__":
    main()
