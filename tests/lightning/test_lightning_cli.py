"""Lightning's command line builds the callback and its adversary from a file; nothing attaches it by itself."""

import json
from importlib.metadata import entry_points
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from agt_lightning import Acceptance, BoundedAdversary, CertifiedTraining

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of jsonargparse, for what Lightning calls
CONFIG = Path(__file__).parents[2] / "docs" / "lightning_cli.yaml"
QUIET = ("accelerator=cpu", "logger=false", "enable_checkpointing=false", "enable_progress_bar=false")


class Classifier(L.LightningModule):
    def __init__(self, rate: float = 0.1):
        super().__init__()
        self.net = nn.Linear(2, 2)
        self.rate = rate

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Signs(L.LightningDataModule):
    def train_dataloader(self):
        x = torch.linspace(-1, 1, 16).reshape(8, 2)
        return DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=4)


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Run the command line on a file with the given adversary, and return its callback."""
    cli = pytest.importorskip("lightning.pytorch.cli")
    if not cli._JSONARGPARSE_SIGNATURES_AVAILABLE:
        pytest.skip("needs jsonargparse[signatures], which Lightning installs with its extra dependencies only")
    monkeypatch.setattr("sys.argv", ["train.py"])  # Lightning warns of words that it is not to read
    monkeypatch.chdir(tmp_path)  # where `dirpath: certified` is

    def run(config):
        path = tmp_path / "given.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        settings = [f"--trainer.{setting}" for setting in QUIET]
        made = cli.LightningCLI(Classifier, Signs, args=["fit", "--config", str(path), *settings])
        (certified,) = (each for each in made.trainer.callbacks if isinstance(each, CertifiedTraining))
        return certified

    return run


@pytest.fixture
def config():
    return yaml.safe_load(CONFIG.read_text(encoding="utf-8"))


def settings_of_callback(config):
    return config["trainer"]["callbacks"][0]["init_args"]


def test_the_documented_file_trains_and_certifies(fit, config, tmp_path):
    certified = fit(config)
    assert certified.adversaries == (BoundedAdversary(n=1, epsilon=0.01),)
    assert certified.acceptance == (Acceptance("mean_width", at_most=0.1),)
    assert 0 < certified.bounds.mean_width() < 0.1
    written = json.loads((tmp_path / "certified" / "certificate.json").read_text(encoding="utf-8"))
    assert written["adversary"]["n"] == 1
    assert (tmp_path / "certified" / "bounds.safetensors").exists()


def test_several_adversaries_are_a_list(fit, config):
    each = settings_of_callback(config)
    each["adversary"] = [{**each["adversary"], "init_args": {"n": n, "epsilon": 0.01}} for n in (1, 2)]
    assert [adversary.n for adversary in fit(config).adversaries] == [1, 2]


def test_a_misspelled_setting_is_refused_before_training(fit, config, capsys):
    settings_of_callback(config)["adversary"]["init_args"]["epsilom"] = 0.01
    with pytest.raises(SystemExit):
        fit(config)
    assert "epsilom" in capsys.readouterr().err


def test_no_entry_point_attaches_the_callback_to_every_trainer():
    factories = entry_points(group="lightning.pytorch.callbacks_factory")
    assert not [each for each in factories if each.value.startswith("agt_lightning")]
