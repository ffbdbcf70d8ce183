"""Losses: several tasks, several labels, ordinal ones, margins, weights, survival."""

import lightning as L
import torch
import torch.nn.functional as F
import torchmetrics
from torch import nn

from tests.wild.registry import FLIPPED, MOVED, SHIFTED, Refusal, among, wild
from tests.wild.rows import bits, classes, floats, rows, signs, unit


def _mlp(inputs, outputs, hidden=8):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


@wild(
    rows(x=floats(5), y=classes(3), z=floats()),
    MOVED,
    FLIPPED,
    settings={"features": "batch[0]", "labels": "batch[1]"},
)
class TwoHeads(L.LightningModule):
    """A class and a number from one trunk."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 8), nn.ReLU())
        self.cls_head, self.reg_head = nn.Linear(8, 3), nn.Linear(8, 1)

    def training_step(self, batch, batch_idx):
        x, label, value = batch
        h = self.trunk(x)
        cls_loss = F.cross_entropy(self.cls_head(h), label)
        reg_loss = F.mse_loss(self.reg_head(h).squeeze(-1), value)
        self.log_dict({"cls": cls_loss, "reg": reg_loss}, prog_bar=True)
        return cls_loss + 0.5 * reg_loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(
    rows(x=floats(5), y1=floats(), y2=floats()),
    MOVED,
    SHIFTED,
    settings={"features": "batch[0]", "labels": ("batch[1]", "batch[2]")},
)
class UncertaintyWeighting(L.LightningModule):
    """Two regressions, weighed by learned variances."""

    def __init__(self):
        super().__init__()
        self.net = _mlp(5, 2)
        self.log_vars = nn.Parameter(torch.zeros(2))

    def training_step(self, batch, batch_idx):
        x, y1, y2 = batch
        out = self.net(x)
        loss1, loss2 = F.mse_loss(out[:, 0], y1), F.mse_loss(out[:, 1], y2)
        precision = torch.exp(-self.log_vars)
        return precision[0] * loss1 + self.log_vars[0] + precision[1] * loss2 + self.log_vars[1]

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(x=floats(5), y=bits(4)), MOVED, FLIPPED)
class MultiLabel(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = _mlp(5, 4)
        self.criterion = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0, 1.5]))
        self.f1 = torchmetrics.classification.MultilabelF1Score(num_labels=4)

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        loss = self.criterion(logits, y)
        self.f1(torch.sigmoid(logits), y.int())
        self.log("train_f1", self.f1, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def _levels_from_labels(labels, num_classes):
    levels = [[1] * int(label) + [0] * (num_classes - 1 - int(label)) for label in labels]
    return torch.tensor(levels, dtype=torch.float32)


@wild(
    rows(x=floats(4), y=classes(4)),
    MOVED,
    refused=Refusal("Python reads numbers of labels", "torch.export can record|data", impossible=False),
)
class CoralWithLists(L.LightningModule):
    """Ordinal regression; levels are lists of numbers that Python reads from the labels."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.num_classes = num_classes
        self.body = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1, bias=False))
        self.bias = nn.Parameter(torch.linspace(1.0, -1.0, num_classes - 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        levels = _levels_from_labels(y, self.num_classes)
        logits = self.body(x) + self.bias
        log_probs = F.logsigmoid(logits)
        loss = -torch.sum(log_probs * levels + (log_probs - logits) * (1 - levels), dim=1)
        return loss.mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(
    rows(x=floats(4), y=classes(4)),
    MOVED,
    among(0, 1, 2, 3),
)
class CoralWithTensors(L.LightningModule):
    """The same, with levels by comparing labels with the range of classes."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.num_classes = num_classes
        self.body = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1, bias=False))
        self.bias = nn.Parameter(torch.linspace(1.0, -1.0, num_classes - 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        levels = (y.unsqueeze(1) > torch.arange(self.num_classes - 1)).float()
        return F.binary_cross_entropy_with_logits(self.body(x) + self.bias, levels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(x=floats(4), y=classes(5)), MOVED, among(0, 1, 2, 3, 4))
class ExpectedClass(L.LightningModule):
    """Squared distance between the expected class and the label."""

    def __init__(self):
        super().__init__()
        self.net = _mlp(4, 5)
        self.register_buffer("grades", torch.arange(5.0))

    def training_step(self, batch, batch_idx):
        x, y = batch
        expected = (self.net(x).softmax(dim=1) * self.grades).sum(dim=1)
        return F.mse_loss(expected, y.float())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


@wild(
    rows(x=floats(4), y=classes(3)),
    MOVED,
    FLIPPED,
)
class ClassWeights(L.LightningModule):
    def __init__(self, class_weights=(1.0, 2.0, 0.5)):
        super().__init__()
        self.net = _mlp(4, 3)
        self.loss_fn = nn.CrossEntropyLoss(weight=torch.tensor(class_weights))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = self.loss_fn(self.net(x), y)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(x=floats(4), y=classes(3)), MOVED, FLIPPED)
class ClassWeightsByHand(L.LightningModule):
    """Weighs each sample's loss by its class, and takes the plain mean."""

    def __init__(self):
        super().__init__()
        self.net = _mlp(4, 3)
        self.register_buffer("weight", torch.tensor([1.0, 2.0, 0.5]))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y, weight=self.weight, reduction="none").mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(x=floats(4), w=unit(), y=floats()), MOVED, SHIFTED)
class SampleWeights(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = _mlp(4, 1)

    def training_step(self, batch, batch_idx):
        x, w, y = batch
        errors = F.mse_loss(self.net(x).squeeze(-1), y, reduction="none")
        return (w * errors).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(
    rows(x=floats(4), y=floats(2), m=bits(2)),
    MOVED,
    SHIFTED,
)
class MaskedTargets(L.LightningModule):
    """A mean over the targets that are there."""

    def __init__(self):
        super().__init__()
        self.net = _mlp(4, 2)

    def training_step(self, batch, batch_idx):
        x, y, mask = batch
        errors = (self.net(x) - y) ** 2 * mask
        return errors.sum() / mask.sum().clamp(min=1)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(x=floats(4), y=bits()), MOVED, among(0, 1))
class HingeLoss(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.svm = nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        sign = 2 * y - 1
        return torch.clamp(1 - sign * self.svm(x).squeeze(-1), min=0).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2, weight_decay=1e-2)


@wild(
    rows(x=floats(4), y=classes(3)),
    MOVED,
    FLIPPED,
)
class MultiMargin(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = _mlp(4, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.multi_margin_loss(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


@wild(rows(x1=floats(4), x2=floats(4), y=bits()), MOVED)
class RankingPairs(L.LightningModule):
    """Which of two items is better."""

    def __init__(self):
        super().__init__()
        self.score = _mlp(4, 1)

    def training_step(self, batch, batch_idx):
        first, second, better = batch
        target = 2 * better - 1
        return F.margin_ranking_loss(self.score(first).squeeze(-1), self.score(second).squeeze(-1), target, margin=0.5)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(
    rows(x1=floats(4), x2=floats(4), y=signs()),
    MOVED,
)
class CosineEmbedding(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = _mlp(4, 3)
        self.criterion = nn.CosineEmbeddingLoss(margin=0.2)

    def training_step(self, batch, batch_idx):
        a, b, same = batch
        return self.criterion(self.net(a), self.net(b), same)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(x=floats(4), y=classes(3)), MOVED, FLIPPED)
class PolynomialLoss(L.LightningModule):
    """Cross entropy plus the probability that is missing."""

    def __init__(self):
        super().__init__()
        self.net = _mlp(4, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        pt = (F.one_hot(y, num_classes=3) * F.softmax(logits, dim=-1)).sum(dim=-1)
        return (F.cross_entropy(logits, y, reduction="none") + 1.0 * (1 - pt)).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(x=floats(4), y=classes(3)), MOVED)
class GatheredLogLikelihood(L.LightningModule):
    """Picks the logarithm of each sample's class by `gather`."""

    def __init__(self):
        super().__init__()
        self.net = _mlp(4, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        log_probs = self.net(x).log_softmax(dim=-1)
        return -log_probs.gather(1, y.unsqueeze(1)).squeeze(1).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(x=floats(4), y=floats()), MOVED, SHIFTED)
class LogCosh(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = _mlp(4, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return torch.mean(torch.log(torch.cosh(self.net(x).squeeze(-1) - y)))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(
    rows(x=floats(4), time=unit(), event=bits()),
    MOVED,
    refused=Refusal("risk sets join samples", "sample|cumsum|logcumsumexp|sort"),
)
class CoxSurvival(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = _mlp(4, 1)

    def training_step(self, batch, batch_idx):
        x, time, event = batch
        order = torch.argsort(time, descending=True)
        risk = self.net(x).squeeze(-1)[order]
        log_cumulative = torch.logcumsumexp(risk, dim=0)
        return -((risk - log_cumulative) * event[order]).sum() / event.sum().clamp(min=1)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(
    rows(x=floats(4), y=classes(3)),
    MOVED,
    FLIPPED,
    refused=Refusal("loss joins samples", "roll|sample|batch"),
)
class Mixup(L.LightningModule):
    """Mixes each sample with its neighbour in the batch."""

    def __init__(self):
        super().__init__()
        self.net = _mlp(4, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        mixed = 0.7 * x + 0.3 * x.roll(1, dims=0)
        logits = self.net(mixed)
        return 0.7 * F.cross_entropy(logits, y) + 0.3 * F.cross_entropy(logits, y.roll(1, dims=0))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(
    rows(x=floats(4), y=classes(3)),
    MOVED,
    FLIPPED,
    refused=Refusal("loss joins samples", "topk|mean or sum|combines"),
)
class OnlineHardExamples(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = _mlp(4, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        losses = F.cross_entropy(self.net(x), y, reduction="none")
        return losses.topk(2).values.mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)
