"""Settings for normalization."""

import torch
from torch.nn import functional as F

from tests.rules.laws import Box, Setting

aten = torch.ops.aten
CONTAINMENT_ONLY: tuple[str, ...] = ()
EXACT = ("output", "gradient")
MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)
VARIANCE = torch.tensor([0.3, 2.0], dtype=torch.float64)
CHANNELS = {"w": Box((2,)), "b": Box((2,))}
ONE = {"w": Box((1,)), "b": Box((1,))}


def batch_norm(m, x):
    return F.batch_norm(x, MEAN.to(x.dtype), VARIANCE.to(x.dtype), m.w, m.b)


def inner_batch_norm(m, x):
    return aten._native_batch_norm_legit_no_training(x, m.w, m.b, MEAN.to(x.dtype), VARIANCE.to(x.dtype), 0.1, 1e-5)[0]


BATCH = [
    Setting(
        "one channel",
        aten.batch_norm.default,
        lambda m, x: F.batch_norm(x, MEAN[:1].to(x.dtype), VARIANCE[:1].to(x.dtype), m.w, m.b),
        (Box((1,)),),
        ONE,
        EXACT,
    ),
    Setting("features", aten.batch_norm.default, batch_norm, (Box((2,)),), CHANNELS, CONTAINMENT_ONLY),
    Setting("image", aten.batch_norm.default, batch_norm, (Box((2, 3, 2)),), CHANNELS, CONTAINMENT_ONLY),
    Setting(
        "without affine",
        aten.batch_norm.default,
        lambda m, x: F.batch_norm(x, MEAN.to(x.dtype), VARIANCE.to(x.dtype)),
        (Box((2, 1)),),
        {},
        EXACT,
    ),
    Setting(
        "frozen affine",
        aten.batch_norm.default,
        lambda m, x: F.batch_norm(x, MEAN.to(x.dtype), VARIANCE.to(x.dtype), -VARIANCE.to(x.dtype), MEAN.to(x.dtype)),
        (Box((2, 1)),),
        {},
        EXACT,
    ),
    Setting(
        "without bias",
        aten.batch_norm.default,
        lambda m, x: F.batch_norm(x, MEAN.to(x.dtype), VARIANCE.to(x.dtype), m.w),
        (Box((2, 3)),),
        {"w": Box((2,))},
        CONTAINMENT_ONLY,
    ),
    Setting(
        "one of three results",
        aten._native_batch_norm_legit_no_training.default,
        inner_batch_norm,
        (Box((2, 3)),),
        CHANNELS,
        CONTAINMENT_ONLY,
    ),
]


def own(name, op, function, shape, parameters=None, low=-1.2, high=1.2, radius=0.9, exact=CONTAINMENT_ONLY):
    return Setting(name, op, function, (Box(shape, low, high, radius),), parameters or {}, exact)


LAYER = [
    own("plain", aten.layer_norm.default, lambda m, x: F.layer_norm(x, (3,)), (3,)),
    own("narrow", aten.layer_norm.default, lambda m, x: F.layer_norm(x, (4,)), (4,), radius=0.05),
    own("apart", aten.layer_norm.default, lambda m, x: F.layer_norm(x, (5,)), (5,), low=-9.0, high=9.0, radius=0.3),
    own("off center", aten.layer_norm.default, lambda m, x: F.layer_norm(x - 2.0, (4,)), (4,)),
    own("one entry", aten.layer_norm.default, lambda m, x: F.layer_norm(x, (1,)), (1,)),
    own(
        "affine",
        aten.layer_norm.default,
        lambda m, x: F.layer_norm(x, (4,), m.w, m.b),
        (2, 4),
        {"w": Box((4,)), "b": Box((4,))},
    ),
    own(
        "narrow affine",
        aten.layer_norm.default,
        lambda m, x: F.layer_norm(x, (4,), m.w, m.b, eps=0.1),
        (4,),
        {"w": Box((4,), radius=0.05), "b": Box((4,), radius=0.05)},
        radius=0.05,
    ),
    own(
        "two axes",
        aten.layer_norm.default,
        lambda m, x: F.layer_norm(x, (3, 2), m.w, None),
        (2, 3, 2),
        {"w": Box((3, 2))},
    ),
    own(
        "one of three results",
        aten.native_layer_norm.default,
        lambda m, x: aten.native_layer_norm(x, [4], m.w, m.b, 1e-3)[0],
        (4,),
        {"w": Box((4,)), "b": Box((4,))},
    ),
]

GROUP = [
    own("one group", aten.group_norm.default, lambda m, x: F.group_norm(x, 1, m.w, m.b), (2, 2), CHANNELS),
    own(
        "two groups",
        aten.group_norm.default,
        lambda m, x: F.group_norm(x, 2, m.w, m.b),
        (4, 2, 1),
        {"w": Box((4,)), "b": Box((4,))},
        radius=0.2,
    ),
    own("features", aten.group_norm.default, lambda m, x: F.group_norm(x, 2), (4,)),
    own(
        "one of three results",
        aten.native_group_norm.default,
        lambda m, x: aten.native_group_norm(x, m.w, m.b, 3, 2, 3, 1, 1e-5)[0],
        (2, 3),
        CHANNELS,
    ),
    own(
        "per channel",
        aten.instance_norm.default,
        lambda m, x: F.instance_norm(x, weight=m.w, bias=m.b),
        (2, 3),
        CHANNELS,
    ),
]

NORMALIZATION = [*BATCH, *LAYER, *GROUP]
