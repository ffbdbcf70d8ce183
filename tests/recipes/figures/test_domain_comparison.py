"""The comparison of domains, drawn from tables alone."""

import pandas as pd
import pytest

from recipes.figures import domain_comparison
from recipes.figures.domain_comparison import draw_domain_comparison
from recipes.figures.panels import DOMAINS as CHOICE

DOMAINS = {'["box"]': "box", '["ball"]': "ball"}


@pytest.fixture
def figures(monkeypatch):
    drawn = []
    monkeypatch.setattr(domain_comparison, "save", lambda figure, path: drawn.append(figure) or path)
    return drawn


def write(folder, strengths=(200,)):
    points = [(domains, n) for domains in reversed(DOMAINS) for n in strengths]
    rows = [
        {"point": f"{d}{n}", "adversary.n": n, "adversary.epsilon": 0.01, "adversary.nu": 0.0, CHOICE: d}
        for d, n in points
    ]
    pd.DataFrame(rows).to_csv(folder / "points.csv", index=False)
    steps = [
        {"point": f"{d}{n}", "step": step, "nominal MSE": 1 / (1 + step), "worst MSE": n + step}
        for d, n in points
        for step in range(2 if "box" in d else 4)
    ]
    pd.DataFrame(steps).to_csv(folder / "steps.csv", index=False)


def test_every_domain_has_its_worst_case_beside_the_longest_nominal_one(tmp_path, figures):
    write(tmp_path)
    draw_domain_comparison(tmp_path, {}, tmp_path / "f.png", DOMAINS)
    (axes,) = figures[0].axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines == {"nominal": [1, 1 / 2, 1 / 3, 1 / 4], "box": [200, 201], "ball": [200, 201, 202, 203]}
    assert axes.get_title() == "worst case certified against n = 200, ε = 0.01"


def test_several_adversaries_are_named_in_the_legend(tmp_path, figures):
    write(tmp_path, (5, 10))
    draw_domain_comparison(tmp_path, {}, tmp_path / "f.png", DOMAINS)
    (axes,) = figures[0].axes
    names = [line.get_label() for line in axes.lines][1:]
    assert names == [f"{name}, n = {n}, ε = 0.01" for name in ("box", "ball") for n in (5, 10)]


def test_another_domain_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="Expected `callbacks.certified.domains` of"):
        draw_domain_comparison(tmp_path, {}, tmp_path / "f.png", {'["box"]': "box"})
