"""Small trainings, and Lightning's own warnings kept out of the way of ours."""

from collections.abc import Callable, Iterable
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

NOISE = (
    "ignore:Be aware that when using `ckpt_path`, callbacks used to create:UserWarning",
    "ignore:Found .* module.s. in eval mode at the start of training:UserWarning",
    "ignore:You defined a `validation_step` but have no `val_dataloader`:UserWarning",
    "ignore:The '.*_dataloader' does not have many workers:UserWarning",
    "ignore:The number of training batches .* is smaller than the logging interval:UserWarning",
    "ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning",
    "ignore:Trying to infer the `batch_size` from an ambiguous collection:UserWarning",
    "ignore:.*Consider setting `trainer.strategy.ddp_comm_hook:UserWarning",
    "ignore:GPU available but not used:UserWarning",
)
"""What Lightning says about every small training on a CPU, whether it is certified or not."""

Fit = Callable[..., L.Trainer]


ONE_CASE_OF_EACH = (
    "test_certified_decisions.py",
    "test_comparison.py",
    "test_data_reads.py",
    "test_forward_reads.py",
    "test_hooks.py",
    "test_messages.py",
    "test_packages.py",
    "test_recordings.py",
    "test_roles.py",
    "test_samplers.py",
)
"""Files with many cases that train several times: the first case of each test runs with every change."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    seen: set[tuple[Path, str]] = set()
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            for message in NOISE:
                item.add_marker(pytest.mark.filterwarnings(message))
            name = item.path, getattr(item, "originalname", item.name)
            if name in seen and item.path.name in ONE_CASE_OF_EACH:
                item.add_marker(pytest.mark.slow)
            seen.add(name)


@pytest.fixture(autouse=True)
def _no_thread_setting(monkeypatch) -> None:
    """Lightning's DDP sets this variable for the whole process."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


class Regressor(L.LightningModule):
    """Two layers, squared error, plain SGD; subclasses override what they test."""

    def __init__(self, inputs: int = 3, hidden: int = 5, outputs: int = 1, rate: float = 0.1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
        self.rate = rate

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", Regressor.training_step(self, batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Classifier(Regressor):
    """The same for three classes."""

    def __init__(self, inputs: int = 3, hidden: int = 5, outputs: int = 3, rate: float = 0.1) -> None:
        super().__init__(inputs, hidden, outputs, rate)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self(x), y))


@pytest.fixture
def regressor() -> type[Regressor]:
    return Regressor


@pytest.fixture
def classifier() -> type[Classifier]:
    return Classifier


def labels_of(kind: str, size: int, generator: torch.Generator) -> torch.Tensor:
    if kind == "class":
        return torch.randint(0, 3, (size,), generator=generator)
    if kind == "binary":
        return torch.randint(0, 2, (size, 1), generator=generator).float()
    return torch.randn(size, 1, generator=generator)


@pytest.fixture
def loader() -> Callable[..., DataLoader]:
    """A loader in fixed order: ``loader("number", size=8, batch_size=4)``; ``adapt`` maps (x, y) to another batch."""

    def make(kind: str = "number", size: int = 8, batch_size: int = 4, adapt=None, dtype=torch.float32, **options):
        generator = torch.Generator().manual_seed(7)
        x = torch.randn(size, options.pop("inputs", 3), generator=generator, dtype=dtype)
        y = labels_of(kind, size, generator)
        y = y.to(dtype) if y.is_floating_point() else y

        def collate(samples):
            batch = torch.utils.data.default_collate(samples)
            return tuple(batch) if adapt is None else adapt(*batch)

        return DataLoader(TensorDataset(x, y), batch_size=batch_size, collate_fn=collate, **options)

    return make


@pytest.fixture
def fit() -> Fit:
    """Train ``module`` with the given callbacks and return the Trainer; ``fit.trainer(...)`` is the Trainer alone."""

    def trainer(*callbacks, **options) -> L.Trainer:
        quiet = {"logger": False, "enable_checkpointing": False}
        quiet |= {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "max_epochs": 1}
        return L.Trainer(callbacks=list(callbacks), **quiet | options)

    def run(module: L.LightningModule, loader: Iterable, *callbacks, val=None, ckpt_path=None, **options) -> L.Trainer:
        torch.manual_seed(1)
        made = trainer(*callbacks, **options)
        made.fit(module, loader, val, ckpt_path=ckpt_path)
        return made

    run.trainer = trainer
    return run
