import csv

import pytest

from recipes.household_domains import compare

SMALL = [
    "experiment=household_domains",
    "data.batch_size=40",
    "trainer.enable_progress_bar=false",
    "trainer.max_steps=8",
    "model.hidden=[4]",
    "adversary.n=2",
    "logger=none",
]


def test_every_choice_of_domains_is_trained_drawn_and_written(composed, household_root, tmp_path):
    runs = compare(composed(*SMALL, f"data.root={household_root}"))
    assert list(runs) == ["box", "ball", "box and ball"]
    assert (tmp_path / "run" / "figure.png").stat().st_size > 0
    with (tmp_path / "run" / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * (1 + 8)
    last = {name: [float(row["worst MSE"]) for row in rows if row["domains"] == name][-1] for name in runs}
    nominal = {float(row["nominal MSE"]) for row in rows if row["step"] == "8"}
    assert max(nominal) - min(nominal) < 1e-12, "domains do not change the training"
    assert last["box and ball"] <= min(last["box"], last["ball"]) * (1 + 1e-9)


def test_a_certificate_that_says_nothing_is_not_carried_on(composed, household_root):
    overrides = [
        *SMALL,
        "comparison.domains=[[box]]",
        "adversary.n=20",
        "optimizer.lr=0.3",
        "callbacks.mse_over_steps.stop_above=1",
    ]
    (run,) = compare(composed(*overrides, f"data.root={household_root}")).values()
    recorder = run.callbacks[-1]
    assert recorder.history[-1]["worst MSE"] > 1
    assert len(recorder.history) <= 8


@pytest.mark.slow
def test_the_ball_certifies_ninety_two_steps_on_real_minutes(composed, real_data):
    overrides = ["comparison.domains=[[ball]]", "trainer.max_steps=92", "trainer.enable_progress_bar=false"]
    (run,) = compare(composed("experiment=household_domains", *overrides, f"data.root={real_data}")).values()
    assert run.results["worst MSE"] <= 1.95 * run.results["nominal MSE"]
