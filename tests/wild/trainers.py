"""Habits of Lightning: how modules log, schedule, accumulate, clip and stop."""

import lightning as L
import torch
import torch.nn.functional as F
import torchmetrics
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging
from torch import nn

from tests.wild.registry import FLIPPED, MOVED, SHIFTED, Refusal, wild
from tests.wild.rows import bits, classes, floats, rows

TABLE = rows(x=floats(4), y=classes(3))
NUMBERS = rows(x=floats(4), y=floats(1))


@wild(rows(x=floats(32)), MOVED)
class BoringModel(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(32, 2)

    def forward(self, x):
        return self.layer(x)

    def loss(self, preds, labels=None):
        if labels is None:
            labels = torch.ones_like(preds)
        return F.mse_loss(preds, labels)

    def training_step(self, batch, batch_idx):
        (x,) = batch
        return {"loss": self.loss(self(x))}

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)]


@wild(NUMBERS, MOVED, SHIFTED, options={"max_epochs": 1, "accumulate_grad_batches": 3})
class AccumulatesGradients(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self.net(x), y)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        return {
            "optimizer": optimizer,
            "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10),
        }


@wild(TABLE, MOVED, FLIPPED, options={"gradient_clip_val": 0.1})
class ClipsGradients(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@wild(TABLE, MOVED, FLIPPED)
class LogsEverything(L.LightningModule):
    """Assertions, checks for NaN, numbers for logs, lists of outputs, and a collection of metrics."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        self.history = []
        self.metrics = torchmetrics.MetricCollection(
            [
                torchmetrics.Accuracy(task="multiclass", num_classes=3),
                torchmetrics.Precision(task="multiclass", num_classes=3, average="macro"),
                torchmetrics.ConfusionMatrix(task="multiclass", num_classes=3),
            ]
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        assert not torch.isnan(x).any(), "NaN in the batch"
        assert y.max() < 3
        logits = self.net(x)
        loss = F.cross_entropy(logits, y)
        if not torch.isfinite(loss):
            raise ValueError(f"loss is {loss}")
        self.metrics.update(logits, y)
        self.history.append(loss.item())
        positives = int((logits.argmax(1) == y).sum())
        self.log("hits", float(positives))
        self.log("confidence", logits.softmax(1).max(1).values.mean(), prog_bar=True)
        return loss

    def on_train_epoch_end(self):
        computed = self.metrics.compute()
        computed.pop("MulticlassConfusionMatrix")
        self.log_dict(computed)
        self.metrics.reset()
        self.history.clear()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(x=floats(4), y=bits()), MOVED, FLIPPED)
class FunctionalMetrics(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))
        self.loss_fn = nn.BCEWithLogitsLoss()

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x).squeeze(1)
        probs = torch.sigmoid(logits)
        self.log("acc", torchmetrics.functional.accuracy(probs, y.int(), task="binary"))
        self.log("f1", torchmetrics.functional.f1_score(probs, y.int(), task="binary"))
        return self.loss_fn(logits, y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(NUMBERS, MOVED, SHIFTED)
class GroupsOfParameters(L.LightningModule):
    """Lower rates for the body than for the head, and a warm-up."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 6), nn.ELU()), nn.Linear(6, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self.head(self.body(x)), y)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(
            [{"params": self.body.parameters(), "lr": 1e-4}, {"params": self.head.parameters(), "lr": 1e-3}],
            weight_decay=0.01,
        )
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=2)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)
        scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], milestones=[2])
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class _Base(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self.net(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


@wild(NUMBERS, MOVED, SHIFTED)
class WeightNormalized(_Base):
    """A parametrization: direction and length of each row."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 1))


@wild(
    NUMBERS,
    MOVED,
    SHIFTED,
    refused=Refusal("the data decide when training stops", "EarlyStopping", located=False),
    after=lambda: [EarlyStopping("loss")],
    quick=True,
)
class StopsEarly(_Base):
    pass


@wild(
    NUMBERS,
    MOVED,
    SHIFTED,
    refused=Refusal("weights are averaged over steps", "StochasticWeightAveraging|averag", located=False),
    after=lambda: [StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1)],
)
class AveragesWeights(_Base):
    pass


@wild(
    NUMBERS,
    MOVED,
    SHIFTED,
    refused=Refusal("the loss decides the learning rate", "ReduceLROnPlateau", located=False),
)
class ReducesOnPlateau(_Base):
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "loss"}}


@wild(
    NUMBERS,
    MOVED,
    SHIFTED,
    refused=Refusal("state carried from batch to batch", "on_train_batch_end|teacher|earlier|moved", located=False),
)
class MeanTeacher(L.LightningModule):
    """A second network that follows the first, and teaches it."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = nn.Linear(4, 1), nn.Linear(4, 1).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self.student(x)
        return F.mse_loss(out, y) + 0.1 * F.mse_loss(out, self.teacher(x))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            for t, s in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                t.mul_(0.9).add_(s, alpha=0.1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.student.parameters(), lr=1e-2)


@wild(NUMBERS, MOVED, SHIFTED, refused=Refusal("the step is taken by hand", "automatic|manual", located=False))
class ManualOptimization(_Base):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        x, y = batch
        optimizer = self.optimizers()
        loss = F.mse_loss(self.net(x), y)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
