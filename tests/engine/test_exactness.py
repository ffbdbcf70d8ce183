"""The engine's boxes equal those of a slow program that multiplies intervals element by element."""

import math

import pytest
import torch
from torch import Tensor, nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary, UnboundedAdversary, UnsoundBoundError

SUMMATION_ORDER = 1e-12
"""Relative difference that the order of float64 sums makes on these sizes."""

Pair = tuple[Tensor, Tensor]


def product(a: Pair, b: Pair) -> Pair:
    corners = torch.stack([x * y for x in a for y in b])
    return corners.amin(0), corners.amax(0)


def matmul(a: Pair, b: Pair) -> Pair:
    """``a bᵀ``, every product on its own."""
    low, high = product((a[0][:, None], a[1][:, None]), (b[0][None], b[1][None]))
    return low.sum(-1), high.sum(-1)


def softmax(z: Pair) -> Pair:
    low, high = torch.empty_like(z[0]), torch.empty_like(z[0])
    for k in range(z[0].shape[1]):
        own = torch.zeros(z[0].shape[1], dtype=torch.bool)
        own[k] = True
        low[:, k] = torch.where(own, z[0], z[1]).softmax(1)[:, k]
        high[:, k] = torch.where(own, z[1], z[0]).softmax(1)[:, k]
    return low, high


def loss_slope(kind: str, out: Pair, label: Pair) -> Pair:
    if kind == "mse":
        scale = 2 / out[0].shape[1]
        return scale * (out[0] - label[1]), scale * (out[1] - label[0])
    p = softmax(out) if kind == "ce" else (out[0].sigmoid(), out[1].sigmoid())
    return p[0] - label[1], p[1] - label[0]


def sample_gradients(kind: str, layers: list[tuple[Pair, Pair]], x: Pair, label: Pair) -> list[Pair]:
    """Per-sample gradients of weights and biases, (b, o, k) and (b, o), by the formulas of section 3.4."""
    z, inputs, before = x, [], []
    for number, (weight, bias) in enumerate(layers):
        inputs.append(z)
        low, high = matmul(z, weight)
        h = (low + bias[0], high + bias[1])
        before.append(h)
        z = h if number == len(layers) - 1 else (h[0].clamp(min=0), h[1].clamp(min=0))
    d = loss_slope(kind, z, label)
    gradients: list[Pair] = []
    for number in reversed(range(len(layers))):
        zi = inputs[number]
        outer = product((d[0][:, :, None], d[1][:, :, None]), (zi[0][:, None], zi[1][:, None]))
        gradients = [outer, d, *gradients]
        if number:
            d = below(d, layers[number][0], adds_up_to_zero=kind == "ce" and number == len(layers) - 1)
            h = before[number - 1]
            d = product(d, ((h[0] > 0).double(), (h[1] > 0).double()))
    return gradients


def below(d: Pair, weight: Pair, *, adds_up_to_zero: bool) -> Pair:
    """``d W``; for a gradient that adds up to zero both bounds, with W as it is and less the medians of its columns."""
    low, high = matmul(d, (weight[0].T, weight[1].T))
    if not adds_up_to_zero:
        return low, high
    median = ((weight[0] + weight[1]) / 2).median(0).values
    other_low, other_high = matmul(d, ((weight[0] - median).T, (weight[1] - median).T))
    return torch.maximum(low, other_low), torch.minimum(high, other_high)


def top(values: Tensor, n: int) -> Tensor:
    return values.clamp(min=0).sort(0, descending=True).values[:n].sum(0)


def clipped(gradients: list[Pair], kappa: float, clip: str) -> list[Pair]:
    if clip == "value":
        return [(low.clamp(-kappa, kappa), high.clamp(-kappa, kappa)) for low, high in gradients]
    b = gradients[0][0].shape[0]
    low = torch.cat([g[0].reshape(b, -1) for g in gradients], 1)
    high = torch.cat([g[1].reshape(b, -1) for g in gradients], 1)
    least, most = torch.maximum(low, -high).clamp(min=0), torch.maximum(low.abs(), high.abs())
    new_low, new_high = torch.empty_like(low), torch.empty_like(high)
    for j in range(low.shape[1]):
        others = torch.arange(low.shape[1]) != j
        small, large = least[:, others].square().sum(1), most[:, others].square().sum(1)
        for source, target, sign in ((high, new_high, 1), (low, new_low, -1)):
            g = source[:, j]
            norm = (g.square() + torch.where(sign * g >= 0, small, large)).sqrt()
            target[:, j] = g * (kappa / norm).clamp(max=1)
    sizes = [g[0][0].numel() for g in gradients]
    pieces = zip(new_low.split(sizes, 1), new_high.split(sizes, 1), gradients, strict=True)
    return [(a.reshape(g[0].shape), c.reshape(g[0].shape)) for a, c, g in pieces]


def descent(kind: str, layers: list[tuple[Pair, Pair]], x: Tensor, y: Tensor, adversary: object) -> list[Pair]:
    b = len(x)
    clean_label = (y, y)
    clean = sample_gradients(kind, layers, (x, x), clean_label)
    if isinstance(adversary, UnboundedAdversary):
        kappa = adversary.kappa
        return [
            ((low.sum(0) - top(kappa + low, adversary.n)) / b, (high.sum(0) + top(kappa - high, adversary.n)) / b)
            for low, high in clipped(clean, kappa, adversary.clip)
        ]
    label = clean_label
    if adversary.nu:
        flips = adversary.q == 0
        label = (torch.zeros_like(y), torch.ones_like(y)) if flips else (y - adversary.nu, y + adversary.nu)
    worst = sample_gradients(kind, layers, (x - adversary.epsilon, x + adversary.epsilon), label)
    return [
        ((c[0].sum(0) - top(c[0] - w[0], adversary.n)) / b, (c[1].sum(0) + top(w[1] - c[1], adversary.n)) / b)
        for c, w in zip(clean, worst, strict=True)
    ]


LOSSES = {
    "mse": lambda module, batch: nn.functional.mse_loss(module(batch[0]), batch[1]),
    "ce": lambda module, batch: nn.functional.cross_entropy(module(batch[0]), batch[1]),
    "bce": lambda module, batch: nn.functional.binary_cross_entropy_with_logits(module(batch[0]), batch[1]),
}

CASES = [
    pytest.param("mse", BoundedAdversary(n=2, epsilon=0.3), id="mse-features"),
    pytest.param("mse", BoundedAdversary(n=3, nu=0.5), id="mse-label-box"),
    pytest.param("mse", BoundedAdversary(n=2, epsilon=0.1, nu=0.2), id="mse-both"),
    pytest.param("ce", BoundedAdversary(n=2, epsilon=0.3), id="ce-features"),
    pytest.param("ce", BoundedAdversary(n=1, nu=1, q=0), id="ce-flips"),
    pytest.param("ce", BoundedAdversary(n=2, epsilon=0.2, nu=1, q=0), id="ce-both"),
    pytest.param("bce", BoundedAdversary(n=2, epsilon=0.3), id="bce-features"),
    pytest.param("bce", BoundedAdversary(n=1, nu=1, q=0), id="bce-flips"),
    pytest.param("ce", BoundedAdversary(n=100, epsilon=0.05), id="whole-batch"),
    pytest.param("ce", BoundedAdversary(n=0), id="nobody"),
    pytest.param("ce", UnboundedAdversary(n=2, kappa=0.05), id="value-clipping"),
    pytest.param("mse", UnboundedAdversary(n=1, kappa=0.5, clip="norm"), id="norm-clipping"),
    pytest.param("ce", UnboundedAdversary(n=0, kappa=0.5, clip="norm"), id="norm-clipping-nobody"),
]


@pytest.mark.thinned(5)
@pytest.mark.parametrize("hidden", [(), (5,), (4, 4)], ids=["linear", "one-hidden", "two-hidden"])
@pytest.mark.parametrize(("kind", "adversary"), CASES)
def test_box_equals_exact_interval_arithmetic(kind, adversary, hidden):
    torch.manual_seed(0)
    outputs = 1 if kind == "bce" else 3
    widths = [3, *hidden, outputs]
    layers = [nn.Linear(i, o, dtype=torch.float64) for i, o in zip(widths[:-1], widths[1:], strict=True)]
    module = nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])
    engine = AbstractGradientEngine(module, LOSSES[kind], adversary)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.2, weight_decay=0.1)
    box = [((la.weight.detach().clone(),) * 2, (la.bias.detach().clone(),) * 2) for la in layers]
    for _ in range(4):
        x = torch.randn(7, 3, dtype=torch.float64)
        index = torch.randint(0, 3, (7,))
        y = {"mse": torch.randn(7, 3, dtype=torch.float64), "bce": (index > 1).double()[:, None], "ce": index}[kind]
        dense = nn.functional.one_hot(index, 3).double() if kind == "ce" else y
        bounds = iter(descent(kind, box, x, dense, adversary))
        box = [tuple(moved(pair, next(bounds)) for pair in layer) for layer in box]
        engine.step([(x, y)], optimizer)
    expected = [pair for layer in box for pair in layer]
    for (name, interval), (low, high) in zip(engine.box.items(), expected, strict=True):
        slack = SUMMATION_ORDER * max(1.0, float(high.abs().max()), float(low.abs().max()))
        assert float((interval.lower - low).abs().max()) <= slack, name
        assert float((interval.upper - high).abs().max()) <= slack, name


def moved(pair: Pair, gradient: Pair, rate: float = 0.2, decay: float = 0.1) -> Pair:
    shrink = 1 - rate * decay
    return shrink * pair[0] - rate * gradient[1], shrink * pair[1] - rate * gradient[0]


def test_oracle_widens_with_the_adversary():
    """The oracle itself is not blind: a stronger adversary moves its bounds."""
    torch.manual_seed(0)
    layer = [((torch.randn(2, 3, dtype=torch.float64),) * 2, (torch.zeros(2, dtype=torch.float64),) * 2)]
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    weak = descent("mse", layer, x, y, BoundedAdversary(n=1, epsilon=0.1))[0]
    strong = descent("mse", layer, x, y, BoundedAdversary(n=2, epsilon=0.1))[0]
    assert math.inf > float((strong[1] - weak[1]).min()) > 0


def test_bounds_that_overflow_name_the_call_where_they_begin_to():
    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([30.0], dtype=torch.float64))

        def forward(self, x):
            return torch.exp(torch.exp(self.weight * x))

    batch = (torch.full((4, 1), 0.2, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64))
    engine = AbstractGradientEngine(
        Tower(),
        lambda m, b: nn.functional.mse_loss(m(b[0]), b[1]),
        BoundedAdversary(n=1, epsilon=1.0),
        domains=("box",),
    )
    with pytest.raises(UnsoundBoundError, match=r"It begins at .*exp.*torch\.exp\(torch\.exp"):
        engine.bound_gradient([batch])


def test_only_poisonable_samples_are_looked_at_where_bounds_overflow():
    """The first exponential would overflow if the trusted sample were poisoned; the last does for the other one."""

    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))

        def forward(self, x):
            inner = torch.exp(self.weight * x)
            return torch.tanh(inner[:, :1]) + torch.exp(inner[:, 1:])

    x = torch.tensor([[706.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    engine = AbstractGradientEngine(
        Tower(),
        lambda m, b: nn.functional.l1_loss(m(b[0]), b[1]),
        BoundedAdversary(n=1, epsilon=6.0),
        domains=("box",),
        poisonable=lambda b: torch.tensor([False, True]),
    )
    with pytest.raises(UnsoundBoundError, match=r"It begins at .*torch\.exp\(inner\[:, 1:\]\)"):
        engine.bound_gradient([(x, torch.zeros(2, 1, dtype=torch.float64))])
