"""What certificate.json and the logged results claim, against the run and the module they are about."""

import contextlib
import json

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from agt_lightning import BoundedAdversary, CertifiedTraining, ParameterBounds
from agt_lightning.errors import AgtError
from tests.trust.harness import (
    QUIET,
    Batches,
    Case,
    made,
    plain_module,
    seed_everything,
    standard_attacks,
)
from tests.trust.modules import FLIPS, LABELS, Classifier, Regressor, binary, classes, numbers, regression

VALUES = BoundedAdversary(n=1, nu=0.5)


def trainer(*callbacks, **options) -> L.Trainer:
    return L.Trainer(callbacks=list(callbacks), **QUIET | {"num_sanity_val_steps": 0} | options)


def validation(case: Case) -> DataLoader:
    rows = case.data
    return DataLoader(TensorDataset(*[rows[name].flip(0) for name in rows]), batch_size=8)


class Validated(Regressor):
    def validation_step(self, batch, batch_idx):
        pass


class ValidatedClassifier(Classifier):
    def validation_step(self, batch, batch_idx):
        pass


def run(case: Case, folder, *others, val=True, **options):
    """A certified training with validation; its record, its callback and its module."""
    certified, module = CertifiedTraining(case.adversary, **case.settings, dirpath=folder), made(case)
    one = trainer(*others, certified, **options)
    seed_everything()
    one.fit(module, Batches(case), validation(case) if val else None)
    return json.loads((folder / "certificate.json").read_text()), certified, module, one


def numbers_in(record, *words) -> dict[str, float]:
    """All numbers of the record under keys that contain these words."""
    found = {}

    def walk(node, path):
        if isinstance(node, dict):
            for key, value in node.items():
                walk(value, f"{path}/{key}")
        elif isinstance(node, int | float) and all(word in path for word in words):
            found[path] = float(node)

    walk(record, "")
    return found


def error_of(module, case: Case) -> float:
    """The mean squared error on the validation rows, plainly."""
    rows = case.data
    with torch.no_grad():
        return float(F.mse_loss(module(rows["x"]), rows["y"]))


# --- results belong to the last step ---------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [2, 3, 5])
def test_certified_errors_are_of_the_last_step(every, tmp_path):
    """Validation every few epochs: results of an earlier step are left out, or made again at the end."""
    case = Case(Validated, VALUES, numbers(), options={"max_epochs": 4})
    record, *_ = run(case, tmp_path, max_epochs=4, check_val_every_n_epoch=every)
    fresh, *_ = run(case, tmp_path / "fresh", max_epochs=4)
    last = numbers_in(fresh, "mse")
    assert last
    assert record["steps"] == fresh["steps"] == 8
    for name, value in numbers_in(record, "mse").items():
        assert value == pytest.approx(last[name], rel=1e-6), name


def test_certified_errors_hold(tmp_path):
    case = Case(Validated, VALUES, numbers(), options={"max_epochs": 3})
    record, *_ = run(case, tmp_path, max_epochs=3)
    worst = max(error_of(plain_module(case, attack), case) for attack in standard_attacks(case))
    certified = numbers_in(record, "certified_mse")
    assert certified
    assert min(certified.values()) >= worst - 1e-6


def test_nominal_errors_are_of_the_last_step(tmp_path):
    case = Case(Validated, VALUES, numbers())
    record, _, module, _ = run(case, tmp_path, max_epochs=4, check_val_every_n_epoch=3)
    for name, value in numbers_in(record, "nominal_mse").items():
        assert value == pytest.approx(error_of(module, case), rel=1e-4), name


def nominal_at_most_certified(results) -> None:
    results = {name: float(value) for name, value in results.items()}
    for name, value in results.items():
        if "nominal_mse" in name:
            assert value <= results[name.replace("nominal", "certified")] + 1e-9, results
        if "nominal_accuracy" in name:
            assert value >= results[name.replace("nominal", "certified")] - 1e-9, results


class SwapsAverage(L.Callback):
    """The weights of an average during validation, as every EMA callback has it."""

    def __init__(self) -> None:
        self.mean = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now = [p.detach().clone() for p in pl_module.parameters()]
        self.mean = now if self.mean is None else [0.9 * a + 0.1 * b for a, b in zip(self.mean, now, strict=True)]

    def exchange(self, pl_module):
        with torch.no_grad():
            for number, p in enumerate(pl_module.parameters()):
                kept = p.detach().clone()
                p.copy_(self.mean[number])
                self.mean[number] = kept

    def on_validation_epoch_start(self, trainer, pl_module):
        if self.mean is not None:
            self.exchange(pl_module)

    def on_validation_epoch_end(self, trainer, pl_module):
        if self.mean is not None:
            self.exchange(pl_module)


@pytest.mark.filterwarnings("ignore:No certified metric on the validation loader.*other weights:UserWarning")
def test_validation_of_swapped_weights(tmp_path):
    case = Case(Validated, BoundedAdversary(n=1, nu=0.01), numbers())
    try:
        record, _, _, one = run(case, tmp_path, SwapsAverage(), max_epochs=6)
    except AgtError:
        return
    nominal_at_most_certified({k: v for k, v in one.callback_metrics.items() if "agt/val" in k})
    nominal_at_most_certified(numbers_in(record, "mse"))


class Best(Validated):
    def validation_step(self, batch, batch_idx):
        self.log("score", float(self.current_epoch))


@pytest.mark.filterwarnings("ignore:.*Checkpoint directory.*:UserWarning", "ignore:.*ckpt_path.*:UserWarning")
def test_validation_of_the_best_checkpoint(tmp_path):
    case = Case(Best, BoundedAdversary(n=1, nu=0.01), numbers())
    best = ModelCheckpoint(tmp_path / "checkpoints", monitor="score", mode="min")
    _, _, module, one = run(case, tmp_path, best, max_epochs=6, enable_checkpointing=True)
    metrics = {}
    with contextlib.suppress(AgtError):
        one.validate(module, validation(case), ckpt_path="best", verbose=False)
        metrics = {k: v for k, v in one.callback_metrics.items() if "agt/val" in k}
    nominal_at_most_certified(metrics)


# --- metrics are of the prediction and the label ---------------------------------------------------------------------


class MaskedError(Validated):
    """Predictions and labels are multiplied by a mask."""

    def training_step(self, batch, batch_idx):
        x, y, m = batch
        return F.mse_loss(self.net(x) * m, y * m)


def test_the_error_of_a_masked_loss_is_no_distance_to_the_mask(tmp_path):
    data = numbers() | {"m": torch.ones(8, 1, dtype=torch.float64)}
    data["m"][3] = 0
    case = Case(MaskedError, BoundedAdversary(n=1, epsilon=0.01), data, form=lambda rows, *_: tuple(rows.values()))
    try:
        record, _, module, _ = run(case, tmp_path)
    except AgtError:
        return
    with torch.no_grad():
        true = float(F.mse_loss(module.net(data["x"]) * data["m"], data["y"] * data["m"]))
    for name, value in numbers_in(record, "nominal_mse").items():
        assert value == pytest.approx(true, rel=1e-3), name


class Auxiliary(ValidatedClassifier):
    """An auxiliary head stands first in the sum."""

    def __init__(self):
        super().__init__()
        self.aux = torch.nn.Linear(3, 3).double()
        with torch.no_grad():
            self.aux.weight.mul_(-5)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return 0.01 * F.cross_entropy(self.aux(x), y) + F.cross_entropy(self.net(x), y)


def test_accuracy_is_that_of_forward(tmp_path):
    case = Case(Auxiliary, BoundedAdversary(n=1, epsilon=0.01), classes())
    record, _, module, _ = run(case, tmp_path)
    true = float((module(case.data["x"]).argmax(1) == case.data["y"]).double().mean())
    for name, value in numbers_in(record, "nominal_accuracy").items():
        assert value == pytest.approx(true), name


class Soft(ValidatedClassifier):
    """Cross entropy against probabilities."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y)


def test_probabilities_as_targets_have_no_squared_error(tmp_path):
    data = numbers() | {"y": F.one_hot(classes()["y"], 3).double() * 0.8 + 0.2 / 3}
    case = Case(Soft, BoundedAdversary(n=1, epsilon=0.01), data)
    try:
        record, *_ = run(case, tmp_path)
    except AgtError:
        return
    assert not numbers_in(record, "mse")


class Half(Validated):
    """The prediction is half of what the loss sees."""

    def forward(self, x):
        return 0.5 * self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(2 * self(x), y)


class Shifted(Validated):
    """Standardized labels."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self(x), (y - 0.5) / 2)


@pytest.mark.parametrize(
    ("module", "true"),
    [
        (Half, lambda module, x, y: F.mse_loss(2 * module(x), y)),
        (Shifted, lambda module, x, y: F.mse_loss(module(x), (y - 0.5) / 2)),
    ],
)
def test_errors_are_between_what_the_loss_compares(module, true, tmp_path):
    case = Case(module, BoundedAdversary(n=1, epsilon=0.01), numbers())
    record, _, trained, _ = run(case, tmp_path)
    with torch.no_grad():
        expected = float(true(trained, case.data["x"], case.data["y"]))
    for name, value in numbers_in(record, "nominal_mse").items():
        assert value == pytest.approx(expected, rel=1e-3), name


class Logits(Validated):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self.net(x), y)


def test_binary_accuracy(tmp_path):
    case = Case(Logits, FLIPS, binary())
    record, _, module, _ = run(case, tmp_path)
    true = float(((module(case.data["x"]) > 0).double() == case.data["y"]).double().mean())
    accuracies = numbers_in(record, "nominal_accuracy")
    assert accuracies
    assert all(value == pytest.approx(true) for value in accuracies.values())
    nominal_at_most_certified(numbers_in(record, "accuracy"))


# --- settings of all phases ------------------------------------------------------------------------------------------


def nobody(batch):
    return torch.zeros(len(batch[0]), dtype=torch.bool)


def resumed(case: Case, folder, first: dict, then: dict, precision=("32-true", "32-true")):
    """Two epochs under one setting, two more under another one; None if the second is refused."""
    certified, module = CertifiedTraining(case.adversary, **first), made(case)
    one = trainer(certified, max_epochs=2, default_root_dir=folder, precision=precision[0])
    seed_everything()
    one.fit(module, Batches(case))
    one.save_checkpoint(folder / "half.ckpt")
    again = CertifiedTraining(case.adversary, **then, dirpath=folder / "record")
    other = made(case)
    two = trainer(again, max_epochs=4, precision=precision[1])
    try:
        two.fit(other, Batches(case, epoch=2), ckpt_path=folder / "half.ckpt", weights_only=False)
    except AgtError:
        return None
    return json.loads((folder / "record" / "certificate.json").read_text()), again


IGNORED = "ignore:Be aware that when using `ckpt_path`:UserWarning"


@pytest.mark.filterwarnings(IGNORED, "ignore::UserWarning")
def test_nobody_poisonable_in_the_first_half(tmp_path):
    """The record of the whole must not claim that all samples were poisonable."""
    found = resumed(regression(), tmp_path, {"poisonable": nobody}, {"poisonable": None})
    if found is None:
        return
    record = found[0]
    assert record["bounds"]["all_samples_poisonable"] is False
    assert [phase["all_samples_poisonable"] for phase in record["phases"]] == [False, True]
    assert [phase["steps"] for phase in record["phases"]] == [[1, 4], [5, 8]]


@pytest.mark.filterwarnings(IGNORED, "ignore::UserWarning")
@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"dtype": torch.float32}, {"dtype": torch.float64}),
        ({"method": "ibp"}, {"method": "crown"}),
        ({"domains": "box"}, {"domains": "auto"}),
    ],
)
def test_other_settings_after_resuming_are_refused_or_recorded(first, then, tmp_path):
    single = {name: rows.float() for name, rows in numbers().items()}
    found = resumed(regression(lambda: Regressor().float(), data=single), tmp_path, first, then)
    if found is None:
        return
    text = json.dumps(found[0]).replace("torch.", "")
    for value in (*first.values(), *then.values()):
        assert str(value).replace("torch.", "") in text or value == "auto"


@pytest.mark.filterwarnings(IGNORED, "ignore::UserWarning")
def test_another_adversary_after_resuming(tmp_path):
    case = regression(adversary=BoundedAdversary(n=1, nu=0.1))
    certified, module = CertifiedTraining(case.adversary), made(case)
    one = trainer(certified, max_epochs=1, default_root_dir=tmp_path)
    one.fit(module, Batches(case))
    one.save_checkpoint(tmp_path / "half.ckpt")
    with pytest.raises(AgtError):
        trainer(CertifiedTraining(LABELS), max_epochs=2).fit(
            made(case), Batches(case), ckpt_path=tmp_path / "half.ckpt", weights_only=False
        )


# --- words -----------------------------------------------------------------------------------------------------------


def test_assumptions_are_complete(tmp_path):
    record, *_ = run(Case(Validated, VALUES, numbers()), tmp_path)
    text = json.dumps(record).lower()
    for word in ("order", "learning rate", "number of steps", "initial parameters", "buffer", "hook", "each batch"):
        assert word in text, word


def test_bounds_on_disk_are_those_of_the_callback(tmp_path):
    _, certified, module, _ = run(Case(Validated, VALUES, numbers()), tmp_path)
    loaded = ParameterBounds.load(tmp_path / "bounds.safetensors")
    assert loaded.contains(module)
    assert all(torch.equal(loaded[name].lower, certified.bounds[name].lower) for name in loaded)


@pytest.mark.parametrize("setting", [{"n": 2}, {"poisonable": lambda batch: batch[0][:, 0] > 0}])
def test_the_record_names_what_restricts_the_adversary(setting, tmp_path):
    adversary = BoundedAdversary(n=setting.get("n", 1), nu=0.5)
    settings = {k: v for k, v in setting.items() if k != "n"}
    record, *_ = run(Case(Validated, adversary, numbers(), settings=settings), tmp_path)
    assert record["adversary"]["n"] == adversary.n
    text = json.dumps(record)
    assert ('"all_samples_poisonable": false' in text) == bool(settings)


def test_settings_changed_after_training_are_not_recorded(tmp_path):
    """The callback is public: changing its attributes later must not change what is said of the run."""
    case = Case(Validated, VALUES, numbers())
    certified, module = CertifiedTraining(case.adversary), made(case)
    one = trainer(certified)
    one.fit(module, Batches(case))
    certified.adversary = BoundedAdversary(n=7, nu=9.0)
    certified.method = "crown"
    certified.save(tmp_path, one.optimizers[0])
    record = json.loads((tmp_path / "certificate.json").read_text())
    assert record["adversary"]["n"] == 1
    assert "crown" not in json.dumps(record.get("settings", record))
