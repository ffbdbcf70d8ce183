"""Schedules: what a loss reads from the clock, or from anything that follows it, counts in every run.

A threshold that only a poisoned sample passes leaves the clean gradient as it is. Whether the recorded loss knows about
the schedule shows in poisoned runs alone.
"""

import functools
import itertools
import types

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agt_lightning import BoundedAdversary
from tests.trust.harness import held, held_or_refused, only, standard_attacks
from tests.trust.modules import LABELS, Regressor, regression, variant

MEMORY = r"earlier batches|epoch|step|clock|remember|state|changes? (during|between)|depends on"


class Quiet(Regressor):
    """Starts near zero: clean residuals stay below 1, a poisoned one is near 5."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(0.1)

    def delta(self, batch_idx):
        return 1.0

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.huber_loss(self(x), y, delta=self.delta(batch_idx))


def late(yes) -> float:
    return 10.0 if yes else 1.0


class Attribute(Quiet):
    limit = 1.0

    def delta(self, batch_idx):
        return self.limit

    def on_train_epoch_start(self):
        self.limit = late(self.current_epoch > 0)


class OnSubmodule(Quiet):
    def delta(self, batch_idx):
        return self.net.limit if hasattr(self.net, "limit") else 1.0

    def on_train_epoch_start(self):
        self.net.limit = late(self.current_epoch > 0)


class Property(Quiet):
    @property
    def limit(self):
        return late(self.trainer.current_epoch > 0)

    def delta(self, batch_idx):
        return self.limit


class Closure(Quiet):
    def __init__(self):
        super().__init__()
        self.schedule = lambda: late(self.current_epoch > 0)

    def delta(self, batch_idx):
        return self.schedule()


class Listed(Quiet):
    schedule = (1.0, 10.0, 10.0)

    def delta(self, batch_idx):
        return self.schedule[self.current_epoch]


class Table(Quiet):
    schedule = types.MappingProxyType({0: 1.0})

    def delta(self, batch_idx):
        return self.schedule.get(self.current_epoch, 10.0)


class HyperParameters(Quiet):
    def __init__(self, limit: float = 1.0):
        super().__init__()
        self.save_hyperparameters()

    def delta(self, batch_idx):
        return self.hparams.limit

    def on_train_epoch_start(self):
        self.hparams.limit = late(self.current_epoch > 0)


class Config:
    limit = 1.0


class ConfigObject(Quiet):
    def __init__(self):
        super().__init__()
        self.config = Config()

    def delta(self, batch_idx):
        return self.config.limit

    def on_train_epoch_start(self):
        self.config.limit = late(self.current_epoch > 0)


class ListAttribute(Quiet):
    def __init__(self):
        super().__init__()
        self.limits = [1.0]

    def delta(self, batch_idx):
        return self.limits[-1]

    def on_train_epoch_end(self):
        self.limits.append(10.0)


class History(Quiet):
    def __init__(self):
        super().__init__()
        self.history = []

    def delta(self, batch_idx):
        return late(len(self.history) > 1)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.history.append(batch_idx)


class CountsCalls(Quiet):
    calls = 0

    def training_step(self, batch, batch_idx):
        self.calls += 1
        return super().training_step(batch, batch_idx)

    def delta(self, batch_idx):
        return late(self.calls > 2)


class Iterates(Quiet):
    def __init__(self):
        super().__init__()
        self.schedule = itertools.chain([1.0, 1.0], itertools.repeat(10.0))

    def delta(self, batch_idx):
        return next(self.schedule)


class Generates(Quiet):
    def __init__(self):
        super().__init__()
        self.schedule = (late(step > 1) for step in itertools.count())

    def __deepcopy__(self, memo):
        raise TypeError("cannot pickle 'generator' object")

    def delta(self, batch_idx):
        return next(self.schedule)


class Cached(Quiet):
    @functools.cached_property
    def origin(self):
        return self.global_step

    def delta(self, batch_idx):
        return late(self.global_step > self.origin + 1)


class RateSchedule(Quiet):
    """The delta follows the learning rate, which a scheduler halves after each epoch."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)]


class LastRate(RateSchedule):
    def delta(self, batch_idx):
        return late(self.lr_schedulers().get_last_lr()[0] < 0.1)


class ParamGroup(RateSchedule):
    def delta(self, batch_idx):
        return late(self.optimizers().param_groups[0]["lr"] < 0.1)


class TrainerGroup(RateSchedule):
    def delta(self, batch_idx):
        return late(self.trainer.optimizers[0].param_groups[0]["lr"] < 0.1)


class CountsInBuffer(Quiet):
    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))

    def training_step(self, batch, batch_idx):
        x, y = batch
        residual = (self(x) - y).abs()
        return torch.minimum(residual.square(), (1 + 9 * self.steps).sqrt() * residual).mean()

    def on_train_epoch_end(self):
        self.steps += 1


def delta(rule) -> type:
    """A module whose delta is a function of itself and of the batch's index."""
    return variant(Quiet, delta=rule)


STEPPED = {
    "current_epoch": delta(lambda self, i: late(self.current_epoch > 0)),
    "global_step": delta(lambda self, i: late(self.global_step > 1)),
    "trainer.current_epoch": delta(lambda self, i: late(self.trainer.current_epoch > 0)),
    "trainer.global_step": delta(lambda self, i: late(self.trainer.global_step > 1)),
    "batch_idx": delta(lambda self, i: late(i > 0)),
    "batch_idx as index": delta(lambda self, i: (1.0, 10.0)[i]),
    "batch_idx modulo": delta(lambda self, i: late(i % 2)),
    "attribute": Attribute,
    "attribute of a submodule": OnSubmodule,
}
"""The schedules of the review."""

FURTHER = {
    "epoch_progress": delta(
        lambda self, i: late(self.trainer.fit_loop.epoch_progress.current.completed > 0)  #
    ),
    "fit loop's epoch_loop": delta(lambda self, i: late(self.trainer.fit_loop.epoch_loop.global_step > 1)),
    "batch_progress": delta(lambda self, i: late(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready > 1)),
    "total_batch_idx": delta(lambda self, i: late(self.trainer.fit_loop.epoch_loop.total_batch_idx > 1)),
    "is_last_batch": delta(lambda self, i: late(self.trainer.is_last_batch)),
    "share of max_epochs": delta(lambda self, i: late(self.current_epoch / self.trainer.max_epochs >= 0.5)),
    "estimated steps": delta(lambda self, i: late(self.global_step / self.trainer.estimated_stepping_batches >= 0.5)),
    "property": Property,
    "closure": Closure,
    "tuple": Listed,
    "table": Table,
    "hparams": HyperParameters,
    "config object": ConfigObject,
    "list attribute": ListAttribute,
    "history": History,
    "counts calls": CountsCalls,
    "iterator": Iterates,
    "generator": Generates,
    "cached origin": Cached,
    "get_last_lr": LastRate,
    "param_groups": ParamGroup,
    "trainer.optimizers": TrainerGroup,
    "buffer": CountsInBuffer,
}


@pytest.mark.parametrize("module", STEPPED.values(), ids=STEPPED)
def test_a_schedule_that_clean_data_do_not_show_holds(module):
    held(regression(module))


@pytest.mark.parametrize("module", FURTHER.values(), ids=FURTHER)
def test_a_schedule_off_the_beaten_track_holds_or_is_refused(module):
    held_or_refused(regression(module), MEMORY, late=True)


class SetsLimit(L.Callback):
    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.get_submodule(self.path).limit = late(trainer.current_epoch > 0)


@pytest.mark.parametrize("path", ["", "net"])
@pytest.mark.parametrize("side", ["before", "after"])
def test_an_attribute_set_by_a_callback_holds_or_is_refused(path, side):
    module = delta(lambda self, i: getattr(self.get_submodule(path), "limit", 1.0))
    held_or_refused(regression(module, **{side: lambda: [SetsLimit(path)]}), MEMORY, late=True)


class FromBatch(Quiet):
    def training_step(self, batch, batch_idx):
        return F.huber_loss(self(batch["x"]), batch["y"], delta=self.limit(batch))


ENTRIES = {
    "float": ("delta", lambda epoch, index: late(epoch > 0), lambda self, batch: batch["delta"]),
    "string": ("source", lambda epoch, index: ("book", "web")[index], lambda self, batch: late("e" in batch["source"])),
    "bool": ("strict", lambda epoch, index: epoch == 0, lambda self, batch: late(not batch["strict"])),
    "none": ("limit", lambda epoch, index: None if epoch else 1.0, lambda self, batch: batch["limit"] or 10.0),
    "integer": ("epoch", lambda epoch, index: epoch, lambda self, batch: late(batch["epoch"] > 0)),
    "list": ("names", lambda epoch, index: ["web"] * index, lambda self, batch: late("web" in batch["names"])),
    "length": ("names", lambda epoch, index: ["web"] * index, lambda self, batch: late(len(batch["names"]))),
    "nested": ("meta", lambda epoch, index: {"epoch": epoch}, lambda self, batch: late(batch["meta"]["epoch"])),
    "key": ("late" , lambda epoch, index: 0, lambda self, batch: late("early" not in batch)),
}  # fmt: skip


@pytest.mark.parametrize(("name", "value", "limit"), ENTRIES.values(), ids=ENTRIES)
def test_entries_of_the_batch_that_are_no_tensors_hold(name, value, limit):
    def form(rows, epoch, index):
        batch = dict(rows) | {name: value(epoch, index)}
        return batch if name != "late" or epoch else batch | {"early": 0}

    held(regression(variant(FromBatch, limit=limit), form=form))


# --- the same through the other doors --------------------------------------------------------------------------------


class ClampsInputs(Quiet):
    """Inputs are clamped to a range that opens after the first epoch."""

    rate = 0.01

    def training_step(self, batch, batch_idx):
        x, y = batch
        limit = 2.34 if self.current_epoch == 0 else 30.0
        return F.mse_loss(self(x.clamp(-limit, limit)), y)


class ClampsResiduals(Quiet):
    def training_step(self, batch, batch_idx):
        x, y = batch
        limit = 1.0 if self.current_epoch == 0 else 30.0
        return (self(x) - y).clamp(-limit, limit).square().mean()


class Margin(Quiet):
    """A hinge that is active for poisoned labels alone in the first epoch."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        residual = (self(x) - y).abs()
        return F.mse_loss(self(x), y) + 30 * F.relu(residual - (20 if self.current_epoch == 0 else 2)).mean()


@pytest.mark.parametrize(
    ("module", "adversary"),
    [(ClampsInputs, BoundedAdversary(n=1, epsilon=5.0)), (ClampsResiduals, LABELS), (Margin, LABELS)],
)
def test_ranges_and_margins_by_epoch_hold(module, adversary):
    held(regression(module, adversary))


@pytest.mark.parametrize("name", ["current_epoch", "global_step", "batch_idx"])
def test_schedules_hold_with_accumulated_gradients(name):
    """The adversary's n counts samples of an optimizer step, so one of its two batches is poisoned."""
    case = regression(STEPPED[name], options={"accumulate_grad_batches": 2, "max_epochs": 3})
    held(case.but(attacks=[only(attack, index=index) for attack in standard_attacks(case)[:4] for index in (0, 1)]))


def test_schedules_hold_with_a_number_of_steps():
    held(regression(STEPPED["current_epoch"], options={"max_steps": 3, "max_epochs": -1}))


# --- annealing that clean data do show -------------------------------------------------------------------------------


def annealed(weight) -> type:
    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self(x)
        return F.mse_loss(out, y) + weight(self, batch_idx) * out.square().mean()

    return variant(Quiet, training_step=training_step)


class Beta(L.LightningModule):
    def on_train_epoch_start(self):
        self.beta = 0.1 * self.current_epoch


ANNEALED = {
    "attribute": annealed(lambda self, i: self.beta),
    "current_epoch": annealed(lambda self, i: 0.1 * self.current_epoch),
    "trainer.current_epoch": annealed(lambda self, i: 0.1 * self.trainer.current_epoch),
    "global_step": annealed(lambda self, i: 0.1 * self.global_step),
    "trainer.global_step": annealed(lambda self, i: 0.1 * self.trainer.global_step),
    "batch_idx": annealed(lambda self, i: 0.1 * i),
    "starts above zero": annealed(lambda self, i: 0.5 ** (1 + self.current_epoch)),
    "python branch": annealed(lambda self, i: 0.1 if self.current_epoch else 0.0),
}
for kind in ANNEALED.values():
    kind.on_train_epoch_start = Beta.on_train_epoch_start


@pytest.mark.parametrize("module", ANNEALED.values(), ids=ANNEALED)
def test_annealing_is_certified(module):
    held(regression(module))


def test_a_term_with_weight_zero_is_certified():
    held(regression(annealed(lambda self, i: 0.0)))


class SwitchesLoss(Quiet):
    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss if self.current_epoch == 0 else F.l1_loss
        return loss(self(x), y)


class GrowsHead(Quiet):
    """Another head from the second epoch on, trained by the same optimizer."""

    def __init__(self):
        super().__init__()
        self.second = nn.Linear(3, 1).double()

    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self(x) if self.current_epoch == 0 else self(x) + self.second(x)
        return F.mse_loss(out, y)


@pytest.mark.parametrize("module", [SwitchesLoss, GrowsHead])
def test_another_loss_by_epoch_is_certified(module):
    held(regression(module, settings={"domains": "box"}))
    held_or_refused(regression(module), "domains|ball|influence", late=True)
