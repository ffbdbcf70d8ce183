"""Adversaries whose n counts in the whole data set: all their runs, tried one by one, and what it changes."""

import itertools
import json
import warnings
from dataclasses import replace

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from agt_lightning import BoundedAdversary, CertifiedModel, CertifiedTraining
from agt_lightning.certificates.alike import families
from agt_lightning.certificates.scope import budget
from agt_lightning.domains.influence.recorded_head import RecordedHead
from tests.domains.influence.test_domain import (
    CLASSES,
    F64,
    ROUNDING,
    batches,
    data,
    model_of,
    one_hot_loss,
    queries,
    retrained,
    rows_of,
    trained,
)

FLIP = BoundedAdversary(n=1, nu=1, q=0, per="dataset")
CLOSE = 1e-8
"""Rounding of trainings in float64 with numbers of size one."""


def outputs_of_all_flips(n, x):
    """Outputs after every training with at most n labels of the data set written anew, in all steps alike."""
    features, labels = data()
    rows = [rows_of(batch) for batch in batches(features, labels)]
    steps = batches(features, labels)
    for chosen in itertools.combinations(range(len(labels)), n):
        for classes in itertools.product(range(CLASSES), repeat=n):
            written = labels.clone()
            written[list(chosen)] = torch.tensor(classes)
            poisoned = [(batch, written[named]) for (batch, _), named in zip(steps, rows, strict=True)]
            yield retrained(one_hot_loss, poisoned)(x).detach()


def require_exact(model, adversary):
    """The bounds of a model are the extremes of all runs of the adversary."""
    x = queries(count=4)
    outputs, reached = model.bound_forward(x), torch.stack(list(outputs_of_all_flips(adversary.n, x)))
    assert float((outputs.lower - reached.amin(dim=0)).abs().max()) < CLOSE, "lower bound is not attained"
    assert float((outputs.upper - reached.amax(dim=0)).abs().max()) < CLOSE, "upper bound is not attained"


def test_flips_in_the_data_set_are_bounded_exactly():
    engine = trained(one_hot_loss, batches(*data()), FLIP)
    require_exact(model_of(engine), FLIP)
    record = engine.domains.record()["in_use"]["influence"]
    assert record["bounds_count"] == "n samples of the whole data set, as the adversary does"
    each = trained(one_hot_loss, batches(*data()), replace(FLIP, per="batch"))
    x = queries()
    assert bool((model_of(engine).bound_forward(x).width < 0.7 * model_of(each).bound_forward(x).width).all())


@pytest.mark.slow
def test_two_flips_in_the_data_set_are_bounded_exactly():
    two = replace(FLIP, n=2)
    require_exact(model_of(trained(one_hot_loss, batches(*data()), two)), two)


def test_the_oracle_notices_a_budget_of_each_batch(monkeypatch):
    monkeypatch.setattr(RecordedHead, "budget", "batch")
    with pytest.raises(AssertionError, match="bound is not attained"):
        require_exact(model_of(trained(one_hot_loss, batches(*data()), FLIP)), FLIP)


def test_samples_that_are_not_known_are_counted_in_each_batch():
    """Without names, samples of steps of an unknown epoch are not known apart; n of each batch contains all runs."""
    engine = trained(one_hot_loss, batches(*data()), FLIP, names=False)
    x = queries(count=4)
    outputs = model_of(engine).bound_forward(x)
    assert all(outputs.contains(reached, ROUNDING) for reached in outputs_of_all_flips(1, x))
    each = trained(one_hot_loss, batches(*data()), replace(FLIP, per="batch"), names=False)
    assert torch.equal(outputs.upper, model_of(each).bound_forward(x).upper)
    count = engine.domains.record()["in_use"]["influence"]["bounds_count"]
    assert count == "n samples of each batch, for an adversary with n of the whole data set, which can do no more"


def test_the_box_contains_all_runs():
    engine = trained(one_hot_loss, batches(*data()), FLIP, domains=("box",))
    x = queries(count=4)
    outputs = CertifiedModel(engine.module, engine.bounds).bound_forward(x)
    assert all(outputs.contains(reached, ROUNDING) for reached in outputs_of_all_flips(1, x))


# --- the certificate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "per", "unit", "share"),
    [
        ("samples", "batch", "batch", 0.25),
        ("samples", "dataset", "dataset", 0.25),
        ("sources", "batch", "sources per batch", None),
        ("sources", "dataset", "sources per dataset", None),
    ],
)
def test_units_in_the_certificate(counts, per, unit, share):
    stated = budget(BoundedAdversary(n=2, epsilon=0.1, counts=counts, per=per), (8, 10), 3)
    assert stated["unit"] == unit
    assert stated["share_of_the_smallest_batch"] == share
    assert ("can be others in every step" in stated["meaning"]) == (per == "batch")


class Regression(L.LightningModule):
    """One layer whose batches name a hospital."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = torch.nn.Linear(3, 1).to(F64)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y, *_ = batch
        return torch.nn.functional.mse_loss(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(certified, loader, max_epochs):
    """Train without a word."""
    parts = ["logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"]
    quiet = dict.fromkeys(parts, False)
    with warnings.catch_warnings(action="ignore"):
        trainer = L.Trainer(callbacks=[certified], accelerator="cpu", max_epochs=max_epochs, **quiet)
        trainer.fit(Regression(), loader)
    return trainer


def hospital(batch):
    return batch[2]


@pytest.mark.parametrize("per", ["batch", "dataset"])
def test_a_certificate_of_sources_verifies(tmp_path, per):
    from agt_lightning.command.main import main

    x = torch.randn(24, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    loader = DataLoader(TensorDataset(x, x[:, :1].clone(), torch.arange(24) % 5), batch_size=8)
    adversary = BoundedAdversary(n=1, epsilon=0.1, counts="sources", per=per)
    certified = CertifiedTraining(adversary, sources=hospital, dirpath=tmp_path)
    trainer = fit(certified, loader, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    path = tmp_path / "certificate.json"
    record = json.loads(path.read_text("utf-8"))
    assert record["budget"]["unit"] == f"sources per {per}"
    assert "sources" in record["assumptions"][0]
    assert "influence" in record["bounds"]["domains"]["left_out"]
    assert record["bounds"]["domains"]["in_use"]["ball"]["bounds_count"].startswith("n sources of each batch")
    files = [str(path), "--bounds", str(tmp_path / "bounds.safetensors"), "--weights", str(tmp_path / "model.ckpt")]
    assert main(["verify", *files, "--without-results"]) == 0


def test_certificates_for_other_sources_are_no_points_of_one_curve(tmp_path):
    x = torch.randn(24, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    loader = DataLoader(TensorDataset(x, x[:, :1].clone(), torch.arange(24) % 5), batch_size=8)
    records = []
    for n, sources in ((1, hospital), (2, hospital), (3, lambda batch: batch[2] // 2)):
        folder = tmp_path / str(n)
        adversary = BoundedAdversary(n=n, epsilon=0.1, counts="sources")
        fit(CertifiedTraining(adversary, sources=sources, dirpath=folder, domains=["box"]), loader, max_epochs=1)
        records.append(json.loads((folder / "certificate.json").read_text("utf-8")))
    assert families(records) == [[0, 1], [2]]
    assert records[0]["phases"][0]["sources"].endswith("test_dataset_budgets.hospital")


class Stream(IterableDataset):
    """The same rows, which may be drawn again as far as anybody knows."""

    def __init__(self, *tensors):
        self.rows = list(zip(*tensors, strict=True))

    def __iter__(self):
        return iter(self.rows)


class Echo(DataLoader):
    """A loader that yields each of its batches twice."""

    def __iter__(self):
        for batch in super().__iter__():
            yield batch
            yield batch

    def __len__(self):
        return 2 * super().__len__()


class Batches:
    """An iterable of the user's own that yields the same batch again and again."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return iter([self.data[:8]] * 3)


class Remembered:
    """A function for ``collate_fn`` that adds the first batch to all later ones."""

    def __init__(self):
        self.first = None

    def __call__(self, samples):
        batch = default_collate(samples)
        if self.first is None:
            self.first = batch
            return batch
        return [torch.cat(parts) for parts in zip(batch, self.first, strict=True)]


ROWS = torch.randn(24, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
DATA = TensorDataset(ROWS, ROWS[:, :1].clone())


def radius(per, loader, max_epochs=1):
    certified = CertifiedTraining(BoundedAdversary(n=1, epsilon=0.1, per=per), domains=["ball"])
    fit(certified, loader, max_epochs)
    return certified.engine.domains.in_use["ball"].radius


@pytest.mark.slow
def test_lightning_knows_which_steps_are_of_one_epoch():
    loader = DataLoader(DATA, 8)
    assert radius("dataset", loader, max_epochs=2) < 0.75 * radius("batch", loader, max_epochs=2)


@pytest.mark.parametrize(
    "loader",
    [
        lambda: DataLoader(Stream(*DATA.tensors), 8),
        lambda: Echo(DATA, 8),
        lambda: Batches(DATA),
        lambda: DataLoader(DATA, 8, collate_fn=Remembered()),
    ],
    ids=["iterable data set", "loader that repeats", "no loader", "collate_fn that repeats"],
)
def test_samples_that_can_be_drawn_again_in_an_epoch_are_counted_in_each_step(loader):
    assert radius("dataset", loader()) == pytest.approx(radius("batch", loader()), rel=CLOSE)


def test_unknown_places_are_refused():
    with pytest.raises(ValueError, match="`per` to be 'batch' or 'dataset'"):
        BoundedAdversary(n=1, per="epoch")
