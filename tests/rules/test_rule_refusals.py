"""Calls that would mix samples, or that have no sound rule, are refused with a way out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agt_lightning.capture import capture, reached
from agt_lightning.errors import UncertifiableError
from agt_lightning.propagation import Program
from agt_lightning.rules import RULES, register_rule
from tests.rules.laws import Box, Setting, draw_domain, propagate

aten = torch.ops.aten
BATCH = 4
X = torch.ones(BATCH, 3)
LABELS = torch.zeros(BATCH, dtype=torch.int64)


class Owner(nn.Module):
    """Parameters and buffers that the refused calls use."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, 3))
        self.column = nn.Parameter(torch.ones(BATCH, 1))
        self.norm = nn.BatchNorm1d(3, track_running_stats=False)
        self.register_buffer("class_weight", torch.ones(3))


def problems(function, *leaves):
    owner = Owner()
    graph = capture(owner, lambda tensors: function(owner, *tensors), leaves)
    return Program.build(
        graph,
        RULES,
        samples=reached(graph, set(graph.leaves)),
        trainable=reached(graph, set(graph.parameters)),
    ).problems


# name: function, leaves, message
REFUSED = {
    "column with row": (lambda m, x, y: (x @ m.w)[:, :1] - y, (X, X[:, 0]), "each sample meets all others"),
    "prediction (b, 1) with label (b,)": (
        lambda m, x, y: F.linear(x, m.w[:1]) - y,
        (X, X[:, 0]),
        "broadcasts shapes .4, 1. and .4,. so that each sample meets all others.*squeeze",
    ),
    "product of (b, 1) with (b,)": (
        lambda m, x, y: (x @ m.w).sum(1, keepdim=True) * y,
        (X, X[:, 0]),
        "aten.mul.*each sample meets all others",
    ),
    "parameter per sample": (
        lambda m, x: x + m.column,
        (X,),
        "aten.add.*a row for each sample and is not part of the batch",
    ),
    "shape without the samples in front": (
        lambda m, x: (x @ m.w).sum(1).reshape(1, BATCH),
        (X,),
        "turns shape .4,. into .1, 4. and loses the samples' axis.*squeeze.-1.",
    ),
    "flatten of everything": (lambda m, x: (x @ m.w).flatten(), (X,), "aten.flatten.*loses the samples' axis"),
    "unsqueeze in front": (lambda m, x: (x @ m.w).unsqueeze(0), (X,), "aten.unsqueeze.*loses the samples' axis"),
    "mean over the batch in the middle": (
        lambda m, x: x - x.mean(dim=0, keepdim=True) @ m.w,
        (X,),
        "aten.mean.*reduces over the samples before the loss is complete",
    ),
    "negative axis over the batch": (lambda m, x: x.sum(dim=-2) @ m.w, (X,), "aten.sum.*reduces over the samples"),
    "sum of everything": (lambda m, x: x * (x @ m.w).sum(), (X,), "aten.sum.*reduces over the samples"),
    "class weights": (
        lambda m, x, y: F.cross_entropy(x @ m.w, y, weight=m.class_weight, label_smoothing=0.1),
        (X, LABELS),
        "aten.cross_entropy_loss.*has weights by class.*Leave `weight` or `label_smoothing` out",
    ),
    "an ignored class": (
        lambda m, x, y: F.cross_entropy(x @ m.w, y, ignore_index=2, reduction="none"),
        (X, LABELS),
        "aten.cross_entropy_loss.*ignores class 2: the mean then divides",
    ),
    "target that is trained": (
        lambda m, x: F.binary_cross_entropy_with_logits(x, x @ m.w, reduction="none"),
        (X,),
        "target that depends on trainable parameters",
    ),
    "cross-entropy without a class axis": (
        lambda m, x, y: F.cross_entropy((x @ m.w).sum(1), y, reduction="none"),
        (X, X[:, 0]),
        "needs predictions of shape .batch, classes",
    ),
    "active dropout": (
        lambda m, x: F.dropout(x @ m.w, p=1.0, training=True),
        (X,),
        r"dropout.*is active .p = 1.0.*Set `p=0`",
    ),
    "power of zero": (lambda m, x: (x @ m.w) ** 0, (X,), "aten.pow.*has exponent 0"),
    "power of every sample": (lambda m, x: (x @ m.w) ** x, (X,), "has no bound rule"),
    "largest of the samples": (lambda m, x: (x @ m.w).amax(0), (X,), "runs over the samples.*`dim=1`"),
    "position of the largest": (
        lambda m, x: x @ m.w * (x @ m.w).max(1).indices[:, None],
        (X,),
        "position of an extreme entry|has no bound rule",
    ),
    "norm of the samples": (
        lambda m, x: torch.linalg.vector_norm(x @ m.w, dim=0),
        (X,),
        "runs over the samples.*`dim=1`",
    ),
    "largest norm": (lambda m, x: torch.linalg.vector_norm(x @ m.w, torch.inf, dim=1), (X,), "order inf; 1 and 2"),
    "logarithm over the samples": (lambda m, x: torch.logsumexp(x @ m.w, 0), (X,), "axis 0, the samples.*`dim=1`"),
    "choice by a prediction": (
        lambda m, x: torch.where(x @ m.w > 0, x @ m.w, 0.0),
        (X,),
        "chooses by a prediction|has no bound rule",
    ),
    "infinity filled in": (
        lambda m, x: (x @ m.w).masked_fill(torch.tensor(True), -torch.inf),
        (X,),
        "fills in infinity.*finite number",
    ),
    "weight per sample": (lambda m, x: F.linear(m.w, x), (X,), "does not apply one weight to each sample"),
    "product of samples": (lambda m, x: x @ x.T, (X,), "does not apply one weight to each sample|has no bound rule"),
    "unknown op": (lambda m, x: torch.lgamma(x @ m.w), (X,), "aten.lgamma.default.*has no bound rule.*register_rule"),
    "near relative of a known op": (lambda m, x: F.threshold(x @ m.w, 0.5, 0.5), (X,), "has no bound rule"),
    "division with rounding": (lambda m, x: torch.div(x @ m.w, 2, rounding_mode="floor"), (X,), "has no bound rule"),
    "batch normalization": (lambda m, x: m.norm(x), (X,), "batch.*one sample reaches all gradients.*GroupNorm"),
    "noise as large as the samples": (lambda m, x: x @ m.w + torch.normal(x, 0.1), (X,), "draws random numbers"),
    "parameter changed first": (
        lambda m, x: x @ torch.lgamma(m.w),
        (X,),
        "changes a parameter before it meets the data",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name):
    function, leaves, message = REFUSED[name]
    found = problems(function, *leaves)
    assert found
    with pytest.raises(ValueError, match=message):
        raise ValueError("\n".join(found))


def test_every_problem_is_reported_at_once():
    found = problems(lambda m, x: torch.lgamma(torch.digamma(x @ m.w).mean(0)), X)
    assert all(any(name in message for name in ("lgamma", "digamma", "mean")) for message in found)
    assert len(found) == 3


# The same use, written soundly, has no problems.
ACCEPTED = {
    "squeezed prediction": (lambda m, x, y: (x @ m.w).sum(1, keepdim=True).squeeze(-1) - y, (X, X[:, 0])),
    "flatten from axis 1": (lambda m, x: (x @ m.w).flatten(1), (X,)),
    "mean over features": (lambda m, x: x - (x @ m.w).mean(dim=1, keepdim=True), (X,)),
    "dropout in evaluation": (lambda m, x: F.dropout(x @ m.w, p=0.25, training=False), (X,)),
    "unweighted": (lambda m, x, y: F.cross_entropy(x @ m.w, y, reduction="none"), (X, LABELS)),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_sound_use_is_accepted(name):
    function, leaves = ACCEPTED[name]
    assert problems(function, *leaves) == ()


def test_registering_an_overload_twice_is_refused():
    with pytest.raises(ValueError, match=r"Expected an overload without a rule, but aten.relu.default has one"):
        register_rule(aten.relu.default)(RULES[aten.relu.default])


def test_the_table_is_read_only():
    with pytest.raises(TypeError, match="does not support item assignment"):
        RULES[aten.cosh.default] = RULES[aten.relu.default]


def test_a_union_of_tables_supplies_a_missing_rule():
    owner = Owner()
    graph = capture(owner, lambda tensors: torch.lgamma(tensors[0] @ owner.w), [X])
    values = {"samples": reached(graph, set(graph.leaves)), "trainable": reached(graph, set(graph.parameters))}
    assert "lgamma" in Program.build(graph, RULES, **values).problems[0]
    assert not Program.build(graph, {**RULES, aten.lgamma.default: RULES[aten.relu.default]}, **values).problems


def test_division_by_a_box_around_zero_raises():
    setting = Setting("zero", aten.div.Tensor, lambda m, x, y: x / y, (Box(), Box(low=0.0, high=0.0)))
    with pytest.raises(UncertifiableError, match="`aten.div`.* divides by values that can reach zero"):
        propagate(setting, RULES, draw_domain(setting, torch.float64, seed=0))
