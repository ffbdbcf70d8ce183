"""Sweeps that compare, each with a few small points."""

import pandas as pd
import pytest

from recipes.data.features import PCA, RandomReLU, UnitNorm
from recipes.data.hog import DeskewedHOG
from recipes.data.spectral import SpectralEmbedding
from recipes.runs.drawing import draw
from recipes.runs.steps import recorded
from recipes.runs.sweep import at_point
from recipes.runs.tables import read
from recipes.train import train

DOMAINS = ("[box]", "[ball]", "[box,ball]")
CHOICE = "callbacks.certified.domains"
SMALL = ("debug=fast", "data.batch_size=40", "trainer.max_steps=8", "model.hidden=[4]")


@pytest.mark.slow
def test_every_choice_of_domains_is_trained_and_drawn(swept, household_root):
    points = {str(i): [f"{CHOICE}={domains}"] for i, domains in enumerate(DOMAINS)}
    folder = swept("household_domains", points, *SMALL, f"data.root={household_root}")
    assert draw(folder).stat().st_size > 0
    steps = pd.read_csv(folder / "steps.csv")
    assert len(steps) == 3 * (1 + 8)
    nominal = steps.loc[steps["step"] == 8, "nominal MSE"]
    assert nominal.max() - nominal.min() < 1e-12, "domains do not change the training"
    box, ball, both = steps.loc[steps["step"] == 8, "worst MSE"]
    assert both <= min(box, ball) * (1 + 1e-9)


@pytest.mark.slow
def test_a_vacuous_certificate_is_not_carried_on(composed, household_root):
    overrides = ["adversary.n=20", "optimizer.lr=0.3", "callbacks.mse_over_steps.stop_above=1", f"{CHOICE}=[box]"]
    run = train(composed("sweep=household_domains", *SMALL, *overrides, f"data.root={household_root}"))
    history = recorded(run)
    assert history[-1]["worst MSE"] > 1
    assert len(history) <= 8


@pytest.mark.slow
def test_features_and_steps_of_linear_probes_are_drawn_together(swept, mnist_root):
    points = {
        f"{panel}-{level}": [f"panel={panel}", f"level={level}"] for panel in ("PCA-16", "ReLU-500") for level in (0, 2)
    }
    folder = swept("linear_probe", points, "certificate.every=2", f"data.root={mnist_root}")
    assert [(row["panel"], row["trainer.max_epochs"]) for row in read(folder)] == [
        ("PCA-16", "1"), ("PCA-16", "3"), ("ReLU-500", "1"), ("ReLU-500", "3")
    ]  # fmt: skip
    assert len(pd.read_csv(folder / "flips.csv")) == 4 * 10
    assert draw(folder).stat().st_size > 0


def test_panels_of_linear_probes_have_their_features(composed):
    whitened = at_point(composed("sweep=linear_probe", "panel=PCA-32-whitened", "level=1"))
    relu = at_point(composed("sweep=linear_probe", "panel=ReLU-2000", "level=1"))
    assert [features(config) for config in (whitened, relu)] == [PCA(32, whiten=True), RandomReLU(2000, offset=0.3)]
    assert whitened.trainer.max_epochs == 2


@pytest.mark.parametrize(
    ("panel", "base"),
    [
        ("HOG-30-whitened", PCA(30, whiten=True, base=DeskewedHOG())),
        ("Spectral-10", SpectralEmbedding(DeskewedHOG(), components=10)),
        ("Spectral-20", SpectralEmbedding(DeskewedHOG(), components=20)),
    ],
)
def test_panels_of_oriented_gradients_have_unit_rows_and_no_bias(composed, panel, base):
    config = at_point(composed("sweep=linear_probe", f"panel={panel}", "level=0"))
    assert features(config) == UnitNorm(base)
    assert not config.model.bias


def features(config):
    from hydra.utils import instantiate

    return instantiate(config.data).features


@pytest.mark.slow
def test_domains_are_compared_on_a_wide_head(swept, pneumonia_root):
    points = {str(i): [f"{CHOICE}={domains}"] for i, domains in enumerate(DOMAINS[1:])}
    folder = swept("pneumonia_domains", points, "debug=fast", f"data.root={pneumonia_root}")
    ball, both = (float(row["certified accuracy"]) for row in read(folder))
    assert ball <= both


@pytest.mark.slow
def test_the_ball_certifies_ninety_two_steps_on_real_minutes(composed, real_data):
    overrides = ["trainer.max_steps=92", "trainer.enable_progress_bar=false", f"{CHOICE}=[ball]"]
    run = train(composed("sweep=household_domains", *overrides, f"data.root={real_data}"))
    assert run.results["worst MSE"] <= 1.95 * run.results["nominal MSE"]
