"""On a CUDA device: the bounds of the same training on a CPU, and real poisoned trainings stay inside them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary, UncertifiableError
from agt_lightning.adversaries import Adversary
from agt_lightning.capture.dropout import RandomState, draw_masks
from agt_lightning.errors import UnsoundBoundError
from tests.engine import attacks as dense
from tests.engine import test_convolutional_networks as convolutional
from tests.engine.attacks import LOSSES, Attacks, assert_contained
from tests.engine.test_layers import LAYERS, WIDTH
from tests.engine.test_soundness import ADVERSARIES
from tests.lightning.test_dropout import Dropping, attacked

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")

SUMMATION_ORDER = 1e-9
"""Relative to the widest interval of a tensor, beside the rounding of its values."""

RATE = 0.05

FEATURES = BoundedAdversary(n=2, epsilon=0.1)
LABELS = BoundedAdversary(n=2, nu=0.3)
FLIPS = BoundedAdversary(n=1, nu=1, q=0)

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    """A training in float64 that is made on both devices."""

    module: Callable[[], nn.Module]
    kind: str
    adversary: Adversary
    batches: Callable[[torch.Generator], Batches]
    settings: dict[str, object] = field(default_factory=dict)

    def engine(self, device: torch.device) -> tuple[AbstractGradientEngine, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = self.module().double().to(device)
        loss = lambda m, batch: LOSSES[self.kind](m(batch[0]), batch[1])  # noqa: E731
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=RATE)
        return AbstractGradientEngine(module, loss, self.adversary, **self.settings), optimizer

    def attacks(self, module: nn.Module) -> Attacks:
        """Poisoned trainings on the GPU; tensors that they make themselves are there by default."""
        adversary = self.adversary
        if isinstance(getattr(adversary, "epsilon", None), Tensor):
            adversary = replace(adversary, epsilon=adversary.epsilon.to(DEVICE))
        generator = torch.Generator(DEVICE).manual_seed(0)
        with DEVICE:
            return Attacks(module, self.kind, adversary, RATE, 0.0, generator, count=24, alone=3)


def small(kind: str, adversary: Adversary, hidden: tuple[int, ...] = (4,), **settings: object) -> Case:
    batches = lambda generator: dense.data(kind, generator)[:3]  # noqa: E731
    return Case(lambda: dense.network(kind, hidden), kind, adversary, batches, settings)


def with_layer(name: str) -> Case:
    def module() -> nn.Module:
        layer = LAYERS[name]()
        with torch.no_grad():
            width = layer(torch.zeros(2, WIDTH)).shape[1]
        return nn.Sequential(nn.Linear(3, WIDTH), layer, nn.Linear(width, 3))

    return Case(module, "ce", replace(FLIPS, epsilon=0.1, p=2), lambda generator: dense.data("ce", generator)[:2])


def with_images(name: str) -> Case:
    batches = lambda generator: convolutional.data(name, generator)  # noqa: E731
    return Case(lambda: convolutional.network(name), "ce", convolutional.NETWORKS[name].adversary, batches)


CASES = {
    **{f"adversary {parameter.id}": small(*parameter.values) for parameter in ADVERSARIES},
    **{f"layer {name}": with_layer(name) for name in LAYERS},
    **{f"images {name}": with_images(name) for name in convolutional.NETWORKS},
    **{f"method {name}": small("mse", FEATURES, (4, 3), method=name) for name in ("crown", "tightest")},
    "method crown, flips": small("ce", FLIPS, (4,), method="crown"),
    "some can be poisoned": small("mse", FEATURES, poisonable=lambda batch: torch.arange(len(batch[0])) % 2 == 0),
    "domain ball, linear": small("mse", LABELS, (), domains=("ball",)),
    "domain ball, one hidden layer": small("ce", FLIPS, (4,), domains=("ball",)),
    "domain ball, deep": small("mse", FEATURES, (3, 3), domains=("box", "ball")),
    "every domain": small("mse", LABELS, (), domains="auto"),
}


BOUNDS_ALONE = ("some can be poisoned", "layer LogSigmoid")
"""Cases without attacks: these know no mask, and `torch.func.vmap` fails on the backward pass of LogSigmoid on CUDA."""


def on_device(batches: Batches, device: torch.device) -> Batches:
    return [(x.to(device), y.to(device)) for x, y in batches]


@pytest.mark.parametrize("name", [name for name in CASES if name != "layer Hardswish"])
def test_bounds_are_those_of_a_cpu_and_contain_every_poisoned_run(name):
    case = CASES[name]
    batches = case.batches(torch.Generator().manual_seed(1))
    reference, optimizer = case.engine(torch.device("cpu"))
    for batch in batches:
        reference.step([batch], optimizer)
    engine, optimizer = case.engine(DEVICE)
    attacks = None if name in BOUNDS_ALONE else case.attacks(engine.module)
    for x, y in on_device(batches, DEVICE):
        if attacks is not None:
            with DEVICE:
                attacks.step(x, y)
        engine.step([(x, y)], optimizer)
        if attacks is not None:
            contained_in_bounds(engine, attacks.runs)
    assert_same_bounds(engine, reference)


def contained_in_bounds(engine, runs):
    if "box" in engine.domains.in_use:
        assert_contained(engine, runs)
    for name, values in runs.items():
        box = engine.bounds[name]
        assert float(torch.maximum(box.lower - values, values - box.upper).max()) <= dense.ROUNDING, name


def assert_same_bounds(engine, reference):
    for name, expected in reference.bounds.items():
        found = engine.bounds[name]
        assert found.device.type == DEVICE.type, name
        width, size = float(expected.width.max()), float(expected.magnitude.max())
        tolerance = SUMMATION_ORDER * width + 1e-11 * size
        error = max((found.lower.cpu() - expected.lower).abs().max(), (found.upper.cpu() - expected.upper).abs().max())
        assert float(error) <= tolerance, name


def test_rows_of_an_embedding():
    module = lambda: nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Tanh(), nn.Linear(6, 3))  # noqa: E731

    def batches(generator):
        draw = lambda high, *shape: torch.randint(0, high, shape, generator=generator)  # noqa: E731
        return [(draw(5, 6, 2), draw(3, 6)) for _ in range(3)]

    case = Case(module, "ce", FLIPS, batches)
    engines = []
    for device in (torch.device("cpu"), DEVICE):
        engine, optimizer = case.engine(device)
        for batch in on_device(batches(torch.Generator().manual_seed(1)), device):
            engine.step([batch], optimizer)
        engines.append(engine)
    assert_same_bounds(engines[1], engines[0])


def test_poisoned_runs_with_the_same_masks_stay_inside():
    torch.manual_seed(0)
    module = Dropping().double().to(DEVICE)
    adversary = BoundedAdversary(n=2, epsilon=0.3)
    engine = AbstractGradientEngine(module, lambda m, batch: m.training_step(batch, 0), adversary)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    runs = [{k: p.detach().clone() for k, p in module.named_parameters()} for _ in range(10)]
    for _ in range(3):
        batch = tuple(torch.randn(6, size, dtype=torch.float64, device=DEVICE) for size in (3, 1))
        graph = engine.objective(batch).program.graph
        state = RandomState.now()
        engine.step([batch], optimizer)
        masks = list(draw_masks(graph.masks, DEVICE, state).values())
        with DEVICE, torch.random.fork_rng():
            runs = [attacked(module, run, batch, masks, adversary) for run in runs]
        for name, box in engine.box.items():
            assert all(box.contains(run[name], 1e-9) for run in runs)


@pytest.fixture(params=[False, True], ids=["float32", "tf32"])
def tf32(request):
    """Whether torch may compute in TensorFloat-32, for both kinds of calls."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = request.param
    torch.set_float32_matmul_precision("high" if request.param else "highest")
    yield request.param
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


def single_precision(convolve: bool) -> tuple[AbstractGradientEngine, torch.optim.Optimizer, tuple[Tensor, Tensor]]:
    """A training in float32 that is large enough for a GPU to choose its fast kernels."""
    torch.manual_seed(0)
    head = [nn.Flatten(), nn.LazyLinear(64), nn.ReLU(), nn.Linear(64, 3)]
    image = [nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, stride=2)] if convolve else []
    module = nn.Sequential(*image, *head)
    x, y = torch.randn(64, 8, 12, 12), torch.randint(0, 3, (64,))
    module(x[:1])
    module.to(DEVICE)
    engine = AbstractGradientEngine(module, lambda m, batch: LOSSES["ce"](m(batch[0]), batch[1]), FLIPS)
    return engine, torch.optim.SGD(module.parameters(), lr=0.01), (x.to(DEVICE), y.to(DEVICE))


@pytest.mark.parametrize("convolve", [False, True], ids=["dense", "convolutional"])
def test_float32_is_certified_and_its_short_form_refused(convolve, tf32):
    engine, optimizer, batch = single_precision(convolve)
    if tf32:
        with pytest.raises(UncertifiableError, match="TensorFloat-32"):
            engine.step([batch], optimizer)
        assert engine.steps == 0
        return
    for _ in range(3):
        engine.step([batch], optimizer)
    assert engine.bounds.contains(engine.module)


def test_a_kernel_that_loses_digits_stops_the_training():
    """On CUDA, torch multiplies by 1/6 in single precision in Hardswish, even if all else is double."""
    case = CASES["layer Hardswish"]
    engine, optimizer = case.engine(DEVICE)
    batches = on_device(case.batches(torch.Generator().manual_seed(1)), DEVICE)
    with pytest.raises(UnsoundBoundError, match="What is certified is not what is trained"):
        train(engine, optimizer, batches)


def train(engine, optimizer, batches):
    for batch in batches:
        engine.step([batch], optimizer)
