from functools import partial
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from agt_lightning import BoundedAdversary
from recipes.data.loader import tensor_loader
from recipes.figures import flips_curve
from recipes.figures.flips_curve import CertifiedFlips, certified_flips, draw_curves, draw_flips_curve, draw_search
from recipes.models.linear_head import LinearHead
from recipes.runs.run import Run


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, kept before they are written."""
    drawn: list[Figure] = []

    def keep(save, figure, path):
        drawn.append(figure)
        return save(figure, path)

    monkeypatch.setattr(flips_curve, "save", partial(keep, flips_curve.save))
    return drawn


def flips_of(label="PCA", flips=(5, 0, 9, 5, -1), correct=(True, True, True, False, True)):
    return CertifiedFlips(label, torch.tensor(flips), torch.tensor(correct))


def head_run(path, batches=1):
    """A head that predicts the larger feature; its certificate is ten times the margin."""
    head = LinearHead(2, 2, torch.optim.SGD)
    with torch.no_grad():
        head.net.weight.copy_(torch.eye(2))
    x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 4.0]]), torch.tensor([0, 1, 1, 1])
    data = SimpleNamespace(test_dataloader=lambda: tensor_loader(x, y, batch_size=4 // batches))
    model = SimpleNamespace(certified_flips=lambda x: (10 * (x[:, 0] - x[:, 1]).abs()).long())
    return Run(head, data, model, BoundedAdversary(n=0), [], {}, path)


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


def test_numbers_of_a_curve():
    curve = flips_of()
    assert (curve.accuracy, curve.median) == (0.8, 5.0)
    assert [curve.certified_accuracy(n) for n in (0, 1, 5, 6, 9, 10)] == [0.6, 0.4, 0.4, 0.2, 0.2, 0.0]


def test_steps_are_certified_accuracy():
    n, values = flips_of().steps()
    assert (n, values) == ([0, 0, 5, 9], [0.6, 0.6, 0.4, 0.2])
    assert flips_of(flips=(-1, 3), correct=(True, False)).steps() == ([0.0], [0.0])


@pytest.mark.parametrize(("flips", "correct"), [([], []), ([1], [True, False]), ([[1]], [[True]])])
def test_flips_without_their_samples_are_refused(flips, correct):
    with pytest.raises(ValueError, match="Expected certified flips and correctness of the same samples.*for 'PCA'"):
        CertifiedFlips("PCA", torch.tensor(flips), torch.tensor(correct))


@pytest.mark.parametrize("batches", [1, 2])
def test_flips_of_a_run_come_from_its_model_and_test_data(tmp_path, batches):
    curve = certified_flips(head_run(tmp_path, batches), "run")
    assert curve.flips.tolist() == [10, 20, 30, 40]
    assert curve.correct.tolist() == [True, True, False, True]


def test_one_run_is_one_curve_with_nominal_accuracy_and_median(tmp_path, figures):
    path = draw_flips_curve([head_run(tmp_path)], tmp_path / "new" / "figure.png")
    assert imread(path).shape[2] in (3, 4)
    (axes,) = figures[0].axes
    curve, nominal, median, *_ = axes.lines
    assert curve.get_label() == "certified accuracy: median n = 25, nominal 0.750"
    assert list(curve.get_xdata()) == [0, 10, 20, 40, 40, 40.8]
    assert list(curve.get_ydata()) == [0.75, 0.75, 0.5, 0.25, 0, 0]
    assert (list(nominal.get_ydata()), nominal.get_linestyle()) == ([0.75, 0.75], ":")
    assert (median.get_xdata()[0], median.get_ydata()[0]) == (25, 0.25)
    assert axes.get_xlabel() == "flipped training labels, n"


def test_several_curves_have_their_names_and_colors(tmp_path, figures):
    draw_flips_curve([head_run(tmp_path / name) for name in ("2 steps", "ridge")], tmp_path / "figure.png")
    legend = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert [entry.split(":")[0] for entry in legend] == ["2 steps", "ridge", "nominal accuracy"]
    assert len({line.get_color() for line in figures[0].axes[0].lines[::3]}) == 3


def test_nothing_certified_still_draws(tmp_path):
    nothing = flips_of(flips=(-1, -1), correct=(True, False))
    assert draw_curves([nothing], tmp_path / "figure.png").is_file()
    assert draw_curves([nothing] * 8, tmp_path / "figure.png").is_file()  # more than colors


def test_search_is_accuracy_against_median(tmp_path, figures):
    groups = {"PCA": [flips_of("2 steps"), flips_of("ridge", flips=(8,) * 5)], "ReLU": [flips_of("5 steps")]}
    path = draw_search(groups, tmp_path / "search.png")
    assert path.is_file()
    (axes,) = figures[0].axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[5, 0.8], [8, 0.8]], [[5, 0.8]]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["PCA", "ReLU"]
    assert [text.get_text() for text in axes.texts] == ["2 steps", "ridge", "5 steps"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("median certified flips", "nominal accuracy")


def test_the_ceiling_is_a_line_with_its_number(tmp_path, figures):
    draw_search({"PCA": [flips_of("2 steps")]}, tmp_path / "search.png", ceiling=7)
    (axes,) = figures[0].axes
    line = axes.lines[-1]
    assert list(line.get_xdata()) == [7, 7]
    assert line.get_label() == "ceiling of symmetric classifiers: 7"


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Expected at least one curve"):
        draw_curves([], tmp_path / "figure.png")
    with pytest.raises(ValueError, match="Expected at least one setting"):
        draw_search({"PCA": []}, tmp_path / "figure.png")
