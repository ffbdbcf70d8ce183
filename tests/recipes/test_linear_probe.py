"""The recipe of linear probes, on files of the official format with few random digits, and on the real ones."""

import json
import os
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from recipes.data.features import PCA, RandomReLU
from recipes.data.mnist import SHA256, find_file
from recipes.models.rates import mse_rate, settled
from recipes.runs.certificates import flips_certificate
from recipes.runs.flips import CertifiedFlips
from recipes.train import train

ROOT = Path(__file__).parents[2]
FILES = {"certificate.json", "bounds.safetensors", "metrics.csv", "figure.png", "flips.csv"}
SMALL = ("data.features.components=4", "certificate.every=2", "trainer.enable_progress_bar=false")


@pytest.fixture
def root(mnist_root):
    return mnist_root


def test_one_probe_from_end_to_end(composed, root, capsys):
    run = train(composed("experiment=linear_probe", f"data.root={root}", *SMALL))
    assert {path.name for path in run.output_dir.iterdir()} >= FILES
    curve = CertifiedFlips.load(run.output_dir / "flips.csv", "all")
    x, y = run.datamodule.splits["test"]
    assert torch.equal(curve.flips, run.model.certified_flips(x[::2]))
    assert run.results["median certified flips"] == curve.median
    assert int(curve.flips.max()) > 0
    assert run.results["nominal accuracy"] == float((run.module(x).argmax(dim=1) == y).double().mean())
    assert run.results["certified accuracy at 1 flips"] == curve.certified_accuracy(1)
    record = json.loads((run.output_dir / "certificate.json").read_text())
    assert record["bounds"]["domains"]["in_use"]["influence"]["samples"] == 200
    assert "median certified flips" in capsys.readouterr().out


def test_features_settle_width_and_rate(composed, root):
    config = composed(
        "experiment=linear_probe", f"data.root={root}", *SMALL, "optimizer.lr=0.5", "optimizer.weight_decay=0.1"
    )
    data = instantiate(config.data)
    changed = settled(config, data)
    features, _ = data.splits["train"]
    assert changed.model.features == 4
    assert changed.optimizer.lr == 0.5 * mse_rate(features, 10, 0.1)
    assert (config.model.features, config.optimizer.lr) == (32, 0.5)


@pytest.mark.parametrize(("choice", "features"), [("pca", PCA(32)), ("random_relu", RandomReLU(2000, offset=0.3))])
def test_every_choice_of_features_instantiates(composed, choice, features):
    config = composed("data=mnist_features", f"data/features={choice}", "name=test")
    assert instantiate(config.data).features == features


def test_flips_are_kept_in_a_file(tmp_path):
    curve = CertifiedFlips("PCA", torch.tensor([3, 0, -1]), torch.tensor([True, False, True]))
    path = curve.save(tmp_path / "new" / "flips.csv", torch.tensor([0, 10, 20]))
    assert path.read_text().splitlines() == ["test_sample,certified_flips,correct", "0,3,1", "10,0,0", "20,-1,1"]
    read = CertifiedFlips.load(path, "again")
    assert (read.label, read.flips.tolist(), read.correct.tolist()) == ("again", [3, 0, -1], [True, False, True])


def test_every_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="Expected `every` to be at least 1, but got 0"):
        flips_certificate(None, None, [], tmp_path / "flips.csv", every=0)


@pytest.mark.slow
def test_principal_components_of_real_digits(composed):
    """PCA-32, two steps: certified flips of every tenth test sample."""
    root = Path(os.environ.get("AGT_DATA_ROOT") or ROOT.parent / "shared" / "data")
    if any(find_file(root, name) is None for name in SHA256):
        pytest.skip("no real data; set AGT_DATA_ROOT")
    run = train(composed("experiment=linear_probe", f"data.root={root}", "trainer.enable_progress_bar=false"))
    assert run.results["nominal accuracy"] >= 0.775
    assert run.results["median certified flips"] >= 470
    assert len(CertifiedFlips.load(run.output_dir / "flips.csv", "all").flips) == 1000
