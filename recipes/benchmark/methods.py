r"""What each method of propagation costs and gains on household power: 11 → 64 → 64 → 64 → 1, six certified steps.

CPU time of one thread, the median over the last four steps; at the first, parameters are still known exactly. A tenth
of each batch is poisoned with ε = 0.01. `"alpha-crown"` certifies outputs after a training by `"tightest"`.

    python -m recipes.crown_cost --root path/to/data
"""

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import process_time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agt_lightning import AbstractGradientEngine, BoundedAdversary, CertifiedModel
from agt_lightning.propagation import METHODS, Method
from recipes.data.household import Household
from recipes.models.perceptron import perceptron

STEPS = 6
TIMED = 4
HELD_OUT = 100

Batch = tuple[Tensor, Tensor]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m recipes.crown_cost``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=None, help="folder of the data; AGT_DATA_ROOT if left out")
    parser.add_argument("--samples", type=int, default=200, help="samples of a batch")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data = Household(chosen.root, batch_size=chosen.samples)
    data.prepare_data()
    data.setup()
    x, y = data.splits["train"]
    batches = list(zip(x.split(chosen.samples)[:STEPS], y.split(chosen.samples)[:STEPS], strict=True))
    held_out = data.splits["test"][0][:HELD_OUT]
    print(f"{'method':12} {'s per step':>10} {'mean width':>11} {'output width':>13} {'s per 100 outputs':>18}")
    for method in METHODS:
        seconds, width, outputs, asked = costs(method, batches, held_out)
        print(f"{method:12} {seconds:10.3f} {width:11.3g} {outputs:13.3g} {asked * 100 / HELD_OUT:18.3f}", flush=True)


def costs(method: Method, batches: Sequence[Batch], held_out: Tensor) -> tuple[float, float, float, float]:
    """Seconds of a step, mean width of parameters, mean width of held-out outputs, and seconds for these."""
    torch.manual_seed(0)
    network = perceptron([11, 64, 64, 64, 1], torch.float64)
    adversary = BoundedAdversary(n=len(batches[0][0]) // 10, epsilon=0.01)
    training: Method = "tightest" if method == "alpha-crown" else method
    engine = AbstractGradientEngine(network, squared_error, adversary, domains=("box",), method=training)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.005)
    seconds = []
    for batch in batches:
        start = process_time()
        engine.step([batch], optimizer)
        seconds.append(process_time() - start)
    model = CertifiedModel(copy.deepcopy(network), engine.bounds, method=method)
    start = process_time()
    outputs = model.bound_forward(held_out)
    asked = process_time() - start
    return median(seconds[-TIMED:]), engine.bounds.mean_width(), float(outputs.width.mean()), asked


def squared_error(module: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error of the only output."""
    return F.mse_loss(module(batch[0]).squeeze(-1), batch[1])


if __name__ == "__main__":
    main()
