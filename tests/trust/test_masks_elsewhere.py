"""Dropout on values whose samples are not first, as in `nn.MultiheadAttention` that returns its weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agt_lightning import BoundedAdversary
from agt_lightning.capture.layout import Layout
from tests.trust.harness import Case, held
from tests.trust.modules import Regressor, variant

MOVED = BoundedAdversary(n=1, epsilon=0.05)


def attention(self):
    return nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True)


def of_attention(self, x, y):
    h, _ = self.net(x, x, x)  # returns the weights by default: dropout acts on (b heads, t, t)
    return F.mse_loss(h.mean((1, 2)), y[:, 0])


def folded(self):
    return nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.3), nn.Linear(3, 1))


def of_folded(self, x, y):
    return F.mse_loss(self.net(x.flatten(0, 1)).unflatten(0, (-1, 3)).mean((1, 2)), y[:, 0])


def of_steps_first(self, x, y):
    return F.mse_loss(self.net(x.transpose(0, 1)).mean((0, 2)), y[:, 0])  # dropout acts on (t, b, 3)


def data(samples: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 3, 4, generator=generator, dtype=torch.float64)
    return {"x": x, "y": torch.randn(samples, 1, generator=generator, dtype=torch.float64)}


@pytest.mark.parametrize(
    ("network", "loss"),
    [(attention, of_attention), (folded, of_steps_first), (folded, of_folded)],
    ids=["attention", "steps first", "folded"],
)
@pytest.mark.thinned(1)
def test_bounds_contain_every_poisoned_run(network, loss):
    """The last batch is smaller, so that its masks are too."""
    step = lambda self, batch, batch_idx: loss(self, *batch)  # noqa: E731
    module = variant(Regressor, network=network, training_step=step, rate=0.05)
    held(Case(module, MOVED, data(7), settings={"domains": "box"}), reach=0.003)


@pytest.mark.parametrize("layout", [Layout(1), Layout(0, after=3), Layout(0, before=3), Layout(1, before=2, after=2)])
def test_each_sample_gets_its_own_part(layout):
    samples, rest = 5, 4
    value = torch.full((samples * layout.folded if layout.axis == 0 else rest, samples * layout.folded), -1.0)
    for index in range(value.shape[layout.axis]):
        value.select(layout.axis, index)[:] = index // layout.after % samples
    first = layout.samples_first(value)
    assert first.shape == layout.first(value.shape)
    assert all(bool((first[sample] == sample).all()) for sample in range(samples))
