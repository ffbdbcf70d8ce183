"""TensorFloat-32 is refused before the first step; no GPU is needed to see that."""

import pytest
import torch
from torch import nn

from agt_lightning.capture import capture
from agt_lightning.engine.precision import precision_problems

CUDA = torch.device("cuda")


@pytest.fixture(params=[False, True], ids=["float32", "tf32"])
def tf32(request):
    """Whether TensorFloat-32 is allowed, for both kinds of calls."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = request.param
    torch.set_float32_matmul_precision("high" if request.param else "highest")
    yield request.param
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


def graph_of(*layers, inputs, dtype=torch.float32):
    module = nn.Sequential(*layers).to(dtype)
    return capture(module, lambda leaves: module(leaves[0]), [torch.zeros(2, *inputs, dtype=dtype)])


@pytest.mark.parametrize(
    ("layer", "inputs", "setting"),
    [
        (nn.Linear(3, 2), (3,), "set_float32_matmul_precision"),
        (nn.Conv1d(1, 2, 2), (1, 4), "cudnn.allow_tf32 = False"),
        (nn.Conv2d(1, 2, 2), (1, 4, 4), "cudnn.allow_tf32 = False"),
        (nn.ConvTranspose2d(1, 2, 2), (1, 4, 4), "cudnn.allow_tf32 = False"),
    ],
)
def test_reduced_products_name_their_setting(layer, inputs, setting, tf32):
    problems = precision_problems(graph_of(layer, inputs=inputs), torch.float64, CUDA)
    assert [setting in problem for problem in problems] == [True] * tf32


def test_convolutions_are_reduced_unless_told_otherwise():
    assert len(precision_problems(graph_of(nn.Conv2d(1, 2, 2), inputs=(1, 4, 4)), torch.float64, CUDA)) == 1
    assert not precision_problems(graph_of(nn.Linear(3, 2), inputs=(3,)), torch.float64, CUDA)


def test_neither_float64_nor_a_cpu_is_concerned(tf32):
    layers = nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(18, 1)
    single = graph_of(*layers, inputs=(1, 4, 4))
    assert len(precision_problems(single, torch.float64, CUDA)) == 2 * tf32
    assert not precision_problems(single, torch.float64, torch.device("cpu"))
    double = graph_of(*layers, inputs=(1, 4, 4), dtype=torch.float64)
    assert not precision_problems(double, torch.float64, CUDA)
    assert len(precision_problems(double, torch.float32, CUDA)) == 2 * tf32
