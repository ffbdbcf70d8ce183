import csv
import json
from types import SimpleNamespace

import pytest
import torch
from hydra.types import RunMode

from agt_lightning import ParameterBounds
from recipes.runs import job as recipe_job
from recipes.runs.job import run_experiment
from recipes.runs.steps import recorded
from recipes.train import train

FILES = {
    "certificate.json",
    "bounds.safetensors",
    "metrics.csv",
    "figure.png",
    "config.yaml",
    "result.json",
    "widths.csv",
}
SMALL = ("data.samples=60", "model.hidden=[8]", "adversary.n=2", "trainer.enable_progress_bar=false")
SMALL_FIGURE = ("figure.resolution=12",)
SMALL_HOUSEHOLD = (
    "experiment=household",
    "data.batch_size=50",
    "model.hidden=[8]",
    "adversary.n=2",
    "callbacks.mse_over_steps.samples=10",
    "trainer.enable_progress_bar=false",
)


def columns(path):
    with path.open() as file:
        return {name for row in csv.DictReader(file) for name, value in row.items() if value}


@pytest.mark.slow
def test_halfmoons_from_end_to_end(composed, capsys):
    run = train(composed(*SMALL, *SMALL_FIGURE))
    assert {path.name for path in run.output_dir.iterdir()} >= FILES
    assert 0 <= run.results["certified accuracy"] <= run.results["nominal accuracy"] <= 1
    certificate = json.loads((run.output_dir / "certificate.json").read_text())
    assert certificate["adversary"]["n"] == 2
    assert certificate["steps"] == 4
    bounds = ParameterBounds.load(run.output_dir / "bounds.safetensors")
    assert bounds.contains(run.module)
    assert bounds.mean_width() > 0
    assert {"train/loss", "val/accuracy", "test/accuracy", "agt/mean_width"} <= columns(run.output_dir / "metrics.csv")
    printed = capsys.readouterr().out
    assert "halfmoons: training against BoundedAdversary with n = 2, ε = 0.01" in printed
    assert "nominal accuracy" in printed
    assert "certified accuracy" in printed
    assert f"Written to\n  {run.output_dir}\n  bounds.safetensors\n  certificate.json\n" in printed


def test_household_from_end_to_end(composed, household_root):
    run = train(composed(*SMALL_HOUSEHOLD, f"data.root={household_root}"))
    assert {path.name for path in run.output_dir.iterdir()} >= FILES
    assert run.results["best MSE"] <= run.results["nominal MSE"] <= run.results["worst MSE"]
    history = recorded(run)
    assert len(history) == 1 + 4  # the untrained module, and 160 rows in batches of 50
    for values in history:
        assert values["best MSE"] <= values["nominal MSE"] + 1e-12
        assert values["nominal MSE"] <= values["worst MSE"] + 1e-12
    assert {"steps/worst MSE", "val/mse", "test/mse"} <= columns(run.output_dir / "metrics.csv")


@pytest.mark.parametrize("adversary", ["bounded", "unbounded", "label_flips", "none"])
def test_every_adversary_trains_half_moons(composed, adversary):
    small = [override for override in SMALL if not override.startswith("adversary")]
    run = train(composed(*small, *SMALL_FIGURE, f"adversary={adversary}", "logger=none"))
    assert run.results["certified accuracy"] <= run.results["nominal accuracy"]
    if adversary == "none":
        assert run.results["certified accuracy"] == run.results["nominal accuracy"]


@pytest.mark.slow
def test_same_seed_same_certificate(composed):
    first, second = (train(composed(*SMALL, "figure=none", "logger=none")) for _ in range(2))
    assert first.results == second.results
    for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def job(composed, tmp_path, monkeypatch):
    """A configuration as Hydra's job would hand it over."""
    folder = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(tmp_path / "job")), mode=RunMode.RUN)
    monkeypatch.setattr(recipe_job, "HydraConfig", SimpleNamespace(get=lambda: folder))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return composed


def test_a_job_works_in_hydras_folder(job, tmp_path):
    seen = []
    run_experiment(lambda config: seen.append(config.callbacks.certified.dirpath), job())
    assert seen == [str(tmp_path / "job")]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adversary.n=-1"], "Expected `n` to be at least 0, but got -1"),
        (["optimizer._target_=torch.optim.NAdam"], "cannot be certified"),
        (["experiment=household", "data.root=missing"], "archive.ics.uci.edu"),
    ],
    ids=["argument", "refused optimizer", "no network"],
)
def test_errors_end_in_one_message(job, capsys, monkeypatch, overrides, message):
    def unreachable(request):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    monkeypatch.chdir(job("name=test").output_dir.rsplit("/", 1)[0])
    with pytest.raises(SystemExit) as stopped:
        run_experiment(train, job(*overrides))
    assert stopped.value.code == 1
    printed = capsys.readouterr().err
    assert "error: " in printed
    assert message in printed
    assert "Traceback" not in printed


def test_full_error_keeps_the_trace(job, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def fail(config):
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        run_experiment(fail, job())


@pytest.mark.slow
def test_household_epoch_on_real_minutes(composed, real_data):
    run = train(composed("experiment=household", f"data.root={real_data}", "trainer.enable_progress_bar=false"))
    assert run.results["best MSE"] <= run.results["nominal MSE"] <= run.results["worst MSE"]
    assert run.results["worst MSE"] < 0.04
    assert {path.name for path in run.output_dir.iterdir()} >= FILES


def test_half_moons_certify_more_than_the_best_published_figure(composed):
    run = train(composed("adversary.n=200", "trainer.enable_progress_bar=false", "figure=none"))
    assert run.results["certified accuracy"] >= 0.386
