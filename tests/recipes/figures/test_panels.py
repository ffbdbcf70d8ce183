"""Figures of several panels, drawn from tables alone."""

import csv
from functools import partial

import numpy as np
import pytest

from recipes.figures import accuracy_panels, mse_panels, region_panels, steering_errors
from recipes.figures.accuracy_panels import draw_accuracy_panels
from recipes.figures.mse_panels import draw_mse_panels
from recipes.figures.region_panels import draw_region_panels
from recipes.figures.steering_errors import draw_steering_errors
from recipes.runs.regions import Regions

DOMAINS = {'["box"]': "box", "auto": "all"}
PANELS = {
    "a": {"title": "first", "symbol": "n", "levels": [5, 10]},
    "d": {"title": "depth", "symbol": "d", "count": True, "levels": [[8, 8]]},
    "x": {"title": "not run", "symbol": "n", "levels": [1]},
}


@pytest.fixture
def figures(monkeypatch):
    drawn = []

    def keep(save, figure, path):
        drawn.append(figure)
        return save(figure, path)

    for module in (accuracy_panels, mse_panels, region_panels, steering_errors):
        monkeypatch.setattr(module, "save", partial(keep, module.save))
    return drawn


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_errors_of_every_level_and_domain_are_drawn(tmp_path, figures):
    places = [("a", 0), ("a", 1), ("d", 0)]
    points = [(panel, level, choice) for panel, level in places for choice in DOMAINS]
    write(
        tmp_path / "points.csv",
        [
            {"point": f"{panel}{level}{choice}", "panel": panel, "level": level, "callbacks.certified.domains": choice}
            for panel, level, choice in reversed(points)
        ],
    )
    steps = [
        {"point": f"{panel}{level}{choice}", "step": step, "best MSE": 0.01, "nominal MSE": 0.02, "worst MSE": 1 + step}
        for panel, level, choice in points
        for step in range(2 if (panel, level, choice) == ("a", 1, '["box"]') else 4)
    ]
    write(tmp_path / "steps.csv", steps)
    assert draw_mse_panels(tmp_path, PANELS, tmp_path / "f.png", DOMAINS, [0.001, 10]).is_file()
    first, second = figures[0].axes
    assert (first.get_title(), second.get_title()) == ("first", "depth")
    assert labels(first) == ["n = 5", "n = 10"]
    assert labels(second) == ["d = 2"]
    crosses = [line for line in first.lines if line.get_marker() == "x"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in crosses] == [(1.0, 2.0)]
    assert first.get_yscale() == "log"
    worst = [line for line in first.lines if list(line.get_ydata()) == [1, 2, 3, 4]]
    assert sorted(line.get_linestyle() for line in worst) == ["-", "-", "--"]


@pytest.mark.parametrize("named", [{}, {"callbacks.certified.domains": "another"}], ids=["none", "another"])
def test_no_curve_is_drawn_under_the_name_of_another_domain(tmp_path, named):
    write(tmp_path / "points.csv", [{"point": "p", "panel": "a", "level": 0, **named}])
    write(tmp_path / "steps.csv", [{"point": "p", "step": 0, "best MSE": 1, "nominal MSE": 1, "worst MSE": 1}])
    with pytest.raises(ValueError, match="Expected `callbacks.certified.domains` of p to be one of"):
        draw_mse_panels(tmp_path, PANELS, tmp_path / "f.png", DOMAINS, [0.001, 10])


def test_regions_of_every_level_are_nested_in_their_panel(tmp_path, figures):
    grid = np.linspace(0, 1, 5)
    rows = []
    for level, share in ((0, 0.3), (1, 0.6)):
        certified = np.broadcast_to(grid > share, (5, 5))
        folder = tmp_path / f"a{level}"
        folder.mkdir()
        Regions(grid, grid, certified, certified - 0.5, np.zeros((2, 2)), np.array([0, 1])).save(folder / "regions.npz")
        rows.append({"point": folder.name, "panel": "a", "level": level})
        rows[-1] |= {"nominal accuracy": 0.9, "certified accuracy": 0.9 - share}
    write(tmp_path / "points.csv", rows)
    assert draw_region_panels(tmp_path, PANELS, tmp_path / "f.png").is_file()
    (axes,) = figures[0].axes
    assert labels(axes)[:2] == ["n = 5: certified 0.600", "n = 10: certified 0.300"]
    assert "0.900" in figures[0].get_suptitle()
    figures[0].draw_without_rendering()
    (title,) = figures[0].texts
    corners = title.get_window_extent().transformed(figures[0].transFigure.inverted()).extents
    assert 0 <= min(corners) < max(corners) <= 1, "the title is cut off"


def test_a_table_without_the_panels_is_refused(tmp_path):
    write(tmp_path / "points.csv", [{"point": "p", "panel": "other", "level": 0}])
    with pytest.raises(ValueError, match="Expected points of the panels"):
        draw_region_panels(tmp_path, PANELS, tmp_path / "f.png")


def write_errors(folder, choices):
    places = [(panel, level, choice) for panel in ("small", "large") for level in (0, 1) for choice in choices]
    rows = [
        {
            "point": f"{panel}{level}{choice}",
            "panel": panel,
            "level": level,
            "callbacks.certified.domains": choice,
            "best MSE": 0.01,
            "nominal MSE": 0.02,
            "worst MSE": 0.03 + level,
        }
        for panel, level, choice in reversed(places)
    ]
    write(folder / "points.csv", rows)


ERRORS = {name: {"title": name, "levels": [0, 100]} for name in ("small", "large")}


def test_errors_against_the_number_of_moved_angles(tmp_path, figures):
    write_errors(tmp_path, DOMAINS)
    assert draw_steering_errors(tmp_path, ERRORS, tmp_path / "f.png", DOMAINS).is_file()
    assert [axes.get_title() for axes in figures[0].axes] == ["small", "large"]
    for axes in figures[0].axes:
        worst = [line for line in axes.lines if list(line.get_ydata()) == [0.03, 1.03]]
        assert [list(line.get_xdata()) for line in worst] == [[0, 100]] * 2
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["worst and best case, box", "worst and best case, all"]


def test_no_error_is_drawn_under_the_name_of_another_domain(tmp_path):
    write_errors(tmp_path, ["another"])
    with pytest.raises(ValueError, match="Expected `callbacks.certified.domains` of .* to be one of"):
        draw_steering_errors(tmp_path, ERRORS, tmp_path / "f.png", DOMAINS)


CURVES = {
    "moved-1": {"title": "moved", "curve": "ε = 1", "levels": [0, 50]},
    "moved-2": {"title": "moved", "curve": "ε = 2", "levels": [0, 50]},
    "backdoor": {"title": "backdoor", "curve": "ε = 3", "quantity": "backdoor accuracy", "levels": [0, 50]},
}


def write_accuracies(folder, choices):
    rows = [
        {
            "point": f"{panel}{level}{choice}",
            "panel": panel,
            "level": level,
            "callbacks.certified.domains": choice,
            "nominal accuracy": 0.9,
            "certified accuracy": 0.8 - level / 10,
            "backdoor accuracy": 0.5 - level / 10,
        }
        for panel in CURVES
        for level in (1, 0)
        for choice in choices
    ]
    write(folder / "points.csv", rows)


def test_curves_of_one_title_share_a_panel(tmp_path, figures):
    write_accuracies(tmp_path, DOMAINS)
    assert draw_accuracy_panels(tmp_path, CURVES, tmp_path / "f.png", "octmnist", DOMAINS).is_file()
    moved, backdoor = figures[0].axes
    assert (moved.get_title(), backdoor.get_title()) == ("moved", "backdoor")
    assert (moved.get_ylabel(), backdoor.get_ylabel()) == ("certified accuracy", "backdoor accuracy")
    assert labels(moved) == ["ε = 1", "ε = 2"]
    drawn = [(list(line.get_xdata()), [round(y, 6) for y in line.get_ydata()]) for line in moved.lines]
    assert drawn == [([0, 50], [0.8, 0.7])] * 2 + [([0, 50], [0.9, 0.9])] + [([0, 50], [0.8, 0.7])] * 2 + [
        ([0, 50], [0.9, 0.9])
    ]
    assert len({line.get_color() for line in moved.lines}) == 2
    assert list(backdoor.lines[0].get_ydata()) == [0.5, 0.4]


@pytest.mark.parametrize(("dataset", "stand_in"), [("octmnist", False), ("pneumoniamnist", True)])
def test_a_stand_in_is_named_as_one(tmp_path, figures, dataset, stand_in):
    write_accuracies(tmp_path, DOMAINS)
    draw_accuracy_panels(tmp_path, CURVES, tmp_path / "f.png", dataset, DOMAINS)
    assert ("a stand-in for OCTMNIST" in figures[0].get_suptitle()) == stand_in


def test_accuracies_of_another_domain_are_refused(tmp_path):
    write_accuracies(tmp_path, ["another"])
    with pytest.raises(ValueError, match="Expected `callbacks.certified.domains` of"):
        draw_accuracy_panels(tmp_path, CURVES, tmp_path / "f.png", "octmnist", DOMAINS)
