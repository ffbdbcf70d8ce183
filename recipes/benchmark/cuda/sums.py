"""Kernels for sums of the n largest gains, on the layers of the paper's workloads: time, and distance to `torch.topk`.

Factors are random. Inputs of "labels" are points that both passes share; of "features" they are intervals, and wider
ones for poisoned samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from agt_lightning.aggregation import SampleSet
from agt_lightning.aggregation.kernels import OuterGains, TopNKernel, TorchKernel, TritonKernel
from agt_lightning.gradients import OuterProduct
from agt_lightning.interval import Interval
from recipes.benchmark.cuda.request import Request, Write
from recipes.benchmark.step_cost import timed

TILES = (
    TritonKernel(),
    TritonKernel(outputs=4, inputs=4, samples=64),
    TritonKernel(outputs=2, inputs=8, samples=64),
    TritonKernel(outputs=1, inputs=8, samples=128),
)

_UNITS = 4
"""Outputs and inputs of a layer on a CPU, where an interpreter runs the program."""

INTERPRETED = TritonKernel(outputs=4, inputs=4, samples=512)


@dataclass(frozen=True)
class Layer:
    """A layer of the paper's workloads.

    Args:
        name: for tables.
        outputs: its width.
        inputs: that of the layer before.
        samples: that can be poisoned.
        n: poisoned samples.
        features: whether inputs differ between the passes.
    """

    name: str
    outputs: int
    inputs: int
    samples: int
    n: int
    features: bool

    def gains(self, dtype: torch.dtype, device: str) -> OuterGains:
        """Return random gains of its weight."""
        draw = torch.Generator(device).manual_seed(0)

        def noise(units: int) -> Tensor:
            return torch.randn(self.samples, 1, units, generator=draw, dtype=dtype, device=device)

        d, wider = noise(self.outputs), 0.1 * noise(self.outputs).abs()
        z, moved = noise(self.inputs).relu(), 0.01 * noise(self.inputs).abs()
        outputs = Interval.trusted(d - wider, d + wider)
        poisoned = Interval.trusted(d - 3 * wider, d + 4 * wider)
        inputs = Interval.trusted(z - moved, z + moved) if self.features else Interval.point(z)
        further = Interval.trusted(z - 2 * moved, z + 3 * moved) if self.features else inputs
        weights = torch.full((self.samples,), 1 / self.samples, dtype=dtype, device=device)
        return OuterGains([OuterProduct(outputs, inputs)], [OuterProduct(poisoned, further)], SampleSet(weights))


LAYERS = (
    Layer("UCI, hidden layer, features", 64, 11, 10_000, 100, features=True),
    Layer("MNIST-PCA, labels", 10, 32, 60_000, 50, features=False),
    Layer("OCT, hidden layer, features", 100, 3_200, 3_000, 500, features=True),
    Layer("PilotNet, first layer, labels", 100, 1_152, 10_000, 300, features=False),
)


def measure(request: Request, write: Write) -> None:
    """Time each kernel on each layer, and write one row for each.

    Args:
        request: device, share of the samples, and number of sums of a median.
        write: keeps a row.
    """
    for layer in layers(request):
        for dtype in (torch.float64, torch.float32):
            gains = layer.gains(dtype, request.device)
            expected = torch.stack(TorchKernel().outer_sums(gains, layer.n))
            for kernel in kernels(request):
                name = {"layer": layer.name, "o × k": f"{layer.outputs} × {layer.inputs}", "m": layer.samples}
                more = {"n": layer.n, "type": str(dtype).removeprefix("torch."), "kernel": _label(kernel)}
                write({**name, **more, **_compared(kernel, gains, layer.n, expected, request)})


def layers(request: Request) -> Iterator[Layer]:
    """Yield the layers; few units of each on a CPU."""
    for layer in LAYERS:
        samples, n = max(4, round(request.scale * layer.samples)), max(1, round(request.scale * layer.n))
        units = [count if request.device == "cuda" else min(_UNITS, count) for count in (layer.outputs, layer.inputs)]
        yield Layer(layer.name, *units, samples, n, layer.features)


def kernels(request: Request) -> tuple[TopNKernel, ...]:
    """Return the kernels that are compared."""
    return (TorchKernel(), *(TILES if request.device == "cuda" else (INTERPRETED,)))


def _label(kernel: TopNKernel) -> str:
    if isinstance(kernel, TritonKernel):
        return f"Triton {kernel.outputs} × {kernel.inputs} × {kernel.samples}"
    return "torch.topk"


def _compared(
    kernel: TopNKernel, gains: OuterGains, n: int, expected: Tensor, request: Request
) -> dict[str, str | float]:
    try:
        found = torch.stack(kernel.outer_sums(gains, n))
        times = [timed(lambda: kernel.outer_sums(gains, n), request.device).wall for _ in range(request.repeats)]
    except Exception as error:  # a kernel that fails is a result, and others follow
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    distance = float((found - expected).abs().max() / expected.abs().max())
    roundings = distance / torch.finfo(expected.dtype).eps
    wrong = {} if roundings <= 8 * (n + 8) else {"error": "differs by more than rounding"}
    return {"ms": 1e3 * median(times), "largest difference, in roundings": roundings, **wrong}
