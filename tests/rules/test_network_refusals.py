"""Calls on activations that would move or mix samples are refused with a way out; their sound forms are accepted."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agt_lightning.capture import capture, reached
from agt_lightning.errors import UncertifiableError
from agt_lightning.gradients import RowGradient
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.propagation import Program, propagate_forward
from agt_lightning.rules import RULES

BATCH = 4
X = torch.ones(BATCH, 2, 3)
SQUARE = torch.ones(BATCH, BATCH)
NUMBERS = torch.zeros(BATCH, 2, dtype=torch.int64)


class Owner(nn.Module):
    """Parameters and buffers that the calls use."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, 3))
        self.token = nn.Parameter(torch.ones(BATCH, 1, 3))
        self.table = nn.Parameter(torch.ones(5, 3))
        self.register_buffer("places", torch.tensor([2, 0]))
        self.register_buffer("rows", torch.arange(BATCH))


def program(function, *leaves):
    owner = Owner()
    graph = capture(owner, lambda tensors: function(owner, *tensors), leaves)
    samples, trainable = reached(graph, set(graph.leaves)), reached(graph, set(graph.parameters))
    return Program.build(graph, RULES, samples=samples, trainable=trainable)


MOVED = "moves, cuts or mixes the samples' axis. Keep the batch whole as first axis"

# name: function, leaves, message
REFUSED = {
    "transpose": (lambda m, x: (x @ m.w).transpose(0, 1), (X,), MOVED),
    "transpose of a square": (lambda m, x: (x * m.w.sum()).t(), (SQUARE,), MOVED),
    "permute": (lambda m, x: (x @ m.w).permute(1, 0, 2), (X,), MOVED),
    "movedim": (lambda m, x: (x @ m.w).movedim(0, -1), (X,), MOVED),
    "samples in another order": (lambda m, x: (x @ m.w).flip(0), (X,), MOVED),
    "rolled samples": (lambda m, x: x.roll(1, 0) @ m.w, (X,), MOVED),
    "one sample": (lambda m, x: (x @ m.w)[0], (X,), MOVED),
    "half of the samples": (lambda m, x: (x @ m.w)[:2], (X,), MOVED),
    "every second sample": (lambda m, x: (x @ m.w)[::2], (X,), MOVED),
    "pieces of the batch": (lambda m, x: (x @ m.w).chunk(2)[0], (X,), MOVED),
    "split batch": (lambda m, x: (x @ m.w).split(2)[1], (X,), MOVED),
    "unbound batch": (lambda m, x: (x @ m.w).unbind()[1], (X,), MOVED),
    "chosen samples": (lambda m, x: (x @ m.w)[m.rows], (X,), MOVED),
    "diagonal": (lambda m, x: (x @ m.w)[m.rows, :, m.rows[:1]], (X,), MOVED),
    "separated places": (
        lambda m, x: (x @ m.w)[:, m.places[1:], :, m.places[:1]],
        (X[..., None] * torch.ones(3),),
        MOVED,
    ),
    "repeated batch": (lambda m, x: (x @ m.w).repeat(2, 1, 1), (X,), MOVED),
    "new first axis": (lambda m, x: (x @ m.w).expand(1, BATCH, 2, 3), (X,), MOVED),
    "more samples by padding": (lambda m, x: F.pad(x @ m.w, (0, 0, 0, 0, 0, 1)), (X,), MOVED),
    "joined batches": (lambda m, x: torch.cat([x, x @ m.w]), (X,), MOVED),
    "stacked batches": (lambda m, x: torch.stack([x, x @ m.w]), (X,), MOVED),
    "token in front": (
        lambda m, x: torch.cat([m.token, x @ m.w], 1),
        (X,),
        "joins samples with a value that is shared",
    ),
    "places from the batch": (
        lambda m, x, k: (x @ m.w)[:, k[0]],
        (X, NUMBERS),
        "moves, cuts or mixes|takes positions from the batch",
    ),
    "softmax over samples": (lambda m, x: (x @ m.w).softmax(0), (X,), "runs over axis 0, the samples'"),
    "log softmax over samples": (lambda m, x: (x @ m.w).log_softmax(-3), (X,), "runs over axis 0, the samples'"),
    "product across samples": (
        lambda m, x: (x @ m.w)[:, 0] @ x[:, 0].T,
        (X,),
        "samples meet|one weight to each sample",
    ),
    "batch against heads": (
        lambda m, x: (x @ m.w)[:, None].expand(-1, BATCH, -1, -1) @ x.mT,
        (X,),
        "aten.matmul.*so that samples meet each other.*first of at least three axes in both factors",
    ),
    "weight for each sample": (lambda m, x: x @ m.token.mT, (X,), "so that samples meet each other|one weight"),
    "attention that drops all": (
        lambda m, x: F.scaled_dot_product_attention(x @ m.w, x, x, dropout_p=1.0),
        (X,),
        "dropout of all weights.*`dropout_p=0`",
    ),
    "keys for all samples": (
        lambda m, x: F.scaled_dot_product_attention(x @ m.w, m.token, m.token),
        (X,),
        "do not carry the same samples",
    ),
    "gradient by frequency": (
        lambda m, k: F.embedding(k, m.table, scale_grad_by_freq=True),
        (NUMBERS,),
        "by the frequency in the batch.*Leave `scale_grad_by_freq`",
    ),
    "table from the batch": (lambda m, x, k: F.embedding(k, (x @ m.w)[:, 0]), (X, NUMBERS), "not the same for all"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name):
    function, leaves, message = REFUSED[name]
    found = program(function, *leaves).problems
    assert found
    with pytest.raises(ValueError, match=message):
        raise ValueError("\n".join(found))


ACCEPTED = {
    "transposed tokens": lambda m, x: (x @ m.w).transpose(1, 2),
    "whole slice": lambda m, x: (x @ m.w)[:],
    "class token": lambda m, x: (x @ m.w)[:, 0],
    "buffer of places": lambda m, x: (x @ m.w)[:, :, m.places],
    "halves": lambda m, x: torch.mul(*(x @ m.w).chunk(2, 1)),
    "heads": lambda m, x: (x @ m.w).reshape(BATCH, 2, 3, 1).transpose(1, 2),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_sound_use_is_accepted(name):
    assert program(ACCEPTED[name], X).problems == ()


def test_a_part_of_the_batch_goes_through_the_same_rules():
    found = program(lambda m, x: torch.cat([x[:, :1].expand(BATCH, 2, 3), x.repeat(1, 2, 1)], 1) * m.w.sum(), X)
    graph = found.graph
    inputs = {name: Interval.point(torch.full((2, 2, 3), 2.0).double()) for name in graph.leaves}
    inputs |= {name: Interval.point(torch.ones(graph.shapes[name]).double()) for name in graph.parameters}
    values = propagate_forward(found, inputs)
    joined = next(values[call.name] for call in graph.calls if call.op is torch.ops.aten.cat.default)
    assert joined.shape == (2, 6, 3)


@pytest.mark.parametrize("kind", ["labels", "interval"])
def test_a_table_read_at_integers_that_move_is_refused(kind):
    found = program(lambda m, k: F.embedding(k, m.table), NUMBERS)
    moving = {
        "labels": ClassLabels(NUMBERS, flippable=True),
        "interval": Interval(torch.zeros(4, 2).double(), torch.ones(4, 2).double()),
    }[kind]
    inputs = dict.fromkeys(found.graph.leaves, moving)
    inputs |= {name: Interval.point(torch.ones(5, 3).double()) for name in found.graph.parameters}
    with pytest.raises(UncertifiableError, match="can be flipped|integers that can move"):
        propagate_forward(found, inputs)


@pytest.mark.parametrize("position", ["one", "several"])
def test_row_gradient_answers_all_questions_alike(position):
    generator = torch.Generator().manual_seed(0)
    count = 1 if position == "one" else 3
    rows = torch.randint(4, (5, count), generator=generator)
    lower = torch.randn(5, count, 2, generator=generator, dtype=torch.float64)
    gradient = RowGradient(rows, Interval(lower, lower + torch.rand(5, count, 2, generator=generator).double()), 4)
    dense = torch.zeros(2, 5, 4, 2, dtype=torch.float64)
    for bound, table in zip((gradient.values.lower, gradient.values.upper), dense, strict=True):
        for sample in range(5):
            for place in range(count):
                table[sample, rows[sample, place]] += bound[sample, place]
    box = Interval(dense[0].reshape(5, -1), dense[1].reshape(5, -1))
    for start, stop in ((0, 8), (2, 6), (3, 4), (0, 2)):
        block = gradient.block(start, stop)
        torch.testing.assert_close(block.lower, box.lower[:, start:stop].T)
        torch.testing.assert_close(block.upper, box.upper[:, start:stop].T)
    weights = torch.linspace(0.0, 1.0, 5, dtype=torch.float64)
    torch.testing.assert_close(gradient.total(weights).upper.reshape(-1), weights @ box.upper)
    torch.testing.assert_close(gradient.total(weights).lower.reshape(-1), weights @ box.lower)
    assert gradient.scale(weights) >= float((weights @ box.magnitude).max())
    torch.testing.assert_close(gradient.square_sums().upper, box.magnitude.square().sum(dim=1))
