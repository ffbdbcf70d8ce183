"""What a training notes of its batches and criteria, across accumulation, checkpoints and fits."""

import json

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from agt_lightning import Acceptance, BoundedAdversary, BoundsMismatchError, CertifiedTraining
from agt_lightning.certificates.schema import schema_problems
from agt_lightning.lightning.ledger import TrainedBatches

ADVERSARY = BoundedAdversary(n=1, epsilon=0.01)
CRITERION = Acceptance("mean_width", at_most=9.0)


def made(kind):
    torch.manual_seed(5)
    return kind()


@pytest.fixture
def batches(fit, loader, regressor):
    """The noted batches of a training."""

    def train(data=None, **options):
        certified = CertifiedTraining(ADVERSARY, domains="box")
        fit(made(regressor), data or loader(), certified, **options)
        return TrainedBatches.of(certified.engine)

    return train


@pytest.mark.slow
def test_content_and_order_of_batches_count(batches, loader):
    once = batches()
    assert once == batches()
    assert (once.first, once.steps, once.samples) == (1, 2, (4, 4))
    assert batches(loader(batch_size=3)).samples == (2, 3)
    moved = loader(adapt=lambda x, y: (x + 1e-6, y))
    relabeled = loader(adapt=lambda x, y: (x, -y))
    swapped, first_alone = loader(sampler=[4, 5, 6, 7, 0, 1, 2, 3]), loader(sampler=[1, 0, 2, 3, 4, 5, 6, 7])
    chains = [batches(data).chain for data in (moved, swapped, first_alone, relabeled, loader(batch_size=8))]
    assert len({once.chain, *chains}) == 6


def test_batches_of_one_step_are_a_link_of_the_chain(batches):
    together = batches(accumulate_grad_batches=2)
    assert (together.steps, together.samples) == (1, (8, 8))
    assert together.chain != batches().chain


@pytest.mark.slow
def test_a_batch_is_noted_as_the_step_finds_it(batches, loader, regressor, fit):
    class Writing(regressor):
        def training_step(self, batch, batch_idx):
            x, y = batch
            return torch.nn.functional.mse_loss(self(x.detach().clone().mul_(2)), y)

    certified = CertifiedTraining(ADVERSARY, domains="box")
    fit(made(Writing), loader(), certified)
    assert TrainedBatches.of(certified.engine).chain == batches().chain


@pytest.mark.slow
def test_a_training_in_two_parts_notes_all_of_it(fit, loader, regressor, tmp_path):
    def certificate(folder):
        return json.loads((folder / "certificate.json").read_text())

    whole = CertifiedTraining(ADVERSARY, domains="box", dirpath=tmp_path / "whole", acceptance=CRITERION)
    fit(made(regressor), loader(), whole, max_epochs=2)
    saver = ModelCheckpoint(dirpath=tmp_path / "saved", filename="last")
    first = CertifiedTraining(ADVERSARY, domains="box", acceptance=CRITERION)
    fit(made(regressor), loader(), first, saver, enable_checkpointing=True)
    criteria = [CRITERION, Acceptance("mean_width", at_most=8.0)]
    second = CertifiedTraining(ADVERSARY, domains="box", dirpath=tmp_path / "parts", acceptance=criteria)
    fit(made(regressor), loader(), second, max_epochs=2, ckpt_path=tmp_path / "saved" / "last.ckpt")

    found, expected = certificate(tmp_path / "parts"), certificate(tmp_path / "whole")
    assert found["digests"]["training_batches"] == expected["digests"]["training_batches"]
    assert found["digests"]["weights"] == expected["digests"]["weights"]
    assert [each["set_after_step"] for each in found["acceptance"]] == [0, 2]
    assert [each["set_before_the_first_step"] for each in found["acceptance"]] == [True, False]


def test_steps_of_a_checkpoint_that_notes_nothing_are_left_out(fit, loader, regressor, tmp_path):
    certified = CertifiedTraining(ADVERSARY, domains="box", dirpath=tmp_path)
    fit(made(regressor), loader(), certified)
    certified.engine.noted.clear()
    engine = certified.engine
    assert TrainedBatches.of(engine) == TrainedBatches(first=3)
    certified.save(tmp_path, torch.optim.SGD(engine.module.parameters(), lr=0.1))
    budget = json.loads((tmp_path / "certificate.json").read_text())["budget"]
    assert (budget["samples_per_step"], budget["share_of_the_smallest_batch"]) == (None, None)


def test_no_steps_never_take_the_place_of_a_certificate(fit, loader, regressor, tmp_path):
    class Saving(L.Callback):
        """Saves the bounds of the start, which has none."""

        def __init__(self, folder):
            self.folder = folder

        def on_train_start(self, trainer, pl_module):
            trainer.callbacks[0].save(self.folder, trainer.optimizers[0])

    fit(made(regressor), loader(), CertifiedTraining(ADVERSARY, domains="box", dirpath=tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        BoundsMismatchError, match=r"is the certificate of a training\. Train first, or save to another"
    ):
        fit(made(regressor), loader(), CertifiedTraining(ADVERSARY, domains="box"), Saving(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    fit(made(regressor), loader(), CertifiedTraining(ADVERSARY, domains="box"), Saving(tmp_path / "start"))
    record = json.loads((tmp_path / "start" / "certificate.json").read_text())
    assert record["steps"] == 0
    assert schema_problems(record) == []


def test_criteria_come_from_a_configuration():
    hydra = pytest.importorskip("hydra.utils")
    node = {
        "_target_": "agt_lightning.CertifiedTraining",
        "_convert_": "all",
        "adversary": {"_target_": "agt_lightning.BoundedAdversary", "n": 1, "epsilon": 0.01},
        "acceptance": {"_target_": "agt_lightning.Acceptance", "metric": "mean_width", "at_most": 9.0},
    }
    assert hydra.instantiate(node).acceptance == (CRITERION,)
    node["acceptance"] = [node["acceptance"]]
    assert hydra.instantiate(node).acceptance == (CRITERION,)
