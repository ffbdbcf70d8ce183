"""State that a training keeps beside its parameters: what an earlier poisoned batch left behind acts later.

The recording of a loss takes such state as a constant. It must be noticed, whatever else the loss reads, or refused.
"""

import functools
import os
import random
import time
import weakref

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.trust.harness import Case, held, held_or_refused, refused
from tests.trust.modules import FEATURES, Regressor, apart, regression, variant

STATE = r"earlier|memory|remember|constant|attribute|state|changed|depends on|buffer|random|outside of the module"


def mean_of(batch) -> Tensor:
    """A statistic of the labels that a poisoned label moves."""
    return batch[1].detach().abs().mean()


class Remembers(Regressor):
    """Inputs are scaled by what an earlier batch left behind; subclasses choose where."""

    def read(self):
        raise NotImplementedError

    def write(self, batch) -> None:
        raise NotImplementedError

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.loss((x * self.read(), y))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.write(batch)


class NumberAttribute(Remembers):
    scale = 1.0

    def read(self):
        return self.scale

    def write(self, batch):
        self.scale = 1 / (1 + float(mean_of(batch)))


class TensorAttribute(Remembers):
    scale = torch.ones((), dtype=torch.float64)

    def read(self):
        return self.scale

    def write(self, batch):
        self.scale = 1 / (1 + mean_of(batch))


class TensorInPlace(Remembers):
    def __init__(self):
        super().__init__()
        self.scale = torch.ones((), dtype=torch.float64)

    def read(self):
        return self.scale

    def write(self, batch):
        self.scale.copy_(1 / (1 + mean_of(batch)))


class ListAttribute(Remembers):
    def __init__(self):
        super().__init__()
        self.scales = [torch.ones((), dtype=torch.float64)]

    def read(self):
        return self.scales[-1]

    def write(self, batch):
        self.scales.append(1 / (1 + mean_of(batch)))


class NumbersInDict(Remembers):
    def __init__(self):
        super().__init__()
        self.running = {"scale": 1.0}

    def read(self):
        return self.running["scale"]

    def write(self, batch):
        self.running["scale"] = 1 / (1 + float(mean_of(batch)))


class BufferInPlace(Remembers):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones((), dtype=torch.float64), persistent=False)

    def read(self):
        return self.scale

    def write(self, batch):
        self.scale.copy_(1 / (1 + mean_of(batch)))


class ThroughData(BufferInPlace):
    def write(self, batch):
        self.scale.data = 1 / (1 + mean_of(batch))


class OnSubmodule(Remembers):
    def read(self):
        return getattr(self.net, "scale", 1.0)

    def write(self, batch):
        self.net.scale = 1 / (1 + float(mean_of(batch)))


class Numpy(Remembers):
    def __init__(self):
        super().__init__()
        self.scale = np.ones(1)

    def read(self):
        return float(self.scale[0])

    def write(self, batch):
        self.scale[0] = 1 / (1 + float(mean_of(batch)))


class InClosure(Remembers):
    def __init__(self):
        super().__init__()
        scale = torch.ones((), dtype=torch.float64)
        self.read = lambda: scale
        self.write = lambda batch: scale.copy_(1 / (1 + mean_of(batch))) and None


class InPartial(Remembers):
    def __init__(self):
        super().__init__()
        self.scale_of = functools.partial(torch.mul, torch.ones((), dtype=torch.float64))

    def read(self):
        return self.scale_of(1.0)

    def write(self, batch):
        self.scale_of.args[0].copy_(1 / (1 + mean_of(batch)))


class OnClass(Remembers):
    scale = 1.0

    def __init__(self):
        super().__init__()
        type(self).scale = 1.0

    def read(self):
        return type(self).scale

    def write(self, batch):
        type(self).scale = 1 / (1 + float(mean_of(batch)))


class InHyperParameters(Remembers):
    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.save_hyperparameters()

    def read(self):
        return self.hparams.scale

    def write(self, batch):
        self.hparams.scale = 1 / (1 + float(mean_of(batch)))


class InEnvironment(Remembers):
    def __init__(self):
        super().__init__()
        os.environ["AGT_TEST_SCALE"] = "1.0"

    def read(self):
        return float(os.environ["AGT_TEST_SCALE"])

    def write(self, batch):
        os.environ["AGT_TEST_SCALE"] = repr(1 / (1 + float(mean_of(batch))))


class InSlots:
    __slots__ = ("scale",)


class InSlotObject(Remembers):
    def __init__(self):
        super().__init__()
        self.running = InSlots()
        self.running.scale = 1.0

    def read(self):
        return self.running.scale

    def write(self, batch):
        self.running.scale = 1 / (1 + float(mean_of(batch)))


WORLD = {"tensor": torch.ones((), dtype=torch.float64), "number": 1.0}


class GlobalTensor(Remembers):
    def __init__(self):
        super().__init__()
        WORLD["tensor"].fill_(1.0)

    def read(self):
        return WORLD["tensor"]

    def write(self, batch):
        WORLD["tensor"].copy_(1 / (1 + mean_of(batch)))


class GlobalNumber(Remembers):
    def __init__(self):
        super().__init__()
        WORLD["number"] = 1.0

    def read(self):
        return WORLD["number"]

    def write(self, batch):
        WORLD["number"] = 1 / (1 + float(mean_of(batch)))


class OnTrainer(Remembers):
    def read(self):
        return getattr(self.trainer, "scale", 1.0)

    def write(self, batch):
        self.trainer.scale = 1 / (1 + float(mean_of(batch)))


class OnCallback(Remembers):
    """Reads what another callback of the Trainer keeps."""

    def read(self):
        return next(c for c in self.trainer.callbacks if isinstance(c, Keeper)).scale

    def write(self, batch):
        next(c for c in self.trainer.callbacks if isinstance(c, Keeper)).scale = 1 / (1 + float(mean_of(batch)))


class Keeper(L.Callback):
    scale = 1.0


class Logged(Remembers):
    """Reads its own logged metric."""

    def read(self):
        return 1 / (1 + self.trainer.callback_metrics.get("size", torch.zeros((), dtype=torch.float64)))

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("size", mean_of(batch))
        return loss

    def write(self, batch):
        pass


class OptimizerState(Remembers):
    """Reads the learning rate that it chose from the batch before."""

    def read(self):
        return 10 * self.optimizers().param_groups[0]["weight_decay_of_loss"]

    def write(self, batch):
        self.optimizers().param_groups[0]["weight_decay_of_loss"] = 0.1 / (1 + float(mean_of(batch)))

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        optimizer.param_groups[0]["weight_decay_of_loss"] = 0.1
        return optimizer


PLACES = {
    "number": NumberAttribute,
    "tensor": TensorAttribute,
    "tensor in place": TensorInPlace,
    "list of tensors": ListAttribute,
    "dict of numbers": NumbersInDict,
    "buffer": BufferInPlace,
    "buffer's data": ThroughData,
    "attribute of a submodule": OnSubmodule,
    "numpy array": Numpy,
    "closure": InClosure,
    "partial": InPartial,
    "class attribute": OnClass,
    "hparams": InHyperParameters,
    "environment": InEnvironment,
    "slots": InSlotObject,
    "global tensor": GlobalTensor,
    "global number": GlobalNumber,
    "attribute of the Trainer": OnTrainer,
    "logged metric": Logged,
    "param group": OptimizerState,
}


def case(module: type, **changes) -> Case:
    return apart(regression(module, **changes))


def with_clock(module: type) -> type:
    """The same module with the one line that used to switch the check off."""

    def training_step(self, batch, batch_idx):
        self.log("epoch", float(self.current_epoch))
        return super(made, self).training_step(batch, batch_idx)

    made = variant(module, training_step=training_step)
    return made


def with_clock_in_loss(module: type) -> type:
    def training_step(self, batch, batch_idx):
        return super(made, self).training_step(batch, batch_idx) * 0.5**self.current_epoch

    made = variant(module, training_step=training_step)
    return made


@pytest.mark.parametrize("module", PLACES.values(), ids=PLACES)
def test_state_of_earlier_batches(module):
    held_or_refused(case(module), STATE, late=True)


@pytest.mark.parametrize("module", PLACES.values(), ids=PLACES)
def test_state_of_earlier_batches_beside_a_clock(module):
    held_or_refused(case(with_clock(module)), STATE, late=True)


@pytest.mark.parametrize("name", ["number", "tensor in place", "list of tensors", "global tensor"])
def test_state_of_earlier_batches_beside_a_schedule(name):
    held_or_refused(case(with_clock_in_loss(PLACES[name])), STATE, late=True)


@pytest.mark.parametrize("module", PLACES.values(), ids=PLACES)
def test_state_of_earlier_batches_in_a_batch_of_new_shape(module):
    """The last batch is smaller, so the loss is recorded again when the state has changed."""
    rows = apart(regression()).data
    short = {name: tensor[:7] for name, tensor in rows.items()}
    held_or_refused(case(module).but(data=short, options={"max_epochs": 1}), STATE, late=True)


def test_state_of_another_callback():
    held_or_refused(case(OnCallback).but(before=lambda: [Keeper()]), STATE, late=True)


# --- written where it is read ----------------------------------------------------------------------------------------


class WritesInStep(NumberAttribute):
    """The state is written in `training_step` itself, after it was read."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.write(batch)
        return loss

    on_train_batch_end = L.LightningModule.on_train_batch_end


class WritesTensorInStep(WritesInStep, TensorInPlace):
    read, write, __init__ = TensorInPlace.read, TensorInPlace.write, TensorInPlace.__init__


class WritesListInStep(WritesInStep, ListAttribute):
    read, write, __init__ = ListAttribute.read, ListAttribute.write, ListAttribute.__init__


class WritesGlobalInStep(WritesInStep, GlobalTensor):
    read, write, __init__ = GlobalTensor.read, GlobalTensor.write, GlobalTensor.__init__


class WritesOnlySpikes(WritesInStep):
    """The state stays as it is on clean data."""

    def write(self, batch):
        if float(batch[1].abs().max()) > 2:
            self.scale = 0.1


class CountsSpikes(NumberAttribute):
    """A hook that counts odd labels; the loss shrinks with the count."""

    def write(self, batch):
        self.scale *= 0.5 if float(batch[1].abs().max()) > 2 else 1.0


class CountsSpikesInBuffer(BufferInPlace):
    def write(self, batch):
        self.scale.mul_(0.5 if float(batch[1].abs().max()) > 2 else 1.0)


@pytest.mark.parametrize("module", [WritesInStep, WritesTensorInStep, WritesListInStep, WritesGlobalInStep])
def test_state_written_in_the_step(module):
    held_or_refused(case(module), STATE + "|data", late=True)
    held_or_refused(case(with_clock(module)), STATE + "|data", late=True)


@pytest.mark.parametrize("module", [WritesOnlySpikes, CountsSpikes, CountsSpikesInBuffer])
@pytest.mark.xfail(
    strict=False, reason="on clean data nothing changes: documented, attributes are the same in every run"
)
def test_state_that_clean_data_leave_alone(module):
    held_or_refused(case(module), STATE, late=True)


# --- teachers --------------------------------------------------------------------------------------------------------


class MeanTeacher(Regressor):
    """The textbook mean teacher: averages kept outside of the module tree, consistency weighted by epoch.

    The teacher gets a flipped view, so that its poisoned weight meets the clean samples.
    """

    by_epoch = True

    def __init__(self):
        super().__init__()
        self.keep([p.detach().clone() for p in self.net.parameters()])

    def keep(self, teacher):
        self.teacher = teacher

    def kept(self):
        return self.teacher

    def training_step(self, batch, batch_idx):
        x, y = batch
        out, weight = self(x), self.kept()[0]
        consistency = min(1.0, 0.5 + self.current_epoch) if self.by_epoch else 0.5
        return nn.functional.mse_loss(out, y) + consistency * nn.functional.mse_loss(out, x.flip(1) @ weight.T)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            for slow, fast in zip(self.kept(), self.net.parameters(), strict=True):
                slow.lerp_(fast, 0.5)


class TeacherInDict(MeanTeacher):
    def keep(self, teacher):
        self.box = {"teacher": teacher}

    def kept(self):
        return self.box["teacher"]


class TeacherInClosure(MeanTeacher):
    def keep(self, teacher):
        self.kept = lambda: teacher


class TeacherInPartial(MeanTeacher):
    def keep(self, teacher):
        self.box = functools.partial(list, teacher)

    def kept(self):
        return self.box()


class Holder:
    def __init__(self, teacher):
        self.teacher = teacher


HOLDERS = []


class TeacherBehindWeakref(MeanTeacher):
    def keep(self, teacher):
        HOLDERS.append(Holder(teacher))
        self.box = weakref.ref(HOLDERS[-1])

    def kept(self):
        return self.box().teacher


class TeacherInGlobal(MeanTeacher):
    def keep(self, teacher):
        WORLD["teacher"] = teacher

    def kept(self):
        return WORLD["teacher"]


class TeacherModuleInList(MeanTeacher):
    """A module in a list, which torch does not see."""

    def keep(self, teacher):
        layer = nn.Linear(3, 1, bias=False).double().requires_grad_(False)
        layer.weight.data = teacher[0]
        self.box = [layer]

    def kept(self):
        return list(self.box[0].parameters())


class TeacherSnapshot(MeanTeacher):
    """A new copy every batch instead of an average in place."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.keep([p.detach().clone() for p in self.net.parameters()])


class TeacherByEpoch(MeanTeacher):
    """A new copy at the end of each epoch."""

    on_train_batch_end = L.LightningModule.on_train_batch_end

    def on_train_epoch_end(self):
        self.keep([p.detach().clone() for p in self.net.parameters()])


class TeacherView(MeanTeacher):
    """The teacher is the student's own memory, detached."""

    def keep(self, teacher):
        self.teacher = [p.data for p in self.net.parameters()]

    on_train_batch_end = L.LightningModule.on_train_batch_end


class TeacherInNumpy(MeanTeacher):
    def keep(self, teacher):
        self.box = [p.numpy() for p in teacher]

    def kept(self):
        return [torch.from_numpy(p) for p in self.box]


TEACHERS = [
    MeanTeacher,
    TeacherInDict,
    TeacherInClosure,
    TeacherInPartial,
    TeacherBehindWeakref,
    TeacherInGlobal,
    TeacherModuleInList,
    TeacherSnapshot,
    TeacherByEpoch,
    TeacherView,
    TeacherInNumpy,
]


@pytest.mark.parametrize("by_epoch", [True, False])
@pytest.mark.parametrize("module", TEACHERS)
def test_teachers_outside_of_the_module_tree(module, by_epoch):
    teaching = case(variant(module, by_epoch=by_epoch), settings={"labels": [1]})  # the teacher's outputs are not
    held_or_refused(teaching, STATE + "|teacher|parameter|aten", late=True)


# --- data modules ----------------------------------------------------------------------------------------------------


class Data(L.LightningDataModule):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches
        self.scale = torch.ones((), dtype=torch.float64)
        self.number = 1.0

    def train_dataloader(self):
        return self.batches


class DataModuleTensor(Remembers):
    def read(self):
        return self.trainer.datamodule.scale

    def write(self, batch):
        self.trainer.datamodule.scale.copy_(1 / (1 + mean_of(batch)))


class DataModuleNumber(Remembers):
    def read(self):
        return self.trainer.datamodule.number

    def write(self, batch):
        self.trainer.datamodule.number = 1 / (1 + float(mean_of(batch)))


@pytest.mark.parametrize("module", [DataModuleTensor, DataModuleNumber])
def test_state_in_the_data_module(module):
    held_or_refused(case(module).but(wrap=Data), STATE, late=True)
    held_or_refused(case(with_clock(module)).but(wrap=Data), STATE, late=True)


class DataWithSplits(Data):
    """Keeps the tensors of its batches, and others."""

    def __init__(self, batches):
        super().__init__(batches)
        self.splits = {"train": list(batches), "val": (torch.ones(8, 3), torch.ones(8))}


def test_a_data_module_that_holds_its_data_is_no_obstacle():
    held(case(KeepsOutputs).but(wrap=DataWithSplits))


# --- random state that follows the data ------------------------------------------------------------------------------


def seeded(draw, seed) -> type:
    """The seed follows the labels of the batch before."""

    class Seeded(Remembers):
        def read(self):
            return 0.5 + draw()

        def write(self, batch):
            seed(int(1000 * float(mean_of(batch))))

    return Seeded


@pytest.mark.parametrize(
    ("draw", "seed"),
    [
        (random.random, random.seed),
        (lambda: float(np.random.rand()), np.random.seed),
        (lambda: torch.rand((), dtype=torch.float64), torch.manual_seed),
    ],
    ids=["random", "numpy", "torch"],
)
def test_random_numbers(draw, seed):
    held_or_refused(case(seeded(draw, seed)), STATE, late=True)


def seeds(self):
    torch.manual_seed(7)


def draws(self):
    torch.rand(3)


@pytest.mark.parametrize("then", [seeds, draws])
def test_random_numbers_of_a_hook_that_only_poisoned_batches_reach(then):
    """Later masks of dropout, and orders of samples, are other ones."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if mean_of(batch) > 5:
            then(self)

    def training_step(self, batch, batch_idx):
        return self.loss((nn.functional.dropout(batch[0], 0.3), batch[1]))

    members = {"training_step": training_step, "on_train_batch_end": on_train_batch_end}
    refused(case(variant(Regressor, **members)), "draws random numbers, or sets a seed, where data decide")


def test_numbers_that_hooks_draw_are_no_obstacle():
    def on_train_batch_end(self, outputs, batch, batch_idx):
        torch.rand(3)

    held(case(variant(Regressor, on_train_batch_end=on_train_batch_end)))


def test_the_time_of_day():
    def training_step(self, batch, batch_idx):
        return self.loss(batch) * (1 + time.time() % 1)

    held_or_refused(regression(variant(Regressor, training_step=training_step), FEATURES), STATE + "|time", late=True)


# --- wrong to refuse -------------------------------------------------------------------------------------------------


class KeepsOutputs(Regressor):
    """Keeps what it computed for a plot; the loss reads none of it."""

    def __init__(self):
        super().__init__()
        self.outputs = []
        self.losses = {}

    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self(x)
        loss = nn.functional.mse_loss(out, y)
        self.outputs.append(out.detach())
        self.losses[self.global_step] = float(loss.detach())
        self.last = loss.detach()
        return loss

    def on_train_epoch_end(self):
        self.outputs.clear()


def test_state_that_the_loss_does_not_read_is_certified():
    held(regression(KeepsOutputs))
