"""Flips of labels in the whole data set, certified and then tried: whole trainings through Lightning, all epochs."""

import json

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset

from agt_lightning import BoundedAdversary, CertifiedModel, CertifiedTraining, UncertifiableError
from agt_lightning.domains.influence.label_sets import LabelFlips
from tests.domains.influence.attacks import strongest_flips

SAMPLES, CLASSES, EPOCHS = 40, 3, 4
ADVERSARY = BoundedAdversary(n=2, nu=1, q=0)


class Probe(L.LightningModule):
    """A linear layer on the data, squared error on one-hot vectors, SGD."""

    def __init__(self, outputs=CLASSES, low=0.0, **options):
        super().__init__()
        torch.manual_seed(2)
        self.net = nn.Linear(3, outputs).double()
        self.low, self.options = low, {"lr": 0.3, **options}

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y, *_ = batch
        target = self.low + (1 - self.low) * F.one_hot(y, self.net.out_features).to(x.dtype)
        return F.mse_loss(self(x), target)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), **self.options)


class SignProbe(Probe):
    """One output, read by its sign."""

    def __init__(self, **options):
        super().__init__(outputs=1, **options)

    def training_step(self, batch, batch_idx):
        x, y, *_ = batch
        target = F.one_hot(y, 2).to(x.dtype)[:, 1:]
        return F.mse_loss(self(x), self.low + (1 - self.low) * target)


def data(classes=CLASSES):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 3, generator=generator, dtype=torch.float64)
    noisy = x + 0.5 * torch.randn(SAMPLES, 3, generator=generator, dtype=torch.float64)
    return x, noisy[:, :classes].argmax(dim=1), torch.arange(SAMPLES)


def shuffled(*tensors, batch_size=16):
    generator = torch.Generator().manual_seed(7)
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size, shuffle=True, generator=generator)


def queries(count=30):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.fixture
def certify(fit):
    """Train with certificates; the callback."""

    def run(module=None, loader=None, adversary=ADVERSARY, domains="auto", **options):
        certified = CertifiedTraining(adversary, domains=domains, **options.pop("certified", {}))
        fit(
            Probe() if module is None else module,
            shuffled(*data()) if loader is None else loader,
            certified,
            max_epochs=EPOCHS,
            **options,
        )
        return certified

    return run


def trained_with(labels, fit, make):
    """Predictions after the same training on other labels, without certificates."""
    x, _, ids = data()
    module = make()
    fit(module, shuffled(x, labels, ids), max_epochs=EPOCHS)
    return lambda query: int(module(query[None]).argmax()) if module.net.out_features > 1 else int(module(query) > 0)


def dataset_rows(influence, samples):
    """Where samples of the record stand in the data set."""
    owners = influence.sample_of_row.tolist()
    rows = [owners.index(int(sample)) for sample in samples]
    return torch.cdist(influence.features[rows], data()[0]).argmin(dim=1)


MAKERS = {
    "plain": Probe,
    "momentum": lambda: Probe(momentum=0.7, nesterov=True, weight_decay=0.01),
    "low": lambda: Probe(low=-1.0),
    "sign": lambda: SignProbe(low=-1.0),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_one_more_flip_changes_the_prediction_and_as_many_do_not(make, certify, fit):
    module = make()
    classes = 2 if module.net.out_features == 1 else CLASSES
    x, y, ids = data(classes)
    certified = certify(module, shuffled(x, y, ids))
    flips = certified.certified_model().certified_flips(queries())
    assert 0 < int(flips.max()) < SAMPLES
    influence = certified.engine.parameter_sets["influence"].influence
    changes = LabelFlips.of_targets(influence.targets)
    nominal, generator = trained_with(y, fit, make), torch.Generator().manual_seed(0)
    for query, n in list(zip(queries(), flips.tolist(), strict=True))[::3]:
        for count in (n, n + 1):
            attack = strongest_flips(influence, query, count, changes)
            labels = y.clone()
            labels[dataset_rows(influence, attack.samples)] = attack.classes
            assert (trained_with(labels, fit, make)(query) != nominal(query)) == (count == n + 1)
        labels = y.clone()
        labels[torch.randperm(SAMPLES, generator=generator)[:n]] = int(torch.randint(classes, (), generator=generator))
        assert trained_with(labels, fit, make)(query) == nominal(query)


def test_bounds_per_batch_contain_trainings_with_fresh_flips_in_every_epoch(certify, fit):
    certified = certify()
    model = certified.certified_model()
    outputs = model.bound_forward(queries())
    for seed in range(20):

        class Poisoned(Probe):
            def training_step(self, batch, batch_idx, generator=torch.Generator().manual_seed(seed)):  # noqa: B008
                x, y, ids = batch
                y = y.clone()
                y[torch.randperm(len(y), generator=generator)[:2]] = torch.randint(3, (2,), generator=generator)
                return super().training_step((x, y, ids), batch_idx)

        module = Poisoned()
        fit(module, shuffled(*data()), max_epochs=EPOCHS)
        assert outputs.contains(module(queries()).detach(), 1e-9)
        assert model.bounds.contains(module)


@pytest.mark.slow
def test_the_budget_of_the_data_set_does_not_depend_on_the_adversary_of_the_batch(certify):
    few, many = (certify(adversary=BoundedAdversary(n=n, nu=1, q=0)).certified_model() for n in (1, 5))
    assert torch.equal(few.certified_flips(queries()), many.certified_flips(queries()))
    assert bool((few.bound_forward(queries()).width < many.bound_forward(queries()).width).all())
    nobody = certify(adversary=BoundedAdversary(n=0)).certified_model()
    assert torch.equal(few.certified_flips(queries()), nobody.certified_flips(queries()))


@pytest.mark.slow
def test_classes_of_the_adversary_restrict_flips(certify):
    adversary = BoundedAdversary(n=1, nu=1, q=0, target_classes=(0,))
    restricted = certify(adversary=adversary).certified_model()
    free = certify().certified_model()
    assert bool((restricted.certified_flips(queries()) >= free.certified_flips(queries())).all())
    label = restricted.certify(queries()).label
    assert bool((restricted.certified_flips(queries()) > free.certified_flips(queries()))[label == 0].any())


def test_only_poisonable_samples_are_flipped(certify):
    _, _, ids = data()
    trusted = certify(certified={"poisonable": lambda batch: batch[2] < 3}).certified_model()
    assert int(trusted.certified_flips(queries()).max()) == 3
    assert len(ids) == SAMPLES


@pytest.mark.slow
def test_metrics_and_files_without_a_box(certify, tmp_path):
    x, y, ids = data()
    adversary = BoundedAdversary(n=1, nu=1, q=0)
    certified = certify(
        adversary=adversary,
        domains=("influence",),
        certified={"dirpath": tmp_path},
        val=DataLoader(TensorDataset(x, y, ids), batch_size=16),
    )
    record = json.loads((tmp_path / "certificate.json").read_text())
    influence = record["bounds"]["domains"]["in_use"]["influence"]
    assert influence["samples"] == SAMPLES
    assert influence["steps"] == 3 * EPOCHS
    assert influence["bounds_count"].startswith("n samples of each batch")
    assert influence["certified_flips_count"].startswith("samples of the whole data set")
    assert "a sample is a distinct pair of features and target" in influence["certified_flips_count"]
    assert 0 <= record["results"]["val_certified_accuracy"] < record["results"]["val_nominal_accuracy"]
    certified_share = (certified.certified_model().margins(x, y).lower > 0).sum(dim=1) == CLASSES - 1
    assert float(certified_share.double().mean()) == pytest.approx(record["results"]["val_certified_accuracy"])


# --- which samples are the same ------------------------------------------------------------------------------------


class Augmented(Probe):
    """Features with fresh noise in every step."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y, ids = batch
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(self.global_step), dtype=x.dtype)
        return x + 0.01 * noise, y, ids


@pytest.mark.slow
def test_augmentation_is_noticed_and_ids_settle_it(certify, fit):
    blind = certify(Augmented()).certified_model()
    with pytest.raises(UncertifiableError, match="random augmentation"):
        blind.certified_flips(queries())
    assert bool((blind.bound_forward(queries()).width > 0).all())
    named = certify(Augmented(), certified={"sample_ids": lambda batch: batch[2]})
    influence = named.engine.parameter_sets["influence"].influence
    assert len(influence.targets) == SAMPLES
    flips = named.certified_model().certified_flips(queries())
    x, y, ids = data()
    query, n = queries()[int(flips.argmax())], int(flips.max())
    attack = strongest_flips(influence, query, n + 1, LabelFlips.of_targets(influence.targets))
    owners = influence.sample_of_row.tolist()
    rows = torch.cdist(influence.features[[owners.index(int(s)) for s in attack.samples]], x).argmin(dim=1)
    labels = y.clone()
    labels[rows] = attack.classes
    clean, poisoned = Augmented(), Augmented()
    fit(clean, shuffled(x, y, ids), max_epochs=EPOCHS)
    fit(poisoned, shuffled(x, labels, ids), max_epochs=EPOCHS)
    assert int(clean(query[None]).argmax()) != int(poisoned(query[None]).argmax())


class Drawn(Sampler):
    """A sampler of the user's, which draws some samples several times in an epoch, each time in another batch."""

    def __iter__(self):
        return iter([0, 1, 2, 3, 0, 1, 4, 5, 6, 7, 0, 1])

    def __len__(self):
        return 12


class Yielded(IterableDataset):
    """The same without indices."""

    def __iter__(self):
        samples = TensorDataset(*data())
        return iter([samples[index] for index in Drawn()])


def drawn_by_a_sampler():
    return DataLoader(TensorDataset(*data()), batch_size=4, sampler=Drawn())


def yielded_by_the_data_set():
    return DataLoader(Yielded(), batch_size=4)


class Batches:
    """An iterable of batches that is no loader."""

    def __iter__(self):
        return iter(drawn_by_a_sampler())


@pytest.mark.parametrize("loader", [drawn_by_a_sampler, yielded_by_the_data_set, Batches])
@pytest.mark.parametrize("kind", [Augmented, Probe])
def test_samples_of_an_own_sampler_need_names(kind, loader, fit):
    """Within the first epoch, nothing but a name tells a changed sample from another one."""

    def model(**options):
        certified = CertifiedTraining(ADVERSARY, **options)
        fit(kind(), loader(), certified)
        return certified.certified_model()

    with pytest.raises(UncertifiableError, match="samplers or a `collate_fn` of the user's own"):
        model().certified_flips(queries())
    assert int(model(sample_ids=lambda batch: batch[2]).certified_flips(queries()).max()) <= 8


def test_a_loader_that_starts_again_draws_samples_twice(fit):
    class Both(Augmented):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            x, y, ids = (torch.cat(parts) for parts in zip(*batch, strict=True))
            return super().on_after_batch_transfer((x, y, ids), dataloader_idx)

    parts = [[tensor[chosen] for tensor in data()] for chosen in (slice(0, 4), slice(4, 12))]
    loaders = CombinedLoader([DataLoader(TensorDataset(*part), batch_size=4) for part in parts], "max_size_cycle")
    certified = CertifiedTraining(ADVERSARY)
    fit(Both(), loaders, certified)
    with pytest.raises(UncertifiableError, match="An epoch is unknown"):
        certified.certified_model().certified_flips(queries())


@pytest.mark.slow
def test_ids_by_key(certify):
    class Named(Probe):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch["x"], batch["y"]), batch_idx)

    x, y, ids = data()
    samples = [{"x": a, "y": b, "id": c} for a, b, c in zip(x, y, ids, strict=True)]
    loader = DataLoader(samples, batch_size=16)
    flips = certify(Named(), loader, certified={"sample_ids": "id"}).certified_model().certified_flips(queries())
    assert torch.equal(flips, certify(Named(), loader).certified_model().certified_flips(queries()))
    with pytest.raises(KeyError, match="the key 'name' of `sample_ids`"):
        certify(Named(), loader, certified={"sample_ids": "name"})


# --- interrupted trainings -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_resumed_training_gives_the_same_certificate(fit, tmp_path):
    def run(epochs, ckpt_path=None, *callbacks):
        certified = CertifiedTraining(ADVERSARY)
        loader = DataLoader(TensorDataset(*data()), batch_size=16)
        kept = {"enable_checkpointing": bool(callbacks)}
        fit(Probe(momentum=0.5), loader, certified, *callbacks, max_epochs=epochs, ckpt_path=ckpt_path, **kept)
        return certified

    whole = run(EPOCHS)
    run(2, None, ModelCheckpoint(dirpath=tmp_path, filename="half"))
    resumed = run(EPOCHS, tmp_path / "half.ckpt")
    first, second = whole.certified_model(), resumed.certified_model()
    assert torch.equal(first.certified_flips(queries()), second.certified_flips(queries()))
    assert torch.equal(first.bound_forward(queries()).lower, second.bound_forward(queries()).lower)
    assert whole.engine.domains.record()["in_use"] == resumed.engine.domains.record()["in_use"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_first_epoch_that_is_interrupted_leaves_samples_unknown_if_they_change(fit, tmp_path):
    """The resumed epoch draws the first batches again, with other noise."""

    class Shaken(Augmented):
        shift = 0

        def on_after_batch_transfer(self, batch, dataloader_idx):
            x, y, ids = batch
            return x + 0.01 * self.shift, y, ids

    def run(shift, ckpt_path=None, *callbacks, **options):
        certified, module = CertifiedTraining(ADVERSARY), Shaken()
        module.shift = shift
        loader = DataLoader(TensorDataset(*data()), batch_size=16)
        fit(module, loader, certified, *callbacks, ckpt_path=ckpt_path, **options)
        return certified

    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    run(0, None, saver, enable_checkpointing=True)
    for shift, known in ((1, False), (0, False)):  # the second brings the rest of the first epoch
        resumed = run(shift, tmp_path / "step=1.ckpt", max_epochs=2)
        influence = resumed.engine.parameter_sets["influence"].influence
        assert (influence.problem is None) is known
    ended = run(0, tmp_path / "step=3.ckpt", max_epochs=2)
    assert ended.engine.parameter_sets["influence"].influence.problem is None


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_reasons_are_told_where_it_is_not_in_use(certify):
    with_features = certify(adversary=BoundedAdversary(n=1, epsilon=0.1)).certified_model()
    with pytest.raises(UncertifiableError, match="set `epsilon=0`"):
        with_features.certified_flips(queries())
    with pytest.raises(UncertifiableError, match="It was not in use"):
        certify(domains=("box",)).certified_model().certified_flips(queries())


@pytest.mark.slow
def test_one_output_between_zero_and_one_is_refused(certify):
    x, y, ids = data(2)
    model = certify(SignProbe(), shuffled(x, y, ids)).certified_model()
    with pytest.raises(UncertifiableError, match="Train on -1 and 1"):
        model.certified_flips(queries())
    assert bool((model.bound_forward(queries()).width > 0).all())


@pytest.mark.slow
def test_real_valued_targets_have_no_flips(certify):
    class Numbers(Probe):
        def training_step(self, batch, batch_idx):
            return F.mse_loss(self(batch[0]), batch[1])

    x, _, ids = data()
    module, loader = Numbers(), shuffled(x, x.flip(1), ids)
    model = certify(module, loader, adversary=BoundedAdversary(n=1, nu=0.1)).certified_model()
    with pytest.raises(UncertifiableError, match="Label flips have no meaning for these targets"):
        model.certified_flips(queries())


@pytest.mark.slow
def test_one_hot_vectors_in_the_data_are_flipped_too(certify):
    class Given(Probe):
        def training_step(self, batch, batch_idx):
            return F.mse_loss(self(batch[0]), batch[1])

    x, y, ids = data()
    loader = shuffled(x, F.one_hot(y, CLASSES).double(), ids)
    model = certify(Given(), loader, adversary=BoundedAdversary(n=1, nu=0.1)).certified_model()
    assert torch.equal(model.certified_flips(queries()), certify().certified_model().certified_flips(queries()))


@pytest.mark.slow
def test_a_forward_that_goes_on_after_the_layer_is_refused(certify):
    class Squashed(Probe):
        def forward(self, x):
            return self.net(x) if self.training else torch.tanh(self.net(x)).flip(1)

    model = certify(Squashed()).certified_model()
    with pytest.raises(UncertifiableError, match="needs a `forward` that ends in the trained linear layer"):
        model.certified_flips(queries())


@pytest.mark.slow
def test_a_squeezed_output_is_read_by_its_sign(certify):
    class Squeezed(SignProbe):
        def forward(self, x):
            return self.net(x).squeeze(-1)

        def training_step(self, batch, batch_idx):
            return F.mse_loss(self(batch[0]), 2 * F.one_hot(batch[1], 2).to(batch[0].dtype)[:, 1] - 1)

    x, y, ids = data(2)
    squeezed = certify(Squeezed(), shuffled(x, y, ids)).certified_model()
    plain = certify(SignProbe(low=-1.0), shuffled(x, y, ids)).certified_model()
    assert torch.equal(squeezed.certified_flips(queries()), plain.certified_flips(queries()))


def test_a_model_without_a_record_says_so():
    from agt_lightning import ParameterBounds

    module = nn.Linear(3, 3).double()
    with pytest.raises(UncertifiableError, match="`certified_flips` needs the domain `influence`"):
        CertifiedModel(module, ParameterBounds.point(module)).certified_flips(queries())
