"""Which outputs decide between classes is known from the loss; what poisoned runs predict is what is certified."""

import copy

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from agt_lightning import BoundedAdversary, CertifiedModel, CertifiedTraining, UncertifiableError

FLIPS, SIZE = 3, 20
FLIPPED, MOVED = BoundedAdversary(n=FLIPS, nu=1, q=0), BoundedAdversary(n=FLIPS, nu=1)
"""Both allow what `poisoned` does, for classes and for the real-valued labels 0 and 1."""


class Probe(L.LightningModule):
    """A linear layer; subclasses add what follows it and the loss."""

    outputs, rate = 1, 0.5

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, self.outputs)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return self.loss(self(batch[0]), batch[1])

    def loss(self, out, y):
        return F.binary_cross_entropy_with_logits(out, y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Sigmoid(Probe):
    def forward(self, x):
        return torch.sigmoid(self.net(x))

    def loss(self, out, y):
        return F.binary_cross_entropy(out, y)


class LogitLossSigmoidForward(Sigmoid):
    def training_step(self, batch, batch_idx):
        return F.binary_cross_entropy_with_logits(self.net(batch[0]), batch[1])


class SqueezedSigmoid(LogitLossSigmoidForward):
    def forward(self, x):
        return torch.sigmoid(self.net(x).squeeze(-1))


class Halved(Probe):
    """A temperature keeps the sign."""

    def training_step(self, batch, batch_idx):
        return F.binary_cross_entropy_with_logits(self.net(batch[0]) / 2, batch[1])


class Squared(Probe):
    rate = 0.1

    def loss(self, out, y):
        return F.mse_loss(out, y)


class SquaredSigmoid(Sigmoid):
    def loss(self, out, y):
        return F.mse_loss(out, y)


class Negated(Probe):
    def training_step(self, batch, batch_idx):
        return F.binary_cross_entropy_with_logits(-self.net(batch[0]), batch[1])


class OtherColumn(Probe):
    """`forward` returns another output of the same layer than the loss compares."""

    outputs = 2

    def forward(self, x):
        return self.net(x)[:, 0]

    def training_step(self, batch, batch_idx):
        return F.binary_cross_entropy_with_logits(self.net(batch[0])[:, 1], batch[1][:, 0])


def data(seed=0, outputs=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SIZE, 2, generator=generator)
    y = (x[:, :1] + 0.3 * torch.randn(SIZE, outputs, generator=generator) > 0).float()
    return x, y


def fit(module, x, y, *callbacks, epochs=1):
    loader = DataLoader(TensorDataset(x, y), batch_size=len(x))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=epochs, callbacks=list(callbacks), enable_model_summary=False, **quiet)
    trainer.fit(module, loader)
    return trainer


def made(kind):
    torch.manual_seed(3)
    return kind()


def certified(kind, x, y, adversary=FLIPPED):
    module, training = made(kind), CertifiedTraining(adversary)
    fit(module, x, y, training)
    return module, training.certified_model(module)


def poisoned(kind, x, y, count=8, flip=lambda y: 1 - y):
    """Plain trainings on data with flipped labels, random ones and those nearest to one another."""
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(SIZE, generator=generator)[:FLIPS]
        if seed % 2:
            rows = (x - torch.randn(2, generator=generator)).norm(dim=1).argsort()[:FLIPS]
        labels = y.clone()
        labels[rows] = flip(labels[rows])
        module = made(kind)
        fit(module, x, labels)
        yield module.eval()


def queries():
    return torch.randn(400, 2, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("kind", [Probe, Sigmoid, LogitLossSigmoidForward, SqueezedSigmoid, Halved])
def test_binary_predictions_of_poisoned_trainings_are_certified_ones(kind):
    (x, y), points = data(), queries()
    module, model = certified(kind, x, y)
    answer, target = model.certify(points), torch.arange(400) % 2
    margins, rows = model.margins(points, target), torch.arange(400)
    middle = 0.5 if issubclass(kind, Sigmoid) else 0.0
    with torch.no_grad():
        assert torch.equal(answer.label, (module(points).flatten() > middle).long())
    assert 0 < answer.certified.sum() < 400
    assert answer.label.unique().tolist() == [0, 1]
    changed = torch.zeros(400, dtype=torch.bool)
    for run in poisoned(kind, x, y):
        with torch.no_grad():
            label, logit = (run(points).flatten() > middle).long(), run.net(points).flatten()
        changed |= label != answer.label
        logits = torch.stack([torch.zeros(400), logit], dim=1)
        assert margins.contains(logits[rows, target][:, None] - logits, 1e-5)
    assert changed.any(), "the attacks must change something"
    assert not (changed & answer.certified).any()


@pytest.mark.parametrize(
    ("kind", "threshold", "reason"),
    [
        (Squared, 0.5, "real numbers"),
        (SquaredSigmoid, 0.5, "real numbers"),
        (Negated, 0.0, "does not compare with labels"),
    ],
)
def test_one_output_that_is_no_logit_needs_a_threshold(kind, threshold, reason):
    (x, y), points = data(), queries()
    module, model = certified(kind, x, y, MOVED if "real" in reason else FLIPPED)
    for refused in (lambda: model.certify(points), lambda: model.margins(points, torch.zeros(400))):
        with pytest.raises(UncertifiableError, match=reason) as raised:
            refused()
        assert "threshold=" in str(raised.value)
        assert "This training" not in str(raised.value)
    answer, changed = model.certify(points, threshold=threshold), torch.zeros(400, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(answer.label, (module(points).flatten() > threshold).long())
    for run in poisoned(kind, x, y):
        with torch.no_grad():
            changed |= (run(points).flatten() > threshold).long() != answer.label
    assert changed.any()
    assert answer.certified.any()
    assert not (changed & answer.certified).any()


class ManyLabels(Probe):
    outputs = 3


class ManySigmoids(ManyLabels):
    def forward(self, x):
        return torch.sigmoid(self.net(x))

    def loss(self, out, y):
        return F.binary_cross_entropy(out, y)


class ManyNumbers(ManyLabels):
    def loss(self, out, y):
        return F.mse_loss(out, y)


@pytest.mark.parametrize(
    ("kind", "threshold", "reason"),
    [(ManyLabels, 0.0, "labels of their own"), (ManySigmoids, 0.5, "labels of their own"), (ManyNumbers, 0.5, "real")],
)
def test_several_outputs_that_are_no_classes_are_refused_and_decide_one_by_one(kind, threshold, reason):
    (x, y), points = data(outputs=3), queries()
    module, model = certified(kind, x, y, MOVED if "real" in reason else FLIPPED)
    for refused in (lambda: model.certify(points), lambda: model.margins(points, torch.zeros(400, dtype=torch.long))):
        with pytest.raises(UncertifiableError, match=reason) as raised:
            refused()
        assert "threshold=" in str(raised.value)
    answer, changed = model.certify(points, threshold=threshold), torch.zeros(400, 3, dtype=torch.bool)
    assert answer.label.shape == answer.certified.shape == (400, 3)
    assert answer.possible.shape == (400, 3, 2)
    with torch.no_grad():
        assert torch.equal(answer.label, (module(points) > threshold).long())
    for run in poisoned(kind, x, y):
        with torch.no_grad():
            changed |= (run(points) > threshold).long() != answer.label
    assert changed.any()
    assert answer.certified.any()
    assert not (changed & answer.certified).any()
    with pytest.raises(ValueError, match="no `threshold` for the margins of several outputs"):
        model.margins(points, torch.zeros(400, dtype=torch.long), threshold=threshold)


class Classes(ManyLabels):
    def loss(self, out, y):
        return F.cross_entropy(out, y[:, 0].long())


class Softmax(Classes):
    def forward(self, x):
        return torch.softmax(self.net(x), dim=-1)

    def training_step(self, batch, batch_idx):
        return self.loss(self.net(batch[0]), batch[1])


class LogSoftmax(Classes):
    def forward(self, x):
        return F.log_softmax(self.net(x), dim=1)

    def loss(self, out, y):
        return F.nll_loss(out, y[:, 0].long())


class SoftLabels(Classes):
    def loss(self, out, y):
        return F.cross_entropy(out, y / y.sum(dim=1, keepdim=True).clamp(min=1))


class OneHotSquares(Classes):
    def loss(self, out, y):
        return F.mse_loss(out, 2 * F.one_hot(y[:, 0].long(), 3).float() - 1)


class OneAgainstTheRest(Classes):
    def loss(self, out, y):
        return F.binary_cross_entropy_with_logits(out, F.one_hot(y[:, 0].long(), 3).float())


class ByHand(Classes):
    def loss(self, out, y):
        return -(F.log_softmax(out, dim=1) * F.one_hot(y[:, 0].long(), 3)).sum(dim=1).mean()


class LogOfSoftmax(ByHand):
    def loss(self, out, y):
        return -(out.softmax(dim=1).log() * F.one_hot(y[:, 0].long(), 3)).sum(dim=1).mean()


class TwoHeads(Classes):
    """An auxiliary regression does not make the classes numbers."""

    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y[:, 0].long()) + F.mse_loss(self.auxiliary(x), x[:, :1])


class Dropped(Classes):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.net(x))


@pytest.mark.parametrize(
    "kind", [Classes, Softmax, LogSoftmax, OneHotSquares, OneAgainstTheRest, ByHand, LogOfSoftmax, TwoHeads, Dropped]
)
def test_classes_are_the_largest_output(kind):
    (x, y), points = data(outputs=3), queries()
    module, training = made(kind), CertifiedTraining(BoundedAdversary(n=FLIPS, epsilon=0.01))
    fit(module, x, y, training)
    answer = training.certified_model(module).certify(points)
    with torch.no_grad():
        assert torch.equal(answer.label, module.eval()(points).argmax(dim=1))
    assert answer.certified.any()


def test_probabilities_as_targets_make_classes():
    x, y = data(outputs=3)
    module, training = made(SoftLabels), CertifiedTraining(BoundedAdversary(n=1, epsilon=0.01))
    fit(module, x, y, training)
    assert training.certified_model(module).certify(queries()).certified.any()


class AddedByHand(ManyLabels):
    """The largest output is no class: outputs are trained towards less where the one-hot vector is more."""

    def loss(self, out, y):
        return (out + F.one_hot(y[:, 0].long(), 3)).square().mean()


class Inverted(ManyLabels):
    def loss(self, out, y):
        return F.mse_loss(out, -1.0 * F.one_hot(y[:, 0].long(), 3).float())


@pytest.mark.parametrize("kind", [AddedByHand, Inverted])
def test_one_hot_vectors_that_outputs_oppose_are_no_classes(kind):
    x, y = data(outputs=3)
    module, training = made(kind), CertifiedTraining(BoundedAdversary(n=1, epsilon=0.01))
    fit(module, x, y, training)
    with pytest.raises(UncertifiableError, match="the largest is not a class"):
        training.certified_model(module).certify(queries())


class Features(Classes):
    """`forward` returns what precedes the classes."""

    def __init__(self):
        super().__init__()
        self.encoder, self.net = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.encoder(x)

    def training_step(self, batch, batch_idx):
        return self.loss(self.net(self(batch[0])), batch[1])


class Reversed(Classes):
    def training_step(self, batch, batch_idx):
        return self.loss(-self.net(batch[0]), batch[1])


class Temperature(Classes):
    """A number that is not positive reverses the order."""

    def training_step(self, batch, batch_idx):
        return self.loss(self.net(batch[0]) * -2.0, batch[1])


@pytest.mark.parametrize("kind", [Features, Reversed, Temperature, OtherColumn])
def test_outputs_that_no_label_met_are_no_classes(kind):
    x, y = data(outputs=3)
    module, training = made(kind), CertifiedTraining(BoundedAdversary(n=1, epsilon=0.01))
    fit(module, x, y, training)
    with pytest.raises(UncertifiableError, match="does not compare with labels"):
        training.certified_model(module).certify(queries())


@pytest.mark.slow
def test_a_hand_made_model_is_told_what_one_output_is():
    (x, y), points = data(), queries()
    module, model = certified(Probe, x, y)
    by_hand = CertifiedModel(module, model.bounds)
    with pytest.raises(UncertifiableError, match=r"threshold=0\.0"):
        by_hand.certify(points)
    assert torch.equal(by_hand.certify(points, threshold=0.0).possible, model.certify(points).possible)
    squashed = CertifiedModel(copy.deepcopy(module).requires_grad_(False), model.bounds, task=model.task)
    assert torch.equal(squashed.certify(points).possible, model.certify(points).possible)
