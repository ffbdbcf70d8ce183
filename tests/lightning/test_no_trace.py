"""Certified training leaves no trace in module, metrics, loggers and random numbers."""

import copy

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from lightning.pytorch.loggers.logger import Logger
from torch import nn

from agt_lightning import BoundedAdversary, CertifiedTraining, UncertifiableError

ADVERSARY = BoundedAdversary(n=2, epsilon=0.05, nu=1, q=0)


class CountingLogger(Logger):
    """Counts what reaches it."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.records = []

    @property
    def name(self):
        return "count"

    @property
    def version(self):
        return 0

    @property
    def experiment(self):
        return self

    def add_scalar(self, *args):
        self.calls.append("add_scalar")

    def log_hyperparams(self, *args, **kwargs):
        self.calls.append("log_hyperparams")

    def log_metrics(self, metrics, step=None):
        self.records += [(step, key) for key in metrics if not key.startswith("agt/") and key != "epoch"]


class Busy(L.LightningModule):
    """Everything a training step can leave behind."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3))
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=3)
        self.metrics = torchmetrics.MetricCollection([torchmetrics.F1Score(task="multiclass", num_classes=3)])
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.history = []
        self.by_class = {"all": []}
        self.steps = 0
        self.printed = []
        self.head = nn.Linear(5, 1)
        self.head.eval()

    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self.net(x)
        loss = F.cross_entropy(out, y)
        self.accuracy(out, y)
        self.metrics.update(out, y)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("accuracy", self.accuracy, on_epoch=True)
        self.logger.experiment.add_scalar("direct", 1.0)
        self.trainer.logger.experiment.add_scalar("through the trainer", 1.0)
        self.history.append(len(x))
        self.by_class["all"].append(batch_idx)
        self.seen += len(x)
        self.steps += 1
        self.late = loss.detach()
        return {"loss": loss}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def hooks_of(module):
    return {
        (name, kind): list(hooks)
        for name, part in module.named_modules()
        for kind, hooks in vars(part).items()
        if kind.endswith("_hooks") and isinstance(hooks, dict)
    }


TRAINED = []
"""The pair of trainings below, made once for all tests that look at them."""


@pytest.fixture
def pair(fit, loader):
    """The module and the logger of a plain and of a certified training."""
    if TRAINED:
        return TRAINED[0]

    def run(*callbacks):
        torch.manual_seed(0)
        module, logger = Busy(), CountingLogger()
        trainer = fit(module, loader("class"), *callbacks, logger=logger, log_every_n_steps=1, max_epochs=2)
        return module, logger, trainer, torch.random.get_rng_state()

    TRAINED.append((run(), run(CertifiedTraining(ADVERSARY))))
    return TRAINED[0]


@pytest.mark.slow
def test_state_and_attributes_are_the_same(pair):
    (plain, *_), (module, *_) = pair
    ours, theirs = module.state_dict(), plain.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    for (name, part), (_, twin) in zip(module.named_modules(), plain.named_modules(), strict=True):
        assert type(part) is type(twin)
        assert vars(part).keys() == vars(twin).keys(), name
        assert part.training == twin.training
    assert type(module) is Busy


@pytest.mark.slow
def test_what_the_step_collects_is_the_same(pair):
    (plain, *_), (module, *_) = pair
    assert module.history == plain.history == [4, 4, 4, 4]
    assert module.by_class == plain.by_class
    assert module.steps == plain.steps == 4
    assert module.seen == plain.seen == 16
    assert torch.equal(module.late, plain.late)


def test_metric_states_are_the_same(pair):
    (plain, *_), (module, *_) = pair
    for ours, theirs in ((module.accuracy, plain.accuracy), (module.metrics["MulticlassF1Score"],) * 2):
        assert ours._update_count == theirs._update_count
        for state in theirs._defaults:
            assert torch.equal(getattr(ours, state), getattr(theirs, state))
    assert module.metrics["MulticlassF1Score"]._update_count == 4


def test_loggers_hear_the_same(pair):
    (_, plain, *_), (_, logger, *_) = pair
    assert logger.calls == plain.calls
    assert logger.records == plain.records


def test_random_numbers_are_the_same(pair):
    (*_, plain), (*_, certified) = pair
    assert torch.equal(plain, certified)


def test_hooks_are_removed(pair):
    (plain, *_), (module, _, trainer, _) = pair
    assert hooks_of(module) == hooks_of(plain)
    assert not trainer.optimizers or not trainer.optimizers[0]._optimizer_step_post_hooks


def test_modules_trained_twice_can_be_copied_and_pickled(pair):
    _, (module, *_) = pair
    assert copy.deepcopy(module).state_dict().keys() == module.state_dict().keys()


def test_logged_values_are_kept_beside_ours(pair):
    (_, _, plain, _), (_, _, trainer, _) = pair
    ours = {key: value for key, value in trainer.callback_metrics.items() if not key.startswith("agt/")}
    assert ours.keys() == plain.callback_metrics.keys()
    assert all(torch.equal(ours[key], value) for key, value in plain.callback_metrics.items())
    assert trainer.callback_metrics["agt/mean_width"] > 0


class Manual(Busy):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for parameter in self.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.optimizers().step()
        return super().training_step(batch, batch_idx)


def test_a_refused_step_has_not_touched_the_parameters(fit, loader):
    module = Manual()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(UncertifiableError, match="automatic_optimization"):
        fit(module, loader("class"), CertifiedTraining(ADVERSARY), logger=CountingLogger())
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in before.items())
    assert module.history == []
