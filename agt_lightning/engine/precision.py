"""TensorFloat-32 on CUDA: products of float32 numbers whose factors are cut to 10 bits.

The self-checks allow for the rounding of float32, which is thousands of times smaller. A training in TensorFloat-32
would fail them at its first step, so it is refused before, with the setting that is the reason.
"""

from __future__ import annotations

from typing import Any

import torch

from agt_lightning.capture.graph import Call, Graph

_PRODUCTS = frozenset(
    f"aten::{name}"
    for name in ("linear", "matmul", "mm", "bmm", "mv", "addmm", "addbmm", "baddbmm", "addmv", "dot", "einsum")
) | {"aten::bilinear", "aten::scaled_dot_product_attention"}

_REMEDY = "or train in float64, with bounds in float64."


def precision_problems(graph: Graph, bounds: torch.dtype, device: torch.device) -> list[str]:
    """Return a sentence for each kind of call that torch may compute in TensorFloat-32, with its way out.

    torch allows it for convolutions unless told otherwise, and for matrix products only if told so.

    Args:
        graph: the captured loss.
        bounds: type that bounds are computed in; float32 bounds would lose digits to the same setting.
        device: of training and bounds.
    """
    if device.type != "cuda":
        return []
    backends: Any = torch.backends
    single = [call for call in graph.calls if torch.float32 in (call.dtype, bounds)]
    convolution = next((call for call in single if _is_convolution(call)), None)
    product = next((call for call in single if call.op._schema.name in _PRODUCTS), None)
    problems = []
    if convolution is not None and _allowed(backends.cudnn, getattr(backends.cudnn, "conv", None)):
        problems.append(
            f"{_reduced(convolution, 'a convolution')} Set `torch.backends.cudnn.allow_tf32 = False` before training, "
            + _REMEDY
        )
    if product is not None and _allowed(backends.cuda.matmul, backends.cuda.matmul):
        problems.append(
            f"{_reduced(product, 'a matrix product')} Call `torch.set_float32_matmul_precision('highest')` before "
            f"training, {_REMEDY}"
        )
    return problems


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
        f"Expected float32 with all its digits, but torch may compute {kind} in TensorFloat-32, with 10 bits for each "
        f"factor (at {call.source})."
    )
