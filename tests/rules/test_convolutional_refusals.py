"""Calls of convolutions, pooling and normalization that mix samples, or have no bounds, are refused with a way out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agt_lightning.capture import capture, reached
from agt_lightning.propagation import Program
from agt_lightning.rules import RULES

IMAGES = torch.ones(4, 2, 5, 5)
ROWS = torch.ones(4, 6)


class Owner(nn.Module):
    """Parameters and layers that the calls use."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(4, 4, 3))
        self.statistics = nn.Parameter(torch.ones(2))
        self.training_norm = nn.BatchNorm2d(2)
        self.evaluation_norm = nn.BatchNorm2d(2).eval()
        self.without_statistics = nn.BatchNorm2d(2, track_running_stats=False).eval()
        self.instance = nn.InstanceNorm2d(2, track_running_stats=True)
        self.convolution = nn.Conv2d(2, 3, 3)


def problems(function, *leaves):
    owner = Owner()
    graph = capture(owner, lambda tensors: function(owner, *tensors), leaves)
    return Program.build(
        graph,
        RULES,
        samples=reached(graph, set(graph.leaves)),
        trainable=reached(graph, set(graph.parameters)),
    ).problems


REFUSED = {
    "samples as channels": (
        lambda m, x: F.conv1d(x, m.kernel),
        (ROWS,),
        r"aten.conv1d.*one kernel to each sample.*shape .batch, channels.*unsqueeze",
    ),
    "kernel made of samples": (
        lambda m, x: F.conv1d(m.kernel, x[:, None, :3].expand(4, 4, 3)),
        (ROWS,),
        "one kernel to each sample|does not depend on the batch",
    ),
    "indices of the maximum": (
        lambda m, x: F.max_pool2d(m.convolution(x), 2, return_indices=True)[1].to(torch.float32),
        (IMAGES,),
        "max_pool2d_with_indices.*indices of the largest entries.*return_indices=False",
    ),
    "batch statistics": (
        lambda m, x: m.training_norm(x),
        (IMAGES,),
        r"training mode: it uses statistics of the whole batch.*GroupNorm.*eval\(\)",
    ),
    "no running statistics": (
        lambda m, x: m.without_statistics(x),
        (IMAGES,),
        "training mode: it uses statistics of the whole batch",
    ),
    "trained statistics": (
        lambda m, x: F.batch_norm(x, m.statistics.detach(), m.statistics.detach()),
        (IMAGES,),
        "changes a parameter before it meets the data",
    ),
    "gain made of samples": (
        lambda m, x: F.layer_norm(x @ m.kernel[0, :, :1].expand(4, 6).T, (4,), weight=x[:, 0]),
        (ROWS,),
        "parameters that depend on the batch",
    ),
    "normalization over the samples": (
        lambda m, x: F.layer_norm(x, (4, 6)),
        (ROWS,),
        "normalizes over the samples.*last axes only",
    ),
    "running statistics of instances": (
        lambda m, x: m.instance(x),
        (IMAGES,),
        "instance_norm.*running statistics.*track_running_stats=False|has no bound rule",
    ),
    "negative divisor": (
        lambda m, x: F.avg_pool2d(x, 2, divisor_override=-2),
        (IMAGES,),
        "avg_pool2d.*negative divisor",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name):
    function, leaves, message = REFUSED[name]
    found = problems(function, *leaves)
    assert found
    with pytest.raises(ValueError, match=message):
        raise ValueError("\n".join(found))


ACCEPTED = {
    "evaluation mode": (lambda m, x: m.evaluation_norm(x), IMAGES),
    "convolution": (lambda m, x: m.convolution(x), IMAGES),
    "layer normalization of an image": (lambda m, x: F.layer_norm(x, (2, 5, 5)), IMAGES),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_sound_use_is_accepted(name):
    function, leaf = ACCEPTED[name]
    assert problems(function, leaf) == ()
