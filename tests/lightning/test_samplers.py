"""How batches are drawn: a sample that is in a step twice would be poisoned twice at the price of one."""

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from agt_lightning import BoundedAdversary, CertifiedTraining, UncertifiableError

ADVERSARY = BoundedAdversary(n=1, nu=0.5)


def make(kind, seed=5):
    torch.manual_seed(seed)
    return kind()


def samples(size=8, shift=None, seed=7):
    """A data set whose sample at position ``shift[0]`` has its target moved by ``shift[1]``."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(size, 3, generator=generator), torch.randn(size, 1, generator=generator)
    if shift is not None:
        y[shift[0]] += shift[1]
    return TensorDataset(x, y)


@pytest.fixture
def pairs(regressor):
    """A module whose batches are a dict or list of the batches of two loaders."""

    class Pairs(regressor):
        def training_step(self, batch, batch_idx):
            parts = batch.values() if isinstance(batch, dict) else batch
            return sum(nn.functional.mse_loss(self(x), y) for x, y in parts)

    return Pairs


class Own(Sampler):
    """A sampler of the user's, which yields the given indices."""

    def __init__(self, indices):
        self.indices = indices

    def __iter__(self):
        return iter(self.indices)

    def __len__(self):
        return len(self.indices)


class Around(Own):
    """A sampler around another one."""

    def __init__(self, inner):
        self.inner = inner
        super().__init__(list(inner))


def weighted(size=8):
    return WeightedRandomSampler(torch.ones(size), size)


DATA = samples()
REFUSED = {
    "weighted": (lambda: DataLoader(DATA, batch_size=4, sampler=weighted()), "`WeightedRandomSampler` chooses"),
    "weighted in a batch sampler": (
        lambda: DataLoader(DATA, batch_sampler=BatchSampler(weighted(), 4, drop_last=False)),
        "`WeightedRandomSampler` chooses",
    ),
    "weighted in another sampler": (
        lambda: DataLoader(DATA, batch_size=4, sampler=Around(weighted())),
        "`WeightedRandomSampler` chooses",
    ),
    "replacement in a batch sampler": (
        lambda: DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA, replacement=True), 4, False)),
        "`RandomSampler",
    ),
    "more samples than there are": (
        lambda: DataLoader(DATA, batch_size=4, sampler=RandomSampler(DATA, num_samples=12)),
        "more than once",
    ),
    "repeated indices of a sampler": (
        lambda: DataLoader(DATA, batch_size=4, sampler=SubsetRandomSampler([0, 1, 2, 0])),
        "`SubsetRandomSampler` has repeated indices",
    ),
    "repeated indices of a subset": (
        lambda: DataLoader(Subset(DATA, [0, 0, 0, 0, 1, 2, 3, 4]), batch_size=4),
        "3 samples are in the training data more than once",
    ),
    "a subset of a subset": (
        lambda: DataLoader(Subset(Subset(DATA, [1, 2, 3, 4]), [0, 1, 0, 2]), batch_size=4),
        "1 samples are in the training data more than once",
    ),
    "a data set twice": (lambda: DataLoader(ConcatDataset([DATA, DATA]), batch_size=4), "8 samples"),
    "its tensors twice": (
        lambda: DataLoader(ConcatDataset([DATA, TensorDataset(*DATA.tensors)]), batch_size=4),
        "8 samples",
    ),
    "subsets that overlap": (
        lambda: DataLoader(ConcatDataset([Subset(DATA, [0, 1, 2]), Subset(DATA, [2, 3, 4])]), batch_size=4),
        "1 samples",
    ),
    "a batch sampler of a list": (
        lambda: DataLoader(DATA, batch_sampler=BatchSampler([0, 0, 1, 2], 4, drop_last=False)),
        "1 samples of a step are equal to another one",
    ),
    "batches of one's own": (lambda: DataLoader(DATA, batch_sampler=[[0, 1, 0, 1]]), "2 samples of a step are equal"),
    "a sampler of one's own": (lambda: DataLoader(DATA, batch_size=4, sampler=Own([0, 0, 1, 2])), "are equal"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_repeated_samples_are_refused_before_the_first_step(case, fit, regressor):
    loader, message = REFUSED[case]
    module = make(regressor)
    before = module.net[0].weight.detach().clone()
    with pytest.raises(UncertifiableError, match=message):
        fit(module, loader(), CertifiedTraining(ADVERSARY))
    assert torch.equal(module.net[0].weight, before)


@pytest.mark.parametrize("kind", [dict, list, CombinedLoader])
@pytest.mark.parametrize("fault", ["weighted", "shared"])
def test_every_loader_of_several_is_looked_at(kind, fault, fit, pairs):
    other = samples(seed=1)
    second = DataLoader(other, batch_size=4, sampler=weighted()) if fault == "weighted" else DataLoader(DATA, 4)
    loaders = [DataLoader(DATA, batch_size=4), second]
    loader = dict(zip("ab", loaders, strict=True)) if kind is dict else loaders
    loader = CombinedLoader(loader, "min_size") if kind is CombinedLoader else loader
    with pytest.raises(
        UncertifiableError, match="`WeightedRandomSampler`" if fault == "weighted" else "several loaders"
    ):
        fit(make(pairs), loader, CertifiedTraining(ADVERSARY))


def cut(dataset):
    return random_split(dataset, [3, 5], generator=torch.Generator().manual_seed(1))


HONEST = {
    "shuffled": lambda data: DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1)),
    "batch sampler": lambda data: DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 4, True)),
    "a range": lambda data: DataLoader(data, batch_sampler=BatchSampler(range(8), 4, True)),
    "split and put together": lambda data: DataLoader(ConcatDataset(cut(data)), batch_size=4),
    "a sampler of one's own": lambda data: DataLoader(data, batch_size=4, sampler=Own([7, 6, 5, 4, 0, 1, 2, 3])),
}


@pytest.mark.parametrize("case", HONEST)
def test_samples_that_are_drawn_once_are_certified(case, fit, regressor):
    certified, module = CertifiedTraining(ADVERSARY), make(regressor)
    fit(module, HONEST[case](DATA), certified, max_epochs=2)
    assert certified.bounds.contains(module)
    for position in (0, 5):
        poisoned = make(regressor)
        fit(poisoned, HONEST[case](samples(shift=(position, 0.5))), max_epochs=2)
        assert certified.bounds.contains(poisoned)


def test_a_repeated_sample_leaves_the_bounds_that_would_be_made(fit, regressor, monkeypatch):
    """What is refused is not harmless: without the check, one poisoned sample takes training out of the bounds."""
    indices = [0, 0, 0, 0, 1, 2, 3, 4]
    monkeypatch.setattr("agt_lightning.lightning.samplers._data_set_problems", lambda trainer: [])
    certified = CertifiedTraining(ADVERSARY)
    fit(make(regressor), DataLoader(Subset(DATA, indices), batch_size=8), certified, max_epochs=2)
    poisoned = make(regressor)
    data = Subset(samples(shift=(0, -0.5)), indices)
    fit(poisoned, DataLoader(data, batch_size=8), max_epochs=2)
    assert not certified.bounds.contains(poisoned)


# --- equal content, different samples -------------------------------------------------------------------------------


def alike():
    """Different samples, equal two by two, as quantized rows often are."""
    x, y = samples(4).tensors
    return TensorDataset(x.repeat(2, 1), y.repeat(2, 1), torch.arange(8))


class Keyed(Dataset):
    def __init__(self, dataset, names):
        self.dataset, self.names = dataset, names

    def __getitem__(self, index):
        x, y = self.dataset[index][:2]
        return {"x": x, "y": y, "name": self.names[index]}

    def __len__(self):
        return len(self.dataset)


@pytest.fixture
def keyed(regressor):
    class Module(regressor):
        def training_step(self, batch, batch_idx):
            return nn.functional.mse_loss(self(batch["x"]), batch["y"])

    return Module


def test_known_samplers_need_no_names_for_samples_of_equal_content(fit, keyed):
    certified = CertifiedTraining(ADVERSARY)
    fit(make(keyed), DataLoader(Keyed(alike(), range(8)), batch_size=8, shuffle=True), certified)
    assert certified.engine.steps == 1


@pytest.mark.slow
def test_names_tell_samples_of_equal_content_apart(fit, keyed):
    loader = DataLoader(Keyed(alike(), range(8)), batch_size=8, sampler=Own(list(range(8))))
    with pytest.raises(UncertifiableError, match="name them by `sample_ids`"):
        fit(make(keyed), loader, CertifiedTraining(ADVERSARY))
    certified = CertifiedTraining(ADVERSARY, sample_ids="name")
    fit(make(keyed), loader, certified)
    assert certified.engine.steps == 1


@pytest.mark.slow
def test_one_name_twice_in_a_step_is_refused_whatever_the_sampler(fit, keyed):
    loader = DataLoader(Keyed(samples(), [0, 1, 2, 3, 4, 5, 0, 0]), batch_size=8)
    with pytest.raises(UncertifiableError, match="2 samples of a step have the name of another one"):
        fit(make(keyed), loader, CertifiedTraining(ADVERSARY, sample_ids="name"))
    certified = CertifiedTraining(ADVERSARY, sample_ids="name", poisonable=lambda batch: batch["name"] > 0)
    fit(make(keyed), loader, certified)
    assert certified.engine.steps == 1


@pytest.mark.slow
def test_accumulated_batches_are_one_step(fit, regressor):
    loader = DataLoader(DATA, batch_size=2, sampler=Own([0, 1, 2, 1]))
    with pytest.raises(UncertifiableError, match="are equal"):
        fit(make(regressor), loader, CertifiedTraining(ADVERSARY), accumulate_grad_batches=2)
    fit(make(regressor), loader, CertifiedTraining(ADVERSARY))


# --- several loaders, streams, new loaders --------------------------------------------------------------------------


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_loader_that_starts_again_within_a_step_is_refused(scheduled, fit, pairs):
    loaders = [DataLoader(samples(16), batch_size=4), DataLoader(samples(4, seed=1), batch_size=4)]
    extra = [GradientAccumulationScheduler({0: 1, 1: 2})] if scheduled else []
    options = {} if scheduled else {"accumulate_grad_batches": 2}
    with pytest.raises(UncertifiableError, match="starts again"):
        fit(make(pairs), loaders, CertifiedTraining(BoundedAdversary(n=1, epsilon=0.01)), *extra, **options)
    fit(make(pairs), loaders, CertifiedTraining(BoundedAdversary(n=1, epsilon=0.01)))
    fit(
        make(pairs),
        CombinedLoader(loaders, "min_size"),
        CertifiedTraining(BoundedAdversary(n=1, epsilon=0.01)),
        *extra,
        **options,
    )


def test_a_stream_has_no_indices_to_look_at(fit, regressor):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(list(alike())[:8])

    class Triples(regressor):
        def training_step(self, batch, batch_idx):
            return nn.functional.mse_loss(self(batch[0]), batch[1])

    certified = CertifiedTraining(ADVERSARY)
    fit(make(Triples), DataLoader(Stream(), batch_size=8), certified)
    assert certified.engine.steps == 1


def test_loaders_of_later_epochs_are_looked_at(fit, regressor):
    class Reloads(regressor):
        def train_dataloader(self):
            sampler = weighted() if self.current_epoch == 1 else None
            return DataLoader(DATA, batch_size=4, sampler=sampler)

    certified = CertifiedTraining(ADVERSARY)
    with pytest.raises(UncertifiableError, match="`WeightedRandomSampler`"):
        fit(make(Reloads), None, certified, max_epochs=3, reload_dataloaders_every_n_epochs=1)
    assert certified.engine.steps == 2
