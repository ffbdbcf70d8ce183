"""Calls on buffers and constants alone: bounded like those on samples where their rules take them, else evaluated."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agt_lightning.interval import Interval
from agt_lightning.propagation.evaluated import _result
from agt_lightning.propagation.loss_capture import LossCapture
from agt_lightning.rules import RULES

CALLS = {
    "probabilities of a vector": ((4,), lambda b: (2 * b).softmax(0)),
    "probabilities of columns": ((3, 4), lambda b: b.log_softmax(0)[1]),
    "logarithm of a sum": ((4,), lambda b: b - b.logsumexp(0)),
    "normalization of a vector": ((4,), lambda b: F.layer_norm(b, (4,))),
    "statistics of a constant": ((3, 4), lambda b: F.batch_norm(b, None, None, training=True)[0]),
    "products of vectors": ((4, 4), lambda b: F.linear(b[0], b) + b[1] @ b + b[1] @ b[2]),
    "one image": ((1, 4), lambda b: F.conv1d(b, b.new_ones(1, 1, 3), padding=1)[0]),
    "one number": ((), lambda b: b.expand(4)),
}


class Scaled(nn.Module):
    def __init__(self, shape, change):
        super().__init__()
        self.register_buffer("scale", torch.rand(shape) + 0.2)
        self.change = change
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(x * self.change(self.scale))


@pytest.mark.parametrize("name", CALLS)
def test_bounds_contain_what_single_precision_computes(name):
    torch.manual_seed(0)
    module, x = Scaled(*CALLS[name]), torch.randn(5, 4)
    captured = LossCapture(RULES).once(module, lambda m, b: m(b[0]).square().mean(), (x,))
    assert not captured.problems
    bounded = captured.rounded(torch.float64, "run")
    parameters = {key: Interval.point(value.detach().double()) for key, value in module.named_parameters()}
    bounds = bounded.forward(bounded.inputs(module, (x,), parameters, torch.float64))
    graph = bounded.program.graph
    values = {key: module.get_parameter(target).detach() for key, target in graph.parameters.items()}
    values |= {key: module.get_buffer(target) for key, target in graph.buffers.items()}
    values |= dict.fromkeys(graph.leaves, x) | dict(graph.constants)
    for call in graph.calls:
        values[call.name] = _result(call, values)
        if call.name in bounds:
            assert bounds[call.name].contains(values[call.name].double()), call
            assert float(bounds[call.name].width.max()) < 1e-3, call
