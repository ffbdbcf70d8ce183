"""Errors that users meet: errors of the package, with the reason that is true and a way out that works."""

import re
import sys

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelPruning
from torch import nn

from agt_lightning import BoundedAdversary, CertifiedTraining
from agt_lightning.errors import AgtError
from tests.trust.harness import (
    QUIET,
    Batches,
    Case,
    Refused,
    as_dict,
    certify,
    held,
    held_or_refused,
    made,
    plain,
    refused,
)
from tests.trust.modules import (
    FEATURES,
    FLIPS,
    LABELS,
    Classifier,
    Regressor,
    apart,
    classification,
    numbers,
    regression,
    variant,
)


def step(function, base: type = Regressor) -> type:
    return variant(base, training_step=lambda self, batch, batch_idx: function(self, *batch))


def problems(result: Refused) -> list[str]:
    return list(getattr(result.error, "problems", [str(result.error)]))


# --- errors of Python that reach the user ----------------------------------------------------------------------------


def over_std(self, x, y):
    return F.mse_loss(self(x / x.std().item()), y)


def stacked(self, x, y):
    return torch.stack([F.mse_loss(self(x), y), F.mse_loss(self(x), y)]).sum()


class Lazy(Regressor):
    def network(self):
        return nn.LazyLinear(1)


class Ignored(Classifier):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), torch.where(y == 2, -100, y))


def masked_labels() -> Case:
    case = classification(adversary=FEATURES)
    y = case.data["y"].clone()
    y[3] = -100
    return case.but(data={**case.data, "y": y})


PLAIN = {
    "item of a statistic": (regression(step(over_std)), "data|statistic|item|std"),
    "stacked losses": (regression(step(stacked)), "stack"),
    "labels less one": (classification(step(lambda s, x, y: F.cross_entropy(s(x), y - 1), Classifier)), "label|class"),
    "lazy layers": (regression(Lazy), "lazy|initializ"),
    "ignored labels": (masked_labels(), "-100|ignore"),
}


@pytest.mark.parametrize(("case", "reason"), PLAIN.values(), ids=PLAIN)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning", "ignore:The model contains .*:UserWarning")
def test_no_error_of_python_reaches_the_user(case, reason):
    """Besides those that the training step itself raises, as it does without a certificate."""
    result = certify(case)
    if isinstance(result, Refused) and not isinstance(result.error, AgtError):
        with pytest.raises(type(result.error), match=re.escape(str(result.error))):
            plain(case)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pruning_is_named():
    case = regression(before=lambda: [ModelPruning("l1_unstructured", amount=0.3, verbose=0)])
    refused(case, "prun", late=True)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_validation_targets_of_another_shape_do_not_stop_training():
    class Validates(Regressor):
        def validation_step(self, batch, batch_idx):
            pass

    case = regression(Validates)
    certified, module = CertifiedTraining(LABELS), made(case)
    trainer = L.Trainer(callbacks=[certified], **QUIET)
    wide = [(case.data["x"], case.data["y"].expand(8, 3).contiguous())]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*wide[0]), batch_size=8)
    try:
        trainer.fit(module, Batches(case), loader)
    except AgtError:
        return
    assert certified.bounds.contains(module)


# --- true reasons ----------------------------------------------------------------------------------------------------


class Recurrent(Regressor):
    def network(self):
        return nn.ModuleDict({"gru": nn.GRU(3, 2, batch_first=True), "head": nn.Linear(2, 1)})

    def forward(self, x):
        return self.net["head"](self.net["gru"](x[:, None])[0][:, -1])


def test_a_recurrent_network_draws_no_random_numbers():
    held(regression(Recurrent))


def penalized(self, x, y):
    return F.mse_loss(self(x), y) + 0.01 * sum(p.square().sum() for p in self.parameters())


def test_a_penalty_of_parameters_holds():
    held(regression(step(penalized)))


@pytest.mark.parametrize("row", [1, 5])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_not_divergence(row, value):
    """In the first batch and in the second one."""
    rows = numbers()
    rows["x"][row, 0] = value
    result = refused(regression(data=rows), r"batch\[0\] has 1 value that is NaN or infinite", late=row == 5)
    assert "smaller learning rate" not in str(result.error)


def test_a_label_that_is_no_class_in_a_later_batch_is_named():
    """Which samples the loss leaves out is fixed only if no label can be moved."""
    case = classification(adversary=FLIPS)
    y = case.data["y"].clone()
    y[5] = -100
    refused(case.but(data={**case.data, "y": y}), "-100.*ignore_index", late=True)
    held(case.but(adversary=FEATURES, data={**case.data, "y": y}))


def test_two_loaders_of_different_size_are_named():
    def form(rows, epoch, index):
        return {"a": (rows["x"], rows["y"]), "b": (rows["x"][:2], rows["y"][:2])}

    def loss(self, batch):
        return F.mse_loss(self.net(batch["a"][0]), batch["a"][1]) + F.mse_loss(self.net(batch["b"][0]), batch["b"][1])

    module = variant(Regressor, training_step=lambda self, batch, batch_idx: loss(self, batch))
    result = refused(regression(module, FEATURES, form=form), "size|samples|batch")
    assert "weight_decay" not in str(result.error)


def test_a_loss_of_parameters_alone_is_named():
    result = refused(regression(step(lambda self, x, y: self.net.weight.square().sum())), "weight_decay|batch|data")
    assert len(problems(result)) <= 2


def test_a_detached_prediction_is_named():
    result = certify(regression(step(lambda self, x, y: F.mse_loss(self(x).detach(), y) + 0 * self.net.bias.sum())))
    assert not isinstance(result, Refused) or isinstance(result.error, AgtError)


# --- scheduler look-alikes -------------------------------------------------------------------------------------------


class Patient:
    """A plateau scheduler of the user's, which torch does not know."""

    def __init__(self, optimizer):
        self.optimizer, self.best = optimizer, float("inf")

    def step(self, metric=None):
        if metric is not None and metric > 1.0:
            self.optimizer.param_groups[0]["lr"] *= 0.1

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def get_last_lr(self):
        return [self.optimizer.param_groups[0]["lr"]]


class Plateau(Regressor):
    """Steps by the loss, whichever way the subclass names."""

    settings = {"monitor": "loss"}

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"} | self.settings}


class StepsByMetric(Plateau):
    def lr_scheduler_step(self, scheduler, metric):
        if metric is not None and metric > 5.0:
            self.optimizers().param_groups[0]["lr"] = 0.001


class OwnScheduler(Plateau):
    def configure_optimizers(self):
        optimizer = Regressor.configure_optimizers(self)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": Patient(optimizer), "reduce_on_plateau": True, "monitor": "loss"},
        }

    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step(metric)


class ByHand(Plateau):
    """ReduceLROnPlateau, stepped by hand at the end of each batch."""

    def configure_optimizers(self):
        optimizer = Regressor.configure_optimizers(self)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=0, threshold=10)
        return optimizer

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if outputs["loss"] > 1.5:
            self.plateau.step(outputs["loss"])


class RateInParamGroup(Plateau):
    """Lowers the rate by hand where the loss is large."""

    def configure_optimizers(self):
        return Regressor.configure_optimizers(self)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if outputs["loss"] > 5:
            self.trainer.optimizers[0].param_groups[0]["lr"] *= 0.1


@pytest.mark.parametrize("module", [StepsByMetric, OwnScheduler, ByHand, RateInParamGroup])
def test_rates_that_follow_the_loss(module):
    held_or_refused(apart(regression(module)), "rate|scheduler|metric|hook|monitor|plateau|on_train_batch_end")


def test_parameters_in_half_precision_are_refused():
    rows = {name: tensor.bfloat16() for name, tensor in numbers().items()}
    refused(regression(lambda: Regressor().bfloat16(), data=rows), "bfloat16|precision|float32")


# --- nothing is left behind ------------------------------------------------------------------------------------------

SEEN = []


class KeepsGlobally(Regressor):
    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self(x)
        SEEN.append(out.detach())
        return F.mse_loss(out, y)


def test_a_global_list_gets_no_tensor_of_the_recording():
    SEEN.clear()
    held(regression(KeepsGlobally, attacks=[]), reach=0)
    assert all(type(seen) is torch.Tensor for seen in SEEN)


@pytest.mark.parametrize("case", [regression(step(lambda s, x, y: F.mse_loss(s(x), y) * (2 if y.sum() > 0 else 1)))])
def test_a_refusal_prints_nothing(case, capfd):
    result = certify(case)
    assert isinstance(result, Refused)
    sys.stderr.flush()
    printed = capfd.readouterr()
    assert "torch.ops.aten" not in printed.err + printed.out
    assert "def forward" not in printed.err + printed.out


def test_a_refused_training_can_be_mended_and_started_again():
    """A refusal leaves module, data and callback as they were."""
    case = regression(options={"max_epochs": 1})
    certified, module = CertifiedTraining(LABELS), made(case)
    module.automatic_optimization = False
    with pytest.raises(AgtError):
        L.Trainer(callbacks=[certified], **QUIET).fit(module, Batches(case))
    module.automatic_optimization = True
    L.Trainer(callbacks=[certified], **QUIET).fit(module, Batches(case))
    assert certified.bounds.contains(module)
    assert certified.bounds.mean_width() > 0


# --- further uses that have to end well ------------------------------------------------------------------------------


class Tied(Regressor):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
        self.second.weight = self.first.weight

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self.net(self.second(self.first(x).relu())), y)


class Parametrized(Regressor):
    def __init__(self):
        super().__init__()

        class Positive(nn.Module):
            def forward(self, w):
                return F.softplus(w)

        nn.utils.parametrize.register_parametrization(self.net, "weight", Positive())


class HookedWhenLarge(Regressor):
    def __init__(self):
        super().__init__()
        self.net.register_forward_hook(lambda module, args, out: out if float(out.abs().max()) < 4 else 0.1 * out)


class HookedInTensors(Regressor):
    def __init__(self):
        super().__init__()
        self.net.register_forward_hook(lambda module, args, out: torch.where(out.abs() < 4, out, 0.1 * out))


class PreHooked(Regressor):
    def __init__(self):
        super().__init__()
        self.net.register_forward_pre_hook(lambda module, args: (args[0].clamp(-2, 2),))


class Penalized(Regressor):
    """Gradients of inputs: a penalty on the slope."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        x = x.clone().requires_grad_(True)
        out = self(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return F.mse_loss(out, y) + 0.1 * slope.square().mean()


class Mixup(Regressor):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.loss(((x + x.roll(1, 0)) / 2, (y + y.roll(1, 0)) / 2))


class BatchStandardized(Regressor):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.loss(((x - x.mean(0)) / (x.std(0) + 1), y))


class HardestSample(Regressor):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self(x), y, reduction="none").max()


class TopHalf(Regressor):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self(x), y, reduction="none").flatten().topk(2).values.mean()


class Trimmed(Regressor):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self(x), y, reduction="none").flatten().sort().values[:3].mean()


class LossWeighted(Regressor):
    """Each sample is weighed by its own loss, detached."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        losses = F.mse_loss(self(x), y, reduction="none")
        return (losses * (-losses.detach()).exp()).mean()


class SoftmaxWeighted(Regressor):
    def training_step(self, batch, batch_idx):
        x, y = batch
        losses = F.mse_loss(self(x), y, reduction="none")
        return (losses * losses.detach().softmax(0)).sum()


class Normalized(Regressor):
    """Divides by the norm of the weights."""

    def forward(self, x):
        return self.net(x) / (1 + self.net.weight.norm())


FURTHER = [
    Tied,
    Parametrized,
    HookedWhenLarge,
    HookedInTensors,
    PreHooked,
    Penalized,
    Mixup,
    BatchStandardized,
    HardestSample,
    TopHalf,
    Trimmed,
    LossWeighted,
    SoftmaxWeighted,
    Normalized,
]


@pytest.mark.parametrize("module", FURTHER)
@pytest.mark.parametrize("adversary", [LABELS, BoundedAdversary(n=1, epsilon=0.3)], ids=["labels", "features"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_modules_of_every_kind(module, adversary):
    reason = "no bound rule|combines|reduces|samples|rule|data|parameter|batch|export|hook"
    held_or_refused(regression(variant(module, rate=0.02), adversary), reason, reach=0.005)


def test_class_weights_and_smoothing_hold():
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)

    def loss(self, x, y):
        return F.cross_entropy(self(x), y, weight=weight, label_smoothing=0.1)

    held_or_refused(classification(step(loss, Classifier), FLIPS), "weight|label|mean")


def test_a_dict_of_extras_is_certified():
    held(regression(variant(Regressor, loss=lambda s, b: F.mse_loss(s(b["x"]), b["y"])), form=as_dict))
