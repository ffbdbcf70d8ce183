from dataclasses import fields
from functools import partial
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from agt_lightning import BoundedAdversary, CertifiedModel, Interval, ParameterBounds
from agt_lightning.adversaries.several import describe
from recipes.data import HalfMoons
from recipes.figures import certified_regions, mse_over_steps
from recipes.figures.certified_regions import draw_certified_regions
from recipes.figures.mse_over_steps import draw_mse_over_steps
from recipes.models import Classifier
from recipes.runs.regions import Regions, record_regions
from recipes.runs.run import Run, certified_training
from recipes.runs.steps import MSEOverSteps


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, kept before they are written."""
    drawn: list[Figure] = []

    def keep(save, figure, path):
        drawn.append(figure)
        return save(figure, path)

    for module in (certified_regions, mse_over_steps):
        monkeypatch.setattr(module, "save", partial(keep, module.save))
    return drawn


def moon_run(n, radius, path):
    torch.manual_seed(0)
    module = Classifier(6, [4], 2, torch.optim.SGD, dtype="float64")
    bounds = {name: Interval(p.detach() - radius, p.detach() + radius) for name, p in module.named_parameters()}
    model = CertifiedModel(module, ParameterBounds(bounds))
    results = {"nominal accuracy": 0.9, "certified accuracy": 0.9 - radius}
    return Run(module, HalfMoons(samples=40), model, BoundedAdversary(n=n, epsilon=0.01), [], results, path)


def mse_run(history, path):
    recorder = MSEOverSteps()
    adversary = BoundedAdversary(n=3, epsilon=0.01)
    errors = [dict(zip(("best MSE", "nominal MSE", "worst MSE"), row, strict=True)) for row in history]
    recorder.histories = {describe(adversary): errors}
    return Run(None, None, None, adversary, [L.Callback(), recorder], {}, path)


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_one_run_is_one_panel_with_its_numbers(tmp_path, figures):
    path = draw_certified_regions([moon_run(5, 0.01, tmp_path)], tmp_path / "new" / "figure.png", resolution=10)
    assert imread(path).shape[2] in (3, 4)
    (axes,) = figures[0].axes
    assert "n = 5, ε = 0.01" in axes.get_title()
    assert "nominal accuracy 0.900, certified accuracy 0.890" in axes.get_title()
    assert legend(axes)[:2] == ["not certified", "decision boundary"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("first coordinate", "second coordinate")


def test_several_runs_have_a_panel_each(tmp_path, figures):
    draw_certified_regions([moon_run(n, n / 100, tmp_path) for n in (1, 2)], tmp_path / "figure.png", resolution=10)
    assert ["n = 1" in axes.get_title() for axes in figures[0].axes] == [True, False]


def test_regions_are_read_as_they_were_written(tmp_path):
    run = moon_run(1, 0.05, tmp_path)
    regions = Regions.of(run, 7)
    read = Regions.load(record_regions(run, resolution=7))
    for field in fields(Regions):
        assert np.array_equal(getattr(regions, field.name), getattr(read, field.name)), field.name


def test_a_place_of_the_regions_is_certified_as_the_model_says(tmp_path):
    run = moon_run(1, 0.05, tmp_path)
    regions = Regions.of(run, 7)
    assert regions.certified.any()
    assert not regions.certified.all()
    for row, column in ((0, 0), (3, 5), (6, 2)):
        place = torch.tensor([[regions.x[column], regions.y[row]]])
        features = HalfMoons.polynomial_features(place)
        assert regions.certified[row, column] == bool(run.model.certify(features).certified)
        logits = run.module(features)[0].detach()
        assert regions.margin[row, column] == pytest.approx(float(logits[1] - logits[0]), abs=1e-12)


def test_everything_certified_or_nothing_still_draws(tmp_path):
    for radius in (0.0, 10.0):
        assert draw_certified_regions([moon_run(1, radius, tmp_path)], tmp_path / "figure.png", resolution=5).is_file()


def test_mse_curves_are_the_recorded_ones(tmp_path, figures):
    history = [(0.3, 0.3, 0.3), (0.2, 0.25, 0.3), (0.1, 0.2, 0.4)]
    path = draw_mse_over_steps([mse_run(history, tmp_path)], tmp_path / "figure.png")
    assert path.is_file()
    (axes,) = figures[0].axes
    assert axes.get_yscale() == "linear"
    worst, best, nominal = (list(line.get_ydata()) for line in axes.lines)
    assert list(zip(best, nominal, worst, strict=True)) == history
    assert axes.get_xlabel() == "training step"
    assert "MSE" in axes.get_ylabel()


def test_exploding_bounds_get_a_logarithmic_axis(tmp_path, figures):
    runs = [mse_run([(0.1, 0.1, 0.1), (0.0, 0.1, 100.0)], tmp_path), mse_run([(0.1, 0.1, 0.1)], tmp_path)]
    draw_mse_over_steps(runs, tmp_path / "figure.png")
    assert [axes.get_yscale() for axes in figures[0].axes] == ["log", "log"]  # panels share it


def test_a_run_without_record_is_refused(tmp_path):
    run = Run(None, None, None, BoundedAdversary(n=3), [L.Callback()], {}, tmp_path)
    with pytest.raises(ValueError, match="Expected a `MSEOverSteps`"):
        draw_mse_over_steps([run], tmp_path / "figure.png")


def test_recorder_needs_samples_and_a_certified_training():
    with pytest.raises(ValueError, match="Expected `samples` to be at least 1, but got 0"):
        MSEOverSteps(samples=0)
    with pytest.raises(ValueError, match="Expected a `CertifiedTraining`"):
        certified_training(SimpleNamespace(callbacks=[L.Callback()]))
