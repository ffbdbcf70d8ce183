"""Training steps as people write them: certified as they are, and trained to the same last bit."""

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor, nn

from agt_lightning import BoundedAdversary, CertifiedModule, CertifiedTraining
from agt_lightning.capture import LabelKind

ROUNDING = 1e-5
"""Mean width after two float32 steps without poison: the hull of the trained parameters and their float64 twins."""

NUMBER, CLASS, BINARY = LabelKind.NUMBER, LabelKind.CLASS, LabelKind.BINARY
LABELS = {NUMBER: "number", CLASS: "class", BINARY: "binary"}
FLIPS = {NUMBER: {"nu": 0.05}, CLASS: {"nu": 1, "q": 0}, BINARY: {"nu": 1, "q": 0}}

Pair = namedtuple("Pair", "x y")


@dataclass
class Sample:
    image: Tensor
    target: Tensor
    name: str = "sample"
    extras: dict[str, Tensor] = field(default_factory=dict)


class Net(L.LightningModule):
    """Three inputs, ``outputs`` outputs; the variants differ in `training_step`."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, outputs))

    def forward(self, x):
        return self.net(x)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@dataclass(frozen=True)
class Variant:
    """A module, its batches and what the capture must find.

    Args:
        module: makes the module.
        kind: kind of the labels.
        adapt: makes the batch from features and labels.
        feature: position of the features among the batch's tensors.
        label: position of the labels; None means that the loss reads none.
    """

    module: Callable[[], L.LightningModule]
    kind: LabelKind = NUMBER
    adapt: Callable[[Tensor, Tensor], object] | None = None
    feature: int = 0
    label: int | None = 1


VARIANTS: dict[str, Variant] = {}


def variant(kind: LabelKind = NUMBER, outputs: int = 1, **settings):
    """Enter a training step, or a whole module, into the list under its own name."""

    def enter(thing):
        if isinstance(thing, type):
            module = thing
        else:
            kinds = (Net,)

            def module():
                return type(thing.__name__, kinds, {"training_step": thing})(outputs)

        assert thing.__name__ not in VARIANTS
        VARIANTS[thing.__name__] = Variant(module, kind, **settings)
        return thing

    return enter


# --- what a step returns --------------------------------------------------------------------------------------------


@variant()
def returns_tensor(self, batch, batch_idx):
    x, y = batch
    return F.mse_loss(self(x), y)


@variant()
def returns_dict(self, batch, batch_idx):
    x, y = batch
    out = self(x)
    return {"loss": F.mse_loss(out, y), "out": out.detach(), "size": len(x)}


# --- batches --------------------------------------------------------------------------------------------------------


@variant(adapt=lambda x, y: [x, y])
def batch_list(self, batch, batch_idx):
    x, y = batch
    return F.mse_loss(self(x), y)


@variant(adapt=lambda x, y: {"y": y, "x": x, "id": torch.arange(len(x)), "name": ["a"] * len(x)}, feature=1, label=0)
def batch_dict(self, batch, batch_idx):
    return F.mse_loss(self(batch["x"]), batch["y"])


@variant(adapt=Pair)
def batch_namedtuple(self, batch, batch_idx):
    return F.mse_loss(self(batch.x), batch.y)


@variant(adapt=Sample)
def batch_dataclass(self, batch, batch_idx):
    return F.mse_loss(self(batch.image), batch.target)


@variant(adapt=lambda x, y: Sample(x, y, extras={"weight": torch.ones(len(x), 1)}))
def batch_dataclass_nested(self, batch, batch_idx):
    return F.mse_loss(self(batch.image), batch.target)


@variant(adapt=lambda x, y: (torch.arange(len(x)), x, y, [f"id{i}" for i in range(len(x))], 3), feature=1, label=2)
def batch_with_ids_and_strings(self, batch, batch_idx):
    ids, x, y, names, number = batch
    assert len(names) == len(ids)
    assert number == 3
    return F.mse_loss(self(x), y)


@variant(adapt=lambda x, y: ({"x": x}, (y, torch.zeros(7, 2))))
def batch_nested_with_metadata(self, batch, batch_idx):
    inputs, (y, _) = batch
    return F.mse_loss(self(inputs["x"]), y)


@variant(adapt=lambda x, y: x, label=None)
def batch_is_a_tensor(self, batch, batch_idx):
    return self(batch).square().mean()


# --- logging and metrics --------------------------------------------------------------------------------------------


@variant()
def logs(self, batch, batch_idx):
    x, y = batch
    loss = F.mse_loss(self(x), y)
    self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=True, batch_size=len(x))
    self.log_dict({"a": loss, "b": loss.detach() ** 0.5})
    self.print("loss", loss.detach())
    return loss


@variant()
def logs_item(self, batch, batch_idx):
    x, y = batch
    loss = F.mse_loss(self(x), y)
    self.log("loss", loss.item())
    self.last = loss.item()
    return loss


@variant()
def logs_through_logger(self, batch, batch_idx):
    x, y = batch
    loss = F.mse_loss(self(x), y)
    if self.logger is not None:
        self.logger.experiment.add_scalar("loss", loss, self.global_step)
        self.logger.log_metrics({"loss": loss.detach()})
    return loss


@variant()
def reads_trainer(self, batch, batch_idx):
    x, y = batch
    loss = F.mse_loss(self(x), y)
    if batch_idx % self.trainer.log_every_n_steps == 0 and self.trainer.is_global_zero:
        self.log("rate", self.optimizers().param_groups[0]["lr"])
        self.log("epoch", float(self.current_epoch))
    return loss


@variant(CLASS)
class MetricObject(Net):
    def __init__(self):
        super().__init__(3)
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self(x)
        self.accuracy(out, y)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        return F.cross_entropy(out, y)


@variant(CLASS)
class MetricUpdateAndCompute(Net):
    def __init__(self):
        super().__init__(3)
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self(x)
        self.accuracy.update(out.softmax(dim=-1), y)
        self.log("accuracy", self.accuracy.compute())
        self.log("percent", self.accuracy(out, y) * 100)
        return F.cross_entropy(out, y)

    def on_train_epoch_end(self):
        self.accuracy.reset()


@variant(CLASS)
class MetricCollected(Net):
    def __init__(self):
        super().__init__(3)
        settings = {"task": "multiclass", "num_classes": 3}
        self.metrics = torchmetrics.MetricCollection(
            [torchmetrics.Accuracy(**settings), torchmetrics.F1Score(**settings)], prefix="train/"
        )
        self.phases = nn.ModuleDict({"fit": self.metrics.clone(prefix="again/")})
        self.several = nn.ModuleList([torchmetrics.Accuracy(**settings)])

    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self(x)
        self.log_dict(self.metrics(out, y))
        self.phases["fit"].update(out, y)
        self.several[0](out, y)
        return F.cross_entropy(out, y)


@variant(CLASS)
class MetricCollectionItem(Net):
    def __init__(self):
        super().__init__(3)
        self.metrics = torchmetrics.MetricCollection(
            {"accuracy": torchmetrics.Accuracy(task="multiclass", num_classes=3)}
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self(x)
        values = self.metrics(out, y)
        self.log("accuracy", values["accuracy"])
        self.metrics["accuracy"].update(out, y)
        return F.cross_entropy(out, y)


@variant(CLASS, outputs=3)
def functional_metric(self, batch, batch_idx):
    x, y = batch
    out = self(x)
    accuracy = torchmetrics.functional.accuracy(out.softmax(1), y, task="multiclass", num_classes=3)
    self.log("accuracy", accuracy)
    self.log("by_hand", (out.argmax(dim=1) == y).float().mean())
    return F.cross_entropy(out, y)


@variant()
class KeepsOutputs(Net):
    def __init__(self):
        super().__init__()
        self.outputs = []
        self.losses = {"all": []}

    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self(x)
        loss = F.mse_loss(out, y)
        self.outputs.append(out)
        self.losses["all"].append(loss)
        self.last = loss
        return loss


@variant()
class Counts(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("running", torch.zeros(3))
        self.steps = 0

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.steps += 1
        self.calls += 1
        self.running = 0.9 * self.running + 0.1 * x.mean(dim=0)
        return F.mse_loss(self(x), y)


# --- networks -------------------------------------------------------------------------------------------------------


@variant()
def functional_relu(self, batch, batch_idx):
    x, y = batch
    return F.mse_loss(self.net[2](F.relu(self.net[0](x))), y)


@variant()
def method_relu_and_clamp_of_outputs_for_logging(self, batch, batch_idx):
    x, y = batch
    out = self.net[2](self.net[0](x).relu())
    self.log("clamped", out.clamp(0, 1).mean())
    return F.mse_loss(out, y)


@variant()
class InPlaceRelu(Net):
    def __init__(self):
        super().__init__()
        self.net[1] = nn.ReLU(inplace=True)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self(x), y)


@variant()
def in_place_additions(self, batch, batch_idx):
    x, y = batch
    hidden = self.net[0](x)
    hidden += 0.5
    hidden.relu_()
    out = self.net[2](hidden)
    out.sub_(0.25)
    out *= 2
    return F.mse_loss(out, y)


@variant()
def views(self, batch, batch_idx):
    x, y = batch
    x = x.unsqueeze(1).view(x.size(0), -1)
    out = self.net(torch.flatten(x, 1).reshape(len(x), 3))
    return F.mse_loss(out.squeeze(-1).unsqueeze(1), y)


@variant()
def squeezes_both(self, batch, batch_idx):
    x, y = batch
    return F.mse_loss(self(x).squeeze(-1), y.squeeze(-1))


@variant()
def squeezes_all(self, batch, batch_idx):
    x, y = batch
    return F.mse_loss(self(x).squeeze(), y.squeeze())


@variant()
def views_as_vector(self, batch, batch_idx):
    x, y = batch
    return F.mse_loss(self(x).view(-1), y.view(-1))


@variant()
class MatrixProducts(L.LightningModule):
    """No layers and no `forward`."""

    def __init__(self):
        super().__init__()
        self.W = nn.Parameter(torch.randn(4, 3))
        self.b = nn.Parameter(torch.zeros(4))
        self.v = nn.Parameter(torch.randn(4, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        hidden = torch.relu(x @ self.W.T + self.b)
        return F.mse_loss(hidden @ self.v, y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@variant()
class Residual(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        hidden = self.net[0](x)
        return F.mse_loss(self.net[2](hidden + F.relu(hidden)), y)


@variant()
class TiedLayer(Net):
    def __init__(self):
        super().__init__()
        self.same = nn.Linear(5, 5)
        self.again = self.same

    def training_step(self, batch, batch_idx):
        x, y = batch
        hidden = F.relu(self.net[0](x))
        hidden = F.relu(self.again(F.relu(self.same(hidden))))
        return F.mse_loss(self.net[2](hidden), y)


@variant()
class ScalarParameters(Net):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.shift = nn.Parameter(torch.zeros(1, 1))
        self.unused = nn.Parameter(torch.ones(2))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self(x) * self.scale + self.shift, y)


@variant()
class FrozenFirstLayer(Net):
    def __init__(self):
        super().__init__()
        self.net[0].requires_grad_(False)

    def training_step(self, batch, batch_idx):
        x, y = batch
        with torch.no_grad():
            hidden = self.net[1](self.net[0](x))
        return F.mse_loss(self.net[2](hidden), y)

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


@variant()
class FrozenLastLayer(Net):
    def __init__(self):
        super().__init__()
        self.net[2].requires_grad_(False)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self(x), y)


@variant()
class FrozenBias(Net):
    def __init__(self):
        super().__init__()
        self.net[0].bias.requires_grad_(False)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self(x), y)


@variant()
class UnusedHead(Net):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 2)

    def training_step(self, batch, batch_idx):
        x, y = batch
        hidden = self.net[:2](x)
        self.log("other", self.head(hidden).mean())
        return F.mse_loss(self.net[2](hidden), y)


@variant()
class Normalized(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]))
        self.register_buffer("std", torch.tensor([1.0, 2.0, 0.5]))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self((x - self.mean) / self.std), y)


@variant()
class InactiveDropout(Net):
    def __init__(self):
        super().__init__()
        self.net.append(nn.Dropout(0.0))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self(x), y)


# --- losses ---------------------------------------------------------------------------------------------------------


@variant()
class LossModule(Net):
    def __init__(self):
        super().__init__()
        self.criterion = nn.MSELoss()

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.criterion(self(x), y)


@variant()
def handwritten_square(self, batch, batch_idx):
    x, y = batch
    return ((self(x).squeeze(-1) - y.squeeze(-1)) ** 2).mean()


@variant()
def loss_sum_over_length(self, batch, batch_idx):
    x, y = batch
    return (self(x) - y).pow(2).sum() / len(x)


@variant()
def sum_reduction(self, batch, batch_idx):
    x, y = batch
    return 0.1 * F.mse_loss(self(x), y, reduction="sum")


@variant()
def unreduced_then_mean(self, batch, batch_idx):
    x, y = batch
    return F.mse_loss(self(x), y, reduction="none").mean(dim=1).mean()


@variant()
def weighted_terms(self, batch, batch_idx):
    x, y = batch
    out = self(x)
    return 0.5 * F.mse_loss(out, y) + 2 * F.l1_loss(out, y) - 0.25 * F.huber_loss(out, y)


@variant()
def penalised_outputs(self, batch, batch_idx):
    x, y = batch
    out = self(x)
    return F.mse_loss(out, y) + 0.01 * out.abs().mean()


@variant()
def mixed_reductions(self, batch, batch_idx):
    x, y = batch
    out = self(x)
    return F.mse_loss(out, y) + F.l1_loss(out, y, reduction="sum") / 10


@variant()
def l1(self, batch, batch_idx):
    x, y = batch
    return F.l1_loss(self(x), y)


@variant()
def huber(self, batch, batch_idx):
    x, y = batch
    return F.huber_loss(self(x), y, delta=0.5)


@variant()
def smooth_l1(self, batch, batch_idx):
    x, y = batch
    return F.smooth_l1_loss(self(x), y, beta=0.5)


@variant()
def scaled_loss(self, batch, batch_idx):
    x, y = batch
    loss = F.mse_loss(self(x), y)
    loss = loss / 2
    loss *= 3
    return loss.neg().neg()


@variant(CLASS, outputs=3)
def cross_entropy(self, batch, batch_idx):
    x, y = batch
    return F.cross_entropy(self(x), y)


@variant(CLASS, outputs=3)
def cross_entropy_of_cast_labels(self, batch, batch_idx):
    x, y = batch
    return F.cross_entropy(self(x), y.long().view(-1))


@variant(CLASS, outputs=3, adapt=lambda x, y: (x, y[:, None].int()))
def cross_entropy_of_int_column(self, batch, batch_idx):
    x, y = batch
    return F.cross_entropy(self(x), y.squeeze(1).long())


@variant(CLASS, outputs=3, adapt=lambda x, y: (x, y.float()))
def cross_entropy_of_float_labels(self, batch, batch_idx):
    x, y = batch
    return F.cross_entropy(self(x), y.long())


@variant(CLASS, outputs=3)
def label_smoothing(self, batch, batch_idx):
    x, y = batch
    return F.cross_entropy(self(x), y, label_smoothing=0.1)


@variant(CLASS, outputs=3)
def nll_of_log_softmax(self, batch, batch_idx):
    x, y = batch
    return F.nll_loss(F.log_softmax(self(x), dim=-1), y)


@variant(CLASS, outputs=3)
def cross_entropy_sum(self, batch, batch_idx):
    x, y = batch
    return F.cross_entropy(self(x), y, reduction="sum") / x.shape[0]


@variant(CLASS, outputs=3)
def cross_entropy_unreduced(self, batch, batch_idx):
    x, y = batch
    return F.cross_entropy(self(x), y, reduction="none").mean()


@variant(CLASS, outputs=3)
def one_hot_square(self, batch, batch_idx):
    x, y = batch
    return F.mse_loss(self(x), F.one_hot(y, 3).float())


@variant(CLASS, outputs=3)
def one_hot_cross_entropy(self, batch, batch_idx):
    x, y = batch
    return F.cross_entropy(self(x), F.one_hot(y, num_classes=3).to(x.dtype))


@variant(BINARY)
def binary_with_logits(self, batch, batch_idx):
    x, y = batch
    return F.binary_cross_entropy_with_logits(self(x), y)


@variant(BINARY)
def binary_of_sigmoid(self, batch, batch_idx):
    x, y = batch
    return F.binary_cross_entropy(torch.sigmoid(self(x)), y)


@variant(BINARY, adapt=lambda x, y: (x, y.squeeze(1).long()))
def binary_of_integer_labels(self, batch, batch_idx):
    x, y = batch
    return F.binary_cross_entropy_with_logits(self(x).squeeze(-1), y.float())


@variant(BINARY)
def binary_positive_weight(self, batch, batch_idx):
    x, y = batch
    return F.binary_cross_entropy_with_logits(self(x), y, pos_weight=torch.tensor([2.0]))


# --- signatures -----------------------------------------------------------------------------------------------------


@variant()
def no_batch_index(self, batch):
    x, y = batch
    return F.mse_loss(self(x), y)


@variant()
def index_by_another_name(self, batch, index):
    x, y = batch
    assert isinstance(index, int)
    return F.mse_loss(self(x), y)


@variant()
def index_with_default(self, batch, batch_idx=0, extra=None):
    x, y = batch
    return F.mse_loss(self(x), y)


@variant()
def takes_anything(self, *args, **kwargs):
    x, y = args[0]
    return F.mse_loss(self(x), y)


@variant()
class Shared(Net):
    """One step for all phases."""

    def shared_step(self, batch, phase):
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log(f"{phase}_loss", loss)
        return loss

    def training_step(self, batch, batch_idx):
        return self.shared_step(batch, "train")


@variant()
class OwnObjective(CertifiedModule, Net):
    """Its training step cannot be recorded, so it says what it minimizes."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self(x), y)
        if loss > 1e-3:
            self.log("large", loss)
        return loss

    def certified_objective(self, batch):
        x, y = batch
        return F.mse_loss(self(x), y)


@variant()
class Typed(Net):
    """Annotations, inference helpers and hyperparameters do not matter."""

    def __init__(self, width: int = 5):
        super().__init__()
        self.save_hyperparameters()
        self.example_input_array = torch.zeros(1, 3)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        if self.training:
            self.log("lr", self.hparams.width)
        return F.mse_loss(self(x), y)


# --- the laws -------------------------------------------------------------------------------------------------------


def parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


@pytest.fixture
def train(fit, loader):
    def run(case: Variant, *callbacks) -> tuple[L.LightningModule, CertifiedTraining | None]:
        torch.manual_seed(0)
        module = case.module()
        fit(module, loader(LABELS[case.kind], adapt=case.adapt), *callbacks)
        return module, callbacks[0] if callbacks else None

    return run


@pytest.mark.thinned(12)
@pytest.mark.parametrize("name", VARIANTS)
def test_training_is_unchanged_to_the_last_bit(name, train):
    plain, _ = train(VARIANTS[name])
    module, certified = train(VARIANTS[name], CertifiedTraining(BoundedAdversary(n=0, epsilon=0.1)))
    for key, value in parameters(plain).items():
        assert torch.equal(value, module.get_parameter(key)), key
    assert certified.bounds.contains(module)
    assert certified.bounds.mean_width() <= ROUNDING


@pytest.mark.thinned(8)
@pytest.mark.parametrize("name", VARIANTS)
def test_features_and_labels_are_found_and_bounded(name, train, loader):
    case = VARIANTS[name]
    labels = FLIPS[case.kind] if case.label is not None else {}
    module, certified = train(case, CertifiedTraining(BoundedAdversary(n=2, epsilon=0.05, **labels)))
    assert certified.bounds.contains(module)
    assert certified.bounds.mean_width() > 1e-4
    batch = next(iter(loader(LABELS[case.kind], adapt=case.adapt)))
    roles = certified.engine.objective(batch).objective
    positions = roles.graph.leaves
    assert [positions[leaf] for leaf in roles.features] == [case.feature]
    assert [positions[leaf] for leaf in roles.labels] == ([] if case.label is None else [case.label])
    assert roles.label_kind is (LabelKind.NONE if case.label is None else case.kind)
