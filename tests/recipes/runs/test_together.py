"""Lists of strengths: one training, and for each point what a training of its own leaves."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from agt_lightning import ParameterBounds
from agt_lightning.lightning.steps import CertifiedSteps
from recipes.runs.drawing import draw
from recipes.runs.steps import recorded
from recipes.runs.tables import finished, gather, read
from recipes.runs.together import points_of, trainings
from recipes.train import train, train_points

TINY = (
    "data.samples=60",
    "model.hidden=[8]",
    "trainer.enable_progress_bar=false",
    "figure.resolution=8",
    "logger=none",
)
SMALL_HOUSEHOLD = (
    "experiment=household",
    "data.batch_size=50",
    "model.hidden=[8]",
    "callbacks.mse_over_steps.samples=10",
    "trainer.enable_progress_bar=false",
)
RELATIVE = 1e-12


@pytest.fixture
def steps(monkeypatch):
    """Grows by one with each step of an optimizer."""
    made = []
    after = CertifiedSteps.after_optimizer_step
    monkeypatch.setattr(CertifiedSteps, "after_optimizer_step", lambda *given: made.append(1) or after(*given))
    return made


def assert_same_files(together: Path, alone: Path):
    found, expected = (ParameterBounds.load(folder / "bounds.safetensors") for folder in (together, alone))
    for name, interval in expected.items():
        torch.testing.assert_close(found[name].lower, interval.lower, rtol=RELATIVE, atol=0)
        torch.testing.assert_close(found[name].upper, interval.upper, rtol=RELATIVE, atol=0)
    certificates = [json.loads((folder / "certificate.json").read_text()) for folder in (together, alone)]
    for record in certificates:  # what is another one in each run: times, and the bytes of the file of bounds
        del record["made"], record["sha256_of_content"], record["digests"]["bounds"]["sha256_of_file"]
    assert certificates[0] == certificates[1], "results of the validation among it"
    results = [json.loads((folder / "result.json").read_text()) for folder in (together, alone)]
    assert results[0]["values"] == pytest.approx(results[1]["values"], rel=RELATIVE, abs=0)
    assert results[0]["fingerprint"] == results[1]["fingerprint"]
    assert (together / "widths.csv").read_text() == (alone / "widths.csv").read_text()


@pytest.mark.slow
def test_a_list_of_strengths_is_one_training_with_the_results_of_several(composed, tmp_path, steps):
    train_points(composed(*TINY, "adversary.n=[1,3,9]"))
    folder = tmp_path / "run"
    assert len(steps) == 4
    for n in (1, 3, 9):
        single = composed(*TINY, f"adversary.n={n}", f"output_dir={tmp_path / 'alone'}")
        train(single)
        assert_same_files(folder / f"adversary.n={n}", tmp_path / "alone")
    record = json.loads((folder / "certificate.json").read_text())
    assert list(record["certificates"]) == ["n_1", "n_3", "n_9"]
    assert "val_certified_accuracy" in record["curve"][0]["results"]
    assert [row["adversary.n"] for row in read(folder)] == ["1", "3", "9"]
    assert {"figure.png", "strengths.png", "config.yaml", "points.csv"} <= {path.name for path in folder.iterdir()}
    assert not list(folder.glob("bounds*")), "each lies beside its certificate"


@pytest.mark.slow
def test_errors_after_every_step_are_those_of_trainings_alone(composed, tmp_path, household_root, steps):
    overrides = (*SMALL_HOUSEHOLD, "record=steps", f"data.root={household_root}")
    train_points(composed(*overrides, "adversary.epsilon=[0.01,0.05]", "adversary.n=2"))
    assert len(steps) == 4
    logged = pd.read_csv(tmp_path / "run" / "metrics.csv").columns
    assert {"steps/epsilon_0.01/worst MSE", "agt/epsilon_0.05/mean_width", "agt/epsilon_0.05/val_certified_mse"} <= {
        *logged
    }
    for epsilon in (0.01, 0.05):
        own = f"adversary.epsilon={epsilon}"
        run = train(composed(*overrides, own, "adversary.n=2", "logger=none", f"output_dir={tmp_path / 'alone'}"))
        assert_same_files(tmp_path / "run" / own, tmp_path / "alone")
        pd.testing.assert_frame_equal(
            pd.read_csv(tmp_path / "run" / own / "steps.csv", index_col="step"),
            pd.DataFrame(recorded(run)).rename_axis("step"),
            rtol=RELATIVE,
            atol=0,
        )


@pytest.mark.slow
def test_all_levels_of_a_panel_are_one_training_that_figures_read(composed, tmp_path, steps):
    overrides = ("sweep=halfmoons", "debug=fast", "record.resolution=8", "logger=none", "panel=c")
    folder = tmp_path / "sweep"
    config = composed(*overrides, "level=all")
    config.output_dir = str(folder / "panel=c,level=all")
    train_points(config, folder)
    train_points(config, folder)
    assert len(steps) == 4, "finished points are skipped"
    gather(folder)
    assert [(row["panel"], row["level"], row["adversary.n"]) for row in read(folder)] == [
        ("c", "0", "1"), ("c", "1", "3"), ("c", "2", "5"), ("c", "3", "7")
    ]  # fmt: skip
    OmegaConf.save(composed(*overrides), folder / "multirun.yaml")
    assert draw(folder).stat().st_size > 0


@pytest.mark.slow
def test_a_point_that_was_trained_alone_is_copied_and_counts_once(composed, tmp_path, steps):
    folder = tmp_path / "sweep"
    train(composed(*TINY, "adversary.n=1", f"output_dir={folder / 'alone'}"))
    train_points(composed(*TINY, "adversary.n=[1,3]", f"output_dir={folder / 'job'}"), folder)
    assert len(steps) == 8
    assert [result.settings["adversary.n"] for result in finished(folder)] == [1, 3]


# --- points and trainings --------------------------------------------------------------------------------------------


def sizes(config):
    return [len(group) for group in trainings(points_of(config))]


def test_without_lists_there_is_one_point_in_the_folder_itself(composed):
    config = composed("adversary=label_flips", "adversary.target_classes=[0,1]")
    assert points_of(config) == [config]


def test_several_lists_are_all_their_combinations(composed):
    points = points_of(composed("adversary.n=[1,5]", "adversary.epsilon=[0.1,0.2]"))
    assert [(point.adversary.n, point.adversary.epsilon) for point in points] == [
        (1, 0.1),
        (1, 0.2),
        (5, 0.1),
        (5, 0.2),
    ]
    assert [Path(point.output_dir).name for point in points][:2] == [
        "adversary.n=1,adversary.epsilon=0.1", "adversary.n=1,adversary.epsilon=0.2"
    ]  # fmt: skip
    assert len({point.callbacks.certified.dirpath for point in points}) == 4
    assert sizes(composed("adversary.n=[1,5]", "adversary.epsilon=[0.1,0.2]")) == [4]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["sweep=crown_vs_ibp", "panel=depth", "level=all"], [1, 1, 1]),
        (["sweep=crown_vs_ibp", "panel=epsilon", "level=[0,2]"], [2]),
        (["sweep=household", "panel=n", "level=all"], [1, 1, 1]),  # each stops where it is vacuous
        (["adversary=unbounded", "adversary.n=[1,2]", "adversary.kappa=[0.1,0.2]"], [2, 2]),
        (["sweep=octmnist", "panel=any-4", "level=all"], [4]),
    ],
    ids=["networks", "strengths", "stopped", "clipping", "substituted"],
)
def test_only_points_of_one_training_share_it(composed, overrides, expected):
    assert sizes(composed(*overrides)) == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adversary.n=[5,1,5]"], r"Expected `adversary.n` to list distinct values, at least one, but got \[5, 1, 5\]"),
        (["adversary.n=[]"], r"Expected `adversary.n` to list distinct values, at least one, but got \[\]"),
        (["+adversary.kappa=[0.1,0.2]"], r"Expected settings of `BoundedAdversary`.*but got \['kappa'\]"),
        (["sweep=halfmoons", "panel=a", "level=[0,9]"], "Expected `level` to be from 0 to 3.*but got 9"),
        (["sweep=halfmoons", "panel=a", "level=[1,1]"], r"Expected `level` to list distinct values.*\[1, 1\]"),
        (["sweep=halfmoons", "panel=x", "level=all"], "Expected `panel` to be one of"),
    ],
)
def test_what_is_no_list_of_points_is_refused(composed, overrides, message):
    with pytest.raises(ValueError, match=message):
        points_of(composed(*overrides))


def test_values_that_are_written_differently_but_equal_are_refused(composed):
    with pytest.raises(ValueError, match="distinct values"):
        points_of(composed("adversary.epsilon=[1,1.0]"))


def test_a_training_that_stops_for_one_adversary_is_refused_for_several(composed, household_root):
    overrides = (*SMALL_HOUSEHOLD, "logger=none", "figure=none", "callbacks.mse_over_steps.stop_above=1")
    config = composed(*overrides, f"data.root={household_root}")
    nodes = [{**config.adversary, "n": n} for n in (1, 2)]
    config.callbacks.certified.adversary = nodes
    with pytest.raises(ValueError, match="Expected one adversary with `stop_above`"):
        train(config)


@pytest.mark.slow
def test_frames_of_several_adversaries_are_drawn_one_below_the_other(composed, tmp_path, drive_root):
    train_points(
        composed(
            "experiment=pilotnet", "debug=fast", "logger=none", "adversary.nu=[0.01,0.1]", f"data.root={drive_root}"
        )
    )
    rows = read(tmp_path / "run")
    assert float(rows[0]["worst MSE"]) < float(rows[1]["worst MSE"])
    assert (tmp_path / "run" / "figure.png").stat().st_size > 0
