"""A module and its data, as a user's file has them; commands import it by its name."""

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(L.LightningModule):
    """Two layers and three classes, plain SGD, so that the box and the ball apply."""

    def __init__(self, hidden: int = 4, rate: float = 0.2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.rate)


class Head(Classifier):
    """One layer, for which the ball is far tighter than the box over many steps."""

    def __init__(self, hidden: int = 4, rate: float = 0.2) -> None:
        super().__init__(hidden, rate)
        self.net = nn.Linear(3, 3)


class Sorting(Classifier):
    """What cannot be certified: sorted samples, and a batch normalization that mixes samples."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        x = torch.sort(x, dim=0).values
        return nn.functional.cross_entropy(self(x), y)


def rows(size: int = 24, seed: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(size, 3, generator=torch.Generator().manual_seed(seed))
    return x, x.argmax(dim=1)


def loader(seed: int = 7, batch_size: int = 8) -> DataLoader:
    return DataLoader(TensorDataset(*rows(seed=seed)), batch_size=batch_size)


def held_out() -> DataLoader:
    return loader(seed=8)


def in_batches_of_five() -> DataLoader:
    return loader(seed=8, batch_size=5)


def other_data() -> DataLoader:
    return loader(seed=9)


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return loader()

    def val_dataloader(self):
        return held_out()
