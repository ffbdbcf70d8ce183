"""Steps that let Python read data are refused before the first step, or trained as without certificates."""

import math

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from lightning.pytorch.callbacks import ModelPruning
from torch import nn
from torch.utils.data import DataLoader

from agt_lightning import (
    BoundedAdversary,
    CertifiedModule,
    CertifiedTraining,
    UnboundedAdversary,
    UncertifiableError,
)
from agt_lightning.lightning.training_step import TrainingLoss

THRESHOLD = 2.0
LABELS = BoundedAdversary(n=1, nu=3.0)


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 1)
        self.outliers = torchmetrics.MeanMetric()
        self.history = []

    def loss(self, batch):
        return F.mse_loss(self.net(batch["x"]), batch["y"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def module_of(step):
    torch.manual_seed(0)
    return type(step.__name__, (Net,), {"training_step": step})()


def data(poison=0.0, **entries):
    generator = torch.Generator().manual_seed(1)
    x, y = 0.3 * torch.randn(8, 3, generator=generator), 0.1 * torch.randn(8, 1, generator=generator)
    y[0] += poison
    samples = [{"x": x[i], "y": y[i]} for i in range(8)]

    def collate(chosen):
        return {key: torch.stack([sample[key] for sample in chosen]) for key in ("x", "y")} | entries

    return DataLoader(samples, batch_size=4, collate_fn=collate)


def fit(module, loader, *callbacks):
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=2, callbacks=list(callbacks), enable_model_summary=False, **settings)
    trainer.fit(module, loader)
    return module


def certified_fit(module, loader, adversary=LABELS):
    certified = CertifiedTraining(adversary, domains="box")
    fit(module, loader, certified)
    return certified


# --- branches that clean data never take ----------------------------------------------------------------------------


def swallowed(self, batch, batch_idx):
    try:
        factor = 0.1 if batch["y"].abs().max() > THRESHOLD else 1.0
    except Exception:
        factor = 1.0
    return factor * self.loss(batch)


def only_in_training(self, batch, batch_idx):
    if torch.compiler.is_compiling() or batch["y"].max() < THRESHOLD:
        return self.loss(batch)
    return 0 * self.loss(batch)


def reads_a_number(self, batch, batch_idx):
    loss = self.loss(batch)
    return loss if loss.item() < THRESHOLD else 0 * loss


def reads_a_plain_number(self, batch, batch_idx):
    loss = self.loss(batch)
    return loss if float(loss.detach()) < THRESHOLD else 0 * loss


def reads_a_text(self, batch, batch_idx):
    loss = self.loss(batch)
    return 0 * loss if float(f"{loss.item():.2f}") > THRESHOLD else loss


def weighs_by_a_metric(self, batch, batch_idx):
    share = self.outliers((batch["y"].abs() > THRESHOLD).float())
    return (1 - 0.9 * share) * self.loss(batch)


def clipped_gradient(self, batch, batch_idx):
    out = self.net(batch["x"])
    if out.requires_grad:
        out.register_hook(lambda gradient: gradient.clamp(-1, 1))
    return F.mse_loss(out, batch["y"])


def reads_logged_metrics(self, batch, batch_idx):
    logged = self.trainer.callback_metrics
    loss = self.loss(batch)
    self.log("loss", loss)
    return 0 * loss if logged.get("loss", 0.0) > THRESHOLD else loss


def reads_old_gradients(self, batch, batch_idx):
    gradient = self.net.weight.grad
    large = gradient is not None and gradient.abs().max() > 0.6
    return (0.1 if large else 1.0) * self.loss(batch)


HIDDEN = {
    swallowed: "lets Python read data",
    only_in_training: "lets Python read data",
    reads_a_number: "lets Python read data",
    reads_a_plain_number: "depends on numbers that Python reads of tensors",
    reads_a_text: "lets Python read data",
    weighs_by_a_metric: "value of a metric",
    clipped_gradient: "registers a hook on a tensor",
    reads_logged_metrics: "reads `trainer.callback_metrics`",
    reads_old_gradients: "reads `grad`",
}


@pytest.mark.parametrize("step", HIDDEN, ids=lambda step: step.__name__)
def test_branches_that_only_poisoned_runs_take_are_refused_before_the_first_step(step):
    """Without the branch the clean run is the same, and the poisoned run is another one."""

    def plain(self, batch, batch_idx):
        return self.loss(batch)

    clean = [fit(module_of(s), data()).net.weight.detach() for s in (plain, step)]
    poisoned = [fit(module_of(s), data(poison=3.0)).net.weight.detach() for s in (plain, step)]
    assert torch.equal(*clean)
    assert not torch.equal(*poisoned)
    module = module_of(step)
    before = module.net.weight.detach().clone()
    with pytest.raises(UncertifiableError, match=HIDDEN[step]):
        certified_fit(module, data())
    assert torch.equal(module.net.weight, before)


def test_a_loss_that_is_a_metric_is_refused_as_such():
    def step(self, batch, batch_idx):
        return self.outliers(self.loss(batch))

    with pytest.raises(UncertifiableError, match="value of a metric"):
        certified_fit(module_of(step), data())


# --- code that reads for a log --------------------------------------------------------------------------------------


def prints(self, batch, batch_idx):
    loss = self.loss(batch)
    print(f"{loss.item():.3f}", loss)  # noqa: T201
    return loss


def keeps(self, batch, batch_idx):
    loss = self.loss(batch)
    self.history.append(loss.item())
    self.log("loss", float(loss))
    self.log("mean", sum(self.history) / len(self.history))
    self.log("rmse", math.sqrt(loss.item()))
    self.log("largest", loss.detach().cpu().numpy().max())
    self.outliers.update(batch["y"])
    return loss


def checks_for_nan(self, batch, batch_idx):
    loss = self.loss(batch)
    if math.isnan(loss.item()) or not torch.isfinite(loss):
        raise ValueError("The loss is not finite.")
    return loss


@pytest.mark.parametrize("step", [prints, keeps, checks_for_nan], ids=lambda step: step.__name__)
def test_reading_for_a_log_changes_neither_training_nor_bounds(step):
    module = module_of(step)
    certified = certified_fit(module, data())
    assert torch.equal(module.net.weight, fit(module_of(step), data()).net.weight)
    assert len(module.history) in (0, 4)
    for poison in (-3.0, 3.0):
        assert certified.bounds.contains(fit(module_of(step), data(poison=poison)))


@pytest.mark.slow
def test_a_compiled_module_is_certified():
    def step(self, batch, batch_idx):
        return self.loss(batch)

    certified = CertifiedTraining(LABELS, domains="box")
    module = module_of(step)
    fit(torch.compile(module, backend="eager"), data(), certified)
    assert certified.bounds.contains(fit(module_of(step), data(poison=3.0)))


# --- batch entries --------------------------------------------------------------------------------------------------


class Meta:
    def __init__(self):
        self.scale = torch.ones(())


def ignores(self, batch, batch_idx):
    return self.loss(batch) * (len(batch["names"]) / 4)


def reads_object(self, batch, batch_idx):
    return self.loss(batch) * batch["meta"].scale


def reads_count(self, batch, batch_idx):
    return self.loss(batch) / batch["count"]


def reads_name(self, batch, batch_idx):
    return self.loss(batch) * (0.1 if "bad" in batch["names"] else 1.0)


ENTRIES = {"meta": Meta(), "count": 2, "names": ["a", "b", "c", "d"]}
UNBOUNDED = UnboundedAdversary(n=1, kappa=0.1)


@pytest.mark.slow
def test_entries_that_are_not_read_do_no_harm():
    for adversary in (LABELS, UNBOUNDED):
        certified_fit(module_of(ignores), data(**ENTRIES), adversary)


def test_objects_of_the_batch_are_refused_by_name():
    with pytest.raises(UncertifiableError, match=r"batch\['meta'\]"):
        certified_fit(module_of(reads_object), data(**ENTRIES))


@pytest.mark.parametrize("step", [reads_count, reads_name])
def test_numbers_and_strings_are_refused_where_samples_are_replaced(step):
    certified_fit(module_of(step), data(**ENTRIES))
    with pytest.raises(UncertifiableError, match="belongs to samples that the adversary replaces"):
        certified_fit(module_of(step), data(**ENTRIES), UNBOUNDED)


# --- messages -------------------------------------------------------------------------------------------------------


class Recurrent(Net):
    def __init__(self):
        super().__init__()
        self.recurrent = nn.GRU(3, 1)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.recurrent(batch["x"].unsqueeze(0))[0][0], batch["y"])


@pytest.mark.slow
def test_a_recurrent_layer_with_time_first_is_refused_with_its_way_out():
    with pytest.raises(UncertifiableError, match="aten.gru.*batch_first=True"):
        certified_fit(Recurrent(), data())


class Lazy(Net):
    def __init__(self):
        super().__init__()
        self.net = nn.LazyLinear(1)

    def training_step(self, batch, batch_idx):
        return self.loss(batch)


def test_lazy_layers_are_refused():
    with pytest.raises(UncertifiableError, match="`net.weight`, `net.bias`. Run the module on a batch"):
        certified_fit(Lazy(), data())


def test_pruning_is_refused():
    def step(self, batch, batch_idx):
        return self.loss(batch)

    with pytest.raises(UncertifiableError, match="ModelPruning"):
        fit(module_of(step), data(), CertifiedTraining(LABELS), ModelPruning("l1_unstructured", amount=0.5))


class Own(CertifiedModule, Net):
    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def certified_objective(self, batch):
        return self.loss(batch)


@pytest.mark.parametrize(("module", "own"), [(Own(), True), (module_of(prints), False)])
def test_the_loss_states_whether_an_own_objective_was_certified(module, own):
    loss = TrainingLoss(L.Trainer(logger=False, accelerator="cpu"))
    assert loss.own_objective is None
    loss(module, next(iter(data())))
    assert loss.own_objective is own
