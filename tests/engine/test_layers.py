"""Real poisoned trainings through every kind of layer stay inside the bounds."""

import pytest
import torch
from torch import nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from tests.engine.attacks import LOSSES, Attacks, assert_contained, data

WIDTH = 4


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x + torch.tanh(self.inner(x))


class Tied(nn.Module):
    """One linear layer used twice, and once more through its transpose."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        h = torch.relu(self.inner(torch.relu(self.inner(x))))
        return h @ self.inner.weight


class Gated(nn.Module):
    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        return torch.cat([a * torch.sigmoid(b), b[:, :2] - a, torch.stack([a, b], 1).mean(1)], dim=1)[:, :WIDTH]


class Attention(nn.Module):
    def forward(self, x):
        tokens = x.reshape(-1, 2, 2)
        weights = (tokens @ tokens.transpose(1, 2)).softmax(-1)
        return (weights @ tokens).flatten(1)


class Images(nn.Module):
    """Convolution, pooling and normalization on a 2 x 2 image."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x.view(-1, 1, 2, 2)).flatten(1)


LAYERS = {
    **{
        layer.__name__: layer
        for layer in (nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus, nn.Tanh, nn.Sigmoid, nn.Hardtanh)
    },
    **{layer.__name__: layer for layer in (nn.Hardswish, nn.ReLU6, nn.SELU, nn.CELU, nn.LogSigmoid)},
    "Softmax": lambda: nn.Softmax(dim=1),
    "LogSoftmax": lambda: nn.LogSoftmax(dim=1),
    "LayerNorm": lambda: nn.LayerNorm(WIDTH),
    "GroupNorm": lambda: nn.GroupNorm(2, WIDTH),
    "BatchNorm in eval": lambda: nn.BatchNorm1d(WIDTH).eval(),
    "residual": Residual,
    "tied weights": Tied,
    "chunk, cat, stack": Gated,
    "attention": Attention,
    "convolution, max pool": lambda: Images(nn.Conv2d(1, 4, 2, padding=1), nn.ReLU(), nn.MaxPool2d(2, padding=1)),
    "convolution, average": lambda: Images(nn.Conv2d(1, 4, 3, padding="same"), nn.GELU(), nn.AvgPool2d(2)),
    "transposed convolution": lambda: Images(nn.ConvTranspose2d(1, 1, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(2)),
}


@pytest.mark.thinned(5)
@pytest.mark.parametrize(
    "adversary", [BoundedAdversary(n=2, epsilon=0.1), BoundedAdversary(n=1, epsilon=0.1, p=2, nu=1, q=0)]
)
@pytest.mark.parametrize("name", LAYERS)
def test_bounds_contain_every_poisoned_run(name, adversary):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layer = LAYERS[name]()
    with torch.no_grad():
        width = layer(torch.zeros(2, WIDTH)).shape[1]
    module = nn.Sequential(nn.Linear(3, WIDTH), layer, nn.Linear(width, 3)).double()
    engine = AbstractGradientEngine(module, lambda m, batch: LOSSES["ce"](m(batch[0]), batch[1]), adversary)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    attacks = Attacks(module, "ce", adversary, 0.05, 0.0, generator)
    for x, y in data("ce", generator)[:3]:
        attacks.step(x, y)
        engine.step([(x, y)], optimizer)
        assert_contained(engine, attacks.runs)
    moved = max(float((attacks.runs[k] - p.detach()).abs().max()) for k, p in module.named_parameters())
    assert moved > 1e-6  # the attacks reach the parameters
