"""Poisoned trainings of networks that fold or move the samples' axis stay inside the bounds."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from agt_lightning.capture.rewriting import Rewriting
from agt_lightning.errors import UnsoundBoundError
from tests.engine.attacks import ROUNDING

TIME, SIZE, CLASSES, RATE = 3, 4, 3, 0.05


class Tokens(nn.Module):
    """A class for each token, by layers that may want time before samples."""

    def __init__(self, body, *, batch_first=True):
        super().__init__()
        self.body, self.batch_first = body, batch_first
        self.head = nn.Linear(SIZE, CLASSES)

    def forward(self, x):
        tokens = self.body(x if self.batch_first else x.transpose(0, 1))
        return self.head(tokens if self.batch_first else tokens.transpose(0, 1))


class Folded(nn.Module):
    """One layer on all tokens of all samples, as rows of one matrix."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(SIZE, SIZE)

    def forward(self, x):
        return self.layer(x.reshape(-1, SIZE)).tanh().view(x.shape)


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` of a sequence with itself."""

    def __init__(self, *, weights, batch_first):
        super().__init__()
        self.attention, self.weights = nn.MultiheadAttention(SIZE, 2, batch_first=batch_first), weights

    def forward(self, x):
        return self.attention(x, x, x, need_weights=self.weights)[0]


class VisionTransformer(nn.Module):
    """Patches with a class token, a table of positions and one block in the style of timm; with windows if asked."""

    def __init__(self, *, windows=False):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, SIZE) * 0.1)
        self.position = nn.Parameter(torch.randn(1, TIME + 1, SIZE) * 0.1)
        self.qkv, self.out, self.head = nn.Linear(SIZE, 3 * SIZE), nn.Linear(SIZE, SIZE), nn.Linear(SIZE, CLASSES)
        self.windows = windows

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        if self.windows:
            parts = x.view(-1, 2, 2, SIZE).transpose(1, 2).reshape(-1, 2, SIZE)
            return self.head(self.block(parts).view(len(x), 2, 2, SIZE).transpose(1, 2).reshape(x.shape).mean(1))
        return self.head(self.block(x)[:, 0])

    def block(self, x):
        samples, time, _ = x.shape
        q, k, v = self.qkv(x).reshape(samples, time, 3, 2, SIZE // 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q * (SIZE // 2) ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        return x + self.out(mixed.transpose(1, 2).reshape(x.shape))


def encoder_layer(**settings):
    layer = nn.TransformerEncoderLayer(SIZE, 2, 6, dropout=0.0, **settings)
    layer.norm1.eps = layer.norm2.eps = 0.5  # small variances make bounds of a normalization wide
    return layer


NETWORKS = {
    "folded": lambda: Tokens(Folded()),
    "attention": lambda: Tokens(SelfAttention(weights=False, batch_first=True)),
    "attention with weights, time first": lambda: Tokens(
        SelfAttention(weights=True, batch_first=False), batch_first=False
    ),
    "encoder layer": lambda: Tokens(encoder_layer(batch_first=True)),
    "encoder layer, time first": lambda: Tokens(encoder_layer(norm_first=True), batch_first=False),
    "encoder without dropout": lambda: Tokens(nn.TransformerEncoder(encoder_layer(batch_first=True), 1)),
    "vision transformer": VisionTransformer,
    "windows": lambda: VisionTransformer(windows=True),
}


def made(name, dtype=torch.float64):
    torch.manual_seed(0)
    return NETWORKS[name]().to(dtype)


def loss(module, batch):
    """Cross entropy of all tokens of all samples, or of all samples."""
    return F.cross_entropy(module(batch[0]).view(-1, CLASSES), batch[1].view(-1))


def batches_of(name, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    tokens = () if name in ("vision transformer", "windows") else (TIME,)
    return [
        (
            torch.randn(size, TIME, SIZE, dtype=dtype, generator=generator),
            torch.randint(0, CLASSES, (size, *tokens), generator=generator),
        )
        for size in (5, 4)
    ]


def poisoned(module, batch, direction, adversary):
    """Move and flip the samples whose change pushes the parameters furthest along a direction."""
    x, y = batch[0].clone().requires_grad_(), batch[1]
    weights = dict(module.named_parameters())
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        slopes = torch.autograd.grad(loss(module, (x, y)), list(weights.values()), create_graph=True)
        along = sum((slope * direction[name]).sum() for name, slope in zip(weights, slopes, strict=True))
        (gain,) = torch.autograd.grad(along, x)
    chosen = gain.abs().flatten(1).sum(1).topk(adversary.n).indices
    moved, flipped = batch[0].clone(), y.clone()
    moved[chosen] += adversary.epsilon * gain[chosen].sign()
    flipped[chosen] = (y[chosen] + 1) % CLASSES
    return moved, flipped


def attacked(module, batches, adversary, seed):
    """Train a copy on batches that are poisoned along a random direction."""
    run, generator = copy.deepcopy(module), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(run.parameters(), lr=RATE)
    direction = {
        name: torch.randn(value.shape, generator=generator, dtype=value.dtype) for name, value in run.named_parameters()
    }
    for batch in batches:
        optimizer.zero_grad()
        loss(run, poisoned(run, batch, direction, adversary)).backward()
        optimizer.step()
    return {name: value.detach() for name, value in run.named_parameters()}


@pytest.mark.parametrize(
    ("name", "method"), [*((name, "ibp") for name in NETWORKS), ("vision transformer", "tightest")]
)
def test_bounds_contain_every_poisoned_run(name, method):
    adversary = BoundedAdversary(n=1, epsilon=0.02, nu=1, q=0)
    module, batches = made(name), batches_of(name)
    runs = [attacked(module, batches, adversary, seed) for seed in range(6)]
    engine = AbstractGradientEngine(module, loss, adversary, method=method)
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    for batch in batches:
        engine.step([batch], optimizer)
    for run in runs:
        for parameter, value in run.items():
            assert engine.bounds[parameter].contains(value, ROUNDING), parameter
    moved = [run["head.weight"] - module.get_parameter("head.weight").detach() for run in runs]
    assert max(float(each.abs().max()) for each in moved) > 1e-4


@pytest.mark.parametrize("name", ["encoder layer, time first", "vision transformer"])
def test_kernels_in_single_precision_stay_inside(name):
    """A run multiplies folded matrices; each step compares its gradient with the bounds."""
    module, batches = made(name, torch.float32), batches_of(name, torch.float32)
    engine, optimizer = (
        AbstractGradientEngine(module, loss, BoundedAdversary(n=0)),
        torch.optim.SGD(module.parameters(), lr=0.5),
    )
    for batch in batches:
        engine.step([batch], optimizer)
    assert engine.bounds.mean_width() < 1e-2


class Placed(nn.Module):
    """Classes of tokens by a trained head, on a frozen part that is poisoned at its outputs."""

    def __init__(self, part):
        super().__init__()
        self.part = part.requires_grad_(False)
        self.head = nn.Linear(SIZE, CLASSES)


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(SIZE, SIZE)

    def forward(self, x):
        return self.layer(x.transpose(0, 1))


def loss_of_time_first(module, batch):
    """A loss that never moves the outputs: with as many samples as steps, these look as if the samples were first."""
    return F.cross_entropy(module.head(module.part(batch[0]).repeat(1, 1, 1)).permute(0, 2, 1), batch[1].t())


def loss_of_first_tokens(module, batch):
    return F.cross_entropy(module.head(module.part(batch[0][:, 0])), batch[1][:, 0])


def loss_of_last_tokens(module, batch):
    return F.cross_entropy(module(batch[0])[:, -1], batch[1][:, -1])


class Table(nn.Linear):
    def forward(self, x):
        return self.weight * 2


def problems_at_part(part, loss, size):
    torch.manual_seed(0)
    module = Placed(part).double()
    batch = torch.randn(size, TIME, SIZE, dtype=torch.float64), torch.randint(0, CLASSES, (size, TIME))
    adversary = BoundedAdversary(n=1, epsilon=0.3, at="part")
    return AbstractGradientEngine(module, loss, adversary).problems(
        batch, torch.optim.SGD(module.parameters(), lr=RATE)
    )


@pytest.mark.parametrize("size", [TIME, TIME + 2])
def test_outputs_with_time_first_are_no_place_for_poison(size):
    assert "samples as first axis" in problems_at_part(TimeFirst(), loss_of_time_first, size)[0]


def test_a_table_with_as_many_rows_as_samples_is_no_place_for_poison():
    assert "samples as first axis" in problems_at_part(Table(SIZE, SIZE), loss_of_first_tokens, SIZE)[0]


@pytest.mark.slow
def test_outputs_with_as_many_columns_as_samples_are_one():
    """Statistics of the batch have no rules, so the recordings of two batches tell which axis counts the samples."""
    assert problems_at_part(nn.BatchNorm1d(SIZE), loss_of_first_tokens, SIZE) == []


@pytest.mark.slow
def test_a_batch_of_one_whose_loss_reads_the_number_of_samples_is_refused():
    """It is recorded with its sample twice, where `len(x)` is two."""
    module, batch = made("folded"), tuple(entry[:1] for entry in batches_of("folded")[0])
    refusals = []
    for squares in (lambda m, b: m(b[0]).pow(2).sum() / len(b[0]), lambda m, b: m(b[0]).pow(2).mean()):
        engine = AbstractGradientEngine(module, squares, BoundedAdversary(n=1, epsilon=0.02))
        refusals.append(engine.problems(batch, torch.optim.SGD(module.parameters(), lr=RATE)))
    assert "drop_last" in refusals[0][0]
    assert refusals[1] == []


class NormedTokens(nn.Module):
    """A frozen part that joins a class token, which is one row for all samples, and has no rule."""

    def __init__(self):
        super().__init__()
        self.token, self.norm = nn.Parameter(torch.randn(1, 1, SIZE)), nn.BatchNorm1d(TIME + 1)
        self.requires_grad_(False)
        self.head = nn.Linear(SIZE, CLASSES)

    def forward(self, x):
        return self.head(self.norm(torch.cat([self.token.expand(len(x), -1, -1), x], 1))[:, 1:])


@pytest.mark.slow
def test_a_class_token_is_joined_where_no_rules_are():
    module = NormedTokens().double()
    engine = AbstractGradientEngine(module, loss_of_last_tokens, BoundedAdversary(n=1, nu=1, q=0))
    engine.step(batches_of("folded")[:1], torch.optim.SGD([module.head.weight, module.head.bias], lr=RATE))
    assert engine.bounds.mean_width() > 0


class Dropping(nn.Module):
    """Dropout of what has no row for each sample: weights, and tokens with time before samples or folded with it."""

    def __init__(self, how, rows=SIZE):
        super().__init__()
        self.how, self.drop = how, nn.Dropout(0.5)
        self.layer, self.weight = nn.Linear(SIZE, SIZE), nn.Parameter(torch.randn(rows, SIZE))
        self.layer.requires_grad_(False)
        self.head = nn.Linear(rows, CLASSES)

    def forward(self, x):
        if self.how == "time first":
            x = self.drop(self.layer(x.transpose(0, 1))).transpose(0, 1)
        elif self.how == "folded":
            x = self.drop(self.layer(x.reshape(-1, SIZE))).view(x.shape)
        return self.head(F.linear(x, self.drop(self.weight)))


@pytest.mark.parametrize("how", ["weights", "time first", "folded"])
def test_masks_are_drawn_in_their_own_shapes(how):
    """With five rows the mask of a weight looks as if it had one for each sample."""
    for batch, rows in zip(batches_of("folded"), (5, 7), strict=True):
        torch.manual_seed(0)
        module, adversary = Dropping(how, rows).double(), BoundedAdversary(n=1, nu=1, q=0)
        run, flipped = copy.deepcopy(module), torch.cat([(batch[1][:1] + 1) % CLASSES, batch[1][1:]])
        engine = AbstractGradientEngine(module, loss_of_last_tokens, adversary)
        torch.manual_seed(1)
        loss_of_last_tokens(run, (batch[0], flipped)).backward()
        torch.manual_seed(1)
        engine.step([batch], torch.optim.SGD(module.parameters(), lr=RATE))
        for name, value in run.named_parameters():
            moved = value if value.grad is None else value - RATE * value.grad
            assert engine.bounds[name].contains(moved.detach(), ROUNDING), name


def test_a_wrong_permutation_is_noticed_by_the_step(monkeypatch):
    permuted = Rewriting.permuted
    turned = lambda self, call, name, order: permuted(self, call, name, [0, *sorted(order[1:])])  # noqa: E731
    monkeypatch.setattr(Rewriting, "permuted", turned)
    module = made("vision transformer")
    engine = AbstractGradientEngine(module, loss, BoundedAdversary(n=1, epsilon=0.02))
    with pytest.raises((UnsoundBoundError, RuntimeError)):
        engine.step(batches_of("vision transformer")[:1], torch.optim.SGD(module.parameters(), lr=RATE))
