"""Batches made by content: what they leave alone, and trainings with inserted and deleted samples."""

import json
import warnings

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler, TensorDataset

from agt_lightning import CertifiedTraining, UnboundedAdversary, UncertifiableError
from agt_lightning.capture.batch import FlatBatch
from agt_lightning.lightning import ContentBatches
from agt_lightning.lightning.content_batches import _number

BATCHES, N = 3, 1
EDITS = UnboundedAdversary(n=N, kappa=0.2, edits="insert-delete")


def samples(size=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, generator=generator), torch.randint(0, 3, (size,), generator=generator)


def members(x, y):
    """The content of each batch, as sets of rows."""
    data = TensorDataset(x, y)
    return [{(*x[i].tolist(), int(y[i])) for i in rows} for rows in ContentBatches(data, BATCHES)]


def test_each_sample_is_drawn_once_in_an_epoch_and_epochs_are_alike():
    sampler = ContentBatches(TensorDataset(*samples()), BATCHES)
    first, again = list(sampler), list(sampler)
    assert first == again
    assert len(first) == len(sampler) == BATCHES
    assert sorted(index for rows in first for index in rows) == list(range(24))


@pytest.mark.parametrize("edit", ["first deleted", "one inserted in front", "reversed"])
def test_an_edit_changes_one_batch(edit):
    x, y = samples()
    new_x, new_y = samples(1, seed=9)
    edited = {
        "first deleted": (x[1:], y[1:]),
        "one inserted in front": (torch.cat([new_x, x]), torch.cat([new_y, y])),
        "reversed": (x.flip(0), y.flip(0)),
    }[edit]
    differ = [len(a ^ b) for a, b in zip(members(x, y), members(*edited), strict=True)]
    assert sorted(differ) == ([0, 0, 0] if edit == "reversed" else [0, 0, 1])


def test_contents_that_differ_in_any_entry_are_told_apart():
    one = {"x": torch.zeros(2), "name": "a", "n": 1, "array": np.zeros(2), "none": None}
    others = [
        one | {"x": torch.zeros(3)},
        one | {"x": torch.zeros(2).double()},
        one | {"name": "b"},
        one | {"n": 1.0},
        one | {"array": np.zeros(2, dtype=np.float32)},
        one | {"none": False},
    ]
    batches = [_number(FlatBatch.of(sample)) for sample in [one, *others]]
    assert len(set(batches)) == len(batches)


class Noisy(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return index, torch.rand(2)


def test_samples_that_change_are_refused():
    with pytest.raises(ValueError, match="sample 0 was another one the second time"):
        ContentBatches(Noisy(), 1)
    assert len(list(ContentBatches(Noisy(), 1, content=lambda sample: f"file {sample[0]}"))) == 1


@pytest.mark.parametrize("kind", [int, np.int64, torch.tensor])
@pytest.mark.parametrize("first", [0, 7])
def test_indices_are_no_content(kind, first):
    """An inserted sample in front would change them, and with them the batches of all others."""
    x, y = samples()
    data = [(x[i], int(y[i]), kind(first + i)) for i in range(len(x))]
    with pytest.raises(ValueError, match="an integer in each sample is its index"):
        ContentBatches(data, BATCHES)
    without = ContentBatches(data, BATCHES, content=lambda sample: sample[:2])
    shifted = [(x[i], int(y[i]), kind(first + i - 1)) for i in range(1, len(x))]
    again = ContentBatches(shifted, BATCHES, content=lambda sample: sample[:2])
    differ = [len(set(a) ^ {i + 1 for i in b}) for a, b in zip(without, again, strict=True)]
    assert sorted(differ) == [0, 0, 1]


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="but 99 of them are empty"):
        ContentBatches([torch.zeros(1)], 100)
    with pytest.raises(ValueError, match="at least 1 batch"):
        ContentBatches([torch.zeros(1)], 0)
    with pytest.raises(TypeError, match="but got object"):
        ContentBatches([(torch.zeros(1), object())], 1)
    with pytest.raises(TypeError, match="but got ndarray"):
        ContentBatches([np.array([object()])], 1)


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3)


def fitted(loader, folder, adversary=EDITS):
    callback, module = CertifiedTraining(adversary), Net()
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, loader)
    return module, callback


def by_content(x, y):
    data = TensorDataset(x, y)
    return DataLoader(data, batch_sampler=ContentBatches(data, BATCHES))


def edited(x, y, seed):
    """Up to N insertions or deletions in each batch, large samples among the inserted ones."""
    generator = torch.Generator().manual_seed(seed)
    batches = list(ContentBatches(TensorDataset(x, y), BATCHES))
    kept = torch.ones(len(x), dtype=torch.bool)
    new = []
    for number, rows in enumerate(batches):
        if torch.rand((), generator=generator) < 0.3:
            kept[rows[int(torch.randint(0, len(rows), (), generator=generator))]] = False
            continue
        while True:  # until a stranger belongs to this batch
            scale = 10.0 ** float(torch.randint(0, 3, (), generator=generator))
            stranger = scale * torch.randn(3, generator=generator), torch.randint(0, 3, (), generator=generator)
            if _number(FlatBatch.of(stranger)) % BATCHES == number:
                new.append(stranger)
                break
    return torch.cat([torch.stack([a for a, _ in new]), x[kept]]), torch.cat(
        [torch.stack([b for _, b in new]), y[kept]]
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trainings_on_edited_data_stay_within_the_bounds(tmp_path):
    x, y = samples()
    _, callback = fitted(by_content(x, y), tmp_path)
    bounds, moved = callback.engine.bounds, 0.0
    for seed in range(2):
        module, _ = fitted(by_content(*edited(x, y, seed)), tmp_path, UnboundedAdversary(n=0, kappa=0.2))
        assert bounds.contains(module)
        inside = {name: bounds[name] for name, _ in module.named_parameters()}
        shares = [
            ((p.detach() - inside[name].center).abs() / inside[name].radius.clamp(min=1e-9)).max()
            for name, p in module.named_parameters()
        ]
        moved = max(moved, float(max(shares)))
    assert moved > 0.1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_cut_from_a_sequence_are_refused(tmp_path, shuffle):
    loader = DataLoader(TensorDataset(*samples()), batch_size=8, shuffle=shuffle)
    with pytest.raises(UncertifiableError, match="Batches are cut from a sequence"):
        fitted(loader, tmp_path)
    fitted(loader, tmp_path, UnboundedAdversary(n=1, kappa=0.2))


class InOrder(BatchSampler):
    """A batch sampler of the user's own that cuts a sequence."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_batch_samplers_that_cut_a_sequence_are_refused_by_their_base(tmp_path):
    data = TensorDataset(*samples())
    loader = DataLoader(data, batch_sampler=InOrder(SequentialSampler(data), 8, drop_last=False))
    with pytest.raises(UncertifiableError, match="Batches are cut from a sequence"):
        fitted(loader, tmp_path)


def twice(rows):
    x, y = torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])
    return torch.cat([x, x]), torch.cat([y, y])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_batches_that_hold_each_sample_twice_are_refused(tmp_path):
    """An inserted sample would be two rows of its batch."""
    data = TensorDataset(*samples())
    loader = DataLoader(data, batch_sampler=ContentBatches(data, BATCHES), collate_fn=twice)
    with pytest.raises(UncertifiableError, match="equal to another one in it"):
        fitted(loader, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_certificates_state_how_batches_are_made(tmp_path):
    module, callback = fitted(by_content(*samples()), tmp_path)
    callback.save(tmp_path, module.configure_optimizers())
    record = json.loads((tmp_path / "certificate.json").read_text())
    assert record["adversary"]["edits"] == "insert-delete"
    assert any("the batch that its own content decides" in sentence for sentence in record["assumptions"])
    assert not any("none is inserted or deleted" in sentence for sentence in record["assumptions"])
