"""Linear relaxations by ATen overload. The substitution stops at the box of an overload that is not listed."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch._ops import OpOverload

from agt_lightning.propagation.crown.lines import kinked, sigmoidal
from agt_lightning.propagation.crown.relaxation import Affine, Elementwise, Identity, Relaxation
from agt_lightning.propagation.crown.scaling import Scaling
from agt_lightning.rules import Site
from agt_lightning.rules.shape import CASTS, RESHAPES

_aten = torch.ops.aten

_WEIGHTED = (
    _aten.linear.default,
    _aten.matmul.default,
    _aten.mm.default,
    _aten.conv1d.default,
    _aten.conv1d.padding,
    _aten.conv2d.default,
    _aten.conv2d.padding,
    _aten.conv3d.default,
    _aten.conv3d.padding,
    _aten.conv_transpose1d.default,
    _aten.conv_transpose2d.input,
    _aten.conv_transpose3d.input,
    _aten.convolution.default,
)

_MEANS = (
    _aten.avg_pool1d.default,
    _aten.avg_pool2d.default,
    _aten.avg_pool3d.default,
    _aten.adaptive_avg_pool1d.default,
    _aten.adaptive_avg_pool2d.default,
    _aten.adaptive_avg_pool3d.default,
    _aten._adaptive_avg_pool2d.default,
    _aten._adaptive_avg_pool3d.default,
    _aten.mean.dim,
    _aten.sum.dim_IntList,
)

_NORMALIZED = (_aten.batch_norm.default, _aten._native_batch_norm_legit_no_training.default)

_MOVED = (
    *RESHAPES,
    _aten.cat.default,
    _aten.stack.default,
    _aten.constant_pad_nd.default,
    _aten.pad.default,
    _aten.permute.default,
    _aten.select.int,
    _aten.slice.Tensor,
    _aten.transpose.int,
    _aten.neg.default,
    _aten.rsub.Scalar,
)

_SUMS = (_aten.add.Tensor, _aten.sub.Tensor)

_SAME = (
    *CASTS,
    _aten.detach.default,
    _aten.dropout.default,
    _aten.feature_dropout.default,
)


def _leak(site: Site) -> float:
    """Return the slope below zero; outside of [0, 1] the function is not both convex and rising."""
    return site.number("negative_slope")


RELAXATIONS: Mapping[OpOverload, Relaxation] = MappingProxyType(
    {
        **dict.fromkeys(_WEIGHTED, Affine(mixes=True, multiplies=True)),
        **dict.fromkeys(_MEANS, Affine(mixes=True)),
        **dict.fromkeys(_NORMALIZED, Affine(multiplies=True)),
        **dict.fromkeys(_MOVED, Affine()),
        **dict.fromkeys(_SUMS, Affine()),
        **dict.fromkeys(_SAME, Identity()),
        _aten.mul.Tensor: Scaling(places=(0, 1)),
        _aten.div.Tensor: Scaling(places=(0,)),
        _aten.relu.default: Elementwise(kinked(lambda site: 0.0)),
        _aten.leaky_relu.default: Elementwise(kinked(_leak), lambda site: 0 <= _leak(site) <= 1),
        _aten.sigmoid.default: Elementwise(sigmoidal(torch.sigmoid, lambda x: x.sigmoid() * (-x).sigmoid())),
        _aten.tanh.default: Elementwise(sigmoidal(torch.tanh, lambda x: x.cosh().square().reciprocal())),
    }
)
