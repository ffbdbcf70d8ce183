"""Settings and numbers with which float32 is not computed as the bounds assume (docs/floats.md, section 2).

Products in TensorFloat-32 or bfloat16 cut the factors to 10 or 7 bits; a training with them would fail the self-checks
at its first step. Winograd's and Fourier's algorithms compute a convolution by sums with cancellation, whose errors
exceed those of a sum of products. Either is refused before the first step, with the setting that is the reason. So is a
number in the code that is no normal number in the type of the run or of the bounds: it loses more than the last digit.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from agt_lightning.capture.graph import JOINT_TERMS, Call, Graph
from agt_lightning.rounding import Floats

_PRODUCTS = frozenset(
    f"aten::{name}"
    for name in ("linear", "matmul", "mm", "bmm", "mv", "addmm", "addbmm", "baddbmm", "addmv", "dot", "einsum")
) | {"aten::bilinear", "aten::scaled_dot_product_attention", "aten::_scaled_dot_product_attention_math"}

_SUMS = frozenset({torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor, torch.ops.aten.rsub.Scalar})

_REMEDY = "or train in float64, with bounds in float64."


def precision_problems(graph: Graph, bounds: torch.dtype, device: torch.device, floats: Floats = "run") -> list[str]:
    """Return a sentence for each kind of call that torch may compute less precisely than assumed, with its way out.

    Args:
        graph: the captured loss.
        bounds: type that bounds are computed in; float32 bounds would lose digits to the same setting.
        device: of training and bounds.
        floats: whether bounds contain runs as hardware executes them; only then the algorithm of a convolution matters.
    """
    problems = [*_setting_problems(graph, bounds, device, floats), *_number_problems(graph, bounds)]
    return [*problems, *_flushing_problems(device, floats)]


def _flushing_problems(device: torch.device, floats: Floats) -> list[str]:
    """Return a problem if a CPU is set to read numbers below the smallest normal one as zero."""
    subnormal = torch.full((1,), torch.finfo(torch.float32).tiny / 8)
    if floats == "real" or device.type != "cpu" or bool(subnormal + subnormal != 0):
        return []
    return [
        "Expected subnormal numbers to be kept, but torch reads them as zero. Call `torch.set_flush_denormal(False)` "
        'before training, or use `floats="real"`, whose bounds are about runs in real arithmetic.'
    ]


def _number_problems(graph: Graph, bounds: torch.dtype) -> list[str]:
    problems = []
    for call in graph.calls:
        types = [dtype for dtype in (call.dtype, bounds) if dtype.is_floating_point]
        narrow = max(types, key=lambda each: torch.finfo(each).tiny)
        lost = [value for value in _factors(call) if not _is_normal(value, narrow)]
        if lost:
            problems.append(
                f"Expected numbers that {narrow} holds with all its digits, but `{call.op._schema.name}` at "
                f"{call.source} has {lost[0]:g}. Choose other units, or compute in float64 with bounds in float64."
            )
    return problems


def _factors(call: Call) -> list[float]:
    """Return the numbers of a call, but for one that is added as it is, which may be lost beside a larger one."""
    added = {"other"} if call.op in _SUMS and call.arguments.get("alpha", 1) == 1 else set()
    return [float(v) for name, v in call.arguments.items() if name not in added and isinstance(v, float)]


def _is_normal(value: float, dtype: torch.dtype) -> bool:
    limits = torch.finfo(dtype)
    return value == 0 or not math.isfinite(value) or limits.tiny <= abs(value) <= limits.max


def _setting_problems(graph: Graph, bounds: torch.dtype, device: torch.device, floats: Floats) -> list[str]:
    single = [call for call in graph.calls if torch.float32 in (call.dtype, bounds)]
    convolution = next((call for call in single if _is_convolution(call)), None)
    product = next((call for call in single if call.op._schema.name in _PRODUCTS), None)
    recurrent = next((call for call in single if JOINT_TERMS in call.arguments), None)
    problems = []
    if recurrent is not None and device.type == "cuda":
        problems += _recurrent_problems(recurrent)
    if convolution is not None:
        problems += _convolution_problems(convolution, device, floats)
    if product is not None:
        problems += _product_problems(product, device)
    return problems


def _convolution_problems(call: Call, device: torch.device, floats: Floats) -> list[str]:
    backends: Any = torch.backends
    if device.type == "cuda":
        if _allowed(backends.cudnn, getattr(backends.cudnn, "conv", None)):
            reason = _reduced(call, "a convolution")
            return [f"{reason} Set `torch.backends.cudnn.allow_tf32 = False` before training, {_REMEDY}"]
        if floats == "run" and backends.cudnn.enabled:
            return [_transformed(call, "cuDNN", "Set `torch.backends.cudnn.enabled = False` before training")]
        return []
    if _cut_on_cpu("conv"):
        return [
            f"{_reduced(call, 'a convolution')} Set `torch.backends.mkldnn.conv.fp32_precision = 'ieee'`, {_REMEDY}"
        ]
    if floats == "run" and _may_use_nnpack():
        return [_transformed(call, "NNPACK", "Call `torch.backends.nnpack.set_flags(False)` before training")]
    return []


def _recurrent_problems(call: Call) -> list[str]:
    cudnn: Any = torch.backends.cudnn
    if not _allowed(cudnn, getattr(cudnn, "rnn", None)):
        return []
    reason = _reduced(call, "a recurrent layer")
    return [f"{reason} Set `torch.backends.cudnn.allow_tf32 = False` before training, {_REMEDY}"]


def _product_problems(call: Call, device: torch.device) -> list[str]:
    backends: Any = torch.backends
    cut = device.type == "cuda" and _allowed(backends.cuda.matmul, backends.cuda.matmul)
    if cut or (device.type == "cpu" and _cut_on_cpu("matmul")):
        reason = _reduced(call, "a matrix product")
        return [f"{reason} Call `torch.set_float32_matmul_precision('highest')` before training, {_REMEDY}"]
    return []


def _cut_on_cpu(kind: str) -> bool:
    """Return whether oneDNN may cut the factors of products or convolutions on a CPU."""
    precision = getattr(getattr(torch.backends.mkldnn, kind, None), "fp32_precision", "none")
    return precision in ("tf32", "bf16")


def _may_use_nnpack() -> bool:
    """Return whether a convolution may be computed by NNPACK, which is used where oneDNN is not."""
    onednn = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    return not onednn and bool(torch._nnpack_available()) and bool(torch._C._get_nnpack_enabled())


def _is_convolution(call: Call) -> bool:
    return call.op._schema.name.startswith("aten::conv")


def _allowed(owner: Any, kind: Any) -> bool:
    """Return whether TensorFloat-32 is allowed, by the setting of this kind of call or, before torch 2.9, its owner's.

    The older setting cannot be read where a program has used the newer one.
    """
    precision = getattr(kind, "fp32_precision", None) if hasattr(torch.backends, "fp32_precision") else None
    return bool(owner.allow_tf32) if precision is None else bool(precision == "tf32")


def _reduced(call: Call, kind: str) -> str:
    return (
        f"Expected float32 with all its digits, but torch may compute {kind} with factors cut to fewer bits "
        f"(TensorFloat-32 or bfloat16; at {call.source})."
    )


def _transformed(call: Call, library: str, remedy: str) -> str:
    return (
        f"Expected convolutions as sums of products, but {library} may compute one by Winograd's or Fourier's "
        f"algorithm, whose rounding errors have no such bound (at {call.source}). {remedy}, or train in float64, or "
        'use `floats="real"`, whose bounds are about runs in real arithmetic.'
    )
