"""The families of attacks, small enough for seconds."""

from itertools import pairwise

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from recipes.attack import attack
from recipes.attacks.parameters import DOMAINS, PUSHES
from tests.recipes.conftest import ROOT

FILES = {"figure.png", "table.md"}


@pytest.fixture
def attacked(tmp_path):
    """Run an application of small attacks, and return its folder."""

    def run(name, *overrides):
        folder = tmp_path / name
        folder.mkdir()
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            attack(compose("attack", [f"attack={name.split('.')[0]}", f"output_dir={folder}", *overrides]))
        return folder

    return run


def redrawn(attacked, folder, file):
    """Draw the table of an earlier run again, without data."""
    again = attacked(f"{folder.name}.again", f"redraw={folder / file}", "data.root=missing")
    assert {path.name for path in again.iterdir()} == {"figure.png"}
    assert (again / "figure.png").read_bytes() == (folder / "figure.png").read_bytes()


@pytest.mark.slow
def test_parameters_are_pushed_inside_their_bounds(attacked, household_root):
    folder = attacked("parameters", "debug=fast", f"data.root={household_root}")
    assert {path.name for path in folder.iterdir()} == FILES | {"trajectories.csv"}
    lines = (folder / "table.md").read_text().splitlines()[2:]
    ratios = [float(cell) for line in lines for cell in line.split("|")[5:8:2]]
    assert all(0 < ratio <= 1 for ratio in ratios)
    found = pd.read_csv(folder / "trajectories.csv")
    assert set(found["kind"]) == {"attack", "bounds", "ball"}
    assert set(found["name"]) == {"clean", *PUSHES, *DOMAINS}
    redrawn(attacked, folder, "trajectories.csv")


@pytest.mark.slow
def test_outputs_are_pushed_inside_their_bounds(attacked, household_root):
    folder = attacked("outputs", "debug=fast", f"data.root={household_root}")
    assert {path.name for path in folder.iterdir()} == FILES | {"outputs.csv"}
    found = pd.read_csv(folder / "outputs.csv")
    assert len(found) == 2 * 2
    order = ["lower", "attack_lower", "nominal", "attack_upper", "upper"]
    assert all((found[a] <= found[b]).all() for a, b in pairwise(order))
    assert (found["attack_upper"] > found["nominal"]).all()  # the attack does something
    redrawn(attacked, folder, "outputs.csv")


@pytest.mark.slow
def test_a_collision_is_inside_its_bounds(attacked, household_root):
    folder = attacked("collision", "debug=fast", f"data.root={household_root}")
    assert {path.name for path in folder.iterdir()} == FILES | {"losses.csv"}
    found = pd.read_csv(folder / "losses.csv")
    bounds = found[found["kind"] == "bounds"].set_index("step")
    assert len(bounds) == 4
    certified = bounds.loc[found["step"]].reset_index()
    assert (certified["lower"] <= found["loss"]).all()
    assert (found["loss"] <= certified["upper"]).all()
    redrawn(attacked, folder, "losses.csv")


def test_flips_are_inside_their_bounds(attacked, pneumonia_root):
    folder = attacked("flips", "debug=fast", f"data.root={pneumonia_root}")
    assert {path.name for path in folder.iterdir()} == FILES | {"accuracies.csv"}
    found = pd.read_csv(folder / "accuracies.csv")
    assert list(zip(found["n"], found["kind"], strict=True)) == [
        (n, kind) for n in (0, 2) for kind in ("bounds", "attack", "attack")
    ]
    assert "| 2 | " in (folder / "table.md").read_text()
    redrawn(attacked, folder, "accuracies.csv")
