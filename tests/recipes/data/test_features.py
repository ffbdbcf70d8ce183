from dataclasses import FrozenInstanceError

import lightning as L
import pytest
import torch
from torch import nn

from recipes.data import features
from recipes.data.features import PCA, Penultimate, RandomReLU

TOLERANCE = 1e-10


@pytest.fixture
def pixels():
    """300 images of 4 × 5 bytes whose pixels vary to different degrees."""
    generator = torch.Generator().manual_seed(0)
    values = 40 + 10 * torch.arange(20).reshape(4, 5) * torch.rand(300, 4, 5, generator=generator)
    return values.clamp(0, 255).to(torch.uint8)


class Network(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)  # registered first, runs last
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(20, 6), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, x):
        return self.head(self.body(x)).softmax(dim=-1)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


CHOICES = [
    PCA(4),
    PCA(4, whiten=True),
    PCA(2, base=PCA(4)),
    RandomReLU(7),
    RandomReLU(7, seed=3, components=4, whiten=True),
]


@pytest.mark.parametrize("choice", CHOICES, ids=repr)
def test_features_are_frozen_float64_rows_and_the_same_in_every_fit(pixels, choice):
    fitted = choice.fit(pixels)
    x = fitted.transform(pixels)
    assert (x.dtype, x.requires_grad, len(x), x.ndim) == (torch.float64, False, 300, 2)
    assert torch.equal(x, choice.fit(pixels).transform(pixels))
    assert torch.equal(x[:50], fitted.transform(pixels[:50])) or torch.allclose(x[:50], fitted.transform(pixels[:50]))
    assert (x.mean(dim=0).abs() < TOLERANCE).all()
    for value in (choice, fitted):
        with pytest.raises(FrozenInstanceError):
            value.mean = torch.zeros(1)


@pytest.mark.parametrize("choice", CHOICES, ids=repr)
def test_chunks_change_nothing_but_rounding(pixels, choice, monkeypatch):
    whole = choice.fit(pixels).transform(pixels)
    monkeypatch.setattr(features, "_CHUNK", 7)
    assert torch.allclose(choice.fit(pixels).transform(pixels), whole, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("choice", CHOICES, ids=repr)
def test_bytes_are_pixels_of_unit_range(pixels, choice):
    fitted, scaled = choice.fit(pixels), pixels.double() / 255
    assert torch.equal(fitted.transform(pixels), fitted.transform(scaled))
    assert torch.equal(fitted.transform(pixels), choice.fit(scaled).transform(pixels))
    with pytest.raises(
        ValueError, match=r"Expected pixels of type uint8 or floating point inputs, but got torch.int64"
    ):
        fitted.transform(pixels.long())


def test_components_are_those_of_the_singular_value_decomposition(pixels):
    x = PCA(20).fit(pixels).transform(pixels)
    centered = pixels.flatten(1).double() / 255
    centered = centered - centered.mean(dim=0)
    _, singular, directions = torch.linalg.svd(centered, full_matrices=False)
    assert torch.allclose(x.square().sum(dim=0).sqrt(), singular, atol=1e-7)
    assert torch.allclose(x[:, :5].abs(), (centered @ directions[:5].T).abs(), atol=TOLERANCE)
    assert torch.allclose(PCA(5).fit(pixels).transform(pixels), x[:, :5], atol=TOLERANCE)


def test_signs_are_normalized(pixels, monkeypatch):
    eigh = torch.linalg.eigh
    expected = PCA(6).fit(pixels)
    monkeypatch.setattr(torch.linalg, "eigh", lambda A: (eigh(A)[0], -eigh(A)[1]))
    mirrored = PCA(6).fit(pixels)
    assert torch.equal(mirrored.matrix, expected.matrix)
    largest = expected.matrix.gather(0, expected.matrix.abs().argmax(dim=0, keepdim=True))
    assert (largest > 0).all()


def test_order_of_the_training_inputs_does_not_matter(pixels):
    shuffled = pixels[torch.randperm(300, generator=torch.Generator().manual_seed(1))]
    assert torch.allclose(PCA(6).fit(pixels).matrix, PCA(6).fit(shuffled).matrix, atol=1e-8)


def test_whitened_features_have_unit_covariance(pixels):
    x = PCA(6, whiten=True).fit(pixels).transform(pixels)
    assert torch.allclose(x.T @ x / len(x), torch.eye(6, dtype=x.dtype), atol=1e-8)


def test_no_more_components_than_there_are(pixels):
    with pytest.raises(ValueError, match="Expected `components` to be at most 20, the dimension .* but got 21"):
        PCA(21).fit(pixels)
    PCA(20).fit(pixels)
    with pytest.raises(ValueError, match="Expected `components` to be at most 19, the rank"):  # one pixel is constant
        PCA(20, whiten=True).fit(pixels)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PCA(0), "Expected `components` to be at least 1, but got 0"),
        (lambda: RandomReLU(0), "Expected `width` to be at least 1"),
        (lambda: RandomReLU(3, components=-1), "Expected `components` to be at least 1"),
        (lambda: RandomReLU(3, whiten=True), "Expected `components` beside `whiten`"),
        (lambda: PCA(1).fit(torch.zeros(0, 3)), "Expected training inputs .* but got none"),
        (lambda: RandomReLU(3).fit(torch.ones(5, 3)), "Expected training inputs that vary"),
        (lambda: PCA(1).fit(torch.rand(5, 3)).transform(torch.rand(5, 4)), "Expected inputs with 3 numbers each"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_random_features_follow_their_seed(pixels):
    first, second = (RandomReLU(7, seed=seed).fit(pixels).transform(pixels) for seed in (0, 1))
    assert not torch.allclose(first, second)
    torch.manual_seed(5)  # of no influence
    assert torch.equal(RandomReLU(7, seed=0).fit(pixels).transform(pixels), first)


def test_random_features_are_relus_of_scaled_components(pixels):
    fitted = RandomReLU(7, components=4).fit(pixels)
    components = PCA(4).fit(pixels).transform(pixels)
    u = components / components.square().mean().sqrt()
    expected = (u @ fitted.weight + fitted.bias).clamp_min(0)
    assert torch.allclose(fitted.transform(pixels), expected - expected.mean(dim=0), atol=TOLERANCE)


def test_penultimate_is_the_input_of_the_layer_that_runs_last(pixels, network):
    choice = Penultimate(network)
    x = choice.fit(pixels).transform(pixels)
    expected = network.double().eval().body(pixels.double() / 255)
    assert torch.equal(x, expected)
    assert torch.equal(x, Penultimate(network, shape=[20]).fit(pixels).transform(pixels))


def test_penultimate_is_a_copy(pixels, network):
    fitted = Penultimate(network).fit(pixels)
    before = fitted.transform(pixels)
    assert network.training
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in network.parameters())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    assert torch.equal(fitted.transform(pixels), before)
    assert not fitted.module.get_submodule(fitted.head)._forward_pre_hooks


def test_penultimate_reads_a_checkpoint(pixels, network, tmp_path):
    trainer = L.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False)
    trainer.strategy.connect(network)
    trainer.save_checkpoint(tmp_path / "network.ckpt")
    expected = Penultimate(network).fit(pixels).transform(pixels)
    with torch.no_grad():
        network.body[1].weight.zero_()
    loaded = Penultimate(network, tmp_path / "network.ckpt").fit(pixels).transform(pixels)
    assert torch.equal(loaded, expected)
    torch.save({"state_dict": {"other": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(RuntimeError, match="Missing key"):
        Penultimate(network, tmp_path / "other.ckpt").fit(pixels)


class NoLinear(L.LightningModule):
    def forward(self, x):
        return x


class PerPixel(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(x)


def test_modules_without_penultimate_features_are_refused(pixels):
    with pytest.raises(ValueError, match="Expected a linear layer in the forward of NoLinear, but none runs"):
        Penultimate(NoLinear()).fit(pixels)
    with pytest.raises(ValueError, match="Expected one row for each of 300 samples before the layer `head`"):
        Penultimate(PerPixel()).fit(pixels).transform(pixels)


def test_components_of_features_are_those_of_their_values(pixels):
    base = RandomReLU(7)
    fitted = PCA(3, whiten=True, base=base).fit(pixels)
    rows = base.fit(pixels).transform(pixels)
    expected = PCA(3, whiten=True).fit(rows).transform(rows)
    assert torch.allclose(fitted.transform(pixels), expected, rtol=0, atol=TOLERANCE)
    assert torch.equal(fitted.of_training(pixels), fitted.transform(pixels))
