"""What is found in a captured loss: roles, terms, and everything that couples samples."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary, CaptureError
from agt_lightning.capture import LabelKind
from agt_lightning.errors import AgtError

CONTAINMENT = 1e-9
"""Rounding of a float64 step; one-sided."""

EQUAL = 1e-12
"""Rounding between two forms of one loss in float64."""

DOUBLE = torch.float64


class Net(nn.Module):
    def __init__(self, outputs=1):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 4, dtype=DOUBLE)
        self.last = nn.Linear(4, outputs, dtype=DOUBLE)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


def batch(kind="number", size=6):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 3, dtype=DOUBLE, generator=generator)
    labels = {
        "number": torch.randn(size, 1, dtype=DOUBLE, generator=generator),
        "class": torch.arange(size) % 3,
        "binary": (torch.arange(size) % 2).to(DOUBLE)[:, None],
    }
    return x, labels[kind]


def engine_of(loss, data, adversary, outputs=1):
    return AbstractGradientEngine(Net(outputs), loss, adversary)


def trained(loss, data, adversary, outputs=1, steps=2):
    engine = engine_of(loss, data, adversary, outputs)
    optimizer = torch.optim.SGD(engine.module.parameters(), lr=0.1)
    for _ in range(steps):
        engine.step([data], optimizer)
    return engine


# --- one loss, written in several ways ------------------------------------------------------------------------------

NUMBERS = BoundedAdversary(n=2, epsilon=0.1, nu=0.1)
FLIPS = BoundedAdversary(n=2, epsilon=0.1, nu=1, q=0)

SAME = {
    "mse by pow": (
        "number",
        lambda m, b: F.mse_loss(m(b[0]), b[1]),
        lambda m, b: ((m(b[0]).squeeze(-1) - b[1].squeeze(-1)) ** 2).mean(),
    ),
    "mse by square": (
        "number",
        lambda m, b: F.mse_loss(m(b[0]), b[1]),
        lambda m, b: torch.square(m(b[0]) - b[1]).sum() / len(b[0]),
    ),
    "l1 by abs": (
        "number",
        lambda m, b: F.l1_loss(m(b[0]), b[1]),
        lambda m, b: (m(b[0]) - b[1]).abs().mean(),
    ),
    "smooth l1 by huber": (
        "number",
        lambda m, b: F.smooth_l1_loss(m(b[0]), b[1], beta=0.5),
        lambda m, b: 2 * F.huber_loss(m(b[0]), b[1], delta=0.5),
    ),
    "unreduced": (
        "number",
        lambda m, b: F.mse_loss(m(b[0]), b[1]),
        lambda m, b: F.mse_loss(m(b[0]), b[1], reduction="none").flatten(1).mean(1).mean(0),
    ),
    "nll": (
        "class",
        lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        lambda m, b: F.nll_loss(F.log_softmax(m(b[0]), dim=1), b[1]),
    ),
    "cross-entropy by sum": (
        "class",
        lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum") / b[0].size(0),
    ),
    "bce of sigmoid": (
        "binary",
        lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]), b[1]),
        lambda m, b: F.binary_cross_entropy(torch.sigmoid(m(b[0])), b[1]),
    ),
    "linear by matmul": (
        "number",
        lambda m, b: F.mse_loss(m(b[0]), b[1]),
        lambda m, b: F.mse_loss(
            torch.relu(b[0] @ m.first.weight.T + m.first.bias) @ m.last.weight.t() + m.last.bias, b[1]
        ),
    ),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize(("kind", "first", "second"), SAME.values(), ids=SAME)
def test_the_same_loss_has_the_same_bounds_however_it_is_written(kind, first, second):
    adversary = NUMBERS if kind == "number" else FLIPS
    outputs = 3 if kind == "class" else 1
    one, two = (trained(loss, batch(kind), adversary, outputs) for loss in (first, second))
    for name, box in one.box.items():
        assert torch.allclose(box.lower, two.box[name].lower, rtol=EQUAL, atol=EQUAL), name
        assert torch.allclose(box.upper, two.box[name].upper, rtol=EQUAL, atol=EQUAL), name
    assert one.box["last.weight"].width.min() > 0


# --- roles ----------------------------------------------------------------------------------------------------------

ROLES = {
    "regression": ("number", 1, lambda m, b: F.mse_loss(m(b[0]), b[1]), LabelKind.NUMBER),
    "integers as numbers": (
        "class",
        1,
        lambda m, b: F.mse_loss(m(b[0]), b[1].unsqueeze(1).double()),
        LabelKind.NUMBER,
    ),
    "cross-entropy": ("class", 3, lambda m, b: F.cross_entropy(m(b[0]), b[1]), LabelKind.CLASS),
    "float classes": ("float class", 3, lambda m, b: F.cross_entropy(m(b[0]), b[1].long()), LabelKind.CLASS),
    "one-hot": ("class", 3, lambda m, b: F.mse_loss(m(b[0]), F.one_hot(b[1], 3).double()), LabelKind.CLASS),
    "one-hot probabilities": (
        "class",
        3,
        lambda m, b: F.cross_entropy(m(b[0]), F.one_hot(b[1], 3).double()),
        LabelKind.CLASS,
    ),
    "binary": ("binary", 1, lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]), b[1]), LabelKind.BINARY),
}


@pytest.mark.parametrize(("kind", "outputs", "loss", "expected"), ROLES.values(), ids=ROLES)
def test_feature_label_and_kind_are_found(kind, outputs, loss, expected):
    x, y = batch(kind.removeprefix("float "))
    data = (x, y.double()) if kind.startswith("float") else (x, y)
    roles = engine_of(loss, data, NUMBERS, outputs).objective(data).objective
    assert [roles.graph.leaves[name] for name in roles.features] == [0]
    assert [roles.graph.leaves[name] for name in roles.labels] == [1]
    assert roles.label_kind is expected
    assert not roles.problems


def test_an_autoencoder_has_a_feature_and_no_label():
    x, _ = batch()
    roles = engine_of(lambda m, b: F.mse_loss(m(b[0]), b[0]), (x,), NUMBERS, 3).objective((x,)).objective
    assert len(roles.features) == 1
    assert roles.labels == ()
    assert roles.label_kind is LabelKind.NONE


class Parts(nn.Module):
    """Layers that the losses below combine."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 4, dtype=DOUBLE)
        self.last = nn.Linear(4, 1, dtype=DOUBLE)
        self.fused = nn.Linear(8, 1, dtype=DOUBLE)
        self.table = nn.Embedding(3, 4, dtype=DOUBLE)
        self.offset = nn.Parameter(torch.ones(1, dtype=DOUBLE))

    def hidden(self, x):
        return torch.relu(self.first(x))

    def forward(self, x):
        return self.last(self.hidden(x))


def parts_batch(size=6):
    generator = torch.Generator().manual_seed(2)

    def numbers(width):
        return torch.rand(size, width, dtype=DOUBLE, generator=generator)

    return {
        "x": numbers(3),
        "z": numbers(4),
        "y": numbers(1),
        "t": numbers(1),
        "w": numbers(1),
        "c": torch.arange(size) % 3,
        "bit": torch.arange(size)[:, None] % 2 == 0,
        "pixels": (torch.arange(3 * size) % 256).to(torch.uint8).reshape(size, 3),
        "scale": torch.ones(1, 1, dtype=DOUBLE),
    }


def log_likelihood(logit, y):
    return -(y * F.logsigmoid(logit) + (1 - y) * F.logsigmoid(-logit))


ENTRIES = {  # loss, features, labels, whether the roles for ε and for ν are certain
    "one of two fused": (
        lambda m, b: F.mse_loss(m.fused(torch.cat([m.hidden(b["x"]), b["z"]], 1)), b["y"]),
        "x z",
        "y",
        True,
        True,
    ),
    "gate in the model": (lambda m, b: F.mse_loss(m.last(m.hidden(b["x"]) * b["z"]), b["y"]), "x z", "y", True, True),
    "gate behind the model": (lambda m, b: F.mse_loss(m(b["x"]) * b["w"], b["y"]), "x", "w y", False, False),
    "base of a prediction": (lambda m, b: F.mse_loss(m(b["x"]) + b["w"], b["y"]), "x", "w y", False, False),
    "base behind a fixed map": (
        lambda m, b: F.mse_loss(m(b["x"]) + b["z"].sum(1, keepdim=True), b["y"]),
        "x",
        "z y",
        False,
        False,
    ),
    "prior of classes": (
        lambda m, b: F.cross_entropy(m(b["x"]) + b["x"] + b["z"][:, :3], b["c"]),
        "x",
        "z c",
        False,
        False,
    ),
    "gate of a reconstruction": (lambda m, b: F.mse_loss(m(b["x"]) * b["w"], b["x"][:, :1]), "x", "w", False, False),
    "weights": (lambda m, b: (b["w"] * (m(b["x"]) - b["y"]) ** 2).mean(), "x", "y", True, True),
    "weights of a reconstruction": (lambda m, b: (b["w"] * (m(b["x"]) - b["x"]) ** 2).mean(), "x", "", True, False),
    "weights and a moved label": (
        lambda m, b: (b["w"] * (m(b["x"]) - (b["y"] - m.offset)) ** 2).mean(),
        "x y",
        "w",
        True,
        False,
    ),
    "weights and a scaled label": (
        lambda m, b: (b["w"] * (m(b["x"]) - b["y"] * m.offset).abs()).mean(),
        "x y",
        "w",
        True,
        False,
    ),
    "gate and a moved label": (
        lambda m, b: F.mse_loss(m(b["x"]) * b["w"], b["y"] - m.offset),
        "x y",
        "w",
        False,
        False,
    ),
    "mask of both": (lambda m, b: F.mse_loss(m(b["x"]) * b["bit"], b["y"] * b["bit"]), "x", "bit y", True, False),
    "two targets": (
        lambda m, b: F.mse_loss(m(b["x"]), b["y"]) + (m(b["x"]) - b["t"]).abs().mean(),
        "x",
        "y t",
        True,
        False,
    ),
    "two models in one sum": (lambda m, b: F.mse_loss(m(b["x"]) + m.last(b["z"]), b["y"]), "x z", "y", True, True),
    "residual": (lambda m, b: F.mse_loss(m(b["x"]) + b["x"][:, :1], b["y"]), "x", "y", True, True),
    "change": (lambda m, b: F.mse_loss(m(b["x"]), b["y"] - b["x"][:, :1]), "x", "y", True, True),
    "likelihood by hand": (lambda m, b: log_likelihood(m(b["x"]), b["y"]).mean(), "x", "y", True, True),
    "weighted likelihood by hand": (
        lambda m, b: (b["w"] * log_likelihood(m(b["x"]), b["y"])).mean(),
        "x",
        "y",
        True,
        True,
    ),
    "likelihood by hand and a target": (
        lambda m, b: log_likelihood(m(b["x"]), b["y"]).mean() + F.mse_loss(m(b["x"]), b["t"]),
        "x",
        "y t",
        True,
        False,
    ),
    "label that enters as well": (
        lambda m, b: F.mse_loss(m.last(m.hidden(b["x"]) * b["y"]), b["y"]),
        "x y",
        "",
        True,
        False,
    ),
    "class that enters as well": (
        lambda m, b: F.cross_entropy(m.last(m.hidden(b["x"]) + m.table(b["c"])) + b["x"], b["c"]),
        "x",
        "",
        True,
        False,
    ),
    "loss behind a parameter": (lambda m, b: (m.offset * (m(b["x"]) - b["y"]) ** 2).mean(), "x y", "", True, False),
    "categories": (
        lambda m, b: F.mse_loss(m.fused(torch.cat([m.table(b["c"]), b["z"]], 1)), b["y"]),
        "z",
        "y",
        True,
        True,
    ),
    "test for a category": (
        lambda m, b: F.mse_loss(m.last(b["z"] * (b["c"] == 1).double()[:, None]), b["y"]),
        "z",
        "y",
        True,
        True,
    ),
    "integers": (lambda m, b: F.mse_loss(m(b["pixels"] / 255.0) + m.last(b["z"]), b["y"]), "z", "y", False, True),
    "gate of bits": (lambda m, b: F.mse_loss(m.last(m.hidden(b["x"]) * b["bit"]), b["y"]), "x", "y", True, True),
    "shared by all": (lambda m, b: F.mse_loss(m(b["x"]) * b["scale"], b["y"]), "x", "y", True, True),
}


@pytest.mark.parametrize(("loss", "features", "labels", "moves", "shifts"), ENTRIES.values(), ids=ENTRIES)
def test_every_entry_has_a_role_or_is_asked_for(loss, features, labels, moves, shifts):
    data = parts_batch()
    roles = AbstractGradientEngine(Parts(), loss, NUMBERS).objective(data).objective
    assert [roles.names[leaf] for leaf in roles.features] == [f"batch['{key}']" for key in features.split()]
    assert [roles.names[leaf] for leaf in roles.labels] == [f"batch['{key}']" for key in labels.split()]
    assert (not roles.entries.feature_doubts, not roles.entries.label_doubts) == (moves, shifts)
    others = {f"batch['{key}']" for key in data} - {roles.names[leaf] for leaf in (*roles.features, *roles.labels)}
    assert set(roles.entries.unmoved) == others


@pytest.mark.slow
def test_containers_positions_and_printed_names_select_entries():
    x, y = batch()
    data = ({"a": x, "b": [2 * x]}, y)

    def loss(module, batch):
        inputs, target = batch
        return F.mse_loss(module(inputs["a"]) + module(inputs["b"][0]), target)

    def features(names):
        engine = AbstractGradientEngine(Net(), loss, NUMBERS, features=names, labels=1)
        roles = engine.objective(data).objective
        return [roles.names[leaf] for leaf in roles.features]

    assert features(0) == features("batch[0]") == ["batch[0]['a']", "batch[0]['b'][0]"]
    assert features("batch[0]['b']") == features(["batch[0]['b'][0]"]) == ["batch[0]['b'][0]"]


def flips_of(y):
    for row in range(len(y)):
        for label in range(3):
            yield row, torch.tensor(label)


def contained(loss, data, adversary, outputs, poisons):
    """Train on every poisoned batch once; the names of parameters outside the box."""
    engine = engine_of(loss, data, adversary, outputs)
    start = copy.deepcopy(engine.module)
    engine.step([data], torch.optim.SGD(engine.module.parameters(), lr=0.1))
    outside = []
    for row, label in poisons(data[1]):
        labels = data[1].clone()
        labels[row] = label
        stepped = copy.deepcopy(start)
        optimizer = torch.optim.SGD(stepped.parameters(), lr=0.1)
        loss(stepped, (data[0], labels)).backward()
        optimizer.step()
        outside += [name for name, p in stepped.named_parameters() if not engine.box[name].contains(p, CONTAINMENT)]
    return outside


READ_TWICE = {
    "as class and as number": lambda m, b: (
        F.cross_entropy(m(b[0]), b[1]) + F.mse_loss(m(b[0]).mean(dim=1), b[1].double())
    ),
    "as number and as class": lambda m, b: (
        F.mse_loss(m(b[0]).mean(dim=1), b[1].double()) + F.cross_entropy(m(b[0]), b[1])
    ),
    "as class and one-hot": lambda m, b: (
        F.cross_entropy(m(b[0]), b[1]) + F.mse_loss(m(b[0]), F.one_hot(b[1], 3).double())
    ),
}


@pytest.mark.parametrize("loss", READ_TWICE.values(), ids=READ_TWICE)
def test_labels_read_twice_are_contained_or_refused(loss):
    data = batch("class")
    flips = BoundedAdversary(n=1, nu=1, q=0)
    try:
        outside = contained(loss, data, flips, 3, flips_of)
    except AgtError:
        return
    assert outside == []


def test_flipped_labels_of_another_coding_are_contained_or_refused():
    """Labels -1 and 1 in the data, 0 and 1 in the loss."""
    x, y = batch("binary")
    data = (x, 2 * y - 1)

    def loss(module, batch):
        return F.binary_cross_entropy_with_logits(module(batch[0]), (batch[1] + 1) / 2)

    def poisons(labels):
        return ((row, -labels[row]) for row in range(len(labels)))

    flips = BoundedAdversary(n=1, nu=1, q=0)
    try:
        outside = contained(loss, data, flips, 1, poisons)
    except (AgtError, ValueError):
        return
    assert outside == []


# --- one sum, written in several ways -------------------------------------------------------------------------------


def errors(m, b):
    return F.mse_loss(m(b[0]), b[0], reduction="none")


def halves(m, b):
    return F.mse_loss(m(b[0]), b[0]), F.l1_loss(m(b[0]), b[0])


SUMS = {
    "mean of a mean": (lambda m, b: errors(m, b).mean(), lambda m, b: errors(m, b).mean().mean()),
    "sum of a sum": (lambda m, b: errors(m, b).sum(), lambda m, b: errors(m, b).sum().sum()),
    "axis by axis": (lambda m, b: errors(m, b).sum(1).mean(), lambda m, b: errors(m, b).mean(0).sum()),
    "sum, then mean": (lambda m, b: errors(m, b).sum(0).mean(), lambda m, b: errors(m, b).mean(1).sum()),
    "a factor between": (lambda m, b: 3 * errors(m, b).mean() - 1, lambda m, b: (3 * errors(m, b).mean(0) - 1).mean()),
    "sum of a stack": (lambda m, b: sum(halves(m, b)), lambda m, b: torch.stack(halves(m, b)).sum()),
    "mean of a stack": (lambda m, b: sum(halves(m, b)) / 2, lambda m, b: torch.stack(halves(m, b)).mean()),
    "factor zero": (lambda m, b: errors(m, b).mean(), lambda m, b: 0.0 * halves(m, b)[1] + errors(m, b).mean()),
    "parameters times zero": (
        lambda m, b: errors(m, b).mean(),
        lambda m, b: errors(m, b).mean() + 0.0 * sum(p.sum() for p in m.parameters()),
    ),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize(("first", "second"), SUMS.values(), ids=SUMS)
def test_the_same_sum_has_the_same_bounds_however_it_is_written(first, second):
    data = (batch()[0],)
    one, two = (trained(loss, data, BoundedAdversary(n=2, epsilon=0.1), 3) for loss in (first, second))
    for name, box in one.box.items():
        assert torch.allclose(box.lower, two.box[name].lower, rtol=EQUAL, atol=EQUAL), name
        assert torch.allclose(box.upper, two.box[name].upper, rtol=EQUAL, atol=EQUAL), name
    assert one.box["last.weight"].width.min() > 0


# --- what couples samples -------------------------------------------------------------------------------------------


def without_code(problems):
    """Return the problems without the lines of this file that they quote, which hold what is searched for."""
    return re.sub(r"(\.py:\d+) `[^`]*`", r"\1", "\n".join(problems))


def mean_inside(errors, predictions):
    mean = errors.mean(dim=0, keepdim=True)
    return mean.sum() + (mean.detach() * predictions).mean()


COUPLED = {
    "max": (lambda m, b: (m(b[0]) - b[1]).abs().max(), "aten.max"),
    "logarithm of the mean": (lambda m, b: (m(b[0]) - b[1]).square().mean().log(), "aten.log"),
    "square of the mean": (lambda m, b: (m(b[0]).mean() - b[1].mean()) ** 2, "aten.pow"),
    "centred outputs": (lambda m, b: (m(b[0]) - m(b[0]).mean(0) - b[1]).square().mean(), "aten.mean"),
    "centred features": (lambda m, b: F.mse_loss(m(b[0] - b[0].mean(0)), b[1]), "aten.mean"),
    "centred labels": (lambda m, b: F.mse_loss(m(b[0]), b[1] - b[1].mean()), "aten.mean"),
    "standardised features": (lambda m, b: F.mse_loss(m(b[0] / b[0].std()), b[1]), "aten.var"),
    "column against row": (lambda m, b: ((m(b[0]) - b[1].squeeze(1)) ** 2).mean(), "broadcasts"),
    "row against column": (lambda m, b: ((m(b[0]).squeeze(1) - b[1]) ** 2).mean(), "broadcasts"),
    "mse column against row": (lambda m, b: F.l1_loss(m(b[0]), b[1].squeeze(1)[None]), "aten.unsqueeze"),
    "neighbours": (lambda m, b: F.mse_loss(m(b[0]), b[1].roll(1, 0)), "aten.roll"),
    "flipped": (lambda m, b: F.mse_loss(m(b[0].flip(0)), b[1]), "aten.flip"),
    "transposed": (lambda m, b: F.mse_loss(m(b[0]).T, b[1].T.roll(1, 1)), "aten.numpy_T"),
    "reshaped": (lambda m, b: F.mse_loss(m(b[0]).reshape(2, 3), b[1].reshape(2, 3)), "loses the samples"),
    "gram matrix": (lambda m, b: (m(b[0]) @ m(b[0]).T).mean(), "one weight to each sample"),
    "softmax over samples": (lambda m, b: (m(b[0]).softmax(0) * b[1]).sum(), "aten.softmax"),
    "mean inside": (lambda m, b: mean_inside((m(b[0]) - b[1]).square(), m(b[0])), "for each of them"),
    "normalised weights": (lambda m, b: (m(b[0]) * b[1]).sum() / b[1].sum(), "aten.div"),
    "product of two means": (lambda m, b: m(b[0]).mean() * b[1].mean(), "aten.mul"),
    "some samples": (lambda m, b: F.mse_loss(m(b[0])[1:], b[1][1:]), "aten.slice"),
    "mixed up": (lambda m, b: F.mse_loss(m(b[0][torch.randperm(6)]), b[1]), "randperm|aten.index"),
    "repeated": (lambda m, b: F.mse_loss(m(torch.cat([b[0], b[0]])), torch.cat([b[1], b[1]])), "aten.cat"),
}


@pytest.mark.parametrize(("loss", "message"), COUPLED.values(), ids=COUPLED)
def test_coupled_samples_are_refused(loss, message):
    problems = engine_of(loss, batch(), NUMBERS).problems(batch(), None)
    assert re.search(message, without_code(problems)), problems


REFUSED = {
    "gamma": (lambda m, b: F.mse_loss(torch.lgamma(m(b[0])), b[1]), "aten.lgamma"),
    "power of zero": (lambda m, b: ((m(b[0]) - b[1]) ** 0).mean(), "exponent 0"),
    "no reduction": (lambda m, b: F.mse_loss(m(b[0]), b[1], reduction="none"), "loss of shape"),
    "noise that data scale": (lambda m, b: F.mse_loss(m(torch.normal(b[0], 1.0)), b[1]), "draws random numbers"),
    "random scale": (lambda m, b: F.mse_loss(m(b[0]), b[1]) * torch.rand(()), "aten.mul"),
    "dropout of everything": (lambda m, b: F.mse_loss(F.dropout(m(b[0]), p=1.0), b[1]), "active"),
    "regulariser of another form": (
        lambda m, b: F.mse_loss(m(b[0]), b[1]) + 0.1 * torch.lgamma(m.last.weight.square()).sum(),
        "changes a parameter",
    ),
    "changed parameter": (
        lambda m, b: F.mse_loss(b[0] @ (torch.lgamma(m.first.weight[:1].T)), b[1]),
        "changes a parameter",
    ),
    "features alone": (lambda m, b: b[0].square().mean(), "trains no parameter"),
    "parameters alone": (lambda m, b: m.last.weight.sum(), "parameters alone"),
    "nothing": (lambda m, b: torch.zeros(()), "trains no parameter"),
    "several results": (lambda m, b: F.mse_loss(m(b[0]).aminmax(dim=1, keepdim=True).min, b[1]), "aten.aminmax"),
    "autocast": (lambda m, b: autocast_loss(m, b), "autocast"),
}


def autocast_loss(module, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.mse_loss(module(batch[0]), batch[1])


@pytest.mark.parametrize(("loss", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_bound_is_refused(loss, message):
    try:
        problems = engine_of(loss, batch(), NUMBERS).problems(batch(), None)
    except CaptureError as error:
        problems = [str(error)]
    assert re.search(message, without_code(problems)), problems


def test_class_weights_of_smoothed_labels_are_refused():
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE)

    def loss(module, batch):
        return F.cross_entropy(module(batch[0]), batch[1], weight=weight, label_smoothing=0.1)

    data = batch("class")
    assert "has weights" in "\n".join(engine_of(loss, data, FLIPS, 3).problems(data, None))


def test_every_problem_is_listed_with_its_line():
    def loss(module, batch):
        hidden = torch.lgamma(module.first(batch[0]))
        return F.mse_loss(torch.digamma(module.last(hidden)), batch[1])

    problems = engine_of(loss, batch(), NUMBERS).problems(batch(), None)
    assert len(problems) == 2
    assert "test_roles.py" in problems[0]
    assert "torch.lgamma(module.first(batch[0]))" in problems[0]


WRONG_LABELS = {
    "flips of numbers": ("number", BoundedAdversary(n=1, nu=1, q=0), "real-valued labels"),
    "moved classes": ("class", BoundedAdversary(n=1, nu=1, q=float("inf")), "Class labels cannot move"),
    "sources of zeros and ones": ("binary", BoundedAdversary(n=1, nu=1, q=0, source_classes=[1]), "target_classes"),
}


@pytest.mark.parametrize(("kind", "adversary", "message"), WRONG_LABELS.values(), ids=WRONG_LABELS)
def test_an_adversary_of_the_wrong_kind_is_refused(kind, adversary, message):
    losses = {
        "number": F.mse_loss,
        "class": F.cross_entropy,
        "binary": F.binary_cross_entropy_with_logits,
    }

    def loss(module, batch):
        return losses[kind](module(batch[0]), batch[1])

    data = batch(kind)
    problems = engine_of(loss, data, adversary, 3 if kind == "class" else 1).problems(data, None)
    assert message in "\n".join(problems)


# --- code that cannot be recorded -----------------------------------------------------------------------------------

UNRECORDABLE = {
    "a view of other data": lambda m, b: F.mse_loss(m(b[0]), torch.frombuffer(b[1], dtype=torch.float32)),
    "an error of its own": lambda m, b: F.mse_loss(m(b[0]), b[7]),
}


@pytest.mark.parametrize("loss", UNRECORDABLE.values(), ids=UNRECORDABLE)
def test_code_that_cannot_be_recorded_names_the_way_out(loss):
    with pytest.raises(CaptureError, match="certified_objective"):
        engine_of(loss, batch(), NUMBERS).problems(batch(), None)


def no_grad_features(module, batch):
    with torch.no_grad():
        x = 2 * batch[0] + 1
    return F.mse_loss(module(x), batch[1])


def no_grad_layer(module, batch):
    with torch.no_grad():
        hidden = torch.relu(module.first(batch[0]))
    return F.mse_loss(module.last(hidden), batch[1])


def detached_layer(module, batch):
    return F.mse_loss(module.last(torch.relu(module.first(batch[0])).detach()), batch[1])


@pytest.mark.parametrize("loss", [no_grad_features, no_grad_layer, detached_layer])
def test_gradients_stop_where_the_code_stops_them(loss):
    """`step` compares every gradient with autograd's."""
    engine = trained(loss, batch(), NUMBERS)
    assert engine.bounds.contains(engine.module)
    assert (engine.box["first.weight"].width.max() > 0) == (loss is no_grad_features)
