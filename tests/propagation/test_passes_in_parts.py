"""Both passes over a few samples at a time give what they give over all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agt_lightning import AbstractGradientEngine, BoundedAdversary, UnboundedAdversary
from agt_lightning.propagation import passes

SAMPLES = 23

Case = tuple[Callable[[], nn.Module], Callable[[nn.Module, Any], Tensor], dict[str, Any], dict[str, Any]]


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def _convolutional() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(3, 3))


def _frozen() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5).requires_grad_(False), nn.GELU(), nn.Linear(5, 3))


def _twice() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.LayerNorm(4), nn.Linear(4, 3))


class _Transposed(nn.Module):
    """Parameters of single elements, which are read in another order than they are in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 12), nn.Linear(12, 3)
        self.gain, self.shift = (nn.Parameter(torch.randn(4, 3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift units."""
        z = torch.relu(self.first(x)).reshape(-1, 3, 4).transpose(1, 2)
        result: Tensor = self.last((z * self.gain + self.shift).transpose(1, 2).flatten(1))
        return result


def _cross_entropy(module: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(module(batch["x"]), batch["y"])


def _squared_error(module: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(module(batch["x"])[:, 0], batch["t"])


FEATURES = {"epsilon": 0.1}
CASES: dict[str, Case] = {
    "features": (_perceptron, _squared_error, FEATURES, {}),
    "labels": (_perceptron, _squared_error, {"nu": 0.3}, {}),
    "flips": (_perceptron, _cross_entropy, {"nu": 1, "q": 0}, {}),
    "features and flips": (_perceptron, _cross_entropy, {**FEATURES, "nu": 1, "q": 0}, {"poisonable": "mask"}),
    "poisonable at the end": (_perceptron, _squared_error, FEATURES, {"poisonable": "end"}),
    "convolution": (_convolutional, _cross_entropy, FEATURES, {"poisonable": "mask"}),
    "frozen layer": (_frozen, _cross_entropy, {**FEATURES, "nu": 1, "q": 0}, {"poisonable": "mask"}),
    "a layer used twice": (_twice, _cross_entropy, FEATURES, {}),
    "transposed": (_Transposed, _squared_error, FEATURES, {}),
    "tightest": (_perceptron, _cross_entropy, FEATURES, {"method": "tightest", "poisonable": "mask"}),
    "ball as well": (_perceptron, _cross_entropy, {**FEATURES, "p": 2.0}, {"domains": ("box", "ball")}),
    "ball of some": (_perceptron, _cross_entropy, {**FEATURES, "p": 2.0}, {"domains": "auto", "poisonable": "mask"}),
    "all domains": (_frozen, _cross_entropy, {"nu": 1, "q": 0}, {"domains": "auto"}),
}


def _batches() -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(2)
    return [
        {
            "x": torch.randn(size, 4, generator=draw),
            "y": torch.randint(0, 3, (size,), generator=draw),
            "t": torch.randn(size, generator=draw),
            "mask": torch.rand(size, generator=draw) < 0.5,
            "end": torch.arange(size) >= size - 4,
            "id": torch.arange(size) + 100 * number,
        }
        for number, size in enumerate((SAMPLES, 9))
    ]


def _trained(case: Case, adversary: Any) -> AbstractGradientEngine:
    build, loss, _, settings = case
    torch.manual_seed(0)
    module = build()
    engine = AbstractGradientEngine(module, loss, adversary, sample_ids="id", **{"domains": ("box",), **settings})
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        engine.step(_batches(), optimizer)
    return engine


def _require_same(first: AbstractGradientEngine, second: AbstractGradientEngine, slack: float = 1e-9) -> None:
    for name, interval in first.box.items():
        torch.testing.assert_close(interval.lower, second.box[name].lower, rtol=slack, atol=slack / 100)
        torch.testing.assert_close(interval.upper, second.box[name].upper, rtol=slack, atol=slack / 100)


@pytest.mark.thinned(6)
@pytest.mark.parametrize(
    ("name", "cached"), [*((name, 300) for name in CASES), ("features and flips", 8), ("frozen layer", 8)]
)
def test_bounds_do_not_depend_on_the_parts(name: str, cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    adversary = BoundedAdversary(n=3, **CASES[name][2])
    whole = _trained(CASES[name], adversary)
    monkeypatch.setattr(passes, "_CACHED", cached)
    # The ball's slack for rounding is that of the largest sample.
    _require_same(whole, _trained(CASES[name], adversary), 1e-6 if "ball" in name else 1e-9)


@pytest.mark.parametrize("clip", ["value", "norm"])
def test_clipped_gradients_do_not_depend_on_the_parts(clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case: Case = (_perceptron, _cross_entropy, {}, {})
    adversary = UnboundedAdversary(n=2, kappa=0.5, clip=clip)
    whole = _trained(case, adversary)
    monkeypatch.setattr(passes, "_CACHED", 8)
    _require_same(whole, _trained(case, adversary))


def test_parts_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise nothing above would be tested."""
    seen: list[int] = []
    over = passes._Passes.over

    def counted(self: Any, samples: Any) -> Any:
        seen.append(max(len(value.lower) for value in samples.inputs.values() if hasattr(value, "lower")))
        return over(self, samples)

    monkeypatch.setattr(passes, "_CACHED", 300)
    monkeypatch.setattr(passes._Passes, "over", counted)
    _trained(CASES["features"], BoundedAdversary(n=3, epsilon=0.1))
    assert max(seen) == 6
    assert len(seen) > 3 * SAMPLES // 6
