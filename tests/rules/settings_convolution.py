"""Settings for convolutions."""

import torch
from torch.nn import functional as F

from tests.rules.laws import Box, Setting

aten = torch.ops.aten
CONTAINMENT_ONLY: tuple[str, ...] = ()


def layer(name, op, function, image, weight, bias=None, exact=CONTAINMENT_ONLY):
    """A convolution of an image by a weight, with a bias of the given shape."""
    parameters = {"w": weight if isinstance(weight, Box) else Box(weight)}
    if bias is not None:
        parameters["b"] = Box(bias)
    leaf = image if isinstance(image, Box) else Box(image)
    return Setting(name, op, function, (leaf,), parameters, exact)


EXACT = ("output", "gradient")
KERNEL = torch.linspace(-1, 1, 8).double().reshape(2, 1, 2, 2)

CONV1D = [
    layer("one window", aten.conv1d.default, lambda m, x: F.conv1d(x, m.w), (1, 2), (1, 1, 2), exact=EXACT),
    layer("two windows", aten.conv1d.default, lambda m, x: F.conv1d(x, m.w), (1, 3), (1, 1, 2), exact=("output",)),
    layer(
        "nonnegative input",
        aten.conv1d.default,
        lambda m, x: F.conv1d(x, m.w),
        Box((1, 2), low=0.8, high=2.0, radius=0.6, nonnegative=True),
        (1, 1, 2),
        exact=EXACT,
    ),
    layer(
        "nonnegative weight",
        aten.conv1d.default,
        lambda m, x: F.conv1d(x, m.w),
        (1, 2),
        Box((1, 1, 2), nonnegative=True),
        exact=EXACT,
    ),
    layer("bias", aten.conv1d.default, lambda m, x: F.conv1d(x, m.w, m.b), (2, 5), (3, 2, 2), (3,)),
    layer(
        "everything",
        aten.conv1d.default,
        lambda m, x: F.conv1d(x, m.w, m.b, stride=2, padding=2, dilation=2, groups=2),
        (4, 8),
        (6, 2, 3),
        (6,),
    ),
    layer("same", aten.conv1d.padding, lambda m, x: F.conv1d(x, m.w, m.b, padding="same"), (2, 5), (3, 2, 4), (3,)),
    layer("valid", aten.conv1d.padding, lambda m, x: F.conv1d(x, m.w, padding="valid", stride=2), (2, 6), (2, 2, 3)),
]

CONV2D = [
    layer("one window", aten.conv2d.default, lambda m, x: F.conv2d(x, m.w), (1, 1, 2), (1, 1, 1, 2), exact=EXACT),
    layer("one by one", aten.conv2d.default, lambda m, x: F.conv2d(x, m.w, m.b), (3, 2, 2), (2, 3, 1, 1), (2,)),
    layer("leftover", aten.conv2d.default, lambda m, x: F.conv2d(x, m.w, stride=(2, 3)), (2, 5, 5), (3, 2, 2, 2)),
    layer(
        "padding, dilation",
        aten.conv2d.default,
        lambda m, x: F.conv2d(x, m.w, m.b, padding=(2, 1), dilation=(1, 2)),
        (2, 4, 4),
        (3, 2, 3, 2),
        (3,),
    ),
    layer(
        "depthwise", aten.conv2d.default, lambda m, x: F.conv2d(x, m.w, groups=3, padding=1), (3, 3, 3), (6, 1, 3, 3)
    ),
    Setting(
        "frozen kernel",
        aten.conv2d.default,
        lambda m, x: F.conv2d(x, KERNEL.to(x.dtype)),
        (Box((1, 3, 3)),),
        exact=CONTAINMENT_ONLY,
    ),
    Setting(
        "after relu",
        aten.conv2d.default,
        lambda m, x: F.conv2d(F.conv2d(x, m.w, m.b, padding=1).relu(), m.v, stride=2),
        (Box((2, 4, 4)),),
        {"w": Box((3, 2, 3, 3)), "b": Box((3,)), "v": Box((2, 3, 2, 2))},
        CONTAINMENT_ONLY,
    ),
    layer(
        "used twice", aten.conv2d.default, lambda m, x: F.conv2d(F.conv2d(x, m.w).relu(), m.w), (2, 4, 4), (2, 2, 2, 2)
    ),
    layer(
        "same",
        aten.conv2d.padding,
        lambda m, x: F.conv2d(x, m.w, m.b, padding="same", dilation=(1, 3)),
        (2, 4, 5),
        (3, 2, 2, 4),
        (3,),
    ),
    layer("valid", aten.conv2d.padding, lambda m, x: F.conv2d(x, m.w, padding="valid"), (1, 3, 3), (2, 1, 2, 3)),
]
CONV3D = [
    layer(
        "everything",
        aten.conv3d.default,
        lambda m, x: F.conv3d(x, m.w, m.b, stride=(1, 2, 1), padding=(0, 1, 1), groups=2),
        (2, 2, 3, 2),
        (4, 1, 2, 2, 2),
        (4,),
    ),
    layer("same", aten.conv3d.padding, lambda m, x: F.conv3d(x, m.w, padding="same"), (1, 2, 3, 2), (2, 1, 2, 2, 1)),
]


def general(m, x, bias, stride, padding, dilation, transposed, output_padding, groups):
    return aten.convolution(x, m.w, bias, stride, padding, dilation, transposed, output_padding, groups)


GENERAL = [
    layer(
        "two dimensions",
        aten.convolution.default,
        lambda m, x: general(m, x, m.b, [2, 1], [1, 1], [1, 1], False, [0, 0], 1),
        (2, 4, 3),
        (3, 2, 3, 2),
        (3,),
    ),
    layer(
        "transposed",
        aten.convolution.default,
        lambda m, x: general(m, x, m.b, [2, 2], [1, 0], [1, 1], True, [1, 0], 2),
        (2, 2, 3),
        (2, 2, 3, 2),
        (4,),
    ),
    layer(
        "one dimension",
        aten.convolution.default,
        lambda m, x: general(m, x, None, [1], [0], [1], False, [0], 1),
        (1, 2),
        (1, 1, 2),
        exact=EXACT,
    ),
]

TRANSPOSED = [
    layer(
        "one dimension",
        aten.conv_transpose1d.default,
        lambda m, x: F.conv_transpose1d(x, m.w, m.b, stride=2, padding=1, output_padding=1),
        (2, 3),
        (2, 3, 3),
        (3,),
    ),
    layer(
        "one entry",
        aten.conv_transpose2d.input,
        lambda m, x: F.conv_transpose2d(x, m.w),
        (2, 1, 1),
        (2, 1, 1, 1),
        exact=EXACT,
    ),
    layer(
        "overlapping",
        aten.conv_transpose2d.input,
        lambda m, x: F.conv_transpose2d(x, m.w),
        (1, 1, 2),
        (1, 1, 1, 2),
        exact=("output",),
    ),
    layer(
        "stride, output padding",
        aten.conv_transpose2d.input,
        lambda m, x: F.conv_transpose2d(x, m.w, m.b, stride=(2, 3), output_padding=(1, 2)),
        (2, 3, 2),
        (2, 3, 2, 2),
        (3,),
    ),
    layer(
        "padding, dilation, groups",
        aten.conv_transpose2d.input,
        lambda m, x: F.conv_transpose2d(x, m.w, m.b, padding=(1, 2), dilation=(2, 3), output_padding=(1, 2), groups=2),
        (4, 3, 3),
        (4, 2, 2, 3),
        (4,),
    ),
    layer(
        "nonnegative input",
        aten.conv_transpose2d.input,
        lambda m, x: F.conv_transpose2d(x.relu(), m.w, stride=2),
        (2, 2, 2),
        (2, 1, 2, 2),
    ),
    layer(
        "three dimensions",
        aten.conv_transpose3d.input,
        lambda m, x: F.conv_transpose3d(x, m.w, stride=(1, 2, 1)),
        (1, 2, 2, 1),
        (1, 2, 2, 2, 1),
    ),
]

CONVOLUTION = [*CONV1D, *CONV2D, *CONV3D, *GENERAL, *TRANSPOSED]
