import csv

import pytest

from agt_lightning import BoundedAdversary, UnboundedAdversary
from recipes.runs.run import describe, table
from recipes.train import train


def test_description_has_the_settings_that_differ_from_their_defaults():
    assert describe(BoundedAdversary(n=200, epsilon=0.01)) == "n = 200, ε = 0.01"
    assert describe(BoundedAdversary(n=5, nu=1, q=0)) == "n = 5, ν = 1, q = 0"
    assert describe(UnboundedAdversary(n=3, kappa=0.1)).startswith("n = 3, κ = 0.1")


def test_text_in_a_table_is_kept():
    assert table({"n = 1": "0.10000"}) == "  n = 1  0.10000"


def test_widths_of_every_parameter_are_written(composed, tmp_path):
    run = train(composed("debug=fast", "figure=none", "logger=none"))
    with (tmp_path / "run" / "widths.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, (name, interval) in zip(rows, run.model.bounds.items(), strict=True):
        assert row["parameter"] == name
        assert float(row["mean width"]) == pytest.approx(float(interval.width.mean()))
        assert float(row["largest width"]) == float(interval.width.max())
        magnitude = dict(run.module.named_parameters())[name].detach().abs().mean()
        assert float(row["mean magnitude"]) == pytest.approx(float(magnitude))
