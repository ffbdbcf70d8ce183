r"""Box, ball and both where the ball is weakest: few, large steps on a wide head (PneumoniaMNIST, real images).

A small convolutional network is trained on 1 500 images; its convolutions are frozen. Its dense head, 3200 → 100 → 1,
is then trained from where it stands on the other 3 208 images, whose labels can be flipped: four full-batch steps with
rate 0.05 / (1 + 5 t). Certified accuracy on the 624 test images is printed for every strength and written as a table.

    python -m recipes.pneumonia_domains --root path/to/data
"""

import argparse
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agt_lightning import AbstractGradientEngine, BoundedAdversary, CertifiedModel
from recipes.models.scan_classifier import scan_network

PRETRAINING = 1500
STEPS = 4
CHOICES = (("box",), ("ball",), ("box", "ball"))
STRENGTHS = (5, 20, 50, 100)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m recipes.pneumonia_domains``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder with medmnist/pneumoniamnist.npz")
    parser.add_argument("--strengths", type=int, nargs="+", default=list(STRENGTHS), help="flips per step")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the initial parameters")
    parser.add_argument("--output", type=Path, default=Path("outputs/pneumonia_domains.md"), help="table to write")
    chosen = parser.parse_args(arguments)
    train, test = load(chosen.root, "train"), load(chosen.root, "test")
    order = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(chosen.seed))  # it comes by class
    clean, poisonable = ([part[rows] for part in train] for rows in (order[:PRETRAINING], order[PRETRAINING:]))
    network = pretrained(clean[0], clean[1], chosen.seed)
    rows = [
        f"| {n} | {nominal} | {' | '.join(cells)} |" for n, nominal, cells in results(network, poisonable, test, chosen)
    ]
    header = (
        f"| n | nominal | {' | '.join(' and '.join(choice) for choice in CHOICES)} |\n|{'---|' * (2 + len(CHOICES))}"
    )
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text("\n".join([header, *rows]) + "\n")
    print(f"Written to {chosen.output}")


def load(root: Path, split: str) -> list[Tensor]:
    """Images (b, 1, 28, 28) in [0, 1] and labels (b, 1) of 0 and 1.

    Raises:
        FileNotFoundError: if the file is not there.
    """
    path = root / "medmnist" / "pneumoniamnist.npz"
    if not path.is_file():
        raise FileNotFoundError(f"Expected PneumoniaMNIST at {path}. Get pneumoniamnist.npz of MedMNIST, set --root.")
    with np.load(path) as file:
        images, labels = file[f"{split}_images"], file[f"{split}_labels"]
    return [torch.from_numpy(images).double()[:, None] / 255, torch.from_numpy(labels).double().reshape(-1, 1)]


def pretrained(images: Tensor, labels: Tensor, seed: int) -> nn.Sequential:
    """The network after three epochs of Adam; its convolutions are frozen."""
    torch.manual_seed(seed)
    network = nn.Sequential(*(layer for part in scan_network() for layer in part)).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(3):
        for rows in torch.randperm(len(images)).split(100):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(network(images[rows]), labels[rows]).backward()
            optimizer.step()
    network[:5].requires_grad_(False)
    return network


def results(
    network: nn.Sequential, poisonable: Sequence[Tensor], test: Sequence[Tensor], chosen: argparse.Namespace
) -> Iterator[tuple[int, str, list[str]]]:
    """Flips, nominal accuracy and certified accuracy of each choice of domains."""
    for n in chosen.strengths:
        cells, nominal = [], 0.0
        for domains in CHOICES:
            model, engine = fine_tuned(network, poisonable, BoundedAdversary(n=n, nu=1, q=0), domains)
            certification = CertifiedModel(model, engine.bounds, ball=engine.ball).certify(test[0])
            right = certification.label == test[1].reshape(-1).long()
            nominal = right.double().mean().item()
            cells.append(f"{(right & certification.certified).double().mean().item():.3f}")
            print(f"n = {n}, {' and '.join(domains)}: certified {cells[-1]} of {nominal:.3f}", flush=True)
        yield n, f"{nominal:.3f}", cells


def fine_tuned(
    network: nn.Sequential, data: Sequence[Tensor], adversary: BoundedAdversary, domains: Sequence[str]
) -> tuple[nn.Sequential, AbstractGradientEngine]:
    """The head after its steps, with what was kept beside them."""
    model = copy.deepcopy(network)
    head = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(head, lr=0.05)
    engine = AbstractGradientEngine(model, logistic_loss, adversary, domains=domains)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 0.05 / (1 + 5 * step)
        engine.step([tuple(data)], optimizer)
    return model, engine


def logistic_loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean binary cross entropy of the logits."""
    return F.binary_cross_entropy_with_logits(module(batch[0]), batch[1])


if __name__ == "__main__":
    main()
