import csv
from dataclasses import replace

import pytest

from recipes.gather import main
from recipes.runs.results import Result
from recipes.runs.tables import finished, gather, read, summary

RESULT = Result("f", "c", "?", {"adversary.n": 1, "seed": 0}, {"certified accuracy": 0.5}, 2.0)


def save(folder, point, **changes):
    (folder / point).mkdir(parents=True)
    result = replace(RESULT, point=point, **{"fingerprint": point, **changes})
    result.save(folder / point)
    return result


def test_points_have_a_row_each_with_what_differs(tmp_path):
    for n in (100, 20, 3):
        save(tmp_path, f"n={n}", settings={"adversary.n": n, "seed": 0, "a.list": [n], "other.adversary.n": n})
    assert gather(tmp_path) == [tmp_path / "points.csv"]
    rows = read(tmp_path)
    assert [row["point"] for row in rows] == ["n=3", "n=20", "n=100"], "in order of strength, not of the alphabet"
    assert rows[1] == {
        "point": "n=20",
        "adversary.n": "20",
        "a.list": "[20]",
        "certified accuracy": "0.5",
        "seconds": "2.0",
    }


def test_points_of_panels_have_their_place(tmp_path):
    save(tmp_path, "x", panel="b", level=0)
    save(tmp_path, "y", panel="a", level=1)
    save(tmp_path, "z", panel="a", level=0)
    gather(tmp_path)
    assert [(row["panel"], row["level"]) for row in read(tmp_path)] == [("a", "0"), ("a", "1"), ("b", "0")]


def test_own_tables_are_joined_and_logs_left_alone(tmp_path):
    for point in ("x", "y"):
        save(tmp_path, point)
        (tmp_path / point / "steps.csv").write_text(f"step,MSE\n0,{point}0\n1,{point}1\n")
        (tmp_path / point / "metrics.csv").write_text("loss\n1\n")
    assert [path.name for path in gather(tmp_path)] == ["points.csv", "steps.csv"]
    with (tmp_path / "steps.csv").open() as file:
        assert list(csv.reader(file)) == [
            ["point", "step", "MSE"], ["x", "0", "x0"], ["x", "1", "x1"], ["y", "0", "y0"], ["y", "1", "y1"]
        ]  # fmt: skip


def test_points_of_recipes_with_several_trainings_are_found_deeper_down(tmp_path):
    save(tmp_path, "n=1/ball")
    save(tmp_path, "n=1/box")
    gather(tmp_path)
    assert [row["point"] for row in read(tmp_path)] == ["n=1/ball", "n=1/box"]


def test_the_domains_of_points_are_told_even_if_they_are_the_same(tmp_path):
    for point in ("x", "y"):
        save(tmp_path, point, settings={"callbacks.certified.domains": ["ball"]})
    gather(tmp_path)
    assert [row["callbacks.certified.domains"] for row in read(tmp_path)] == ['["ball"]'] * 2


def test_unfinished_points_are_left_out(tmp_path):
    save(tmp_path, "x")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "steps.csv").write_text("step,MSE\n0,1\n")
    assert [result.point for result in finished(tmp_path)] == ["x"]
    assert [path.name for path in gather(tmp_path)] == ["points.csv"]


def test_points_of_several_versions_are_refused(tmp_path):
    save(tmp_path, "x")
    save(tmp_path, "y", code="another")
    with pytest.raises(ValueError, match="same version of agt_lightning"):
        gather(tmp_path)


def test_no_points_and_no_table_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected finished points"):
        gather(tmp_path)
    with pytest.raises(FileNotFoundError, match="recipes.gather"):
        read(tmp_path)


def test_command_prints_what_was_certified(tmp_path, capsys):
    save(tmp_path, "x", values={"certified accuracy": 1 / 3})
    main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert "0.3333" in printed
    assert str(tmp_path / "points.csv") in printed


def test_summary_hides_what_is_the_same_everywhere(tmp_path):
    save(tmp_path, "x", panel="a", level=0, settings={"adversary.n": 1, "adversary.nu": 0.0})
    save(tmp_path, "y", panel="a", level=1, settings={"adversary.n": 2, "adversary.nu": 0.0})
    gather(tmp_path)
    assert summary(tmp_path).splitlines()[0].split() == ["panel", "adversary.n", "certified", "accuracy", "seconds"]


def test_a_point_that_was_trained_twice_is_there_once(tmp_path):
    save(tmp_path, "n=1", fingerprint="same")
    save(tmp_path, "together/n=1", fingerprint="same")
    assert len(finished(tmp_path)) == 1
