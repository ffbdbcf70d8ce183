"""What is prepared for a GPU runs on a CPU, at small sizes, and keeps what it has found."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from recipes.benchmark.cuda import gpu_tests, steps, sums
from recipes.benchmark.cuda.__main__ import main
from recipes.benchmark.cuda.processes import Outcome, run
from recipes.benchmark.cuda.request import Request
from recipes.benchmark.cuda.results import write_results
from recipes.benchmark.cuda.stages import STAGES
from recipes.benchmark.step_cost import Setting
from recipes.benchmark.workloads import TABLE

REQUEST = Request("cpu", 0.002, 1)

MISSING = ("hydra", "omegaconf", "pandas", "beartype", "jaxtyping", "numba", "sklearn", "medmnist", "wandb")
"""Packages that the machine with a GPU can lack."""

ROOT = Path(__file__).parents[3]


@pytest.fixture
def bare_machine(tmp_path, monkeypatch):
    """Other processes find none of these packages."""
    place = tmp_path / "site"
    place.mkdir()
    (place / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({MISSING}))\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place), str(ROOT)]))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # some of them have a plugin here
    monkeypatch.chdir(ROOT)


@pytest.mark.slow
@pytest.mark.usefixtures("bare_machine")
def test_command_needs_nothing_that_the_machine_lacks(tmp_path, capsys):
    main(["--device", "cpu", "--scale", "0.002", "--stages", "machine", "--output-dir", str(tmp_path)])
    found = json.loads((tmp_path / "cuda.json").read_text())
    (stage,) = found["stages"]
    assert stage["ending"] == "done"
    assert stage["rows"][0]["torch"] == torch.__version__.partition("+")[0]
    assert "no GPU" in (tmp_path / "cuda.md").read_text()
    assert str(tmp_path / "cuda.md") in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("bare_machine")
def test_all_stages_run_where_packages_are_missing(tmp_path):
    few = "tests/test_digest.py"
    main(["--device", "cpu", "--scale", "0.002", "--repeats", "1", "--tests", few, "--output-dir", str(tmp_path)])
    stages = {stage["stage"]: stage for stage in json.loads((tmp_path / "cuda.json").read_text())["stages"]}
    assert stages.keys() == STAGES.keys()
    assert all(stage["rows"] for stage in stages.values())


def test_limits_add_up_to_less_than_six_minutes():
    assert sum(stage.seconds for stage in STAGES.values()) < 360


def outcome(program, tmp_path, limit=60.0):
    command = [sys.executable, "-c", f"import sys\nfile = open(sys.argv[1], 'a')\n{program}"]
    return run("sums", command, limit, tmp_path / "rows", {"AGT_ROWS": "7"})


def test_rows_of_a_stage_that_fails_or_is_stopped_are_kept(tmp_path):
    said = "import os\nprint('{\"ms\": ' + os.environ['AGT_ROWS'] + '}', file=file, flush=True)\n"
    done = outcome(said, tmp_path)
    assert (done.rows, done.ending, done.failed) == ([{"ms": 7}], "done", False)
    failed = outcome(said + "raise ValueError('no such card')", tmp_path)
    assert (failed.rows, failed.failed) == ([{"ms": 7}], True)
    assert "no such card" in failed.ending
    halfway = "print('{\"ms', end='', file=file, flush=True)\nimport time\ntime.sleep(60)"
    stopped = outcome(said + halfway, tmp_path, limit=1.0)
    assert (stopped.rows, stopped.ending, stopped.failed) == ([{"ms": 7}], "stopped after 1 s", True)
    assert stopped.seconds < 30


def test_tables_say_where_and_what_failed(tmp_path):
    rows = [{"test": "a", "outcome": "passed"}, {"test": "b", "outcome": "failed", "reason": "E  too\nwide"}]
    outcomes = [
        Outcome("machine", 1.0, "done", [{"card": "Card 9", "torch": "2"}]),
        Outcome("steps", 1.0, "stopped after 1 s", [{"workload": "x", "ms": 1.234}, {"workload": "y", "error": "no"}]),
        Outcome("tests", 1.0, "done", rows),
    ]
    write_results(outcomes, REQUEST, tmp_path)
    text = (tmp_path / "cuda.md").read_text()
    for part in (
        "*Card 9, torch 2;",
        "| x | 1.23 |",
        "- workload y, error no",
        "1 passed, 1 failed",
        "- b: E too wide",
    ):
        assert part in text
    assert [each.failed for each in outcomes] == [False, True, True]


@pytest.mark.parametrize("domain", ["box", "ball"])
def test_a_row_has_times_memory_and_width(domain):
    row = steps.row(TABLE[1].smaller(0.001), Setting("cpu", torch.float32, torch.float32, 1, domains=(domain,)))
    assert row["ratio"] == row["certified ms"] / row["plain ms"]
    assert row["memory ratio"] >= 1
    assert row["mean width"] > 0


@pytest.mark.slow
def test_what_stops_a_training_is_a_row():
    row = steps.row(TABLE[1].smaller(0.001), Setting("nowhere", torch.float64, torch.float64, 1))
    assert row["workload"] == TABLE[1].name
    assert "nowhere" in row["error"]


@pytest.mark.slow
def test_steps_with_the_kernel_in_triton_have_the_same_bounds(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(steps, "_TYPES", (torch.float64,))
    usual, triton = [], []
    monkeypatch.setattr(steps, "TABLE", TABLE[1:2])
    steps.measure_usual(REQUEST, usual.append)
    monkeypatch.setattr(steps, "TABLE", TABLE)
    steps.measure_triton(REQUEST, triton.append)
    assert [rows[0]["kernel"] for rows in (usual, triton)] == ["CompiledKernel", "TritonKernel"]
    assert triton[0]["mean width"] == pytest.approx(usual[0]["mean width"], rel=1e-9)


@pytest.mark.slow
def test_kernels_are_compared(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(sums, "LAYERS", sums.LAYERS[:1])
    found = []
    sums.measure(REQUEST, found.append)
    assert [(row["type"], row["kernel"]) for row in found] == [
        (name, kernel) for name in ("float64", "float32") for kernel in ("torch.topk", "Triton 4 × 4 × 512")
    ]
    assert all("error" not in row for row in found)


def test_a_kernel_that_is_wrong_or_fails_is_said():
    class Wrong(sums.TorchKernel):
        def sums(self, gains, n):
            return super().sums(gains, n) * 1.001

    class Broken(sums.TorchKernel):
        def sums(self, gains, n):
            raise RuntimeError("illegal memory access")

    (layer, *_) = sums.layers(REQUEST)
    gains = layer.gains(torch.float64, "cpu")
    expected = torch.stack(sums.TorchKernel().outer_sums(gains, layer.n))
    assert sums._compared(Wrong(), gains, layer.n, expected, REQUEST)["error"] == "differs by more than rounding"
    assert "illegal memory access" in sums._compared(Broken(), gains, layer.n, expected, REQUEST)["error"]


def test_files_with_tests_for_a_gpu_are_found():
    names = {Path(file).relative_to(ROOT / "tests").as_posix() for file in gpu_tests.files()}
    assert {"engine/test_cuda.py", "lightning/test_cuda.py", "distributed/test_cuda.py"} <= names
    assert "test_bounds.py" not in names


def test_tests_that_do_not_run_are_no_success(monkeypatch):
    monkeypatch.setattr(gpu_tests.pytest, "main", lambda *given, **more: pytest.ExitCode.NO_TESTS_COLLECTED)
    with pytest.raises(RuntimeError, match="NO_TESTS_COLLECTED"):
        gpu_tests.measure(REQUEST, [].append)


def test_each_test_is_a_row():
    found = []
    recorder = gpu_tests._Recorder(found.append)
    report = lambda when, outcome: SimpleNamespace(  # noqa: E731
        when=when, outcome=outcome, passed=outcome == "passed", failed=outcome == "failed", nodeid="a", duration=1.0,
        longreprtext="too wide",
    )  # fmt: skip
    for each in (report("setup", "passed"), report("call", "passed"), report("call", "failed")):
        recorder.pytest_runtest_logreport(each)
    recorder.pytest_runtest_logreport(report("setup", "skipped"))
    recorder.pytest_collectreport(report("collect", "failed"))
    assert [row["outcome"] for row in found] == ["passed", "failed", "skipped", "failed"]
    assert found[1]["reason"] == "too wide"
