"""What a step writes from data and a later step reads, and the random numbers and settings that it leaves behind.

On clean data nothing of this shows: every threshold lies beyond them. Assertions are Python's: PYTEST_DONT_REWRITE.
"""

import enum
import functools
import random
import sys
from collections import deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.trust.harness import Case, Refused, certify, held, refused
from tests.trust.modules import Regressor, apart, regression, variant
from tests.trust.test_paths import SPIKE, mse, step

RECORDS: list[float] = []


class Mode(enum.Enum):
    USUAL = 0
    SPIKED = 1


class Schedule:
    """A callable object of the user's."""

    scale = 1.0

    def __call__(self):
        return self.scale


class Slots:
    __slots__ = ("scale",)


class Remembering(Regressor):
    def __init__(self):
        super().__init__()
        RECORDS.clear()
        self.last, self.seen, self.count = 0.0, [], 0
        self.mode, self.spiked, self.distance = Mode.USUAL, False, F.mse_loss
        self.factor, self.table, self.queue = torch.ones((), dtype=torch.float64), np.ones(1), deque(maxlen=4)
        self.schedule, self.slots, self.other = Schedule(), Slots(), [nn.Linear(1, 1)]
        self.slots.scale = self.other[0].scale = 1.0
        self.nested = {"a": {"b": {"c": {"d": {"scale": 1.0}}}}}
        self.activation = nn.Identity()
        self.register_buffer("kept", torch.ones((), dtype=torch.float64))


def case(function, base: type = Regressor) -> Case:
    """Only the first sample can be poisoned, and its gradient is apart: what else moves is outside of the bounds."""
    return apart(regression(step(function, base)))


def largest(y) -> torch.Tensor:
    return y.abs().max()


def a_number(self, x, y):
    scale = 0.1 if self.last > SPIKE else 1.0
    self.last = largest(y).item()
    return scale * mse(self, x, y)


def a_plain_number(self, x, y):
    scale = 0.1 if self.last > SPIKE else 1.0
    self.last = float(largest(y))
    return scale * mse(self, x, y)


def a_list(self, x, y):
    scale = 0.1 if self.seen and max(self.seen) > SPIKE else 1.0
    self.seen.append(largest(y).item())
    return scale * mse(self, x, y)


def a_global_list(self, x, y):
    scale = 0.1 if RECORDS and max(RECORDS) > SPIKE else 1.0
    RECORDS.append(largest(y).item())
    return scale * mse(self, x, y)


def a_second_spike(self, x, y):
    """The count is read on the same branch alone."""
    loss = mse(self, x, y)
    if largest(y) > SPIKE:
        if self.count:
            loss = 0.1 * loss
        self.count += 1
    return loss


def on_spikes(write, read):
    def function(self, x, y):
        loss = mse(self, x, y) * read(self)
        if largest(y) > SPIKE:
            write(self)
        return loss

    return function


def set_to(name: str, value):
    return lambda self: setattr(self, name, value)


def replaces_an_activation(self, x, y):
    loss = F.mse_loss(self.activation(self(x)), y)
    if largest(y) > SPIKE:
        self.activation = nn.Tanh()
    return loss


def replaces_a_function(self, x, y):
    loss = self.distance(self(x), y)
    if largest(y) > SPIKE:
        self.distance = F.l1_loss
    return loss


def replaces_a_buffer(self, x, y):
    loss = F.mse_loss(self(x) * self.kept.clone(), y)
    if largest(y) > SPIKE:
        self.kept = torch.full((), 0.1, dtype=torch.float64)
    return loss


MEMORY = {
    "number": a_number,
    "plain number": a_plain_number,
    "list": a_list,
    "global list": a_global_list,
    "second spike": a_second_spike,
    "enum": on_spikes(set_to("mode", Mode.SPIKED), lambda self: 0.1 if self.mode is Mode.SPIKED else 1.0),
    "boolean": on_spikes(set_to("spiked", True), lambda self: 0.1 if self.spiked is True else 1.0),
    "tensor": on_spikes(set_to("factor", torch.full((), 0.1, dtype=torch.float64)), lambda self: self.factor),
    "array": on_spikes(lambda self: self.table.fill(0.1), lambda self: float(self.table[0])),
    "deque": on_spikes(lambda self: self.queue.append(1), lambda self: 0.1 if self.queue else 1.0),
    "callable": on_spikes(lambda self: setattr(self.schedule, "scale", 0.1), lambda self: self.schedule()),
    "slots": on_spikes(lambda self: setattr(self.slots, "scale", 0.1), lambda self: self.slots.scale),
    "module in a list": on_spikes(lambda self: setattr(self.other[0], "scale", 0.1), lambda self: self.other[0].scale),
    "nested": on_spikes(
        lambda self: self.nested["a"]["b"]["c"]["d"].update(scale=0.1),
        lambda self: self.nested["a"]["b"]["c"]["d"]["scale"],
    ),
    "part": replaces_an_activation,
    "function": replaces_a_function,
    "buffer": replaces_a_buffer,
}


@pytest.mark.parametrize("function", MEMORY.values(), ids=MEMORY)
def test_what_a_step_remembers_of_data_is_refused(function):
    refused(case(function, Remembering), "what data decide|changes it in place")


# --- remembered, and not read for the loss ---------------------------------------------------------------------------


def keeps_and_prints(self, x, y):
    out = self(x)
    loss = F.mse_loss(out, y)
    self.last += loss.item()
    print(f"mean {self.last / (1 + self.count):.3f}")  # noqa: T201
    if self.last > SPIKE or self.count % 2:
        self.log("sum", self.last)
    self.count += 1
    self.seen.append(out.detach())
    self.factor = loss.detach()
    RECORDS.append(loss.item())
    if largest(y) > SPIKE:
        self.spiked, self.mode = True, Mode.SPIKED
    return loss


@pytest.mark.slow
def test_what_is_remembered_for_a_log_is_certified():
    held(case(keeps_and_prints, Remembering))


# --- left behind ------------------------------------------------------------------------------------------------------


def drops(self, x, y):
    return F.mse_loss(F.dropout(self(x)), y)


def on_spikes_after(act, loss_of=mse):
    def function(self, x, y):
        loss = loss_of(self, x, y)
        if largest(y) > SPIKE:
            act(self)
        return loss

    return function


def draws_for_each_spike(self, x, y):
    torch.rand_like(y[y.abs() > SPIKE])
    return drops(self, x, y)


def sets_rate(self):
    self.trainer.strategy.optimizers[0].param_groups[0]["lr"] = 0.0


LEFT_BEHIND = {
    "draw": (on_spikes_after(lambda self: torch.rand(1), drops), "draws random numbers"),
    "draw of Python": (on_spikes_after(lambda self: random.random(), drops), "draws random numbers"),
    "draw of numpy": (on_spikes_after(lambda self: np.random.rand(), drops), "draws random numbers"),
    "seed": (on_spikes_after(lambda self: torch.manual_seed(3), drops), "draws random numbers"),
    "draws by size": (draws_for_each_spike, "as many random numbers as data decide"),
    "parameters": (on_spikes_after(lambda self: nn.init.zeros_(self.net.weight)), "lets Python read data"),
    "rate": (on_spikes_after(sets_rate), "lets Python read data"),
    "length": (on_spikes_after(lambda self: setattr(self.trainer.fit_loop, "max_epochs", 1)), "lets Python read data"),
    "process": (on_spikes_after(lambda self: sys.exit(3)), "lets Python read data"),
}


@pytest.mark.parametrize(("function", "reason"), LEFT_BEHIND.values(), ids=LEFT_BEHIND)
def test_what_a_branch_leaves_behind_is_refused(function, reason):
    refused(case(function), reason)


def test_parameters_that_the_step_itself_changes_are_refused():
    def clamps(self, x, y):
        with torch.no_grad():
            self.net.weight.clamp_(-9, 9)
        return mse(self, x, y)

    refused(case(clamps), "changes the parameter `net.weight` in place")


def test_an_error_of_recording_alone_ends_no_run():
    """A size that depends on data cannot be looked up in a dictionary while code is recorded, but in training."""

    def looks_up(self, x, y):
        loss = mse(self, x, y)
        if (y > 1e9).any():
            loss = loss * {1: 0.1}.get(y[y > SPIKE].shape[0], 1.0)
        return loss

    refused(case(looks_up), "lets Python read data")


# --- no trace ---------------------------------------------------------------------------------------------------------


@functools.lru_cache
def window(size: int) -> torch.Tensor:
    return torch.linspace(0.5, 1.5, size, dtype=torch.float64)


def test_a_cached_tensor_is_certified_and_left_real():
    module = variant(Regressor, forward=lambda self, x: self.net(x * window(3)))
    held(regression(module))
    assert type(window(3)) is torch.Tensor


def test_a_decorated_step_on_the_object_follows_its_clock():
    class Decorated(Regressor):
        def __init__(self):
            super().__init__()
            plain = self.training_step
            self.training_step = functools.wraps(plain)(lambda *args, **kwargs: plain(*args, **kwargs))

        def training_step(self, batch, batch_idx):
            return self.loss(batch) * (1 + self.current_epoch)

    held(regression(Decorated))


def test_a_strategy_can_be_read():
    def reads(self, x, y):
        first = self.trainer.strategy.root_device.type == "cpu" and self.trainer.fit_loop.epoch_loop.batch_idx == 0
        return mse(self, x, y) * (1.0 if first else 0.5)

    assert not isinstance(certify(regression(step(reads))), Refused)
