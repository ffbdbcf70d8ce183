import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from recipes.figure import main as figure
from recipes.runs import sweep
from recipes.runs.results import Result
from recipes.runs.sweep import START, at_point, point_name, progress, unfinished
from recipes.runs.tables import read
from recipes.train import train

ROOT = Path(__file__).parents[3]
TINY = ("sweep=halfmoons", "debug=fast", "record.resolution=8", "logger=none")
GRID = ("panel=a,c", "level=0,1")


@pytest.mark.slow
def test_point_has_its_panels_settings(composed):
    config = composed("sweep=household", "panel=depth", "level=1")
    assert list(at_point(config).model.hidden) == [64, 64]
    assert list(config.model.hidden) == [64]
    assert at_point(composed()) == composed()


def test_a_panel_can_have_another_kind_of_adversary(composed):
    config = at_point(composed("sweep=octmnist", "panel=any-4", "level=2"))
    assert config.adversary == {
        "_target_": "agt_lightning.UnboundedAdversary",
        "_convert_": "all",
        "n": 200,
        "kappa": 4.0,
    }
    assert list(config.callbacks.certified.domains) == ["box"]
    assert config.callbacks.certified.adversary == config.adversary


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["panel=x", "level=0"], r"Expected `panel` to be one of \['a', 'b', 'c', 'd'\], but got 'x'"),
        (["panel=a", "level=4"], "Expected `level` to be from 0 to 3, a list of these, or `all`, but got 4"),
        (["panel=a", "level=-1"], "Expected `level` to be from 0 to 3, a list of these, or `all`, but got -1"),
    ],
)
def test_points_that_are_not_there_are_refused(composed, overrides, message):
    with pytest.raises(ValueError, match=message):
        at_point(composed("sweep=halfmoons", *overrides))


def test_names_of_points_fit_into_a_folder():
    assert point_name(["output_dir=/a/b", "adversary.n=5", "data/features=pca"]) == "adversary.n=5,data.features=pca"
    assert point_name(["sweep=x"]) == "point"
    long = [point_name([f"adversary.n={'1' * 200}{end}"]) for end in "12"]
    assert long[0] != long[1]
    assert max(map(len, long)) < 100


def unless_finished(train, config):
    folder = Path(config.output_dir).parent
    for point in unfinished([config], folder):
        train(point)


class Training:
    """Counts trainings; each leaves a file and a result."""

    def __init__(self, fails=False):
        self.points, self.fails = [], fails

    def __call__(self, config):
        folder = Path(config.output_dir)
        self.points.append(folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "steps.csv").write_text("step\n0\n")
        if self.fails:
            raise KeyboardInterrupt
        Result.of(config, {"x": 1.0}, 1.0).save(folder)


def test_finished_points_are_skipped_and_others_run(composed, tmp_path, capsys):
    train, config = Training(), composed(f"output_dir={tmp_path}/s/a")
    unless_finished(train, config)
    unless_finished(train, config)
    assert train.points == ["a"]
    assert f"Finished already: {tmp_path}/s/a" in capsys.readouterr().out
    unless_finished(train, composed(f"output_dir={tmp_path}/s/b", "seed=1"))
    assert train.points == ["a", "b"]


def test_an_interrupted_point_runs_again(composed, tmp_path):
    config = composed(f"output_dir={tmp_path}/s/a")
    with pytest.raises(KeyboardInterrupt):
        unless_finished(Training(fails=True), config)
    assert (tmp_path / "s" / "a" / "steps.csv").is_file()
    train = Training()
    unless_finished(train, config)
    assert train.points == ["a"]


@pytest.mark.slow
def test_other_settings_or_code_in_the_same_folder_run_again(composed, tmp_path, monkeypatch):
    train = Training()
    unless_finished(train, composed(f"output_dir={tmp_path}/s/a"))
    unless_finished(train, composed(f"output_dir={tmp_path}/s/a", "seed=1"))
    monkeypatch.setattr("recipes.runs.results.code", lambda: "another")
    unless_finished(train, composed(f"output_dir={tmp_path}/s/a", "seed=1"))
    assert train.points == ["a", "a", "a"]


def test_an_outdated_result_does_not_survive_an_interrupted_training(composed, tmp_path):
    unless_finished(Training(), composed(f"output_dir={tmp_path}/s/a"))
    with pytest.raises(KeyboardInterrupt):
        unless_finished(Training(fails=True), composed(f"output_dir={tmp_path}/s/a", "seed=1"))
    assert Result.load(tmp_path / "s" / "a") is None


def test_the_same_setting_in_another_panel_is_copied(composed, tmp_path):
    train = Training()
    for panel, level in (("n", 2), ("epsilon", 2)):
        overrides = ["sweep=household", f"panel={panel}", f"level={level}", f"output_dir={tmp_path}/s/{panel}"]
        unless_finished(train, at_point(composed(*overrides)))
    assert train.points == ["n"]
    copy = Result.load(tmp_path / "s" / "epsilon")
    assert (copy.point, copy.panel, copy.level) == ("epsilon", "epsilon", 2)
    assert (tmp_path / "s" / "epsilon" / "steps.csv").is_file()


def test_time_left_is_told(composed, tmp_path, monkeypatch):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / START).write_text(json.dumps({"jobs": 3, "time": 0.0}))
    monkeypatch.setattr(sweep, "time", lambda: 60.0)
    unless_finished(Training(), composed(f"output_dir={tmp_path}/s/a"))
    assert progress(tmp_path / "s", 1) == "Job 1 of 3; about 2 min left"


def launch(*overrides):
    command = [sys.executable, "-m", "recipes.train", "-m", *TINY, *GRID, *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.mark.slow
def test_a_sweep_in_other_processes_resumes_gathers_and_draws(composed, tmp_path, capsys):
    folder = tmp_path / "sweep"
    finished, stopped = (folder / f"panel=c,level={level},record.resolution=8" for level in (0, 1))
    config = composed(*TINY, "panel=c", "level=0")
    config.output_dir = str(finished)
    train(at_point(config))
    stopped.mkdir()
    cores = (
        ["hydra/launcher=cores", "hydra.launcher.n_jobs=2"] if find_spec("hydra_plugins.hydra_joblib_launcher") else []
    )
    printed = launch(f"output_dir={folder}", *cores)
    assert printed.count("Finished already") == 1
    assert printed.count("training against") == 3
    assert "Job 4 of 4" in printed
    rows = read(folder)
    assert [(row["panel"], row["adversary.n"]) for row in rows] == [("a", "50"), ("a", "100"), ("c", "1"), ("c", "3")]
    for row in rows:
        assert json.loads((folder / row["point"] / "certificate.json").read_text())["steps"] == 4
    picture = (folder / "figure.png").read_bytes()
    (folder / "figure.png").unlink()
    figure([str(folder)])
    assert (folder / "figure.png").read_bytes() == picture
    assert str(folder / "figure.png") in capsys.readouterr().out


@pytest.mark.slow
def test_points_are_jobs_of_a_cluster(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    folder = tmp_path / "sweep"
    launch(f"output_dir={folder}", "panel=c", "level=1", "hydra/launcher=slurm_here")
    assert [row["adversary.n"] for row in read(folder)] == ["3"]


def test_figure_needs_a_sweep(tmp_path, capsys):
    with pytest.raises(SystemExit):
        figure([str(tmp_path)])
    assert "error: Expected finished points" in capsys.readouterr().err
