"""Programs without calls in place: the same as torch makes them, in a small part of the time."""

import torch
from torch import nn

from agt_lightning.capture.export import capture
from agt_lightning.capture.functional import functional, nodes


class InPlace(nn.Module):
    """Changes a buffer and a value in place, with composite operators before and after."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += len(x)
        h = self.norm(x)
        h[:, 0] = h[:, 1].square_()
        h = self.attention(h[:, None], h[:, None], h[:, None])[0].squeeze(1)
        return nn.functional.cross_entropy(nn.functional.dropout(h, 0.5), x.argmax(1)) + self.seen


class FrozenPart(nn.Module):
    """Changes a value in place inside of a submodule under `torch.no_grad`."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        with torch.no_grad():
            features = self.backbone(x)
        return self.head(features).sum()


def calls(program):
    return [(str(node.target), str(node.args)) for node in nodes(program.graph_module)]


def test_calls_are_those_that_torch_would_keep():
    program = torch.export.export(InPlace(), (torch.randn(6, 4),), strict=False)
    assert calls(functional(program)) == calls(program.run_decompositions({}))
    assert not any("square_" in target or "add_." in target for target, _ in calls(functional(program)))


def test_torch_is_left_as_it_was():
    before = vars(torch.export.exported_program).copy()
    program = torch.export.export(InPlace(), (torch.randn(6, 4),), strict=False)
    functional(program)
    assert vars(torch.export.exported_program) == before


def test_calls_under_no_grad_keep_their_submodules():
    torch.manual_seed(0)
    module = FrozenPart()
    graph = capture(module, lambda leaves: module(leaves[0]), [torch.randn(6, 4)])
    paths = {call.op: call.module for call in graph.calls}
    assert paths[torch.ops.aten.relu.default] == "backbone.1"
    assert {"backbone", "backbone.0", "head"} <= graph.called
    assert torch.ops.aten.detach.default in paths
