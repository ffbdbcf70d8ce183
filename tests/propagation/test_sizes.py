"""Weights of samples by the size of their batch: what the loss does at other sizes."""

import pytest
import torch
from torch import nn

from agt_lightning import AbstractGradientEngine, UnboundedAdversary, UncertifiableError

EDITS = UnboundedAdversary(n=2, kappa=1.0, edits="insert-delete")


def mse(module, batch):
    return nn.functional.mse_loss(module(batch[0]), batch[1])


def errors(module, batch):
    return (module(batch[0]) - batch[1]).square()


def batch(size=6):
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator, "dtype": torch.float64}
    return torch.randn(size, 3, **draw), torch.randn(size, 2, **draw)


def engine(loss, module=None, adversary=EDITS):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double() if module is None else module
    return AbstractGradientEngine(module, loss, adversary)


LAWS = {
    "mse_loss": (mse, lambda size: 1 / size),
    "mean of rows": (lambda m, b: errors(m, b).mean(dim=1).mean(), lambda size: 1 / size),
    "sum": (lambda m, b: errors(m, b).sum(), lambda size: 1.0),
    "sum over the batch's length": (lambda m, b: errors(m, b).sum() / len(b[0]), lambda size: 1 / size),
    "mean times a factor of the size": (lambda m, b: mse(m, b) * len(b[0]) ** 0.5, lambda size: size**-0.5),
    "sum over a constant": (lambda m, b: errors(m, b).sum() / 64, lambda size: 1 / 64),
    "flattened": (lambda m, b: errors(m, b).view(len(b[0]), -1).mean(), lambda size: 1 / size),
}


@pytest.mark.parametrize("name", LAWS)
def test_weights_are_those_of_the_loss_at_each_size(name):
    loss, law = LAWS[name]
    made = engine(loss)
    found = made._nominal.sizes(made.observe(batch(), made._clock), range(-2, 3))
    ratios = {change: weight / found[0] for change, weight in found.items()}
    assert ratios == pytest.approx({change: law(6 + change) / law(6) for change in range(-2, 3)})


REFUSED = {
    "a loss of samples that depends on their number": lambda m, b: errors(m, (b[0] / len(b[0]), b[1])).mean(),
    "a branch on the number": lambda m, b: errors(m, b).mean() if len(b[0]) < 8 else errors(m, b).abs().sqrt().mean(),
    "terms of two laws": lambda m, b: errors(m, b).mean() + 0.1 * m(b[0]).square().sum(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_losses_that_are_not_the_same_at_each_size_are_refused(name):
    made = engine(REFUSED[name])
    optimizer = torch.optim.SGD(made.module.parameters(), lr=0.1)
    with pytest.raises(UncertifiableError, match="depends on how many others are in its batch"):
        made.step([batch()], optimizer)
    usual = engine(REFUSED[name], adversary=UnboundedAdversary(n=2, kappa=1.0))
    usual.step([batch()], torch.optim.SGD(usual.module.parameters(), lr=0.1))


def test_a_batch_that_could_be_emptied_is_refused():
    for size, refused in ((2, True), (3, False)):
        made = engine(mse)
        problems = made.problems(batch(size), torch.optim.SGD(made.module.parameters(), lr=0.1))
        assert bool(problems) is refused
        assert not refused or "nothing would be left" in problems[0]


def test_a_batch_keeps_samples_that_cannot_be_deleted():
    made = AbstractGradientEngine(
        nn.Linear(3, 2).double(), mse, EDITS, poisonable=lambda b: torch.arange(len(b[0])) < 1
    )
    assert made.problems(batch(2), torch.optim.SGD(made.module.parameters(), lr=0.1)) == []


ENTRIES = {
    "a list of names": list("abcdef"),
    "a number": 6,
    "a dictionary of strings": dict.fromkeys("abcdef", "name"),
    "a list of tensors of one sample each": [torch.zeros(2)] * 6,
    "a tensor with two rows a sample": torch.zeros(12),
    "a tensor without rows": torch.tensor(6.0),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_whose_size_may_change_are_refused(name):
    """The length of such an entry is a number of samples, which would stay as it is in batches of copied rows."""
    has_length = isinstance(ENTRIES[name], list | dict)

    def loss(module, batch):
        return errors(module, batch).sum() / (len(batch[2]) if has_length and batch[2] else 6)

    made = engine(loss)
    optimizer = torch.optim.SGD(made.module.parameters(), lr=0.1)
    problems = made.problems((*batch(), ENTRIES[name]), optimizer)
    assert any("entries besides tensors with a row for each sample" in problem for problem in problems)
    assert engine(loss).problems((*batch(), None), optimizer) == []


def test_dropout_is_refused():
    made = engine(mse, nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)).double())
    problems = made.problems(batch(), torch.optim.SGD(made.module.parameters(), lr=0.1))
    assert any("Dropout draws its masks by the position" in problem for problem in problems)


def test_accumulated_batches_are_refused():
    made = engine(mse)
    with pytest.raises(UncertifiableError, match="steps on one batch in one process"):
        made.step([batch(), batch(5)], torch.optim.SGD(made.module.parameters(), lr=0.1))


def test_recordings_are_made_once_for_each_size(monkeypatch):
    made, optimizer_of = engine(mse), torch.optim.SGD
    optimizer = optimizer_of(made.module.parameters(), lr=0.1)
    made.step([batch()], optimizer)
    asked = []
    monkeypatch.setattr(type(made), "_recorded", lambda self, one: asked.append(one) or self.objective(one.data))
    made.step([batch()], optimizer)
    assert {len(one.data[0]) for one in asked} <= {6}
