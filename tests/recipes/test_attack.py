"""The three attack recipes, small enough for seconds."""

import csv

import numpy as np
import pytest

from recipes.attacks import collision as attack_collision
from recipes.attacks import flips as attack_flips
from recipes.attacks import parameters as attack_parameters

FILES = {"figure.png", "table.md"}
SMALL = ("--batch-size", "40", "--hidden", "4", "--steps", "3", "--n", "3")


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_parameters_are_pushed_inside_their_bounds(household_root, tmp_path, capsys):
    attack_parameters.main(["--root", str(household_root), "--output", str(tmp_path), *SMALL])
    assert {path.name for path in tmp_path.iterdir()} >= FILES | {"trajectories.csv"}
    ratios = [float(cell) for line in capsys.readouterr().out.splitlines()[:6] for cell in line.split("|")[5:8:2]]
    assert all(0 < ratio <= 1 for ratio in ratios)
    found = rows(tmp_path / "trajectories.csv")
    assert {row["kind"] for row in found} == {"attack", "bounds", "ball"}
    assert {row["name"] for row in found} == {"clean", *attack_parameters.PUSHES, *attack_parameters.DOMAINS}
    again = tmp_path / "again"
    path = tmp_path / "trajectories.csv"
    attack_parameters.main(["--redraw", str(path), "--output", str(again)])
    assert (again / "figure.png").stat().st_size > 0


def test_a_collision_is_inside_its_bounds(household_root, tmp_path, capsys):
    attack_collision.main(["--root", str(household_root), "--output", str(tmp_path), *SMALL])
    assert {path.name for path in tmp_path.iterdir()} >= FILES | {"losses.csv"}
    found = rows(tmp_path / "losses.csv")
    bounds = {row["step"]: row for row in found if row["kind"] == "bounds"}
    assert len(bounds) == 4
    for row in found:
        certified = bounds[row["step"]]
        assert float(certified["lower"]) <= float(row["loss"]) <= float(certified["upper"])
    attack_collision.main(["--redraw", str(tmp_path / "losses.csv"), "--output", str(tmp_path / "again")])
    assert (tmp_path / "again" / "figure.png").stat().st_size > 0


@pytest.fixture
def pneumonia_root(tmp_path):
    """A few noisy images, the ill ones brighter."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "data" / "medmnist"
    folder.mkdir(parents=True)
    arrays = {}
    for split, count in (("train", 60), ("test", 12)):
        labels = (np.arange(count) % 2).astype(np.uint8)[:, None]
        arrays[f"{split}_images"] = (generator.integers(0, 90, (count, 28, 28)) + 100 * labels[:, :, None]).astype(
            np.uint8
        )
        arrays[f"{split}_labels"] = labels
    np.savez(folder / "pneumoniamnist.npz", **arrays)
    return tmp_path / "data"


def test_flips_are_inside_their_bounds(pneumonia_root, tmp_path, capsys):
    output = tmp_path / "run"
    small = ["--strengths", "0", "2", "--pretraining", "20", "--samples", "20", "--attacks", "1"]
    attack_flips.main(["--root", str(pneumonia_root), "--output", str(output), *small])
    assert {path.name for path in output.iterdir()} == FILES | {"accuracies.csv"}
    found = rows(output / "accuracies.csv")
    assert [(row["n"], row["kind"]) for row in found] == [
        (n, kind) for n in ("0", "2") for kind in ("bounds", "attack", "attack")
    ]
    assert "| 2 | " in capsys.readouterr().out
    attack_flips.main(["--redraw", str(output / "accuracies.csv"), "--output", str(tmp_path / "again")])
    assert (tmp_path / "again" / "figure.png").stat().st_size > 0


def test_missing_data_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected PneumoniaMNIST"):
        attack_flips.main(["--root", str(tmp_path), "--output", str(tmp_path)])
