import inspect
from functools import partial

import lightning as L
import pytest
import torch

import recipes.models.base
import recipes.models.binary_classifier
import recipes.models.classifier
import recipes.models.perceptron
import recipes.models.regressor
from recipes.data.loader import tensor_loader
from recipes.models import BinaryClassifier, Classifier, Regressor
from recipes.models.schedules import InverseTimeDecay

SGD = partial(torch.optim.SGD, lr=0.1)


@pytest.mark.parametrize(
    "module",
    [
        recipes.models.base,
        recipes.models.binary_classifier,
        recipes.models.classifier,
        recipes.models.regressor,
        recipes.models.perceptron,
    ],
    ids=lambda m: m.__name__,
)
def test_models_know_nothing_of_certificates(module):
    assert "agt" not in inspect.getsource(module).lower()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_networks_are_relu_perceptrons_of_the_asked_type(dtype):
    classifier = Classifier(6, [128], 2, SGD, dtype=dtype)
    binary = BinaryClassifier(2, [20], SGD, dtype=dtype)
    regressor = Regressor(11, [64, 32], SGD, dtype=dtype)
    assert [tuple(p.shape) for p in classifier.parameters()] == [(128, 6), (128,), (2, 128), (2,)]
    assert [tuple(p.shape) for p in binary.parameters()] == [(20, 2), (20,), (1, 20), (1,)]
    assert [tuple(p.shape) for p in regressor.parameters()] == [(64, 11), (64,), (32, 64), (32,), (1, 32), (1,)]
    x = torch.randn(5, 6, dtype=getattr(torch, dtype))
    assert classifier(x).shape == (5, 2)
    assert classifier(x).dtype == x.dtype
    assert binary(x[:, :2]).shape == (5,)
    assert regressor(torch.randn(5, 11, dtype=x.dtype)).shape == (5,)


def test_a_seed_gives_the_same_network_in_both_types():
    torch.manual_seed(0)
    single = Regressor(3, [4], SGD, dtype="float32")
    torch.manual_seed(0)
    double = Regressor(3, [4], SGD, dtype="float64")
    for a, b in zip(single.parameters(), double.parameters(), strict=True):
        assert torch.equal(a.double(), b)


def test_a_zero_output_layer_leaves_the_hidden_layer_as_it_is():
    torch.manual_seed(0)
    plain = BinaryClassifier(2, [4], SGD)
    torch.manual_seed(0)
    zero = BinaryClassifier(2, [4], SGD, zero_output=True)
    assert torch.equal(plain.net[0].weight, zero.net[0].weight)
    assert not zero(torch.randn(5, 2)).any()
    assert plain(torch.randn(5, 2)).any()


def test_without_schedule_the_optimizer_stands_alone():
    assert isinstance(Classifier(2, [3], 2, SGD).configure_optimizers(), torch.optim.SGD)


def test_schedule_advances_with_every_step():
    model = Regressor(2, [3], SGD, partial(InverseTimeDecay, decay=1.0))
    optimizer_and_schedule = model.configure_optimizers()
    assert optimizer_and_schedule["lr_scheduler"]["interval"] == "step"


class Batches(L.LightningDataModule):
    def __init__(self, x, y):
        super().__init__()
        self.loader = tensor_loader(x, y, batch_size=8)

    def train_dataloader(self):
        return self.loader

    val_dataloader = test_dataloader = train_dataloader


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize(
    ("model", "targets", "metric"),
    [
        (Classifier(2, [8], 2, SGD), lambda x: (x[:, 0] > 0).long(), "accuracy"),
        (BinaryClassifier(2, [8], SGD), lambda x: (x[:, 0] > 0).float(), "accuracy"),
        (Regressor(2, [8], SGD), lambda x: x[:, 0], "mse"),
    ],
    ids=["classifier", "binary classifier", "regressor"],
)
def test_models_train_and_test_under_lightning_alone(tmp_path, model, targets, metric):
    torch.manual_seed(0)
    x = torch.randn(64, 2)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=20,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    data = Batches(x, targets(x))
    before = trainer.test(model, data, verbose=False)[0][f"test/{metric}"]
    trainer.fit(model, data)
    after = trainer.test(model, data, verbose=False)[0][f"test/{metric}"]
    assert after > max(before, 0.9) if metric == "accuracy" else after < before / 2
