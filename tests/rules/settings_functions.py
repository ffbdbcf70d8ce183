"""Settings of elementary functions, powers, norms, extreme entries, choices, gates and interpolation."""

import torch
from torch.nn import functional as F

from tests.rules.laws import Box, Labels, Setting
from tests.rules.settings_elementwise import (
    ATTAINED,
    CONTAINED,
    HIGH,
    LARGE,
    NEGATIVE,
    POSITIVE,
    ROW,
    WIDE,
    composed,
    unary,
)

aten = torch.ops.aten

ODD = Box((3,))
CUBE = Box((2, 3))
SOUND = Box((2, 4))
IMAGE = Box((1, 3, 2))
VOLUME = Box((1, 2, 2, 2))
NONNEGATIVE = Box((2,), low=0.5, high=1.5, radius=0.4, nonnegative=True)
APART = Box((3,), low=-3.0, high=3.0, radius=0.3)
SMALL = Box((3,), low=-9.0, high=9.0, radius=0.2)
MASK = torch.tensor([True, False, True])
"""For all samples."""

# op, use, function
FUNCTIONS = [
    (aten.mish.default, "default", F.mish),
    (aten.hardshrink.default, "default", F.hardshrink),
    (aten.hardshrink.default, "narrow", lambda x: F.hardshrink(x, 0.1)),
    (aten.softshrink.default, "default", F.softshrink),
    (aten.softshrink.default, "narrow", lambda x: F.softshrink(x, 0.1)),
    (aten.sin.default, "default", torch.sin),
    (aten.cos.default, "default", torch.cos),
    (aten.atan.default, "default", torch.atan),
    (aten.asinh.default, "default", torch.asinh),
    (aten.erfc.default, "default", torch.erfc),
    (aten.pow.Tensor_Scalar, "cube", lambda x: x**3),
    (aten.pow.Tensor_Scalar, "fourth", lambda x: x**4),
]

GROWING = [
    (aten.sinh.default, "default", torch.sinh),
    (aten.cosh.default, "default", torch.cosh),
    (aten.exp2.default, "default", torch.exp2),
    (aten.expm1.default, "default", torch.expm1),
]

POSITIVES = [
    (aten.log1p.default, torch.log1p),
    (aten.log2.default, torch.log2),
    (aten.log10.default, torch.log10),
    (aten.pow.Tensor_Scalar, lambda x: x**0.5),
    (aten.pow.Tensor_Scalar, lambda x: x**-1.5),
    (aten.pow.Tensor_Scalar, lambda x: x**-2),
    (aten.pow.Tensor_Scalar, lambda x: x**0.45),
]


def chosen(name, op, function, *leaves, parameters=None, exact=CONTAINED):
    return Setting(name, op, function, leaves, parameters or {}, exact=exact)


ELEMENTARY = [
    *(unary(f"{use}, small", op, function, ROW) for op, use, function in [*FUNCTIONS, *GROWING]),
    *(unary(f"{use}, wide", op, function, WIDE) for op, use, function in [*FUNCTIONS, *GROWING]),
    *(
        unary(f"{use}, large", op, function, LARGE)
        for op, use, function in FUNCTIONS
        if op is not aten.pow.Tensor_Scalar
    ),
    *(unary(f"{use}, far and narrow", op, function, SMALL) for op, use, function in FUNCTIONS),
    *(
        unary(f"{use}, one side", op, function, HIGH, ATTAINED)
        for op, use, function in FUNCTIONS
        if op not in (aten.sin.default, aten.cos.default)
    ),
    *(composed(f"{use}, layers", op, function) for op, use, function in [*FUNCTIONS, *GROWING]),
    *(unary("positive", op, function, POSITIVE, ATTAINED) for op, function in POSITIVES),
    unary("negative", aten.pow.Tensor_Scalar, lambda x: x**-3, NEGATIVE, ATTAINED),
    unary("not negative", aten.pow.Tensor_Scalar, lambda x: x**1.5, NONNEGATIVE),
    unary("clamped at zero", aten.pow.Tensor_Scalar, lambda x: x.relu() ** 2.5, ODD),
]

PARAMETRIC = [
    Setting("one slope", aten.prelu.default, lambda m, x: F.prelu(x, m.a), (ROW,), {"a": Box((1,))}, exact=("output",)),
    Setting("channels", aten.prelu.default, lambda m, x: F.prelu(x, m.a), (Box((2, 3)),), {"a": Box((2,))}, CONTAINED),
    Setting(
        "layers",
        aten.prelu.default,
        lambda m, x: F.linear(F.prelu(F.linear(x, m.v), m.a), m.w),
        (ROW,),
        {"v": Box((3, 2)), "a": Box((3,)), "w": Box((2, 3))},
        CONTAINED,
    ),
    Setting(
        "large slopes",
        aten.prelu.default,
        lambda m, x: F.prelu(x, m.a),
        (ROW,),
        {"a": Box((2,), 1.5, 2.5, 2.0)},
        ("output",),
    ),
]

EXTREMES = [
    unary("one axis", aten.amax.default, lambda x: x.amax(1), ODD, ATTAINED),
    unary("two axes", aten.amax.default, lambda x: x.amax((1, 2)), CUBE),
    unary("last axis, kept", aten.amax.default, lambda x: x.amax(-1, keepdim=True), CUBE),
    unary("one axis", aten.amin.default, lambda x: x.amin(1), ODD, ATTAINED),
    unary("values", aten.max.dim, lambda x: x.max(1).values, ODD, ATTAINED),
    unary("values, last axis", aten.max.dim, lambda x: x.max(-1, keepdim=True).values, CUBE),
    unary("values", aten.min.dim, lambda x: x.min(dim=1).values, ODD, ATTAINED),
    composed("layers", aten.amax.default, lambda x: x.amax(1, keepdim=True).expand(-1, 3)),
]

SUMS = [
    unary("classes", aten.logsumexp.default, lambda x: x.logsumexp(1), ODD, ATTAINED),
    unary("last axis, kept", aten.logsumexp.default, lambda x: x.logsumexp(-1, keepdim=True), CUBE),
    unary("two axes", aten.logsumexp.default, lambda x: x.logsumexp((2, 1)), CUBE),
    unary("first of two axes", aten.logsumexp.default, lambda x: x.logsumexp(1), CUBE),
    unary("far", aten.logsumexp.default, lambda x: x.logsumexp(1), LARGE),
    composed("layers", aten.logsumexp.default, lambda x: x - x.logsumexp(1, keepdim=True)),
]

GATES = [
    unary("two halves", aten.glu.default, lambda x: F.glu(x, 1), Box((2,)), ("output",)),
    unary("channels", aten.glu.default, lambda x: F.glu(x, dim=1), Box((4, 2))),
    unary("last axis", aten.glu.default, F.glu, Box((2, 4))),
    unary("far", aten.glu.default, F.glu, Box((4,), -20.0, 20.0, 5.0)),
]

NORMS = [
    unary(
        "one axis", aten.linalg_vector_norm.default, lambda x: torch.linalg.vector_norm(x, dim=1), APART, ("output",)
    ),
    unary("around zero", aten.linalg_vector_norm.default, lambda x: torch.linalg.vector_norm(x, dim=1), ODD),
    unary("two axes", aten.linalg_vector_norm.default, lambda x: torch.linalg.vector_norm(x, dim=(1, 2)), CUBE),
    unary("kept", aten.linalg_vector_norm.default, lambda x: torch.linalg.vector_norm(x, dim=-1, keepdim=True), CUBE),
    unary("sum", aten.linalg_vector_norm.default, lambda x: torch.linalg.vector_norm(x, 1, dim=1), APART, ("output",)),
    unary("unit rows", aten.linalg_vector_norm.default, lambda x: F.normalize(x, dim=1), Box((2,), 0.8, 1.5, 0.3)),
    unary("method", aten.norm.ScalarOpt_dim, lambda x: aten.norm.ScalarOpt_dim(x, 2, [1]), APART, ("output",)),
]

CHOICES = [
    chosen("two values", aten.where.self, lambda m, x, y: torch.where(MASK[:2], x, y), ROW, ROW, exact=ATTAINED),
    chosen("parameter", aten.where.self, lambda m, x: torch.where(MASK, x, m.w), ODD, parameters={"w": Box((1, 3))}),
    chosen("number", aten.where.ScalarOther, lambda m, x: torch.where(MASK, x, 0.3), ODD, exact=ATTAINED),
    chosen("number first", aten.where.ScalarSelf, lambda m, x: torch.where(MASK, -2.0, x), ODD, exact=ATTAINED),
    chosen("number", aten.masked_fill.Scalar, lambda m, x: x.masked_fill(MASK, -9.1), ODD, exact=ATTAINED),
    chosen("tensor", aten.masked_fill.Tensor, lambda m, x: x.masked_fill(MASK, torch.tensor(0.3)), ODD),
    chosen(
        "flipped labels",
        aten.where.self,
        lambda m, x, y, k: torch.where((k == 1)[:, None], x, y),
        ODD,
        ODD,
        Labels(3),
    ),
    chosen(
        "labels that become one class",
        aten.where.self,
        lambda m, x, y, k: torch.where((k == 1)[:, None], x * 2, y),
        ROW,
        ROW,
        Labels(3, sources=(0,), targets=(2,)),
    ),
]

LIKENESS = [
    Setting("shape", aten.expand_as.default, lambda m, x, y: x[:, :1].expand_as(y) * y, (ROW, ROW), exact=CONTAINED),
    Setting(
        "shape", aten.reshape_as.default, lambda m, x, y: x.reshape_as(y) * y, (CUBE, Box((3, 2))), exact=CONTAINED
    ),
    Setting("shape", aten.view_as.default, lambda m, x, y: x.view_as(y) * y, (CUBE, Box((3, 2))), exact=CONTAINED),
    Setting("type", aten.type_as.default, lambda m, x, y: x.type_as(y) * y, (ROW, ROW), exact=CONTAINED),
]

INTERPOLATION = [
    unary(
        "twice",
        aten.upsample_linear1d.vec,
        lambda x: F.interpolate(x, scale_factor=2, mode="linear"),
        Box((1, 3)),
        CONTAINED,
    ),
    unary(
        "to a size", aten.upsample_linear1d.vec, lambda x: F.interpolate(x, 5, mode="linear", align_corners=True), SOUND
    ),
    unary("twice", aten.upsample_bilinear2d.vec, lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), IMAGE),
    unary("smaller", aten.upsample_bilinear2d.vec, lambda x: F.interpolate(x, (2, 2), mode="bilinear"), Box((1, 3, 4))),
    unary(
        "odd",
        aten.upsample_bilinear2d.vec,
        lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"),
        Box((2, 3, 4)),
    ),
    unary(
        "corners",
        aten.upsample_bilinear2d.vec,
        lambda x: F.interpolate(x, (5, 4), mode="bilinear", align_corners=True),
        IMAGE,
    ),
    unary("twice", aten.upsample_trilinear3d.vec, lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), VOLUME),
]

FUNCTION_SETTINGS = [*ELEMENTARY, *PARAMETRIC, *EXTREMES, *SUMS, *GATES, *NORMS, *CHOICES, *LIKENESS, *INTERPOLATION]
