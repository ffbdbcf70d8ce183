"""Settings of calls that move elements, of products of two activations and of embeddings."""

import torch
from torch.nn import functional as F

from tests.rules.laws import Box, Integers, Setting

aten = torch.ops.aten

CUBE = Box((2, 3))
SMALL = Box((1, 2))
POSITIVE = Box((2, 3), low=0.6, high=1.2, radius=0.5, nonnegative=True)
ATTAINED = ("output", "gradient")
CONTAINED: tuple[str, ...] = ()
PLACES = torch.tensor([2, 0, 2])


def weighted(x):
    """Elements that are told apart: a constant weight for each."""
    size = x[0].numel()
    return x * torch.linspace(-1.0, 2.0, size, dtype=torch.float64).reshape(x.shape[1:])


def selected(name, op, function, leaf=CUBE):
    """After weights of the input and before weights of the output, so that a wrong place shows in the gradient."""
    return Setting(name, op, lambda m, x: weighted(function(weighted(x))), (leaf,), exact=CONTAINED)


def attained(name, op, function, leaf=SMALL):
    return Setting(name, op, lambda m, x: function(x), (leaf,), exact=ATTAINED)


SELECTION = [
    selected("last two", aten.permute.default, lambda x: x.permute(0, 2, 1)),
    selected("negative axes", aten.transpose.int, lambda x: x.transpose(-2, -1)),
    selected("pair", aten.swapaxes.default, lambda x: x.swapaxes(1, 2)),
    selected("pair", aten.swapdims.default, lambda x: x.swapdims(1, 2)),
    selected("matrices", aten.mT.default, lambda x: x.mT),
    selected("one", aten.movedim.int, lambda x: x.movedim(1, 2)),
    selected("two", aten.movedim.intlist, lambda x: x.movedim((1, 2), (2, 1))),
    selected("new axis", aten.expand.default, lambda x: x[:, :, None].expand(-1, -1, 4, -1)),
    selected("sizes", aten.expand.default, lambda x: x[:, :1].expand(x.shape[0], 2, 3)),
    selected("twice", aten.repeat.default, lambda x: x.repeat(1, 2, 1)),
    selected("twice", aten.tile.default, lambda x: x.tile(1, 1, 2)),
    selected("twice", aten.repeat_interleave.self_int, lambda x: x.repeat_interleave(2, dim=1)),
    selected("backwards", aten.flip.default, lambda x: x.flip(2)),
    selected("around", aten.roll.default, lambda x: x.roll(1, 2)),
    selected("halves", aten.chunk.default, lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1]),
    selected("unequal halves", aten.chunk.default, lambda x: x.chunk(2, 2)[1]),
    selected("size 2", aten.split.Tensor, lambda x: x.split(2, -1)[0]),
    selected("sizes", aten.split_with_sizes.default, lambda x: x.split([1, 2], -1)[1]),
    selected("parts", aten.tensor_split.sections, lambda x: torch.tensor_split(x, 2, -1)[0]),
    selected("places", aten.tensor_split.indices, lambda x: torch.tensor_split(x, (1,), -1)[1]),
    selected("part", aten.slice.Tensor, lambda x: x[:, 1:, ::2]),
    selected("overlapping parts", aten.slice.Tensor, lambda x: x[:, :, :2] * x[:, :, 1:]),
    selected("first", aten.select.int, lambda x: x[:, 0]),
    selected("last", aten.select.int, lambda x: x[..., -1]),
    selected("part", aten.narrow.default, lambda x: x.narrow(1, 0, 1)),
    selected("rows", aten.unbind.int, lambda x: x.unbind(1)[1] * x.unbind(1)[0]),
    selected("repeated places", aten.index.Tensor, lambda x: x[:, :, [2, 0, 2]]),
    selected("pairs of places", aten.index.Tensor, lambda x: x[:, [0, 1], [2, 0]]),
    selected("repeated places", aten.index_select.default, lambda x: x.index_select(2, PLACES)),
    selected("tokens", aten.cat.default, lambda x: torch.cat([x, x * 2, x[:, :1]], 1)),
    selected("last axis", aten.concat.default, lambda x: torch.concat([x, x * 2], -1)),
    selected("last axis", aten.concatenate.default, lambda x: torch.concatenate([x, x * 2], -1)),
    selected("second axis", aten.hstack.default, lambda x: torch.hstack([x, x * 2])),
    selected("new axis", aten.stack.default, lambda x: torch.stack([x, x * 2], 1)),
    selected("new last axis", aten.stack.default, lambda x: torch.stack([x, x * 2], -1)),
    Setting("two leaves", aten.cat.default, lambda m, x, y: torch.cat([x, y], 1), (Box((1,)), Box((2,)))),
    Setting("positive", aten.cat.default, lambda m, x: torch.cat([x.relu(), x.exp()], 1), (CUBE,), exact=CONTAINED),
    Setting(
        "token of all samples",
        aten.cat.default,
        lambda m, x: weighted(torch.cat([m.token.expand(len(x), -1, -1), weighted(x)], 1)),
        (CUBE,),
        {"token": Box((1, 1, 3))},
        CONTAINED,
    ),
    Setting(
        "token of all samples",
        aten.stack.default,
        lambda m, x: weighted(torch.stack([x, m.token.expand(len(x), 2, 3), m.token.repeat(len(x), 2, 1)], 2)),
        (CUBE,),
        {"token": Box((1, 1, 3))},
        CONTAINED,
    ),
    Setting(
        "of a parameter",
        aten.numpy_T.default,
        lambda m, x: weighted(F.linear(x, m.weight.T)),
        (Box((2,)),),
        {"weight": Box((2, 3))},
        CONTAINED,
    ),
    selected("one axis", aten.t.default, lambda x: x.sum((1, 2)).t(), CUBE),
    selected("blocks", aten.pixel_shuffle.default, lambda x: F.pixel_shuffle(x, 2), Box((4, 1, 2))),
    selected("blocks", aten.pixel_unshuffle.default, lambda x: F.pixel_unshuffle(x, 2), Box((1, 2, 4))),
    selected("zeros", aten.pad.default, lambda x: F.pad(x, (1, 2))),
    selected(
        "negative number",
        aten.pad.default,
        lambda x: F.pad(x.relu(), (1, 0, 0, 1), value=-0.5) * F.pad(x, (0, 1, 1, 0)),
    ),
    selected("a tenth", aten.pad.default, lambda x: F.pad(x, (1, 1), value=0.1)),
    selected("reflection", aten.pad.default, lambda x: F.pad(x, (2, 1), mode="reflect")),
    selected("around", aten.pad.default, lambda x: F.pad(x, (1, 1), mode="circular")),
    selected("cropped", aten.pad.default, lambda x: F.pad(x, (-1, 1))),
    selected("ones", aten.constant_pad_nd.default, lambda x: aten.constant_pad_nd(x, [1, 1], 1.0)),
    selected("line", aten.upsample_nearest1d.vec, lambda x: F.interpolate(x, scale_factor=2)),
    selected("image", aten.upsample_nearest2d.vec, lambda x: F.interpolate(x, scale_factor=2), Box((1, 2, 2))),
    selected("volume", aten.upsample_nearest3d.vec, lambda x: F.interpolate(x, scale_factor=2), Box((1, 1, 2, 1))),
    attained("exact", aten.transpose.int, lambda x: x.transpose(1, 2)),
    attained("exact", aten.slice.Tensor, lambda x: x[:, :, :1]),
    attained("exact", aten.chunk.default, lambda x: x.chunk(2, 2)[1]),
    Setting(
        "between layers",
        aten.transpose.int,
        lambda m, x: F.linear(F.linear(x, m.v).relu().transpose(1, 2), m.w),
        (CUBE,),
        {"v": Box((4, 3)), "w": Box((3, 2))},
        CONTAINED,
    ),
]

PAIR = (Box((1, 2)), Box((2, 1)))

BILINEAR = [
    Setting("dot product", aten.bmm.default, lambda m, x, y: torch.bmm(x, y), PAIR),
    Setting("dot product", aten.matmul.default, lambda m, x, y: x @ y, PAIR),
    Setting("outer product", aten.bmm.default, lambda m, x, y: torch.bmm(x, y), (Box((2, 1)), Box((1, 1)))),
    Setting("matrices", aten.bmm.default, lambda m, x, y: torch.bmm(x, y), (CUBE, Box((3, 4))), exact=CONTAINED),
    Setting("nonnegative", aten.bmm.default, lambda m, x, y: x @ torch.bmm(y.mT, x), (POSITIVE, CUBE), exact=CONTAINED),
    Setting("nonnegative right", aten.matmul.default, lambda m, x, y: y.mT @ x, (POSITIVE, CUBE), exact=CONTAINED),
    Setting("Gram matrix", aten.matmul.default, lambda m, x: x @ x.mT, (CUBE,), exact=CONTAINED),
    Setting("heads", aten.matmul.default, lambda m, x, y: x @ y, (Box((2, 1, 3)), Box((1, 3, 2))), exact=CONTAINED),
    Setting("weight from the left", aten.matmul.default, lambda m, x: m.w @ x, (Box((2, 1)),), {"w": Box((1, 2))}),
    Setting("mixture of tokens", aten.matmul.default, lambda m, x: m.w @ x, (CUBE,), {"w": Box((4, 2))}, CONTAINED),
    Setting(
        "one weight for each head",
        aten.matmul.default,
        lambda m, x: x @ m.w,
        (Box((2, 3, 2)),),
        {"w": Box((2, 2, 4))},
        CONTAINED,
    ),
    Setting("leading one", aten.matmul.default, lambda m, x: x @ m.w, (CUBE,), {"w": Box((1, 3, 2))}, CONTAINED),
    Setting(
        "attention",
        aten.matmul.default,
        lambda m, x: ((x @ m.q) @ (x @ m.k).mT * 0.7).softmax(-1) @ (x @ m.v),
        (Box((3, 2), radius=0.2),),
        {"q": Box((2, 2), radius=0.2), "k": Box((2, 2), radius=0.2), "v": Box((2, 2), radius=0.2)},
        CONTAINED,
    ),
]

TIGHT = Box((1, 3, 2), radius=0.2)

BILINEAR += [
    Setting(
        name,
        aten.scaled_dot_product_attention.default,
        lambda m, q, k, v, f=function: f(q, k, v),
        (leaf, leaf, leaf),
        exact=CONTAINED,
    )
    for name, leaf, function in (
        ("heads", TIGHT, F.scaled_dot_product_attention),
        ("wide", Box((2, 2)), F.scaled_dot_product_attention),
        ("causal", TIGHT, lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
        ("negative scale", TIGHT, lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=-0.5)),
    )
]

EXTREMA = [
    Setting("two numbers", op, lambda m, x, y, f=function: f(x, y), (Box(), Box()))
    for op, function in (
        (aten.maximum.default, torch.maximum),
        (aten.minimum.default, torch.minimum),
        (aten.max.other, torch.max),
        (aten.min.other, torch.min),
    )
]
EXTREMA += [
    Setting("shared", aten.maximum.default, lambda m, x: torch.maximum(x, m.b), (CUBE,), {"b": Box((3,))}, CONTAINED),
    Setting("itself", aten.maximum.default, lambda m, x: torch.maximum(x, x), (CUBE,), exact=CONTAINED),
]

TABLE = {"w": Box((3, 2))}

EMBEDDING = [
    Setting("one row", aten.embedding.default, lambda m, k: F.embedding(k, m.w), (Integers(),), TABLE),
    Setting("tokens", aten.embedding.default, lambda m, k: F.embedding(k, m.w), (Integers((4,)),), TABLE, CONTAINED),
    Setting(
        "padding",
        aten.embedding.default,
        lambda m, k: F.embedding(k, m.w, padding_idx=1),
        (Integers((2, 3)),),
        TABLE,
        CONTAINED,
    ),
    Setting(
        "positions",
        aten.embedding.default,
        lambda m, x: weighted(x * F.embedding(PLACES, m.w)),
        (Box((3, 2)),),
        TABLE,
        CONTAINED,
    ),
    Setting(
        "a row for each sample, the same for all",
        aten.embedding.default,
        lambda m, x: weighted(x * F.embedding(PLACES.expand(len(x), -1), m.w, padding_idx=2)),
        (Box((3, 2)),),
        TABLE,
        CONTAINED,
    ),
    Setting(
        "layers",
        aten.embedding.default,
        lambda m, k: F.linear(F.embedding(k, m.w).flatten(1).tanh(), m.v),
        (Integers((2,)),),
        {**TABLE, "v": Box((2, 4))},
        CONTAINED,
    ),
]
