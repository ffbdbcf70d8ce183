"""Rewritten graphs compute what was captured, with the samples first; what cannot be followed stays as it was."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agt_lightning.capture import capture, copies, export, reached
from agt_lightning.capture.graph import ITEM, map_references
from agt_lightning.capture.layout import FIRST, Layout
from agt_lightning.capture.rewriting import Rewriting
from agt_lightning.interval import Interval
from agt_lightning.propagation import Program, propagate_forward
from agt_lightning.rules import RULES
from tests.faults import Fault, require_checks_pass

BATCH, TIME, SIZE, CLASSES = 4, 3, 6, 5
SEQUENCE, IMAGE = (TIME, SIZE), (4, 4, SIZE)
EXACT = 1e-10
"""Far above float64 rounding of these small sums, far below any change of an element."""


class Owner(nn.Module):
    """Parameters and layers that the code uses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.qkv = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, 3 * SIZE)
        self.head, self.norm = nn.Linear(SIZE, CLASSES), nn.LayerNorm(SIZE)
        self.attention = nn.MultiheadAttention(SIZE, 2)
        self.layer = nn.TransformerEncoderLayer(SIZE, 2, 8, dropout=0.0)
        self.first = nn.TransformerEncoderLayer(SIZE, 2, 8, dropout=0.0, batch_first=True, norm_first=True)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, SIZE)), nn.Embedding(TIME, SIZE)
        self.square = nn.Parameter(torch.randn(SIZE, SIZE))


def folded(m, x):
    return m.linear(x.view(-1, SIZE)).tanh().view(x.shape)


def sequence_first(m, x):
    return m.norm(m.linear(x.transpose(0, 1)) + torch.ones(TIME, 1, SIZE)).transpose(0, 1)


def heads(m, x):
    q, k, v = m.qkv(x).reshape(len(x), TIME, 3, 2, SIZE // 2).permute(2, 0, 3, 1, 4).unbind(0)
    return ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(x.shape)


def folded_heads(m, x):
    q, k, v = m.qkv(x).view(len(x), TIME, 3 * 2, SIZE // 2).transpose(1, 2).reshape(-1, 3, TIME, SIZE // 2).unbind(1)
    return torch.bmm(torch.bmm(q, k.mT).softmax(2), v).view(len(x), 2, TIME, -1).transpose(1, 2).flatten(2)


def windows(m, x):
    parts = x.view(len(x), 2, 2, 2, 2, SIZE).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 4, SIZE)
    parts = m.norm(parts + m.linear(parts).mean(1, keepdim=True))
    whole = parts.view(len(x), 2, 2, 2, 2, SIZE).permute(0, 1, 3, 2, 4, 5).contiguous().view(x.shape)
    return whole.roll((1, 2), (1, 2))


def class_token(m, x):
    return torch.cat([m.token.expand(len(x), -1, -1), x], 1) @ m.square


def token_in_sequence(m, x):
    return torch.cat([m.token.repeat(1, len(x), 1), x.transpose(0, 1)], 0).transpose(0, 1)


def places(m, x):
    numbers = torch.arange(TIME).unsqueeze(0).expand(len(x), TIME)
    return x + m.places(numbers) + torch.zeros(len(x), 1, 1) + torch.full((len(x), TIME), 0.5).view(-1, TIME, 1)


def pieces(m, x):
    rows = x.transpose(0, 1)
    first, rest = rows.split([1, TIME - 1])
    left, right = torch.cat([rest, first], 0)[:, :, 1:5].chunk(2, -1)
    return F.pad(torch.stack([left, right], 0).flip(0).sum(0).amax(0), (0, 1))


def cube(m, x):
    """Equal sizes, so that a wrong axis shows in the numbers alone."""
    return x.permute(2, 0, 3, 1).softmax(2).transpose(0, 1)


FUNCTIONS = {
    "cube": (cube, (3, 3, 3)),
    "folded": (folded, SEQUENCE),
    "sequence first": (sequence_first, SEQUENCE),
    "heads": (heads, SEQUENCE),
    "folded heads": (folded_heads, SEQUENCE),
    "windows": (windows, IMAGE),
    "class token": (class_token, SEQUENCE),
    "token in a sequence": (token_in_sequence, SEQUENCE),
    "places": (places, SEQUENCE),
    "pieces": (pieces, SEQUENCE),
    "attention": (lambda m, x: m.attention(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1), SEQUENCE),
    "attention without weights": (
        lambda m, x: m.attention(*[x.transpose(0, 1)] * 3, need_weights=False)[0][1],
        SEQUENCE,
    ),
    "encoder layer": (lambda m, x: m.layer(x.movedim(0, 1)).permute(1, 0, 2), SEQUENCE),
    "encoder layer, batch first": (lambda m, x: m.first(x), SEQUENCE),
    "calls of other kinds": (
        lambda m, x: F.avg_pool1d(F.group_norm(folded(m, x).repeat(1, 2, 1), 2), 2)[:, [4, 1]],
        SEQUENCE,
    ),
    "stack of two": (lambda m, x: torch.stack([x, m.linear(x)], 0).sum(0), SEQUENCE),
}

LOSSES = {
    "tokens": lambda m, x, y: F.cross_entropy(m.head(x).view(-1, CLASSES), y.view(-1)),
    "tokens in a sequence": lambda m, x, y: F.cross_entropy(
        m.head(x.transpose(0, 1)).reshape(-1, CLASSES), y.t().reshape(-1), reduction="sum"
    ),
    "tokens, log": lambda m, x, y: F.nll_loss(m.head(x).flatten(0, 1).log_softmax(1), y.flatten()),
    "tokens, smoothed": lambda m, x, y: F.cross_entropy(
        m.head(x).flatten(0, 1), F.one_hot(y, CLASSES).double().flatten(0, 1), label_smoothing=0.1
    ),
    "weighted tokens": lambda m, x, y: (
        F.cross_entropy(m.head(x).view(-1, CLASSES), y.view(-1), reduction="none").view(y.shape).sum(1).mean()
    ),
    "two terms": lambda m, x, y: (
        F.cross_entropy(m.head(x).view(-1, CLASSES), y.view(-1)) + 0.1 * m.linear(x).transpose(0, 1).pow(2).mean()
    ),
    "squared errors": lambda m, x, y: F.mse_loss(m.linear(x).view(-1), x.reshape(-1)),
    "means": lambda m, x, y: m.head(x).tanh().transpose(0, 1).mean((0, 1)).sum(),
}


def captured(function, leaves, *, rewritten):
    with pytest.MonkeyPatch.context() as patch:
        if not rewritten:
            patch.setattr(export, "samples_first", lambda graph: graph)
        owner = Owner().double()
        return owner, capture(owner, lambda tensors: function(owner, *tensors), leaves)


def executed(owner, graph, leaves):
    """Run the calls of a graph."""
    values = {name: owner.get_parameter(target) for name, target in graph.parameters.items()}
    values |= {**graph.constants, **{name: leaves[position] for name, position in graph.leaves.items()}}
    for call in graph.calls:
        item = call.arguments.get(ITEM)
        arguments = {
            argument.name: map_references(call.arguments[argument.name], lambda reference: values[reference.name])
            for argument in call.op._schema.arguments
        }
        if "tensors" in arguments:  # a shared part is one row for all samples
            arguments["tensors"] = rows_of_all(arguments["tensors"])
        result = call.op(**arguments)
        values[call.name] = result if item is None else result[item]
        assert item is not None or values[call.name].shape == call.shape, call
    return values[graph.output]


def rows_of_all(parts):
    samples = max(len(part) for part in parts)
    return [part.expand(samples, *part.shape[1:]) if len(part) == 1 else part for part in parts]


def program_of(function, shape):
    example = torch.zeros(BATCH, *shape, dtype=torch.float64)
    owner, graph = captured(function, [example], rewritten=True)
    samples, trainable = reached(graph, set(graph.leaves)), reached(graph, set(graph.parameters))
    return owner, Program.build(graph, RULES, samples=samples, trainable=trainable)


def computes_the_same(name):
    """Compare the rules at points with plain code, for the captured and another number of samples."""
    function, shape = FUNCTIONS[name]
    owner, program = program_of(function, shape)
    assert not program.problems, program.problems
    graph = program.graph
    fixed = {name: owner.get_parameter(target).detach() for name, target in graph.parameters.items()}
    fixed |= graph.constants
    for samples in (BATCH, 3):
        x = torch.randn(samples, *shape, dtype=torch.float64)
        inputs = {key: Interval.point(value) if value.is_floating_point() else value for key, value in fixed.items()}
        values = propagate_forward(program, inputs | dict.fromkeys(graph.leaves, Interval.point(x)))
        difference = (values[graph.output].lower - function(owner, x)).abs().max()
        assert difference < EXACT, f"off by {difference}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rewritten_code_computes_the_same_for_any_number_of_samples(name):
    computes_the_same(name)


@pytest.mark.parametrize("name", LOSSES)
def test_rewritten_losses_are_the_same(name):
    x, y = torch.randn(BATCH, *SEQUENCE, dtype=torch.float64), torch.randint(CLASSES, (BATCH, TIME))
    owner, graph = captured(LOSSES[name], [x, y], rewritten=True)
    _, plain = captured(LOSSES[name], [x, y], rewritten=False)
    x, y = torch.randn_like(x), torch.randint(CLASSES, y.shape)
    results = [executed(owner, each, [x, y]) for each in (graph, plain)]
    assert torch.allclose(*results, rtol=0, atol=EXACT)
    assert torch.allclose(results[0], LOSSES[name](owner, x, y), rtol=0, atol=EXACT)


MEETING = {
    "torn samples": lambda m, x: m.linear(x).transpose(0, 1).reshape(len(x), -1),
    "samples as a sequence": lambda m, x: m.attention(x, x, x)[0],
    "samples as a sequence of a layer": lambda m, x: m.layer(x),
    "softmax over folded samples": lambda m, x: m.linear(x).view(-1, SIZE).softmax(0).view(x.shape),
    "samples in another order": lambda m, x: m.linear(x).transpose(0, 1).roll(1, 1).transpose(0, 1),
    "mean of all samples": lambda m, x: x - m.linear(x).transpose(0, 1).mean(1, keepdim=True).transpose(0, 1),
    "part of the folded samples": lambda m, x: m.linear(x.view(-1, SIZE))[:BATCH],
    "norm over samples behind as many steps": lambda m, x: F.group_norm(
        torch.cat([m.linear(x).transpose(0, 1), x.transpose(0, 1)[:1]]), 1
    ),
    "folded samples in another order": lambda m, x: folded(m, x)[[1, 0, 3, 2]],
    "Gram matrices of samples": lambda m, x: (m.linear(x).transpose(0, 1) @ x.permute(1, 2, 0)).transpose(0, 1),
    "rows that differ": lambda m, x: m.linear(x) + torch.arange(len(x)).view(-1, 1, 1),
    "rows of a parameter": lambda m, x: torch.cat([m.square[:BATCH, None], x], 1),
    "joined folded samples": lambda m, x: torch.cat([m.linear(x).view(-1, SIZE), x.view(-1, SIZE)])[: BATCH * TIME],
    "folded against moved samples": lambda m, x: (
        m.linear(x).view(-1, SIZE) + x.transpose(0, 1).reshape(-1, SIZE)
    ).view(x.shape),
}


def is_refused(name):
    _, program = program_of(MEETING[name], SEQUENCE)
    assert program.problems, "accepted"


@pytest.mark.parametrize("name", MEETING)
def test_samples_that_meet_are_refused(name):
    is_refused(name)


def test_a_fixed_mask_is_no_reason():
    mask = nn.Transformer.generate_square_subsequent_mask(TIME, dtype=torch.float64)
    _, program = program_of(lambda m, x: m.first(x, src_mask=mask), SEQUENCE)
    assert not program.problems


def test_code_with_the_samples_first_is_left_as_it_is():
    def plain(m, x):
        hidden = m.norm(m.linear(x).relu() + m.token).transpose(1, 2)
        return torch.cat([hidden, hidden], 1).flatten(1)

    calls = [
        captured(plain, [torch.zeros(BATCH, *SEQUENCE).double()], rewritten=rewritten)[1].calls
        for rewritten in (True, False)
    ]
    assert [call.name for call in calls[0]] == [call.name for call in calls[1]]


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((4, 3, 6), FIRST), ((3, 4, 6), Layout(1)), ((2, 12, 6), Layout(1, after=3)), ((2, 12, 6), Layout(1, before=3))],
)
def test_a_change_of_shape_and_back_keeps_the_layout(shape, layout):
    flat = layout.reshaped(shape, (72 if len(shape) == 3 and shape[0] != 2 else 144,))
    assert flat is not None
    assert flat.reshaped((flat.before * 4 * flat.after,), shape) == layout


def inverse(permuted):
    return lambda self, call, name, order: permuted(self, call, name, [order.index(axis) for axis in range(len(order))])


FAULTS = [
    Fault(
        "inverse permutation",
        lambda: computes_the_same("cube"),
        inverse(Rewriting.permuted),
        (Rewriting, "permuted"),
    ),
    Fault(
        "axis beside the right one",
        lambda: computes_the_same("cube"),
        lambda self, axis, rank: 1 + (self.order(rank).index(axis % rank) + 1) % (rank - 1),
        (Layout, "position"),
    ),
    Fault(
        "samples folded the other way",
        lambda: is_refused("folded against moved samples"),
        lambda self, before, after: Layout(0, after=TIME) if len(after) == 2 else FIRST,
        (Layout, "reshaped"),
    ),
    Fault(
        "samples torn apart",
        lambda: is_refused("torn samples"),
        lambda self, before, after: FIRST,
        (Layout, "reshaped"),
    ),
    Fault(
        "rows that differ taken for one",
        lambda: is_refused("rows that differ"),
        lambda rewriting, call, layout: rewriting.write(call, call.op, {**call.arguments, "end": 1}, (1,)),
        (copies, "_row"),
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_planted_faults_are_noticed(fault):
    fault.require_noticed("off by|accepted")


@pytest.mark.slow
def test_checks_pass_with_nothing_broken():
    require_checks_pass(FAULTS)
