"""Settings for pooling."""

import torch
from torch.nn import functional as F

from tests.rules.laws import Box, Setting

aten = torch.ops.aten
CONTAINMENT_ONLY: tuple[str, ...] = ()
EXACT = ("output", "gradient")


def pool(name, op, function, shape, exact=CONTAINMENT_ONLY):
    return Setting(name, op, lambda m, x: function(x), (Box(shape),), exact=exact)


AVERAGE = [
    pool("one window", aten.avg_pool1d.default, lambda x: F.avg_pool1d(x, 2), (1, 2), EXACT),
    pool("overlapping", aten.avg_pool1d.default, lambda x: F.avg_pool1d(x, 2, stride=1), (1, 3), EXACT),
    pool("everything", aten.avg_pool1d.default, lambda x: F.avg_pool1d(x, 3, 2, 1, True, False), (2, 6)),
    pool("without channels", aten.avg_pool1d.default, lambda x: F.avg_pool1d(x, 2), (4,)),
    pool("one window", aten.avg_pool2d.default, lambda x: F.avg_pool2d(x, (1, 2)), (1, 1, 2), EXACT),
    pool("padding", aten.avg_pool2d.default, lambda x: F.avg_pool2d(x, 2, 1, 1), (2, 3, 2)),
    pool("everything", aten.avg_pool2d.default, lambda x: F.avg_pool2d(x, (3, 2), 2, (1, 0), True, False), (2, 4, 3)),
    pool("divisor", aten.avg_pool2d.default, lambda x: F.avg_pool2d(x, 2, divisor_override=3), (2, 4, 4)),
    pool("one window", aten.avg_pool3d.default, lambda x: F.avg_pool3d(x, (1, 1, 2)), (1, 1, 1, 2), EXACT),
    pool("everything", aten.avg_pool3d.default, lambda x: F.avg_pool3d(x, 2, 1, 1, True, False, 5), (1, 2, 3, 2)),
]

ADAPTIVE = [
    pool("to one", aten.adaptive_avg_pool1d.default, lambda x: F.adaptive_avg_pool1d(x, 1), (1, 2), EXACT),
    pool("uneven", aten.adaptive_avg_pool1d.default, lambda x: F.adaptive_avg_pool1d(x, 3), (2, 5)),
    pool("to one", aten.adaptive_avg_pool2d.default, lambda x: F.adaptive_avg_pool2d(x, 1), (1, 1, 2), EXACT),
    pool("uneven", aten.adaptive_avg_pool2d.default, lambda x: F.adaptive_avg_pool2d(x, (3, 2)), (2, 4, 5)),
    pool("inner op", aten._adaptive_avg_pool2d.default, lambda x: aten._adaptive_avg_pool2d(x, [2, 2]), (2, 3, 4)),
    pool("to one", aten.adaptive_avg_pool3d.default, lambda x: F.adaptive_avg_pool3d(x, 1), (1, 1, 1, 2), EXACT),
    pool("uneven", aten.adaptive_avg_pool3d.default, lambda x: F.adaptive_avg_pool3d(x, 2), (1, 3, 2, 3)),
    pool(
        "inner op", aten._adaptive_avg_pool3d.default, lambda x: aten._adaptive_avg_pool3d(x, [1, 2, 1]), (1, 2, 3, 2)
    ),
]

LARGEST = [
    pool("one window", aten.max_pool1d.default, lambda x: F.max_pool1d(x, 3), (1, 3), EXACT),
    pool("overlapping", aten.max_pool1d.default, lambda x: F.max_pool1d(x, 2, 1), (1, 3), ("output",)),
    pool("everything", aten.max_pool1d.default, lambda x: aten.max_pool1d(x, [3], [2], [1], [2], True), (2, 8)),
    pool("without channels", aten.max_pool1d.default, lambda x: F.max_pool1d(x, 2), (4,)),
    pool("one window", aten.max_pool2d.default, lambda x: F.max_pool2d(x, (1, 3)), (1, 1, 3), EXACT),
    pool("of relu", aten.max_pool2d.default, lambda x: F.max_pool2d(x.relu(), 2), (1, 4, 4)),
    pool("ties", aten.max_pool2d.default, lambda x: F.max_pool2d(x - x.detach(), 2, 1), (1, 3, 3)),
    pool("ties", aten.max_pool3d.default, lambda x: F.max_pool3d(x - x.detach(), 2), (1, 2, 2, 2)),
    pool("padding", aten.max_pool2d.default, lambda x: F.max_pool2d(x, 3, 2, 1), (2, 5, 4)),
    pool(
        "everything",
        aten.max_pool2d.default,
        lambda x: aten.max_pool2d(x, [3, 2], [2, 2], [1, 1], [1, 2], True),
        (2, 5, 4),
    ),
    pool(
        "one of two results",
        aten.max_pool2d_with_indices.default,
        lambda x: aten.max_pool2d_with_indices(x, [2, 2], [1, 2])[0],
        (2, 3, 4),
    ),
    pool("one window", aten.max_pool3d.default, lambda x: F.max_pool3d(x, (1, 1, 3)), (1, 1, 1, 3), EXACT),
    pool("everything", aten.max_pool3d.default, lambda x: F.max_pool3d(x, 2, 1, 1, ceil_mode=True), (1, 2, 3, 2)),
    pool(
        "one of two results",
        aten.max_pool3d_with_indices.default,
        lambda x: aten.max_pool3d_with_indices(x, [2, 2, 1], [1, 1, 1])[0],
        (1, 2, 3, 2),
    ),
]

POOLING = [*AVERAGE, *ADAPTIVE, *LARGEST]
