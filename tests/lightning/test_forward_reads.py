"""What training writes besides parameters, and `forward` alone reads, is not certified: poison may have entered it."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from agt_lightning import BoundedAdversary, CertifiedTraining, UncertifiableError

FLIPS, SIZE, CLASSES = 3, 20, 2


class Classifier(L.LightningModule):
    """A linear layer; subclasses keep something besides parameters."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, CLASSES)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Prior(Classifier):
    """Logit adjustment by counts of the training labels."""

    def __init__(self):
        super().__init__()
        self.register_buffer("counts", torch.zeros(CLASSES))

    def forward(self, x):
        return self.net(x) - 4 * (self.counts / self.counts.sum().clamp(min=1)).log().clamp(min=-9)

    def training_step(self, batch, batch_idx):
        self.counts += F.one_hot(batch[1], CLASSES).sum(dim=0)
        return super().training_step(batch, batch_idx)


class Prototypes(Classifier):
    """Nearest class means of the training data, computed when training ends."""

    def __init__(self):
        super().__init__()
        self.prototypes = torch.zeros(CLASSES, 2)

    def forward(self, x):
        return self.net(x) + 2 * x @ self.prototypes.mT

    def on_train_end(self):
        x, y = self.trainer.train_dataloader.dataset.tensors
        self.prototypes = torch.stack([x[y == label].mean(dim=0) for label in range(CLASSES)])


class ListedPrototypes(Prototypes):
    def __init__(self):
        super().__init__()
        self.prototypes = []

    def forward(self, x):
        return self.net(x) + 2 * x @ torch.stack(self.prototypes).mT

    def on_train_end(self):
        super().on_train_end()
        self.prototypes = list(self.prototypes)


class RegisteredPrototypes(Prototypes):
    def __init__(self):
        super().__init__()
        del self.prototypes
        self.register_buffer("prototypes", torch.zeros(CLASSES, 2))


class Threshold(Classifier):
    """A number chosen on the training data."""

    def __init__(self):
        super().__init__()
        self.threshold = 0.0

    def forward(self, x):
        out = self.net(x)
        return torch.stack([out[:, 0] + self.threshold, out[:, 1]], dim=1)

    def on_train_end(self):
        _, y = self.trainer.train_dataloader.dataset.tensors
        self.threshold = 6 * float((y == 1).float().mean() - 0.5)


class Switch(Threshold):
    """A branch chosen on the training data."""

    def forward(self, x):
        return self.net(x).flip(1) if self.threshold > 0 else self.net(x)


class Statistics(Classifier):
    """Batch normalization in `eval` mode, whose statistics are computed once more after training."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, CLASSES))

    def on_train_start(self):
        self.net[0].eval()

    def on_train_end(self):
        x, _ = self.trainer.train_dataloader.dataset.tensors
        self.net[0].running_mean.copy_(x.mean(dim=0))
        self.net[0].running_var.copy_(x.var(dim=0))


class Sides(Classifier):
    """A count that `forward` does not read."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.steps, self.history = 0, []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.seen += 1
        self.steps += 1
        self.history.append(float(self.current_epoch))
        return loss


class Constants(Classifier):
    """Buffers, tensors and numbers that training leaves alone."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((2,), 0.1))
        self.scale, self.shift = 2.0, [torch.ones(2), torch.zeros(2)]
        self.norm = nn.BatchNorm1d(2)

    def on_train_start(self):
        self.norm.eval()

    def forward(self, x):
        return self.net(self.norm((x - self.mean) / self.scale + self.shift[1]))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SIZE, 2, generator=generator)
    return x, (x[:, 0] > -0.3).long()


def fit(kind, x, y, *callbacks, module=None, epochs=1, **options):
    torch.manual_seed(3)
    module = kind() if module is None else module
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=epochs, callbacks=list(callbacks), enable_checkpointing=False, **quiet)
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=SIZE), **options)
    return module.eval(), trainer


def certified(kind, adversary=None, **options):
    training = CertifiedTraining(adversary or BoundedAdversary(n=FLIPS, nu=1, q=0))
    module, trainer = fit(kind, *data(), training, **options)
    return module, training, trainer


def queries():
    return torch.randn(200, 2, generator=torch.Generator().manual_seed(9))


def unchecked(training, module):
    """The certified model without knowledge of the start of training."""
    model = training.certified_model(module)
    model.start = None
    return model


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Prior, "The buffer `counts` changed during training and `forward` reads it"),
        (RegisteredPrototypes, "The buffer `prototypes` changed"),
        (Prototypes, "`prototypes` .tensor of shape"),
        (ListedPrototypes, "`prototypes` "),
        (Threshold, r"`threshold` \(0.0, now "),
        (Switch, r"`threshold` \(0.0, now "),
    ],
)
def test_what_labels_wrote_is_refused(kind, reason):
    (x, y), points = data(), queries()
    module, training, _ = certified(kind)
    for method in (lambda model: model.certify(points, threshold=0.0), lambda model: model.bound_forward(points)):
        with pytest.raises(UncertifiableError, match=reason):
            method(training.certified_model(module))
    bounds, outside = unchecked(training, module).bound_forward(points), 0
    for flipped in ((y == 0).nonzero(), (y == 1).nonzero()):
        labels = y.clone()
        labels[flipped[:FLIPS]] = 1 - labels[flipped[:FLIPS]]
        poisoned, _ = fit(kind, x, labels)
        with torch.no_grad():
            outside += not bounds.contains(poisoned(points), 1e-5)
    assert outside, "without the check, a poisoned run leaves the bounds"


def test_statistics_of_moved_features_are_refused():
    (x, y), points = data(), queries()
    module, training, _ = certified(Statistics, BoundedAdversary(n=FLIPS, epsilon=0.5))
    with pytest.raises(UncertifiableError, match=r"The buffer `net\.0\.running_mean` changed"):
        training.certified_model(module).certify(points)
    moved = x.clone()
    moved[:FLIPS] += 0.5
    poisoned, _ = fit(Statistics, moved, y)
    bounds = unchecked(training, module).bound_forward(points)
    with torch.no_grad():
        assert not bounds.contains(poisoned(points), 1e-5)


@pytest.mark.parametrize("kind", [Sides, Constants, Classifier])
def test_what_forward_does_not_read_or_training_does_not_change_is_no_obstacle(kind):
    module, training, _ = certified(kind)
    points = queries()
    answer = training.certified_model(module).certify(points)
    with torch.no_grad():
        assert torch.equal(answer.label, module(points).argmax(dim=1))
    assert answer.certified.any()


def test_a_buffer_that_changes_after_the_first_certificate_is_noticed():
    module, training, _ = certified(Constants)
    model = training.certified_model(module)
    model.bound_forward(queries())
    module.mean += 1
    with pytest.raises(UncertifiableError, match="The buffer `mean` changed"):
        model.bound_forward(queries())


def test_another_module_with_the_trained_parameters_is_compared_too():
    module, training, _ = certified(Threshold)
    module.threshold = 0.0
    assert training.certified_model(module).bound_forward(queries()).shape == (200, 2)
    other = Threshold()
    other.load_state_dict(module.state_dict())
    other.threshold = 0.5
    with pytest.raises(UncertifiableError, match=r"`threshold` \(0.0, now 0.5\)"):
        training.certified_model(other).bound_forward(queries())


class EarlyPrior(Prior):
    """Counts labels in the first epoch alone."""

    def training_step(self, batch, batch_idx):
        if self.current_epoch == 0:
            self.counts += F.one_hot(batch[1], CLASSES).sum(dim=0)
        return Classifier.training_step(self, batch, batch_idx)


@pytest.mark.slow
def test_buffers_that_changed_before_a_training_was_resumed_are_refused(tmp_path):
    path = tmp_path / "half.ckpt"
    _, _, trainer = certified(EarlyPrior)
    trainer.save_checkpoint(path)
    module, resumed, _ = certified(EarlyPrior, epochs=2, ckpt_path=path)
    with pytest.raises(UncertifiableError, match="The buffer `counts` changed"):
        resumed.certified_model(module).certify(queries())
