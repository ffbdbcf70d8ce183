"""Cost and gain of each method of propagation on household power: 11 → 64 → 64 → 64 → 1, six certified steps.

CPU time, the median over the last four steps; at the first, parameters are still known exactly. A tenth of each batch
is poisoned with ε = 0.01. ``"alpha-crown"`` certifies outputs after a training by ``"tightest"``.
"""

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
from recipes.benchmark.report import Row
from recipes.data.household import Household
from recipes.models.perceptron import perceptron

STEPS = 6
TIMED = 4
HELD_OUT = 100

Batch = tuple[Tensor, Tensor]


def rows(root: Path | None, samples: int) -> list[Row]:
    """Measure every method, and return one row for each.

    Args:
        root: folder of the data; None for the environment variable ``AGT_DATA_ROOT``.
        samples: of a batch.
    """
    data = Household(root, batch_size=samples)
    data.prepare_data()
    data.setup()
    x, y = data.splits["train"]
    batches = list(zip(x.split(samples)[:STEPS], y.split(samples)[:STEPS], strict=True))
    held_out = data.splits["test"][0][:HELD_OUT]
    found: list[Row] = []
    for method in METHODS:
        seconds, width, outputs, certified = costs(method, batches, held_out)
        values = {"s per step": seconds, "mean width": width, "output width": outputs}
        values |= {"s per 100 outputs": certified * 100 / HELD_OUT}
        found.append({"method": method, **values})
        print(f"{method}: " + ", ".join(f"{name} {value:.3g}" for name, value in values.items()), flush=True)
    return found


def costs(method: Method, batches: Sequence[Batch], held_out: Tensor) -> tuple[float, float, float, float]:
    """Return seconds of a step, mean width of parameters, mean width of held-out outputs, and seconds for these."""
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
    certified = process_time() - start
    return median(seconds[-TIMED:]), engine.bounds.mean_width(), float(outputs.width.mean()), certified


def squared_error(module: nn.Module, batch: Batch) -> Tensor:
    """Return the mean squared error of the only output."""
    return F.mse_loss(module(batch[0]).squeeze(-1), batch[1])
