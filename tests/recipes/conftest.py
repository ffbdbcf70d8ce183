import gzip
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from recipes.data.household import find_file
from recipes.runs.sweep import at_point
from recipes.runs.tables import gather
from recipes.train import train
from tests.recipes.drives import write_evaluation
from tests.recipes.scans import write_scans
from tests.recipes.showers import shower_rows, write_showers

ROOT = Path(__file__).parents[2]


@pytest.fixture
def composed(tmp_path: Path) -> Callable[..., DictConfig]:
    """Compose ``conf/train.yaml`` with overrides and an output folder of this test."""

    def compose_config(*overrides: str) -> DictConfig:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("train", [f"output_dir={tmp_path / 'run'}", *overrides])

    return compose_config


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the real household data, or skip."""
    root = Path(os.environ.get("AGT_DATA_ROOT") or ROOT.parent / "shared" / "data")
    if find_file(root) is None:
        pytest.skip("no real data; set AGT_DATA_ROOT")
    return root


@pytest.fixture
def household_root(tmp_path: Path) -> Path:
    """Folder with 200 minutes in UCI's format."""
    generator = np.random.default_rng(0)
    lines = [
        "Date;Time;Global_active_power;Global_reactive_power;Voltage;Global_intensity;"
        "Sub_metering_1;Sub_metering_2;Sub_metering_3"
    ]
    for minute, meters in enumerate(generator.uniform(0, 10, (200, 7))):
        lines.append(
            f"16/12/2006;{minute // 60:02}:{minute % 60:02}:00;" + ";".join(f"{meter:.3f}" for meter in meters)
        )
    root = tmp_path / "data"
    root.mkdir(exist_ok=True)
    (root / "household_power_consumption.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def mnist_root(tmp_path: Path) -> Path:
    """Folder with 200 noisy digits to train on and 20 to test: one bright row of pixels per class."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for split, count in (("train", 200), ("t10k", 20)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = generator.integers(0, 60, (count, 28, 28)).astype(np.uint8)
        images[np.arange(count), 2 * labels] += 180
        _write_idx(folder / f"{split}-images-idx3-ubyte.gz", images)
        _write_idx(folder / f"{split}-labels-idx1-ubyte.gz", labels)
    return tmp_path / "data"


@pytest.fixture
def drive_root(tmp_path: Path) -> Path:
    """Folder with a drive of 20 frames."""
    write_evaluation(tmp_path / "data" / "udacity_ch2_001")
    return tmp_path / "data"


@pytest.fixture
def oct_root(tmp_path: Path) -> Path:
    """Folder with 40 scans to train on and 8 to test, in the format of OCTMNIST."""
    write_scans(tmp_path / "data" / "medmnist" / "octmnist.npz")
    return tmp_path / "data"


@pytest.fixture
def pneumonia_root(tmp_path: Path) -> Path:
    """Folder with 60 images to train on and 12 to test, in the format of PneumoniaMNIST."""
    write_scans(tmp_path / "data" / "medmnist" / "pneumoniamnist.npz", train=60, test=12, classes=2)
    return tmp_path / "data"


@pytest.fixture
def magic_root(tmp_path: Path) -> Path:
    """Folder with 50 made showers in the format of UCI's MAGIC data."""
    write_showers(tmp_path / "data", shower_rows(50))
    return tmp_path / "data"


@pytest.fixture
def swept(composed: Callable[..., DictConfig], tmp_path: Path) -> Callable[..., Path]:
    """Train points of a sweep, each given by its own overrides, gather them, and return the folder."""

    def sweep(name: str, points: Mapping[str, Sequence[str]], *overrides: str) -> Path:
        folder = tmp_path / name
        for point, own in points.items():
            train(at_point(composed(f"sweep={name}", f"output_dir={folder / point}", "logger=none", *overrides, *own)))
        OmegaConf.save(composed(f"sweep={name}"), folder / "multirun.yaml")
        gather(folder)
        return folder

    return sweep


def _write_idx(path: Path, values: np.ndarray) -> None:
    lengths = b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, values.ndim]) + lengths + values.tobytes(), mtime=0))
