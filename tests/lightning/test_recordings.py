"""A recording stands for a step only as long as the step does the same, and nothing that it reads comes from data."""

import copy

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agt_lightning import BoundedAdversary, CertifiedTraining
from agt_lightning.errors import AgtError
from agt_lightning.propagation.loss_capture import LossCapture

ADVERSARY = BoundedAdversary(n=1, nu=5.0)


@pytest.fixture
def poisoned_run_is_inside(fit, loader):
    """Certify a clean training, and repeat it with the first label of each batch moved by 5."""

    def check(kind: type[L.LightningModule], epochs: int = 3) -> CertifiedTraining:
        def moved(x, y):
            return x, torch.cat([y[:1] + 5.0, y[1:]])

        runs = []
        certified = CertifiedTraining(ADVERSARY)
        for adapt, callbacks in ((None, [certified]), (moved, [])):
            torch.manual_seed(0)
            runs.append(kind())
            fit(runs[-1], loader(adapt=adapt, dtype=torch.float64), *callbacks, max_epochs=epochs)
        clean, poisoned = runs
        assert any(not torch.equal(a, b) for a, b in zip(clean.parameters(), poisoned.parameters(), strict=True))
        assert certified.bounds.contains(clean)
        assert not certified.bounds.violations(poisoned)
        return certified

    return check


class Scheduled(L.LightningModule):
    """A Huber loss whose delta matters for outliers alone, and there are none in clean data."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 1).double()
        self.delta = 4.0

    def delta_now(self, batch, batch_idx):
        return self.delta

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.huber_loss(self.net(x), y, delta=self.delta_now(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def late(time):
    return 4.0 if time == 0 else 40.0


class Config:
    def __init__(self):
        self.delta = [4.0]


def property_delta(self):
    return late(self.current_epoch)


def steps(module, name, function):
    return type(name, (Scheduled,), {"delta_now": function})


def by_trainer(self, batch, batch_idx):
    return late(self.trainer.current_epoch)


def by_rate(self, batch, batch_idx):
    return late(self.optimizers().param_groups[0]["lr"] < 0.1)


class ByHook(Scheduled):
    def on_train_epoch_start(self):
        self.delta = late(self.current_epoch)


class ByBatchHook(Scheduled):
    def on_train_batch_start(self, batch, batch_idx):
        self.delta = late(self.global_step)


class ByEndOfBatch(Scheduled):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.delta = self.delta * 10


class ByConfig(Scheduled):
    def __init__(self):
        super().__init__()
        self.config = Config()

    def on_train_epoch_end(self):
        self.config.delta[0] *= 10

    def delta_now(self, batch, batch_idx):
        return self.config.delta[0]


class ByPart(Scheduled):
    def __init__(self):
        super().__init__()
        self.part = nn.Identity()
        self.part.delta = 4.0

    def on_train_epoch_start(self):
        self.part.delta = late(self.current_epoch)

    def delta_now(self, batch, batch_idx):
        return self.part.delta


class BySchedule(Scheduled):
    delta_now = by_rate

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


SCHEDULES = {
    "epoch": {"delta_now": lambda self, batch, batch_idx: late(self.current_epoch)},
    "step": {"delta_now": lambda self, batch, batch_idx: late(self.global_step)},
    "trainer": {"delta_now": by_trainer},
    "batch": {"delta_now": lambda self, batch, batch_idx: late(batch_idx)},
    "tensor of the step": {"delta_now": lambda self, batch, batch_idx: float(4.0 * 10**self.global_step)},
}


@pytest.mark.parametrize("methods", SCHEDULES.values(), ids=SCHEDULES)
def test_schedules_that_clean_data_do_not_show_are_followed(methods, poisoned_run_is_inside):
    poisoned_run_is_inside(type("Variant", (Scheduled,), methods))


class ByProgress(Scheduled):
    """The rate stays, and the schedule counts on."""

    def delta_now(self, batch, batch_idx):
        return late(self.lr_schedulers().last_epoch)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)]


class ByPresence(Scheduled):
    def delta_now(self, batch, batch_idx):
        return late(hasattr(self, "warm"))

    def on_train_epoch_start(self):
        if self.current_epoch:
            self.warm = None


@pytest.mark.parametrize(
    "kind", [ByProgress, ByPresence, ByHook, ByBatchHook, ByEndOfBatch, ByConfig, ByPart, BySchedule]
)
def test_schedules_in_hooks_are_followed(kind, poisoned_run_is_inside):
    poisoned_run_is_inside(kind)


class CountsOwnSteps(Scheduled):
    calls = 0

    def delta_now(self, batch, batch_idx):
        self.calls += 1
        return late(self.calls > 1)


class SetFromData(Scheduled):
    def on_train_batch_start(self, batch, batch_idx):
        self.delta = 4.0 + 100 * float(batch[1].std() > 0)


class RemembersBatch(Scheduled):
    """Reads the clock as well, as any module that logs the epoch."""

    def training_step(self, batch, batch_idx):
        self.log("epoch", float(self.current_epoch))
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.delta = float(batch[1].abs().max())


class Teacher(Scheduled):
    """The mean teacher: a slow copy kept in a list, with a weight that grows by epoch."""

    def __init__(self):
        super().__init__()
        self.teacher = [nn.Linear(3, 1).double()]

    def training_step(self, batch, batch_idx):
        x, y = batch
        with torch.no_grad():
            goal = self.teacher[0](x)
        return F.mse_loss(self.net(x), y) + 0.1 * (self.current_epoch > 0) * F.mse_loss(self.net(x), goal)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            for slow, fast in zip(self.teacher[0].parameters(), self.net.parameters(), strict=True):
                slow.lerp_(fast, 0.5)


SCALE = torch.ones((), dtype=torch.float64)
LIMIT = [4.0]


class TeacherOfEpoch(Teacher):
    """A copy of the parameters at the end of the first epoch, outside of the module's parts."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        pass

    def on_train_epoch_end(self):
        if self.current_epoch == 0:
            self.teacher = [copy.deepcopy(self.net).requires_grad_(False)]


class GlobalTensor(Scheduled):
    def training_step(self, batch, batch_idx):
        return SCALE * super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        SCALE.fill_(float(batch[1].std()))


class GlobalNumber(Scheduled):
    def delta_now(self, batch, batch_idx):
        return LIMIT[0] + 0 * self.current_epoch

    def on_train_batch_end(self, outputs, batch, batch_idx):
        LIMIT[0] = float(batch[1].abs().max())


@pytest.mark.parametrize(
    "kind", [CountsOwnSteps, SetFromData, RemembersBatch, Teacher, TeacherOfEpoch, GlobalTensor, GlobalNumber]
)
def test_memory_of_data_raises(kind, fit, loader):
    SCALE.fill_(1.0)
    LIMIT[0] = 4.0
    with pytest.raises(AgtError, match="changed during training|reads one that is neither|not what is trained"):
        fit(kind(), loader(dtype=torch.float64), CertifiedTraining(ADVERSARY, labels=[1]), max_epochs=3)


class GlobalLimit(Scheduled):
    """A limit that no clean sample reaches, so that no gradient shows how it changes."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self.net(x), torch.minimum(y, 100 * SCALE))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        SCALE.add_(float(batch[1].std()))


def test_a_tensor_that_clean_data_do_not_show_raises(fit, loader):
    SCALE.fill_(1.0)
    with pytest.raises(AgtError, match="reads one that is neither"):
        fit(GlobalLimit(), loader(dtype=torch.float64), CertifiedTraining(ADVERSARY))


class Pops(Scheduled):
    def training_step(self, batch, batch_idx):
        y = batch.pop("y")
        return F.mse_loss(self.net(batch["x"]), y)


class Replaces(Scheduled):
    def training_step(self, batch, batch_idx):
        batch["x"] = F.layer_norm(batch["x"], (3,))
        return F.mse_loss(self.net(batch["x"]), batch["y"])


class ChangesInPlace(Scheduled):
    def training_step(self, batch, batch_idx):
        x, y = batch["x"], batch["y"]
        x.sub_(x.mean(dim=1, keepdim=True))
        y.sub_(1)
        x.mul_(2)
        return F.mse_loss(self.net(x), y)


@pytest.mark.parametrize("kind", [Pops, Replaces, ChangesInPlace])
def test_a_step_may_change_its_batch(kind, fit, loader):
    """What is certified is the batch as the step finds it: features are moved before they are normalized."""
    adversary = BoundedAdversary(n=1, epsilon=0.1)
    bounds, modules = [], []
    for move in (0.0, 0.1, -0.1):
        torch.manual_seed(0)
        modules.append(kind())
        certified = CertifiedTraining(adversary)

        def adapt(x, y, move=move):
            return {"x": torch.cat([x[:1] + move * torch.tensor([1.0, -1.0, 1.0]), x[1:]]), "y": y}

        fit(modules[-1], loader(adapt=adapt, dtype=torch.float64), *([] if move else [certified]), max_epochs=2)
        bounds.append(certified)
    assert all(not bounds[0].bounds.violations(module) for module in modules)


@pytest.mark.parametrize("entry", ["delta", "source"])
def test_numbers_and_strings_of_a_batch_are_followed(entry, fit, loader):
    class ByEntry(Scheduled):
        def training_step(self, batch, batch_idx):
            late = batch["delta"] > 4 if entry == "delta" else batch["source"] == "late"
            return F.huber_loss(self.net(batch["x"]), batch["y"], delta=40.0 if late else 4.0)

    runs = []
    certified = CertifiedTraining(ADVERSARY)
    for move in (0.0, 5.0):
        torch.manual_seed(0)
        runs.append(ByEntry())
        made = []

        def adapt(x, y, move=move, made=made):
            made.append(1)
            late = len(made) % 2 == 0
            y = torch.cat([y[:1] + move * late, y[1:]])
            return {"x": x, "y": y, "delta": 40.0 if late else 4.0, "source": "late" if late else "early"}

        fit(runs[-1], loader(adapt=adapt, dtype=torch.float64), *([] if move else [certified]), max_epochs=2)
    assert not certified.bounds.violations(runs[1])


@pytest.mark.slow
def test_entries_that_are_not_read_cost_no_recording(fit, loader, monkeypatch):
    recorded = []
    original = LossCapture.of
    monkeypatch.setattr(LossCapture, "of", lambda *given: recorded.append(1) or original(*given))

    class Named(Scheduled):
        def training_step(self, batch, batch_idx):
            self.log("rows", len(batch["names"]))
            return F.mse_loss(self.net(batch["x"]), batch["y"])

    names = iter(range(1000))

    def adapt(x, y):
        return {"x": x, "y": y, "names": [f"patient {next(names)}" for _ in range(len(x))]}

    fit(Named(), loader(size=128, adapt=adapt, dtype=torch.float64), CertifiedTraining(ADVERSARY), max_epochs=2)
    assert len(recorded) < 20  # in 64 steps


@pytest.mark.slow
def test_recordings_leave_the_rates_alone(fit, loader):
    class StepsItsSchedule(Scheduled):
        def training_step(self, batch, batch_idx):
            self.lr_schedulers().step()
            self.log("rate", self.optimizers().param_groups[0]["lr"])
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            return [optimizer], [{"scheduler": schedule, "interval": "epoch", "frequency": 1000}]

    runs = []
    for callbacks in ([], [CertifiedTraining(ADVERSARY)]):
        torch.manual_seed(0)
        runs.append(StepsItsSchedule())
        fit(runs[-1], loader(dtype=torch.float64), *callbacks, max_epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(runs[0].parameters(), runs[1].parameters(), strict=True))


class Keeps(Scheduled):
    """What many modules do: keep outputs, count steps, and average the loss for a log."""

    def __init__(self):
        super().__init__()
        self.outputs, self.count, self.average = [], 0, torch.zeros(())

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.outputs.append(loss)
        self.count += 1
        self.average = 0.9 * self.average + 0.1 * loss.detach()
        self.log_dict({"count": self.count, "average": self.average})
        return loss


@pytest.mark.slow
def test_what_is_only_kept_costs_no_recording(fit, loader, monkeypatch):
    recorded = []
    original = LossCapture.of
    monkeypatch.setattr(LossCapture, "of", lambda *given: recorded.append(1) or original(*given))
    fit(Keeps(), loader(size=80, dtype=torch.float64), CertifiedTraining(ADVERSARY))
    assert len(recorded) < 40  # in 20 steps, two to four for each new recording


def test_a_global_number_that_clean_data_do_not_show_raises(fit, loader):
    class Widens(GlobalNumber):
        delta_now = lambda self, batch, batch_idx: LIMIT[0]  # noqa: E731

        def on_train_epoch_start(self):
            LIMIT[0] = late(self.current_epoch)

    LIMIT[0] = 4.0
    with pytest.raises(AgtError, match="changed during training"):
        fit(Widens(), loader(dtype=torch.float64), CertifiedTraining(ADVERSARY), max_epochs=2)


class SetsRates(Scheduled):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.optimizers().param_groups[0]["lr"] = 0.1 / (1 + loss.item())
        return loss


class ReadsGroups(Scheduled):
    def training_step(self, batch, batch_idx):
        return self.optimizers().param_groups[0]["scale"] * super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        optimizer.param_groups[0]["scale"] = 1.0
        return optimizer


class UpdatesGroups(Scheduled):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.optimizers().param_groups[0].update(lr=0.1 / (1 + loss.item()))
        return loss


class AsksGroups(ReadsGroups):
    def training_step(self, batch, batch_idx):
        return self.optimizers().param_groups[0].get("scale", 1.0) * Scheduled.training_step(self, batch, batch_idx)


@pytest.mark.parametrize("kind", [SetsRates, ReadsGroups, UpdatesGroups, AsksGroups])
def test_what_is_kept_in_groups_of_parameters_is_refused(kind, fit, loader):
    with pytest.raises(AgtError, match="can depend on data|can come from earlier batches"):
        fit(kind(), loader(dtype=torch.float64), CertifiedTraining(ADVERSARY))
