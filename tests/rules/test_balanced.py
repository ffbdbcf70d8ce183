"""Gradients of cross entropy add up to zero only up to rounding, which is absolute: also where all of them are tiny."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agt_lightning.interval import Interval
from agt_lightning.propagation.loss_capture import LossCapture
from agt_lightning.rules import RULES
from agt_lightning.rules.loss import CrossEntropyRoundings


class TwoLayers(nn.Module):
    """Large weights with a large common part, so that what entries add up to is multiplied by it."""

    def __init__(self, gap):
        super().__init__()
        self.first = nn.Linear(1, 2)
        self.last = nn.Linear(2, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0], [1.0]]))
            self.first.bias.zero_()
            self.last.weight.copy_(torch.tensor([[5.0, 1.0], [6.0, 2.0]]))
            self.last.bias.copy_(torch.tensor([gap, 0.0]))

    def forward(self, x):
        return self.last(self.first(x))


def excess(dtype, gap):
    """Return how far the gradient of the first layer leaves its bounds in a run."""
    module = TwoLayers(gap).to(dtype)
    batch = torch.tensor([[0.5], [0.25]], dtype=dtype), torch.tensor([0, 0])

    def loss(module, batch):
        return F.cross_entropy(module(batch[0]), batch[1], reduction="sum")

    bounded = LossCapture(RULES).of(module, loss, batch).rounded(torch.float64, "run")
    points = {name: Interval.point(p.detach()).to(dtype=torch.float64) for name, p in module.named_parameters()}
    gradient = bounded.gradients(
        bounded.forward(bounded.inputs(module, batch, points, torch.float64)), 2, torch.float64
    )
    worst = 0.0
    for row in range(2):
        part = tuple(tensor[row : row + 1] for tensor in batch)
        module.zero_grad()
        loss(module, part).backward()
        found = gradient["first.bias"].block(0, 2)
        value = module.first.bias.grad.double()
        worst = max(worst, float(torch.maximum(found.lower[:, row] - value, value - found.upper[:, row]).max()))
    return worst


CASES = [(torch.float32, 17.0), (torch.float32, 20.0), (torch.float64, 40.0), (torch.float32, 2.0)]


@pytest.mark.parametrize(("dtype", "gap"), CASES, ids=str)
def test_confident_samples_stay_inside(dtype, gap):
    assert excess(dtype, gap) <= 0


def test_a_sum_that_is_taken_for_zero_is_found(monkeypatch):
    """Planted fault."""
    nothing = lambda self, logits, probabilities, target, arithmetic: torch.zeros(len(logits.lower), 1)  # noqa: E731
    monkeypatch.setattr(CrossEntropyRoundings, "_imbalance", nothing)
    assert excess(torch.float32, 17.0) > 0
