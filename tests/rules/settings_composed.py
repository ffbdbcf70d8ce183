"""Settings of calls that recording writes out as others: the laws compare them with autograd through the whole."""

import math

import torch
from torch.nn import functional as F

from tests.rules.laws import Box, Integers, Labels, Setting

aten = torch.ops.aten

ROW = Box((3,), radius=0.2)
NARROW = Box((3,), low=1e-9, high=2e-9, radius=1e-10)
"""Rows whose norms are below the least divisor of `cosine_similarity`, 1e-8."""

TIGHT = Box((1, 3, 2), radius=0.2)
HIDDEN = torch.tensor([[True, True, False], [True, False, True], [True, True, True]])
FAR = torch.zeros(3, 3, dtype=torch.float64).masked_fill(~HIDDEN, -math.inf)
WEIGHTS = torch.tensor([1.0, 3.0, 0.25], dtype=torch.float64)


def _setting(name, op, function, leaves, parameters=None):
    return Setting(f"composed {name}", op, function, leaves, parameters or {}, ())


LOSSES = [
    _setting("kl_div", aten.log.default, lambda m, x, y: F.kl_div(x, y.exp(), reduction="none"), (ROW, ROW)),
    _setting("cosine_similarity", aten.clamp_min.default, lambda m, x, y: F.cosine_similarity(x, y), (ROW, ROW)),
    _setting("cosine of little", aten.clamp_min.default, lambda m, x, y: F.cosine_similarity(x, y), (NARROW, ROW)),
    _setting("pairwise_distance", aten.norm.ScalarOpt_dim, lambda m, x, y: F.pairwise_distance(x, y), (ROW, ROW)),
    _setting(
        "triplet_margin_loss",
        aten.clamp_min.default,
        lambda m, x, y, z: F.triplet_margin_loss(x, y, z, margin=0.3, reduction="none"),
        (ROW, ROW, ROW),
    ),
    _setting(
        "margin_ranking_loss",
        aten.clamp_min.default,
        lambda m, x, y: F.margin_ranking_loss(x, y, torch.ones_like(x), margin=0.3, reduction="none"),
        (ROW, ROW),
    ),
    _setting(
        "poisson_nll_loss", aten.exp.default, lambda m, x, y: F.poisson_nll_loss(x, y, reduction="none"), (ROW, ROW)
    ),
]

PRODUCTS = [
    _setting("einsum of rows", aten.bmm.default, lambda m, x, y: torch.einsum("bi,bi->b", x, y), (ROW, ROW)),
    _setting(
        "einsum of pairs",
        aten.bmm.default,
        lambda m, x, y: torch.einsum("bqd,bkd->bqk", x, y),
        (Box((2, 3)), Box((2, 3))),
    ),
]

LOOKUPS = [
    _setting("rows of a parameter", aten.embedding.default, lambda m, k: m.w[k], (Integers(),), {"w": Box((3, 2))}),
    _setting("last rows", aten.embedding.default, lambda m, k: m.w[k - 3], (Integers(),), {"w": Box((3, 2))}),
    _setting("gather", aten.one_hot.default, lambda m, x, k: x.gather(1, k[:, None]), (ROW, Labels(3))),
    _setting(
        "weights by class",
        aten.one_hot.default,
        lambda m, x, k: F.cross_entropy(x, k, weight=WEIGHTS.to(x.dtype), reduction="none"),
        (ROW, Labels(3)),
    ),
]

PARAMETERS = [
    _setting(
        "weight_norm",
        aten.linalg_vector_norm.default,
        lambda m, x: F.linear(x, torch._weight_norm(m.v, m.g, 0)),
        (ROW,),
        {"v": Box((2, 3), low=0.5, high=1.0), "g": Box((2, 1))},
    ),
    _setting(
        "one length of weights",
        aten.linalg_vector_norm.default,
        lambda m, x: F.linear(x, torch._weight_norm(m.v, m.g, -1)),
        (ROW,),
        {"v": Box((2, 3), low=0.5, high=1.0), "g": Box(())},
    ),
    _setting(
        "normalized weights",
        aten.linalg_vector_norm.default,
        lambda m, x: F.linear(x, F.normalize(m.w)),
        (ROW,),
        {"w": Box((2, 3), low=0.5, high=1.0)},
    ),
    _setting("sum of squares", aten.sum.default, lambda m, x: x * m.w.square().sum(), (ROW,), {"w": Box((2, 3))}),
    _setting("mean of sizes", aten.mean.dim, lambda m, x: x * m.w.abs().mean(0), (ROW,), {"w": Box((2, 3))}),
    _setting("norm of all", aten.linalg_vector_norm.default, lambda m, x: x * m.w.norm(), (ROW,), {"w": Box((2, 3))}),
]

DROPPED = torch.tensor([[1.25, 0.0, 1.25], [0.0, 1.25, 1.25], [1.25, 1.25, 0.0]])[None, None]

MASKS = [
    _setting(
        name,
        aten.scaled_dot_product_attention.default,
        lambda m, q, k, v, mask=mask: F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask.to(q) if mask is FAR else mask
        ),
        (TIGHT, TIGHT, TIGHT),
    )
    for name, mask in (("mask of attention", HIDDEN), ("infinite mask of attention", FAR))
]
MASKS += [
    _setting(
        "dropout of attention",
        aten._scaled_dot_product_attention_math.default,
        lambda m, q, k, v: aten._scaled_dot_product_attention_math(q, k, v, None, 0.2, False, DROPPED.to(q))[0],
        (TIGHT, TIGHT, TIGHT),
    ),
    _setting(
        "hidden scores",
        aten.softmax.int,
        lambda m, x: x.masked_fill(~HIDDEN, -math.inf).softmax(-1),
        (Box((3, 3)),),
    ),
]

LOSSES += [
    _setting(
        "multi_margin_loss",
        aten.clamp_min.default,
        lambda m, x, k, p=power: F.multi_margin_loss(x, k, p=p, margin=0.7, reduction="none"),
        (ROW, labels),
    )
    for power, labels in ((1, Labels(3)), (2, Labels(3)), (1, Integers()))
]
LOSSES += [
    _setting(
        "cosine_embedding_loss",
        aten.where.ScalarOther,
        lambda m, x, y, k: F.cosine_embedding_loss(x, y, 1 - k, margin=-0.4, reduction="none"),
        (ROW, ROW, Integers()),
    ),
    _setting(
        "gaussian_nll_loss",
        aten.clamp_min.default,
        lambda m, x, y, z: F.gaussian_nll_loss(x, y, z.exp(), full=True, eps=0.5, reduction="none"),
        (ROW, ROW, ROW),
    ),
]

GRID = Box((3, 2), radius=0.2)

SPREADS = [
    _setting(f"spread {name}", aten.var.correction, lambda m, x, f=function: f(x), (leaf,))
    for name, function, leaf in (
        ("var", lambda x: x.var(-1, unbiased=False), GRID),
        ("var of all", lambda x: x.var((1, 2), keepdim=True), GRID),
        ("var about another divisor", lambda x: x.var(1, correction=0.5), GRID),
        ("std", lambda x: (x + torch.arange(3.0, dtype=x.dtype)[:, None]).std(1, keepdim=True), GRID),
        ("var and mean", lambda x: sum(torch.var_mean(x, dim=1)), GRID),
        ("wide var", lambda x: x.var(1), Box((4,))),
    )
]

COMPOSED = [*SPREADS, *LOSSES, *PRODUCTS, *LOOKUPS, *PARAMETERS, *MASKS]
