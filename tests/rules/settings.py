"""Settings for every rule of the table. A new op adds lines here and gets all laws."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn import functional as F

from tests.rules.laws import Box, Integers, Labels, Setting
from tests.rules.settings_composed import COMPOSED
from tests.rules.settings_convolution import CONVOLUTION
from tests.rules.settings_elementwise import ELEMENTWISE, SOFTMAX
from tests.rules.settings_functions import FUNCTION_SETTINGS
from tests.rules.settings_normalization import NORMALIZATION
from tests.rules.settings_pooling import POOLING
from tests.rules.settings_shape import BILINEAR, EMBEDDING, EXTREMA, SELECTION

aten = torch.ops.aten

ROW = Box((2,))
SCALAR = Box()
POSITIVE = Box((2,), low=0.8, high=2.0, radius=0.6, nonnegative=True)
DIVISOR = Box((), low=1.4, high=2.0, radius=0.7)
ZERO = Box(low=0.0, high=0.0, radius=0.0)
PROBABILITIES = Box((3,), low=0.1, high=0.6, radius=0.1, nonnegative=True, differentiable=False)
ONE_PROBABILITY = Box(low=0.5, high=0.5, radius=0.0, nonnegative=True, differentiable=False)
SWITCHED = Box(low=0.5, high=0.5, radius=0.5, differentiable=False)
CONTAINMENT_ONLY: tuple[str, ...] = ()


def unary(
    name: str, op: OpOverload, function: Callable[[Tensor], Tensor], leaf: Box = SCALAR, exact: tuple[str, ...] = ()
) -> Setting:
    """One leaf, exact unless told otherwise."""
    return Setting(name, op, lambda m, x: function(x), (leaf,), exact=exact or ("output", "gradient"))


def binary(name: str, op: OpOverload, function: Callable[[Tensor, Tensor], Tensor], *leaves: Box) -> Setting:
    """Two leaves, exact."""
    return Setting(name, op, lambda m, x, y: function(x, y), leaves or (SCALAR, SCALAR))


def residual(name: str, op: OpOverload, function: Callable[[Tensor, Tensor], Tensor]) -> list[Setting]:
    """A loss of f - y: its least value is attained inside the box, so exact only for a fixed label."""
    return [
        Setting(f"{name}, fixed label", op, lambda m, x, y: function(x, y), (SCALAR, ZERO)),
        Setting(f"{name}, free label", op, lambda m, x, y: function(x, y), (SCALAR, SCALAR), exact=("gradient",)),
        Setting(f"{name}, two outputs", op, lambda m, x, y: function(x, y), (ROW, ROW), exact=CONTAINMENT_ONLY),
    ]


def cross_entropy(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(x, y, reduction="none")


def smoothed_cross_entropy(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(x, y, reduction="none", label_smoothing=0.3)


def binary_cross_entropy(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(x, y, reduction="none")


def weighted_binary_cross_entropy(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    weight = torch.tensor(2.5, dtype=torch.float64)
    return F.binary_cross_entropy_with_logits(x, y, reduction="none", pos_weight=weight)


def one_hot(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return x * F.one_hot(y, 3).to(x.dtype)


LINEAR = [
    Setting("signed input", aten.linear.default, lambda m, x: F.linear(x, m.w), (ROW,), {"w": Box((2, 2))}),
    Setting(
        "with bias",
        aten.linear.default,
        lambda m, x: F.linear(x, m.w, m.b),
        (ROW,),
        {"w": Box((1, 2)), "b": Box((1,))},
    ),
    Setting("nonnegative input", aten.linear.default, lambda m, x: F.linear(x, m.w), (POSITIVE,), {"w": Box((2, 2))}),
    Setting(
        "nonnegative weight",
        aten.linear.default,
        lambda m, x: F.linear(x, m.w),
        (ROW,),
        {"w": Box((2, 2), nonnegative=True)},
    ),
    Setting(
        "positions",
        aten.linear.default,
        lambda m, x: F.linear(x, m.w, m.b),
        (Box((3, 2)),),
        {"w": Box((2, 2)), "b": Box((2,))},
        CONTAINMENT_ONLY,
    ),
    Setting(
        "wide",
        aten.linear.default,
        lambda m, x: F.linear(x, m.w, m.b),
        (Box((7,)),),
        {"w": Box((5, 7)), "b": Box((5,))},
        CONTAINMENT_ONLY,
    ),
    Setting(
        "weight used twice",
        aten.linear.default,
        lambda m, x: F.linear(F.linear(x, m.w).relu(), m.w),
        (ROW,),
        {"w": Box((2, 2))},
        CONTAINMENT_ONLY,
    ),
    Setting("transposed product", aten.linear.default, lambda m, x: x @ m.w.T, (ROW,), {"w": Box((2, 2))}),
    Setting("matmul", aten.matmul.default, lambda m, x: x @ m.w, (ROW,), {"w": Box((2, 2))}),
    Setting(
        "matmul, positions",
        aten.matmul.default,
        lambda m, x: x @ m.w,
        (Box((2, 3)),),
        {"w": Box((3, 4))},
        CONTAINMENT_ONLY,
    ),
    Setting("mm", aten.mm.default, lambda m, x: torch.mm(x, m.w), (ROW,), {"w": Box((2, 2))}),
]

ACTIVATION = [
    unary("one unit", aten.relu.default, torch.relu),
    unary("two units", aten.relu.default, torch.relu, ROW),
    unary("off", aten.dropout.default, lambda x: aten.dropout(x, 0.5, False)),
    unary("p = 0", aten.dropout.default, lambda x: aten.dropout(x, 0.0, True)),
    unary("off", aten.feature_dropout.default, lambda x: aten.feature_dropout(x, 0.5, False), Box((2, 1))),
]

SHAPE = [
    unary("all", aten.flatten.using_ints, lambda x: aten.flatten(x, 1), Box((1, 2))),
    unary("reshape", aten.reshape.default, lambda x: aten.reshape(x, (x.shape[0], 2, 1)), ROW),
    unary("squeeze all", aten.squeeze.default, torch.squeeze, Box((1, 2, 1))),
    unary("squeeze last", aten.squeeze.dim, lambda x: x.squeeze(-1), Box((2, 1))),
    unary("squeeze two", aten.squeeze.dims, lambda x: x.squeeze((1, 3)), Box((1, 2, 1))),
    unary("unflatten", aten.unflatten.int, lambda x: aten.unflatten(x, 1, [2, 1]), ROW),
    unary("unsqueeze", aten.unsqueeze.default, lambda x: x.unsqueeze(1), ROW),
    unary("view", aten.view.default, lambda x: x.view(x.shape[0], 1, 2), ROW),
    unary("unsafe view", aten._unsafe_view.default, lambda x: aten._unsafe_view(x, [x.shape[0], 1, 2]), ROW),
    Setting("labels", aten.squeeze.dim, lambda m, x, y: one_hot(m, x, y.squeeze(1)), (Box((3,)), Labels(3, (1,)))),
    Setting(
        "layers between",
        aten.flatten.using_ints,
        lambda m, x: F.linear(aten.flatten(x, 1), m.w),
        (Box((2, 2)),),
        {"w": Box((3, 4))},
        CONTAINMENT_ONLY,
    ),
]

TYPE = [
    unary("of a real value", aten.to.dtype, lambda x: aten.to.dtype(x, torch.float64)),
    Setting("of integers", aten.to.dtype, lambda m, x, k: x * aten.to.dtype(k, torch.float64), (SCALAR, Integers())),
    unary("layout", aten.to.dtype_layout, lambda x: aten.to.dtype_layout(x, dtype=torch.float64)),
    Setting(
        "of integers",
        aten._to_copy.default,
        lambda m, x, k: x + aten._to_copy(k, dtype=torch.float64),
        (SCALAR, Integers()),
    ),
    unary("copy", aten._to_copy.default, lambda x: aten._to_copy(x, dtype=torch.float64)),
    Setting(
        "of labels",
        aten._to_copy.default,
        lambda m, x, y: one_hot(m, x, aten._to_copy(y, dtype=torch.int64)),
        (Box((3,)), Labels(3)),
    ),
    unary("one factor", aten.detach.default, lambda x: x.detach() * x),
    unary("everything", aten.detach.default, lambda x: x.detach()),
    Setting("all classes", aten.one_hot.default, one_hot, (Box((3,)), Labels(3))),
    Setting("two targets", aten.one_hot.default, one_hot, (Box((3,)), Labels(3, targets=(1,), sources=(0, 1)))),
    Setting("fixed", aten.one_hot.default, one_hot, (Box((3,)), Integers())),
]

ARITHMETIC = [
    unary("one entry", aten.abs.default, torch.abs),
    unary("two entries", aten.abs.default, torch.abs, ROW),
    binary("two tensors", aten.add.Tensor, lambda x, y: x + y),
    binary("alpha", aten.add.Tensor, lambda x, y: torch.add(x, y, alpha=-2)),
    unary("number", aten.add.Tensor, lambda x: x + 3.5),
    Setting("shared", aten.add.Tensor, lambda m, x: x + m.b, (ROW,), {"b": Box((2,))}),
    Setting("shared scalar", aten.add.Tensor, lambda m, x: x + m.b, (ROW,), {"b": Box(())}),
    Setting(
        "shared row", aten.add.Tensor, lambda m, x: x + m.b, (Box((2, 2)),), {"b": Box((1, 1, 2))}, CONTAINMENT_ONLY
    ),
    binary("two tensors", aten.sub.Tensor, lambda x, y: x - y),
    binary("alpha", aten.sub.Tensor, lambda x, y: torch.sub(x, y, alpha=0.5)),
    unary("number", aten.sub.Tensor, lambda x: x - 2),
    Setting("shared", aten.sub.Tensor, lambda m, x: x - m.b, (ROW,), {"b": Box((1, 2))}),
    Setting("broadcast", aten.sub.Tensor, lambda m, x, y: x - y, (Box((2, 1)), Box((1, 2)))),
    unary("number", aten.div.Tensor, lambda x: x / -4.0),
    binary("two tensors", aten.div.Tensor, lambda x, y: x / y, SCALAR, DIVISOR),
    binary("negative divisor", aten.div.Tensor, lambda x, y: x / y, SCALAR, Box(low=-2.0, high=-1.4, radius=0.7)),
    Setting("shared divisor", aten.div.Tensor, lambda m, x: x / m.b, (ROW,), {"b": Box((2,), 1.4, 2.0, 0.7)}),
    Setting("shared dividend", aten.div.Tensor, lambda m, x: m.b / x, (Box((2,), 1.4, 2.0, 0.7),), {"b": Box((2,))}),
    unary("all but samples", aten.mean.dim, lambda x: x.mean(dim=(1, 2)), Box((2, 1))),
    unary("last", aten.mean.dim, lambda x: x.mean(dim=-1, keepdim=True), ROW),
    unary("middle", aten.mean.dim, lambda x: x.mean(dim=1), Box((2, 2))),
    unary("last", aten.sum.dim_IntList, lambda x: x.sum(-1), ROW),
    unary("kept", aten.sum.dim_IntList, lambda x: x.sum(dim=(1, 2), keepdim=True), Box((2, 1))),
    Setting(
        "nonnegative", aten.sum.dim_IntList, lambda m, x: x.relu().sum(1) * x.sum(1), (ROW,), exact=CONTAINMENT_ONLY
    ),
    unary("number", aten.mul.Tensor, lambda x: x * -3),
    unary("itself", aten.mul.Tensor, lambda x: x * x),
    binary("two tensors", aten.mul.Tensor, lambda x, y: x * y),
    binary("nonnegative factor", aten.mul.Tensor, lambda x, y: x * y, ROW, POSITIVE),
    Setting("shared", aten.mul.Tensor, lambda m, x: x * m.b, (ROW,), {"b": Box((2,))}),
    Setting("shared scalar", aten.mul.Tensor, lambda m, x: x * m.b, (ROW,), {"b": Box(())}, ("output",)),
    unary("one entry", aten.neg.default, torch.neg),
    unary("square", aten.pow.Tensor_Scalar, lambda x: x**2),
    unary("identity", aten.pow.Tensor_Scalar, lambda x: x**1),
    unary("number", aten.rsub.Scalar, lambda x: aten.rsub(x, 2.5)),
    unary("alpha", aten.rsub.Scalar, lambda x: aten.rsub(x, 2.5, 3)),
    unary("one entry", aten.square.default, torch.square),
]

LOSS = [
    *residual("squared", aten.mse_loss.default, lambda x, y: F.mse_loss(x, y, reduction="none")),
    *residual("absolute", aten.l1_loss.default, lambda x, y: F.l1_loss(x, y, reduction="none")),
    *residual("delta 0.5", aten.huber_loss.default, lambda x, y: F.huber_loss(x, y, reduction="none", delta=0.5)),
    *residual("beta 0.5", aten.smooth_l1_loss.default, lambda x, y: F.smooth_l1_loss(x, y, reduction="none", beta=0.5)),
    Setting(
        "beta 0",
        aten.smooth_l1_loss.default,
        lambda m, x, y: aten.smooth_l1_loss(x, y, 0, 0.0),
        (SCALAR, SCALAR),
        exact=("gradient",),
    ),
    Setting("all flips", aten.cross_entropy_loss.default, cross_entropy, (Box((3,)), Labels(3))),
    Setting(
        "one target", aten.cross_entropy_loss.default, cross_entropy, (Box((3,)), Labels(3, targets=(2,), sources=(0,)))
    ),
    Setting("large logits", aten.cross_entropy_loss.default, cross_entropy, (Box((3,), -60.0, 60.0, 20.0), Labels(3))),
    Setting("fixed labels", aten.cross_entropy_loss.default, cross_entropy, (Box((3,)), Labels(3, targets=()))),
    Setting(
        "pixels", aten.cross_entropy_loss.default, cross_entropy, (Box((3, 2)), Labels(3, (2,))), exact=CONTAINMENT_ONLY
    ),
    Setting(
        "smoothing",
        aten.cross_entropy_loss.default,
        smoothed_cross_entropy,
        (Box((3,)), Labels(3)),
        exact=("gradient",),
    ),
    Setting(
        "probabilities",
        aten.cross_entropy_loss.default,
        cross_entropy,
        (Box((3,)), PROBABILITIES),
        exact=CONTAINMENT_ONLY,
    ),
    Setting(
        "smoothed probabilities",
        aten.cross_entropy_loss.default,
        smoothed_cross_entropy,
        (Box((3,)), PROBABILITIES),
        exact=CONTAINMENT_ONLY,
    ),
    Setting(
        "nll of log softmax",
        aten.cross_entropy_loss.default,
        lambda m, x, y: F.nll_loss(F.log_softmax(x, dim=1), y, reduction="none"),
        (Box((3,)), Labels(3)),
    ),
    Setting(
        "nll of log of softmax",
        aten.cross_entropy_loss.default,
        lambda m, x, y: F.nll_loss(x.softmax(1).log(), y, reduction="none"),
        (Box((3,), -20.0, 20.0, 5.0), Labels(3)),
    ),
    Setting(
        "flips",
        aten.binary_cross_entropy_with_logits.default,
        binary_cross_entropy,
        (SCALAR, SWITCHED),
        exact=("gradient",),
    ),
    Setting(
        "half",
        aten.binary_cross_entropy_with_logits.default,
        binary_cross_entropy,
        (SCALAR, ONE_PROBABILITY),
        exact=("gradient",),
    ),
    Setting(
        "outside",
        aten.binary_cross_entropy_with_logits.default,
        binary_cross_entropy,
        (SCALAR, Box(differentiable=False)),
        exact=("gradient",),
    ),
    Setting(
        "positive weight",
        aten.binary_cross_entropy_with_logits.default,
        weighted_binary_cross_entropy,
        (SCALAR, SWITCHED),
        exact=("gradient",),
    ),
    Setting(
        "sample weights",
        aten.binary_cross_entropy_with_logits.default,
        lambda m, x, y, w: F.binary_cross_entropy_with_logits(x, y, weight=w, reduction="none"),
        (SCALAR, SWITCHED, Box(differentiable=False)),
        exact=CONTAINMENT_ONLY,
    ),
    Setting(
        "of sigmoid",
        aten.binary_cross_entropy_with_logits.default,
        lambda m, x, y: F.binary_cross_entropy(x.sigmoid(), y, reduction="none"),
        (SCALAR, SWITCHED),
        exact=("gradient",),
    ),
    Setting(
        "after layers",
        aten.cross_entropy_loss.default,
        lambda m, x, y: F.cross_entropy(F.linear(F.linear(x, m.v, m.c).relu(), m.w, m.b), y, reduction="none"),
        (ROW, Labels(3)),
        {"v": Box((4, 2)), "c": Box((4,)), "w": Box((3, 4)), "b": Box((3,))},
        CONTAINMENT_ONLY,
    ),
]

SETTINGS = [*LINEAR, *ACTIVATION, *SHAPE, *TYPE, *ARITHMETIC, *LOSS, *CONVOLUTION, *POOLING, *NORMALIZATION]
SETTINGS += [*ELEMENTWISE, *SOFTMAX, *SELECTION, *BILINEAR, *EXTREMA, *EMBEDDING, *FUNCTION_SETTINGS, *COMPOSED]

TOTALS = frozenset({aten.mean.default, aten.sum.default})
"""Reductions of everything, samples included: the objective takes them, no rule ever sees them on samples."""
