"""Figure 3, from small data."""

import csv

from recipes.figures import crown_vs_ibp
from recipes.figures.crown_vs_ibp import draw_crown_vs_ibp
from recipes.runs.certificates import width_certificate
from recipes.train import train

METHODS = {"ibp": "IBP", "tightest": "both"}
PANELS = {
    "n": {"title": "samples", "symbol": "n", "levels": [5, 10]},
    "depth": {"title": "depth", "symbol": "d", "count": True, "levels": [[4, 4]]},
}


def test_every_method_has_a_line_over_the_levels(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(crown_vs_ibp, "save", lambda figure, path: figures.append(figure) or path)
    places = [("n", 1), ("n", 0), ("depth", 0)]
    with (tmp_path / "points.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["point", "panel", "level", "callbacks.certified.method", "mean width"])
        for panel, level in places:
            writer.writerows([f"{panel}{level}{m}", panel, level, m, 1 + level + len(m)] for m in METHODS)
    draw_crown_vs_ibp(tmp_path, PANELS, tmp_path / "f.png", METHODS)
    first, second = figures[0].axes
    assert [list(line.get_ydata()) for line in first.lines] == [[4, 5], [9, 10]]
    assert [text.get_text() for text in first.get_xticklabels()] == ["n = 5", "n = 10"]
    assert [text.get_text() for text in second.get_xticklabels()] == ["d = 2"]
    assert first.get_yscale() == "log"


def test_a_point_of_the_sweep_is_trained_and_its_width_told(composed, household_root):
    small = ["data.batch_size=40", "trainer.max_steps=2", "model.hidden=[4]", "adversary.n=2", "logger=none"]
    point = ["sweep=crown_vs_ibp", "callbacks.certified.method=tightest", f"data.root={household_root}"]
    run = train(composed(*point, *small))
    assert run.model.method == "tightest"
    assert run.results == width_certificate(run.model, run.module, [])
    assert run.results["mean width"] > 0
