"""Blocks of random networks: small modules that use every operation of the table of rules."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

aten = torch.ops.aten

Shape = tuple[int, ...]
"""Shape of one sample: (d,), (t, d) or (c, l), (c, h, w), or (c, d, h, w)."""

Build = Callable[[random.Random, Shape], nn.Module | None]
"""Makes the module for a shape, or returns None if it does not fit."""


class Function(nn.Module):
    """A function without parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x)


class Weighted(nn.Module):
    """A function of the input and one parameter."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(shape) / max(1, shape[0]) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x, self.weight)


class Attention(nn.Module):
    """Self-attention with one head, (t, d) to (t, 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions."""
        return F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))


class Residual(nn.Module):
    """A layer whose input is added to its output, (d,)."""

    def __init__(self, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.inner, self.activation = nn.Linear(width, width), activation

    def forward(self, x: Tensor) -> Tensor:
        """Add the layer's output to its input."""
        return x + 0.5 * self.activation(self.inner(x))


class Twice(nn.Module):
    """A layer that is used twice, and once more by its transposed weight, (..., d)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, a function, the layer, and the transposed weight."""
        return self.inner(self.inner(x).tanh()) @ self.inner.weight


@dataclass(frozen=True)
class Block:
    """A part of a network.

    Args:
        name: for reports.
        ranks: numbers of axes of one sample that it takes.
        build: makes the module for a shape, or returns None if it does not fit.
    """

    name: str
    ranks: Sequence[int]
    build: Build


def _of(name: str, function: Callable[[Tensor], Tensor], ranks: Sequence[int] = (1, 2, 3, 4)) -> Block:
    return Block(name, ranks, lambda draw, shape: Function(function))


def _with(
    name: str, function: Callable[[Tensor, Any], Tensor], values: Sequence[Any], ranks: Sequence[int] = (1, 2, 3, 4)
) -> Block:
    """Return a block of a function with a second argument, which is drawn."""

    def build(draw: random.Random, shape: Shape) -> nn.Module:
        value = draw.choice(values)
        return Function(lambda x: function(x, value))

    return Block(name, ranks, build)


def _made(name: str, ranks: Sequence[int], build: Callable[[Shape], nn.Module | None]) -> Block:
    return Block(name, ranks, lambda draw, shape: build(shape))


# --- one number after the other ---------------------------------------------------------------------------------------

ELEMENTWISE = (
    _of("relu", torch.relu),
    _with("celu", F.celu, (0.7, 2.0)),
    _with("clamp", lambda x, ends: x.clamp(*ends), ((-0.5, 0.7), (0.2, 0.3))),
    _with("clamp_max", torch.clamp_max, (0.4, -0.2)),
    _with("clamp_min", torch.clamp_min, (-0.3, 0.2)),
    _with("elu", F.elu, (1.0, 0.6, 2.0)),
    _of("erf", torch.erf),
    _of("gelu", F.gelu),
    _of("gelu-tanh", lambda x: F.gelu(x, approximate="tanh")),
    _of("hardsigmoid", F.hardsigmoid),
    _of("hardswish", F.hardswish),
    _with("hardtanh", lambda x, ends: F.hardtanh(x, *ends), ((-1.0, 1.0), (-0.3, 0.2))),
    _with("leaky_relu", F.leaky_relu, (0.2, 1.7, -0.5)),
    _of("log", lambda x: torch.log(0.5 + x.square())),
    _of("log_sigmoid", F.logsigmoid),
    _of("reciprocal", lambda x: torch.reciprocal(x.square() + 0.7)),
    _with("relu6", lambda x, factor: F.relu6(factor * x), (1.0, 3.0, 8.0)),
    _of("rsqrt", lambda x: torch.rsqrt(x.square() + 0.5)),
    _of("selu", F.selu),
    _of("sigmoid", torch.sigmoid),
    _of("silu", F.silu),
    _with("softplus", lambda x, beta: F.softplus(x, beta=beta), (1.0, 2.0, 5.0)),
    _of("sqrt", lambda x: torch.sqrt(x.square() + 0.3)),
    _of("tanh", torch.tanh),
    _of("mish", F.mish),
    _with("hardshrink", F.hardshrink, (0.1, 0.5)),
    _with("softshrink", F.softshrink, (0.1, 0.5)),
    _of("sin", torch.sin),
    _of("cos", torch.cos),
    _of("atan", torch.atan),
    _of("asinh", torch.asinh),
    _of("sinh", lambda x: torch.sinh(0.5 * x.tanh())),
    _of("cosh", lambda x: torch.cosh(0.5 * x.tanh())),
    _of("erfc", torch.erfc),
    _of("exp2", lambda x: torch.exp2(0.3 * x.tanh())),
    _of("expm1", lambda x: torch.expm1(0.3 * x.tanh())),
    _of("log1p", lambda x: torch.log1p(x.square())),
    _of("log2", lambda x: torch.log2(1.5 + x.tanh())),
    _of("log10", lambda x: torch.log10(1.5 + x.tanh())),
    _with("power", lambda x, p: 0.3 * torch.pow(1.5 + x.tanh(), p), (3, 0.5, -1.5)),
    _of("where", lambda x: torch.where(torch.arange(x.shape[-1]) % 2 == 0, x, -0.5 * x)),
    _of("where-number", lambda x: torch.where(torch.arange(x.shape[-1]) % 2 == 0, x, 0.3)),
    _of("where-number-first", lambda x: torch.where(torch.arange(x.shape[-1]) % 2 == 0, 0.3, x)),
    _of("masked_fill", lambda x: x.masked_fill(torch.arange(x.shape[-1]) % 2 == 0, -0.4)),
    _of("masked_fill-tensor", lambda x: x.masked_fill(torch.arange(x.shape[-1]) % 2 == 0, torch.tensor(0.2))),
    _of("expand_as", lambda x: x[:, :1].expand_as(x)),
    _of("reshape_as", lambda x: x.reshape(len(x), -1).reshape_as(x)),
    _of("view_as", lambda x: x.contiguous().view(len(x), -1).view_as(x)),
    _of("type_as", lambda x: x.type_as(x.tanh())),
    _made("prelu", (1, 2, 3), lambda shape: nn.PReLU(shape[0])),
    _of("exp", lambda x: torch.exp(0.3 * torch.tanh(x))),
    _of("abs", torch.abs),
    _of("neg", torch.neg),
    _of("square", lambda x: 0.2 * x.tanh().square()),
    _of("pow", lambda x: 0.3 * torch.pow(x.tanh(), 2)),
    _with("rsub", lambda x, alpha: torch.rsub(x, 0.7, alpha=alpha), (1, 0.4)),
    _of("add", lambda x: x + 0.5 * x.sigmoid()),
    _with("sub", lambda x, alpha: torch.sub(x, x.tanh(), alpha=alpha), (1, 0.5, -2)),
    _of("mul", lambda x: x * x.sigmoid()),
    _of("div", lambda x: x / (1.2 + x.square())),
    _of("maximum", lambda x: torch.maximum(x, 0.3 * x.flip(1))),
    _of("max", lambda x: torch.max(x, -0.5 * x)),
    _of("minimum", lambda x: torch.minimum(x, 0.4 - x)),
    _of("min", lambda x: torch.min(x, 0.3 * x.flip(1))),
    _of("detach", lambda x: x + 0.5 * x.detach().tanh()),
    _of("to", lambda x: x.to(torch.float64).tanh().to(x.dtype)),
    _of("_to_copy", lambda x: aten._to_copy.default(x, dtype=x.dtype)),
    _made("dropout", (1, 2, 3, 4), lambda shape: nn.Dropout(0.3)),
    _made("scale", (1, 2, 3, 4), lambda shape: Weighted(torch.mul, shape[-1])),
    _made("shift", (1, 2, 3, 4), lambda shape: Weighted(torch.add, shape[-1])),
)

# --- moves -----------------------------------------------------------------------------------------------------------

PADS = (([1, 1], 0.0), ([0, 1], 0.5), ([2, 0], -0.7), ([1, -1], 0.3))
"""Widths and values of frames."""

MOVES = (
    _of("cat", lambda x: torch.cat([x, 0.5 * x], 1)),
    _of("concat", lambda x: aten.concat.default([x, -x], 1)),
    _of("concatenate", lambda x: aten.concatenate.default([x.tanh(), x], 1)),
    _of("hstack", lambda x: torch.hstack([x, x.flip(1)])),
    _of("stack", lambda x: torch.stack([x, 0.3 * x], 1).flatten(1)),
    _with("chunk", lambda x, at: x.chunk(2, 1)[at], (0, -1)),
    _of("flip", lambda x: x.flip(1)),
    _with("index", lambda x, at: x[:, torch.tensor(at)], ([0, 0], [-1, 0], [-1])),
    _with("index_select", lambda x, at: x.index_select(1, torch.tensor(at)), ([0, 0], [1, 0], [2])),
    _with("narrow", lambda x, at: x.narrow(1, at, 1), (0, 1, -1)),
    _of("repeat", lambda x: x.repeat(1, 2, *[1] * (x.ndim - 2))),
    _of("repeat_interleave", lambda x: x.repeat_interleave(2, 1)),
    _with("roll", lambda x, by: x + 0.5 * x.roll(by, 1), (1, -1, 2)),
    _with("select", lambda x, at: x.select(1, at), (0, -1), (2, 3, 4)),
    _with("slice", lambda x, part: x[:, part], (slice(2), slice(1, None), slice(None, None, 2))),
    _with("split", lambda x, at: torch.split(x, 1, 1)[at], (0, -1)),
    _with("split_with_sizes", lambda x, at: torch.split(x, [1, x.shape[1] - 1], 1)[at], (0, 1)),
    _with("tensor_split", lambda x, at: torch.tensor_split(x, 2, 1)[at], (0, 1)),
    _with("tensor_split-indices", lambda x, at: torch.tensor_split(x, (1,), 1)[at], (0, 1)),
    _of("tile", lambda x: torch.tile(x, (1, 2, *[1] * (x.ndim - 2)))),
    _with("unbind", lambda x, at: x.unbind(1)[at], (0, -1), (2, 3, 4)),
    _of("mT", lambda x: x.mT, (2, 3)),
    _of("transpose", lambda x: x.transpose(1, 2), (2, 3)),
    _of("swapaxes", lambda x: aten.swapaxes.default(x, 1, 2), (2, 3)),
    _of("swapdims", lambda x: aten.swapdims.default(x, 1, 2), (2, 3)),
    _of("permute", lambda x: x.permute(0, 2, 1), (2,)),
    _of("movedim", lambda x: x.movedim(1, -1), (2, 3)),
    _of("movedim-list", lambda x: x.movedim((1, 2), (2, 1)), (2, 3)),
    _of("t", lambda x: x + 0.1, (1,)),
    _of("flatten", lambda x: x.flatten(1)),
    _of("reshape", lambda x: x.reshape(len(x), -1)),
    _of("view", lambda x: x.contiguous().view(len(x), -1)),
    _of("_unsafe_view", lambda x: aten._unsafe_view.default(x.contiguous(), [len(x), -1])),
    _of("unsqueeze", lambda x: x.unsqueeze(1), (1, 2, 3)),
    _of("squeeze", lambda x: x.unsqueeze(-1).squeeze(-1)),
    _of("squeeze-dims", lambda x: aten.squeeze.dims(x.unsqueeze(-1), [-1])),
    _of("squeeze-all", lambda x: x.unsqueeze(-1).squeeze()),
    _of("unflatten", lambda x: x.unflatten(1, (1, -1)), (1, 2, 3)),
    _of("expand", lambda x: x.unsqueeze(1).expand(-1, 2, *[-1] * (x.ndim - 1)), (1, 2, 3)),
    _with("pad", lambda x, given: F.pad(x, given[0], value=given[1]), PADS),
    _with("constant_pad_nd", lambda x, given: aten.constant_pad_nd.default(x, *given), PADS),
    _of("pad-reflect", lambda x: F.pad(x, (1, 1), mode="replicate"), (2,)),
    _of("mean", lambda x: x.mean(1), (2, 3, 4)),
    _of("sum", lambda x: 0.5 * x.sum(1), (2, 3, 4)),
    _of("upsample", lambda x: F.interpolate(x, scale_factor=2.0), (2, 3, 4)),
    _of("upsample-linear", lambda x: F.interpolate(x, scale_factor=2.0, mode="linear"), (2,)),
    _of("upsample-bilinear", lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"), (3,)),
    _of("upsample-trilinear", lambda x: F.interpolate(x, scale_factor=2.0, mode="trilinear"), (4,)),
    _of("amax", lambda x: x.amax(1), (2, 3, 4)),
    _of("amin", lambda x: x.amin(1), (2, 3, 4)),
    _of("max-dim", lambda x: x.max(1).values, (2, 3, 4)),
    _of("min-dim", lambda x: x.min(1).values, (2, 3, 4)),
    _of("logsumexp", lambda x: x.logsumexp(1), (2, 3, 4)),
    _of("glu", lambda x: F.glu(torch.cat([x, 0.5 * x], 1), 1)),
    _of("vector_norm", lambda x: torch.linalg.vector_norm(1.5 + x.tanh(), dim=1), (2, 3, 4)),
    _of("norm", lambda x: aten.norm.ScalarOpt_dim(1.5 + x.tanh(), 2, [1]), (2, 3, 4)),
    Block("pixel_shuffle", (3,), lambda draw, s: None if s[0] % 4 else nn.PixelShuffle(2)),
    Block("pixel_unshuffle", (3,), lambda draw, s: None if s[1] % 2 or s[2] % 2 else nn.PixelUnshuffle(2)),
)

# --- sums of products ------------------------------------------------------------------------------------------------


def _convolution(draw: random.Random, shape: Shape) -> nn.Module | None:
    rank, channels = len(shape) - 1, shape[0]
    if min(shape[1:]) < 2 or channels > 6:
        return None
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    groups = draw.choice([1, channels])
    windows = {"stride": draw.choice([1, 1, 2]), "dilation": draw.choice([1, 1, 2]), "padding": draw.choice([0, 1])}
    return kind(channels, 2 * groups if groups < 3 else groups, 2, groups=groups, **windows)


def _padded_convolution(draw: random.Random, shape: Shape) -> nn.Module:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(shape) - 2]
    return kind(shape[0], 2, draw.choice([2, 3]), padding="same", dilation=draw.choice([1, 2]))


def _transposed(draw: random.Random, shape: Shape) -> nn.Module | None:
    if shape[0] > 4 or max(shape[1:]) > 4:
        return None
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[len(shape) - 2]
    return kind(shape[0], 2, 2, stride=draw.choice([1, 2]))


def _convolution_by_name(draw: random.Random, shape: Shape) -> nn.Module | None:
    if min(shape[1:]) < 2:
        return None

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        return aten.convolution.default(x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)

    return Weighted(convolve, 2, shape[0], 2, 2)


PRODUCTS = (
    Block("linear", (1, 2, 3), lambda draw, s: nn.Linear(s[-1], draw.choice([1, 2, 3, 5]), bias=draw.random() < 0.8)),
    Block("linear", (1, 2, 3), lambda draw, s: nn.Linear(s[-1], draw.choice([2, 3, 5]))),
    _made("mm", (1,), lambda s: Weighted(torch.mm, s[0], 3)),
    _made("matmul", (1, 2), lambda s: Weighted(torch.matmul, s[-1], 3)),
    _made("matmul-t", (1,), lambda s: Weighted(lambda x, w: x @ w.t(), 3, s[-1])),
    _of("bmm", lambda x: 0.3 * torch.bmm(x, x.transpose(1, 2)), (2,)),
    _of("matmul-self", lambda x: 0.3 * x.mT @ x.tanh(), (2,)),
    _made("attention", (2,), lambda s: Attention(s[-1])),
    _made("residual", (1,), lambda s: Residual(s[0], nn.GELU())),
    _made("residual", (1,), lambda s: Residual(s[0], nn.ReLU())),
    _made("twice", (1, 2), lambda s: Twice(s[-1])),
    Block("convolution", (2, 3, 4), _convolution),
    Block("convolution", (2, 3, 4), _convolution),
    Block("padded convolution", (2, 3, 4), _padded_convolution),
    Block("transposed convolution", (2, 3, 4), _transposed),
    Block("convolution.default", (3,), _convolution_by_name),
)

# --- pooling, normalization, probabilities ----------------------------------------------------------------------------


def _pool(kinds: Sequence[type[nn.Module]], settings: Sequence[dict[str, Any]]) -> Build:
    """Return a pooling of the input's rank with drawn settings."""

    def build(draw: random.Random, shape: Shape) -> nn.Module | None:
        return kinds[len(shape) - 2](**draw.choice(settings)) if min(shape[1:]) > 1 else None

    return build


AVERAGES = (
    {"kernel_size": 2},
    {"kernel_size": 2, "stride": 1},
    {"kernel_size": 2, "stride": 1, "padding": 1, "count_include_pad": False},
)
ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
MAXIMA = ({"kernel_size": 2}, {"kernel_size": 2, "stride": 1}, {"kernel_size": 2, "stride": 1, "padding": 1})


def _group_norm(shape: Shape) -> nn.Module | None:
    groups = 2 if shape[0] % 2 == 0 else 1
    elements = torch.Size(shape).numel() // groups
    return nn.GroupNorm(groups, shape[0]) if elements > 1 else None


def _batch_norm(shape: Shape) -> nn.Module:
    norm = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(shape) - 1](shape[0])
    norm.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
    norm.running_var.uniform_(0.3, 1.5)  # type: ignore[union-attr]
    return norm


class NamedNorm(nn.Module):
    """A normalization by the name of its kernel."""

    def __init__(self, kind: str, shape: Shape) -> None:
        super().__init__()
        width = shape[0] if kind != "layer" else shape[-1]
        self.kind = kind
        self.weight, self.bias = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.randn(width))
        self.register_buffer("mean", torch.rand(width))
        self.register_buffer("variance", torch.rand(width) + 0.4)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize."""
        if self.kind == "layer":
            return aten.native_layer_norm.default(x, [x.shape[-1]], self.weight, self.bias, 1e-2)[0]
        if self.kind == "batch":
            args = (x, self.weight, self.bias, self.mean, self.variance, 0.1, 1e-3)
            return aten._native_batch_norm_legit_no_training.default(*args)[0]
        sizes = (x.shape[0], x.shape[1], x[0, 0].numel(), 1)
        return aten.native_group_norm.default(x, self.weight, self.bias, *sizes, 1e-2)[0]


OTHERS = (
    Block("avg_pool", (2, 3, 4), _pool((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), AVERAGES)),
    Block("max_pool", (2, 3, 4), _pool((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), MAXIMA)),
    Block("adaptive", (2, 3, 4), _pool(ADAPTIVE, ({"output_size": 1}, {"output_size": 2}))),
    _of("_adaptive_avg_pool2d", lambda x: aten._adaptive_avg_pool2d.default(x, [1, 1]), (3,)),
    _of("_adaptive_avg_pool3d", lambda x: aten._adaptive_avg_pool3d.default(x, [1, 1, 1]), (4,)),
    _of("max_pool2d_with_indices", lambda x: aten.max_pool2d_with_indices.default(x, [1, 2])[0], (3,)),
    _of("max_pool3d_with_indices", lambda x: aten.max_pool3d_with_indices.default(x, [1, 1, 2])[0], (4,)),
    _made("batch_norm", (1, 2, 3, 4), _batch_norm),
    _made("batch_norm by name", (1, 2, 3), lambda s: NamedNorm("batch", s)),
    _made("layer_norm", (1, 2, 3), lambda s: nn.LayerNorm(s[-1], eps=1e-2) if s[-1] > 1 else None),
    _made("layer_norm by name", (1, 2), lambda s: NamedNorm("layer", s) if s[-1] > 1 else None),
    _made("group_norm", (1, 2, 3), _group_norm),
    _made("group_norm by name", (2, 3), lambda s: NamedNorm("group", s) if s[-1] > 1 else None),
    _made("instance_norm", (2,), lambda s: nn.InstanceNorm1d(s[0], eps=1e-2, affine=True) if s[-1] > 1 else None),
    _made("dropout1d", (2,), lambda s: nn.Dropout1d(0.3)),
    _made("dropout2d", (3,), lambda s: nn.Dropout2d(0.3)),
    _of("softmax", lambda x: torch.softmax(x, 1)),
    _of("log_softmax", lambda x: 0.3 * torch.log_softmax(x, 1)),
)

FAMILIES = (PRODUCTS, PRODUCTS, ELEMENTWISE, ELEMENTWISE, OTHERS, MOVES)
"""Families of blocks, from which one is drawn for each place; twice those that matter most."""

BLOCKS = tuple({block.name: block for family in FAMILIES for block in family}.values())
"""One block of each name."""


def same_shape_layer(draw: random.Random, shape: Shape) -> nn.Module:
    """Return a trained layer that keeps the shape, with weights and offsets that lead where functions turn.

    Args:
        draw: source of chance.
        shape: of a sample.
    """
    if len(shape) == 1 or len(shape) == 2 and draw.random() < 0.5:
        layer: Any = nn.Linear(shape[-1], shape[-1])
    else:
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(shape) - 2]
        size = draw.choice([1, 1, 3])
        layer = kind(shape[0], shape[0], size, padding=size // 2)
    with torch.no_grad():
        layer.weight.mul_(draw.choice([1.0, 1.0, 3.0]))
        layer.bias.add_(draw.choice([0.0, 0.0, 0.0, -1.0, 1.0, -3.0, 3.0]))
    return layer
