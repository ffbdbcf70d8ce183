import csv
from contextlib import nullcontext
from functools import partial

import pytest
import torch

from recipes.benchmark import costs as benchmark
from recipes.benchmark.report import markdown
from recipes.benchmark.step_cost import Seconds, Setting, StepCost, Training, extra_memory
from recipes.benchmark.workloads import GROWTH, TABLE, along
from recipes.figures.step_costs import slope

SMALL = ["--scale", "0.005", "--repeats", "1", "--device", "cpu"]


def test_table_is_written_and_its_paths_are_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "extra_memory", lambda workload, setting, threads: workload().samples)
    benchmark.main([*SMALL, "--parts", "table", "--workloads", "0", "1", "--output-dir", str(tmp_path)])
    said = capsys.readouterr().out
    for name in ("benchmark.csv", "benchmark.md", "benchmark.png"):
        assert (tmp_path / name).stat().st_size > 0
        assert str(tmp_path / name) in said.partition("Written:")[2]
    with (tmp_path / "benchmark.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["workload"] for row in rows] == [workload.name for workload in TABLE[:2]]
    assert all(float(row["ratio"]) > 1 for row in rows)
    assert [float(row["extra memory MB"]) for row in rows] == [float(row["b"]) / 1e6 for row in rows]


def test_a_ratio_above_the_stored_one_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "extra_memory", lambda workload, setting, threads: 0)
    given = [*SMALL, "--parts", "table", "--workloads", "0", "--gate"]
    for stored, raises in (
        (1e-3, pytest.raises(SystemExit, match=r"UCI 11-64-1: .* times the stored 0.0")),
        (1e9, nullcontext()),
    ):
        monkeypatch.setattr(benchmark.gate, "stored_ratios", lambda ratio=stored: {"UCI 11-64-1": ratio})
        with raises:
            benchmark.main([*given, "--output-dir", str(tmp_path)])


def test_stored_ratios_are_those_of_the_table():
    assert set(benchmark.gate.stored_ratios()) == {workload.name for workload in TABLE}


@pytest.mark.slow
def test_extra_memory_is_that_of_another_process():
    setting = Setting("cpu", torch.float64, torch.float64, 1)
    assert extra_memory(partial(benchmark.paper_workload, 0, 0.005), setting, threads=1) >= 0


def test_the_parts_of_a_step_are_all_of_it(tmp_path):
    benchmark.main(["--parts", "profile", "--scale", "0.002", "--workloads", "0", "--output-dir", str(tmp_path)])
    with (tmp_path / "profile.csv").open() as file:
        (row,) = csv.DictReader(file)
    parts = {name: float(value) for name, value in row.items() if name.endswith(" ms")}
    assert len(parts) == 6
    assert min(parts.values()) > 0, "a part has another name in the package"


def test_growth_has_a_slope_for_each_quantity(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "GROWTH", {"n": (1, 2)})
    monkeypatch.setattr(benchmark, "along", lambda axis: along(axis)[:2])
    benchmark.main([*SMALL, "--parts", "growth", "--output-dir", str(tmp_path)])
    with (tmp_path / "growth.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["plain"] * 2 + ["certified"] * 2
    assert (tmp_path / "growth.png").is_file()


@pytest.mark.parametrize("workload", TABLE, ids=lambda workload: workload.name)
def test_measured_steps_start_from_the_same_state_and_keep_the_parameters_in_their_bounds(workload):
    training = Training(workload.smaller(0.002), Setting("cpu", torch.float64, torch.float64, 2))
    cost = training.costs()
    assert training.engine.steps == 2
    assert training.engine.bounds.contains(training.module)
    assert training.engine.bounds.mean_width() > 0
    assert cost.certified.wall > 0
    for name, parameter in training.replica.named_parameters():
        assert parameter.requires_grad == training.module.get_parameter(name).requires_grad


@pytest.mark.parametrize(("device", "ratio"), [("cpu", 4.0), ("cuda", 3.0)])
def test_ratio_is_of_cpu_time_unless_a_gpu_works(device, ratio):
    clock = Setting(device, torch.float64, torch.float64, 1).clock
    cost = StepCost(plain=Seconds(wall=1.0, cpu=2.0), certified=Seconds(wall=3.0, cpu=8.0), width=1.0, clock=clock)
    assert (cost.ratio, cost.wall_ratio) == (ratio, 3.0)


def test_only_one_quantity_grows():
    assert [workload.adversary.n for workload in along("n")] == list(GROWTH["n"])
    assert {workload.samples for workload in along("n")} == {4000}


def test_slope_of_a_power_is_its_exponent():
    assert slope([(x, 3 * x**1.5) for x in (1.0, 2.0, 8.0)]) == pytest.approx(1.5)


def test_numbers_have_three_digits():
    assert markdown([{"a": "x", "b": 0.12345}, {"a": "y", "b": 12345.6}]).splitlines()[2:] == [
        "| x | 0.123 |",
        "| y | 12346 |",
    ]


@pytest.mark.slow
def test_floating_point_widens_little_in_double_precision(tmp_path):
    benchmark.main([*SMALL, "--parts", "floats", "--workloads", "0", "--output-dir", str(tmp_path)])
    with (tmp_path / "floats.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["bounds"]) for row in rows] == [
        ("float64", "float64"),
        ("float32", "float64"),
        ("float32", "float32"),
    ]
    assert 0 <= float(rows[0]["wider by"]) < 1e-3 * float(rows[1]["wider by"])


@pytest.mark.slow
def test_a_step_for_several_adversaries_is_cheaper_than_their_own_steps(tmp_path):
    benchmark.main([*SMALL, "--parts", "strengths", "--workloads", "0", "--output-dir", str(tmp_path)])
    with (tmp_path / "strengths.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["n"] == "1, 2, 3, 4, 5"
    assert float(row["together over one"]) > 1
    assert float(row["together over all"]) < 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Lightning, whose Trainer makes these steps
def test_predicted_steps_stand_beside_measured_ones(tmp_path):
    benchmark.main([*SMALL, "--parts", "plans", "--workloads", "0", "--output-dir", str(tmp_path)])
    with (tmp_path / "plans.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["workload"].split(",")[0] for row in rows] == ["UCI 11-64-1", "photographs"]
    for row in rows:
        ratio = float(row["predicted s"]) / float(row["measured s"])
        assert float(row["predicted over measured"]) == pytest.approx(ratio, rel=0.02)


@pytest.mark.slow
def test_the_first_step_is_wider_with_statistics_of_the_batch(tmp_path):
    benchmark.main(["--parts", "normalizations", "--scale", "0.1", "--output-dir", str(tmp_path)])
    with (tmp_path / "normalizations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert all(float(row["none"]) < float(row["eval mode"]) < float(row["training mode"]) for row in rows)
