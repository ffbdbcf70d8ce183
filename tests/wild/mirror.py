"""Modules and Trainers of `pytorch_lightning`, the mirror package that most repositories import."""

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn

from tests.wild.registry import FLIPPED, MOVED, SHIFTED, Refusal, wild
from tests.wild.rows import classes, floats, rows


@wild(rows(x=floats(4), y=classes(3)), MOVED, FLIPPED, trainer=pl.Trainer, quick=True)
class MirrorClassifier(pl.LightningModule):
    def __init__(self, learning_rate=1e-3):
        super().__init__()
        self.save_hyperparameters()
        self.l1, self.l2 = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.l2(torch.relu(self.l1(x.view(x.size(0), -1))))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.learning_rate)


@wild(rows(x=floats(4), y=floats()), MOVED, SHIFTED, trainer=pl.Trainer)
class MirrorRegressor(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 1))

    def _shared_step(self, batch, stage):
        x, y = batch
        loss = F.mse_loss(self.model(x).squeeze(), y)
        self.log(f"{stage}_loss", loss, on_epoch=True)
        return loss

    def training_step(self, batch, batch_idx):
        return self._shared_step(batch, "train")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2, momentum=0.9)


@wild(
    rows(x=floats(4), y=floats(1)),
    MOVED,
    refused=Refusal("the data decide when training stops", "EarlyStopping", located=False),
    trainer=pl.Trainer,
    after=lambda: [pl.callbacks.EarlyStopping("loss")],
)
class MirrorStopsEarly(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self.linear(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)
