import inspect
from functools import partial

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate

import recipes.models.linear_head
from recipes.data.features import RandomReLU
from recipes.data.loader import tensor_loader
from recipes.models.linear_head import LinearHead, squared_error
from recipes.models.rates import mse_rate
from recipes.models.schedules import InverseTimeDecay

SGD = partial(torch.optim.SGD, lr=0.1)
TOLERANCE = 1e-12


class Points(L.LightningDataModule):
    """Three classes around corners of a triangle; training targets encoded, held-out ones indices."""

    def __init__(self, one_hot):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.y = torch.arange(60) % 3
        corners = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], dtype=torch.float64)
        self.x = corners[self.y] + 0.3 * torch.randn(60, 2, generator=generator, dtype=torch.float64)
        self.target = F.one_hot(self.y).double() if one_hot else self.y

    def train_dataloader(self):
        return tensor_loader(self.x, self.target, batch_size=60)

    def test_dataloader(self):
        return tensor_loader(self.x, self.y, batch_size=60)

    val_dataloader = test_dataloader


def trainer(steps, folder):
    return L.Trainer(
        accelerator="cpu",
        max_epochs=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def test_model_knows_nothing_of_certificates():
    assert "agt" not in inspect.getsource(recipes.models.linear_head).lower()


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_head_trains_and_tests_under_lightning_alone(tmp_path, loss):
    data = Points(one_hot=loss == "mse")
    rate = mse_rate(data.x, 3)
    head = LinearHead(2, 3, partial(torch.optim.SGD, lr=rate), loss=loss, dtype="float64")
    runner = trainer(20, tmp_path)
    runner.fit(head, data)
    assert runner.callback_metrics["val/accuracy"] > 0.95
    assert runner.test(head, data, verbose=False)[0]["test/accuracy"] > 0.95


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec:FutureWarning")
def test_two_steps_from_zero_are_the_closed_form(tmp_path):
    data = Points(one_hot=True)
    rate = mse_rate(data.x, 3)
    head = LinearHead(2, 3, partial(torch.optim.SGD, lr=rate), dtype="float64")
    trainer(2, tmp_path).fit(head, data)
    x = torch.cat([data.x, torch.ones(60, 1, dtype=torch.float64)], dim=1)
    scale = rate * 2 / (60 * 3)
    expected = scale * (2 * torch.eye(3, dtype=torch.float64) - scale * x.T @ x) @ x.T @ data.target
    trained = torch.cat([head.net.weight.T, head.net.bias[None]])
    assert torch.allclose(trained, expected, rtol=0, atol=TOLERANCE)


def test_zero_initialization_is_an_option():
    assert all((parameter == 0).all() for parameter in LinearHead(4, 3, SGD).parameters())
    assert all((parameter != 0).any() for parameter in LinearHead(4, 3, SGD, zero_init=False).parameters())


def test_other_losses_are_refused():
    with pytest.raises(ValueError, match="Expected `loss` to be one of mse, cross_entropy, but got 'hinge'"):
        LinearHead(4, 3, SGD, loss="hinge")


def test_schedule_advances_with_every_step():
    configured = LinearHead(2, 3, SGD, partial(InverseTimeDecay, decay=1.0)).configure_optimizers()
    assert configured["lr_scheduler"]["interval"] == "step"
    assert isinstance(LinearHead(2, 3, SGD).configure_optimizers(), torch.optim.SGD)


def test_configuration_fits_head_to_data_and_figure(composed):
    config = composed("data=mnist_features", "model=linear_head", "figure=flips_curve", "name=test")
    data, head = instantiate(config.data), instantiate(config.model)
    assert head.net.weight.dtype == data.dtype
    assert tuple(head.net.weight.shape) == (data.classes, data.features.components)
    assert (data.target, head.loss) == ("class", squared_error)
    assert instantiate(config.figure).func.__name__ == "draw_flips_curve"


def test_configuration_takes_other_features(composed):
    config = composed(
        "data=mnist_features",
        "name=test",
        "data/features=random_relu",
        "data.features.width=64",
        "data.features.components=32",
    )
    assert instantiate(config.data).features == RandomReLU(64, components=32, offset=0.3)


def test_class_indices_become_one_hot_vectors():
    head = LinearHead(2, 3, SGD)
    x, y = torch.randn(5, 2), torch.tensor([0, 1, 2, 2, 0])
    assert torch.equal(squared_error(head(x), y), squared_error(head(x), F.one_hot(y, 3).float()))
