import pytest
import torch

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from agt_lightning.gradients import Deferred, Elementwise, deferred
from agt_lightning.interval import Interval

ROUNDING = 1e-12
"""Order of summation of a few numbers near one."""


@pytest.fixture
def values():
    center = torch.randn(7, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Interval(center - 0.1, center + 0.2)


def test_every_answer_equals_that_of_the_values(values, monkeypatch):
    monkeypatch.setattr(deferred, "BUDGET", 2 * 6 * 64)  # two samples at a time
    whole = Elementwise(values)
    asked = []

    def evaluate(rows):
        asked.append(rows.stop - rows.start)
        return values[rows]

    parts = Deferred(evaluate, 7, (3, 2))
    weights = torch.rand(7, dtype=torch.float64)
    for got, expected in (
        (parts.block(2, 6), whole.block(2, 6)),
        (parts.total(weights), whole.total(weights)),
        (parts.square_sums(), whole.square_sums()),
    ):
        assert float((got.lower - expected.lower).abs().max()) <= ROUNDING
        assert float((got.upper - expected.upper).abs().max()) <= ROUNDING
    assert parts.scale(weights) == pytest.approx(whole.scale(weights))
    assert max(asked) == 2


def test_bounds_do_not_depend_on_the_budget(monkeypatch):
    def box():
        torch.manual_seed(0)
        module = torch.nn.ParameterDict({"w": torch.randn(2, 3, 4, dtype=torch.float64)})
        x, y = torch.randn(6, 2, 5, 3, dtype=torch.float64), torch.randn(6, 2, 5, 4, dtype=torch.float64)
        loss = lambda m, batch: torch.nn.functional.mse_loss(batch[0] @ m["w"], batch[1])  # noqa: E731
        engine = AbstractGradientEngine(module, loss, BoundedAdversary(n=1, epsilon=0.1))
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(2):
            engine.step([(x, y)], optimizer)
        return engine.box["w"]

    whole = box()
    monkeypatch.setattr(deferred, "BUDGET", 1)
    parts = box()
    assert float((whole.lower - parts.lower).abs().max()) <= ROUNDING
    assert float((whole.upper - parts.upper).abs().max()) <= ROUNDING
