"""`debug=fast`: every experiment runs in seconds, on data of the official formats."""

from pathlib import Path

import pytest

from recipes.train import train

EXPERIMENTS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "experiment").glob("*.yaml"))


@pytest.fixture
def data(household_root, mnist_root, drive_root, oct_root, pneumonia_root, magic_root):
    """Folder with small files of all data sets."""
    assert household_root == mnist_root == drive_root == oct_root == pneumonia_root == magic_root
    return household_root


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs_fast(composed, monkeypatch, data, experiment):
    monkeypatch.setenv("AGT_DATA_ROOT", str(data))
    config = composed(f"experiment={experiment}", "debug=fast")
    run = train(config)
    assert run.results
    files = {"certificate.json", "result.json"} | ({"figure.png"} if config.figure else set())
    assert files <= {path.name for path in run.output_dir.iterdir()}
