import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from recipes.models.scan_classifier import scan_network
from recipes.pretrain import accuracies, pretrain
from tests.recipes.conftest import ROOT


@pytest.fixture
def config(oct_root, tmp_path):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("pretrain", ["debug=fast", f"data.root={oct_root}", f"output_dir={tmp_path / 'run'}"])


def test_the_network_is_trained_once_and_told_of(config, tmp_path, capsys):
    first = pretrain(config)
    said = capsys.readouterr().out
    assert "OCTMNIST: 30 clean images, 10 new ones are left out" in said
    assert "epoch 1: cross-entropy" in said
    (path,) = (tmp_path / "run").glob("octmnist-*.safetensors")
    assert f"Kept in {path}" in said
    changed = path.stat().st_mtime_ns
    assert pretrain(config) == first
    assert path.stat().st_mtime_ns == changed


def test_accuracies_are_of_all_of_the_new_class_and_of_the_others():
    network = scan_network()
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.ones_(network[1][-1].bias)  # everything is abnormal
    batch = (
        torch.zeros(5, 1, 28, 28),
        torch.tensor([1.0, 1, 0, 0, 1]),
        torch.tensor([True, False, False, False, False]),
    )
    assert accuracies(network.state_dict(), batch) == {
        "accuracy": pytest.approx(0.6),
        "accuracy, new class": 1.0,
        "accuracy, other classes": 0.5,
    }
