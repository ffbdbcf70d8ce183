"""Schedules in places that the key of a recording once left out: active in one epoch, between two repeated checks."""

import enum
import functools

import pytest
import torch.nn.functional as F
import torchmetrics
from torch import nn

from agt_lightning.propagation.recorder import Recorder
from tests.trust.harness import Case, Held, certify, held, held_or_refused, only
from tests.trust.modules import Regressor, apart, numbers, regression
from tests.trust.test_time import MEMORY, Quiet

WIDE_IN = 2
"""The epoch in which the loss is another; with five batches an epoch, no repeated check falls into it."""


def bump(module) -> float:
    return 10.0 if module.current_epoch == WIDE_IN else 1.0


def case(module: type) -> Case:
    made = apart(regression(module, data=numbers(20), options={"max_epochs": 4}))
    return made.but(attacks=[only(attack, epoch=WIDE_IN) for attack in made.attacks])


class ClassAttribute(Quiet):
    limit = 1.0

    def on_train_epoch_start(self):
        type(self).limit = bump(self)

    def delta(self, batch_idx):
        return self.limit


class Settings:
    limit = 1.0


class OfALibrary(Settings):
    __module__ = "torch.settings"


def nested(depth: int, inner: object) -> object:
    for _ in range(depth):
        outer = Settings()
        outer.inner, inner = inner, outer
    return inner


class DeepSettings(Quiet):
    depth, kind = 4, Settings

    def __init__(self):
        super().__init__()
        self.settings = nested(self.depth, self.kind())

    def innermost(self):
        settings = self.settings
        for _ in range(self.depth):
            settings = settings.inner
        return settings

    def on_train_epoch_start(self):
        self.innermost().limit = bump(self)

    def delta(self, batch_idx):
        return self.innermost().limit


class LibrarySettings(DeepSettings):
    depth, kind = 0, OfALibrary


class ClosesOverItself(Quiet):
    def __init__(self):
        super().__init__()
        self.schedule = lambda: bump(self)

    def delta(self, batch_idx):
        return self.schedule()


class Narrow(nn.Module):
    def forward(self, residual):
        return residual.clamp(-1, 1)


class Wide(nn.Module):
    def forward(self, residual):
        return residual.clamp(-10, 10)


class ReplacesPart(Quiet):
    def __init__(self):
        super().__init__()
        self.clip = Narrow()

    def on_train_epoch_start(self):
        self.clip = Wide() if self.current_epoch == WIDE_IN else Narrow()

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.clip(self(x) - y).square().mean()


class HooksPart(ReplacesPart):
    def __init__(self):
        super().__init__()
        self.clip = nn.Identity()

    def on_train_epoch_start(self):
        self.clip._forward_hooks.clear()
        if self.current_epoch != WIDE_IN:
            self.clip.register_forward_hook(lambda part, inputs, output: output.clamp(-1, 1))


def decorated(step):
    @functools.wraps(step)
    def weighed(self, batch, batch_idx):
        x, y = batch
        return F.huber_loss(self(x), y, delta=10.0 if batch_idx == 3 else 1.0) + 0.0 * step(self, batch, batch_idx)

    return weighed


class Decorated(Quiet):
    @decorated
    def training_step(self, batch, batch_idx):
        return self(batch[0]).mean()


class Locals(Quiet):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.huber_loss(self(x), y, delta=10.0 if locals()["batch_idx"] == 3 else 1.0)


class Phase(enum.Enum):
    FIRST = 0
    SECOND = 1
    THIRD = 2


class Phases(Quiet):
    def __init__(self):
        super().__init__()
        self.phase = Phase.FIRST

    def on_train_batch_start(self, batch, batch_idx):
        late = Phase.THIRD if batch_idx < 2 else Phase.SECOND
        self.phase = (Phase.FIRST, Phase.SECOND, late, Phase.SECOND)[self.current_epoch]

    def delta(self, batch_idx):
        if self.phase is Phase.FIRST:
            return 10.0
        return 11.0 if self.phase is Phase.THIRD else 1.0


FOLLOWED = [
    DeepSettings,
    LibrarySettings,
    ClosesOverItself,
    ReplacesPart,
    HooksPart,
    Decorated,
    Locals,
    Phases,
]


@pytest.mark.parametrize("module", FOLLOWED)
def test_a_schedule_of_one_epoch_holds(module):
    held(case(module))


def test_a_class_attribute_of_one_epoch_holds_or_is_refused():
    held_or_refused(case(ClassAttribute), MEMORY, late=True)


class WithMetric(Regressor):
    def __init__(self):
        super().__init__()
        self.error = torchmetrics.MeanSquaredError()

    def training_step(self, batch, batch_idx):
        x, y = batch
        prediction = self(x)
        self.error(prediction.detach(), y)
        self.log("error", self.error)
        return F.mse_loss(prediction, y)


def test_a_metric_costs_no_recordings(monkeypatch):
    made, record = [], Recorder.record
    monkeypatch.setattr(Recorder, "record", lambda *args: made.append(1) or record(*args))
    assert isinstance(certify(regression(WithMetric, data=numbers(20))), Held)
    assert len(made) == 1
