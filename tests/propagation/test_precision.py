"""Settings under which float32 is less precise than assumed are refused; no GPU is needed to see that."""

import pytest
import torch
from torch import nn

from agt_lightning.capture import capture
from agt_lightning.propagation.precision import precision_problems

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
    problems = precision_problems(graph_of(layer, inputs=inputs), torch.float64, CUDA, "real")
    assert [setting in problem for problem in problems] == [True] * tf32


def test_convolutions_are_reduced_unless_told_otherwise():
    assert len(precision_problems(graph_of(nn.Conv2d(1, 2, 2), inputs=(1, 4, 4)), torch.float64, CUDA)) == 1
    assert not precision_problems(graph_of(nn.Linear(3, 2), inputs=(3,)), torch.float64, CUDA)


def test_float64_is_not_concerned(tf32):
    layers = nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(18, 1)
    single = graph_of(*layers, inputs=(1, 4, 4))
    assert len(precision_problems(single, torch.float64, CUDA, "real")) == 2 * tf32
    double = graph_of(*layers, inputs=(1, 4, 4), dtype=torch.float64)
    assert not precision_problems(double, torch.float64, CUDA)
    assert len(precision_problems(double, torch.float32, CUDA, "real")) == 2 * tf32


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
def test_a_cpu_that_cuts_factors_is_refused(precision):
    single = graph_of(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(18, 1), inputs=(1, 4, 4))
    kinds = torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = precision
        problems = precision_problems(single, torch.float64, torch.device("cpu"))
    finally:
        for kind, value in zip(kinds, before, strict=True):
            kind.fp32_precision = value
    assert len(problems) == 2 * (precision != "ieee")


def test_winograd_is_refused_for_float_runs_alone(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    single = graph_of(nn.Conv2d(1, 2, 2), inputs=(1, 4, 4))
    (problem,) = precision_problems(single, torch.float64, CUDA)
    assert "cudnn.enabled = False" in problem
    assert not precision_problems(single, torch.float64, CUDA, "real")
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    assert not precision_problems(single, torch.float64, CUDA)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch's own setter warns of a setting that it restores
@pytest.mark.skipif(not torch._nnpack_available(), reason="this build has no NNPACK")
def test_nnpack_is_refused_where_onednn_is_off():
    single = graph_of(nn.Conv2d(1, 2, 2), inputs=(1, 4, 4))
    with torch.backends.mkldnn.flags(enabled=False):
        with torch.backends.nnpack.flags(enabled=True):
            (problem,) = precision_problems(single, torch.float64, torch.device("cpu"))
            assert "nnpack.set_flags(False)" in problem
        with torch.backends.nnpack.flags(enabled=False):
            assert not precision_problems(single, torch.float64, torch.device("cpu"))


def test_numbers_that_a_type_does_not_hold_are_refused():
    class Scaled(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.linear, self.factor = nn.Linear(1, 1).double(), factor

        def forward(self, x):
            return self.linear(x) * self.factor

    def problems(factor, dtype, bounds):
        module = Scaled(factor).to(dtype)
        graph = capture(module, lambda leaves: module(leaves[0]), [torch.zeros(2, 1, dtype=dtype)])
        return precision_problems(graph, bounds, torch.device("cpu"))

    single, double = torch.float32, torch.float64
    assert not problems(1e-46, double, double)
    assert not problems(1e-30, single, single)
    for factor, dtype, bounds in ((1e-46, single, double), (1e-46, double, single), (1e40, single, double)):
        (problem,) = problems(factor, dtype, bounds)
        assert f"{factor:g}" in problem


@pytest.mark.parametrize(
    ("number", "weight", "problems"), [(1e40, 1e-30, 1), (1e-42, 1e30, 1), (1e-42, 1, 0), (2, 3, 0)]
)
def test_a_weighted_summand_that_a_type_does_not_hold_is_refused(number, weight, problems):
    """A run takes infinity, or 1.0005e-42, and multiplies it by the weight."""
    graph = capture(nn.Linear(1, 1), lambda leaves: leaves[0].add(number, alpha=weight), [torch.zeros(2, 1)])
    assert len(precision_problems(graph, torch.float64, torch.device("cpu"))) == problems


def test_subnormal_numbers_that_count_as_zero_are_refused():
    graph = graph_of(nn.Linear(1, 1), inputs=(1,))
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU keeps subnormal numbers")
    try:
        (problem,) = precision_problems(graph, torch.float64, torch.device("cpu"))
        assert "set_flush_denormal(False)" in problem
        assert not precision_problems(graph, torch.float64, torch.device("cpu"), "real")
    finally:
        torch.set_flush_denormal(False)
