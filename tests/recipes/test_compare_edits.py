"""One model beside votes of many against inserted and deleted samples, on files of the official format."""

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from recipes.baselines import dpa
from recipes.compare_edits import compare
from recipes.runs.edits import COLUMNS, certified_accuracy, curve, markdown, one_half, rows_of
from tests.recipes.conftest import ROOT


@pytest.fixture
def compared(tmp_path):
    """Compare with overrides, and return the folder."""

    def run(name, *overrides):
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            compare(compose("compare_edits", [f"output_dir={tmp_path / name}", *overrides]))
        return tmp_path / name

    return run


def test_every_defense_is_run_written_and_drawn(compared, mnist_root):
    folder = compared("first", "debug=fast", f"data.root={mnist_root}")
    rows = pd.read_csv(folder / "edits.csv")
    assert tuple(rows.columns) == COLUMNS
    votes = ["radius vote, cos > 0.5", "radius vote, cos > 0.6", "radius vote, cos > 0.832, shift 0.5"]
    names = [*votes, "partitions, k = 9", "class sums", "least squares, 2 steps"]
    assert list(rows["defense"].unique()) == names
    assert len((folder / "table.md").read_text().splitlines()) == 2 + len(names) + 2
    assert rows["certified_edits"][rows["defense"] == "partitions, k = 9"].max() <= 9
    certified = rows[rows["certified_edits"] >= 0]
    assert bool((certified["certified_replacements"] >= certified["certified_edits"] // 2).all())
    again = compared("again", f"redraw={folder / 'edits.csv'}", "data.root=missing")
    for name in ("figure.png", "table.md"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_wrong_predictions_are_not_certified():
    numbers = torch.arange(4)
    edits, correct = torch.tensor([9, 5, 7, -1]), torch.tensor([True, True, False, True])
    rows = rows_of("votes", numbers, edits, edits, correct)
    assert [certified_accuracy(rows, n) for n in (0, 6, 8)] == [0.5, 0.25, 0.25]
    assert one_half(rows) == 5
    assert rows["certified_edits"].median() == 6
    assert curve(rows) == ([0.0, 5.0, 9.0], [0.5, 0.5, 0.25])
    assert "| votes | 4 | 0.7500 | 5 | 6 | 5 |" in markdown(rows, (), {})


@pytest.mark.parametrize("parts", [1, 4, 40])
def test_nearest_votes_are_those_of_a_loop_and_of_any_order(parts):
    generator = torch.Generator().manual_seed(parts)
    features = torch.nn.functional.normalize(torch.randn(30, 3, generator=generator, dtype=torch.float64), dim=1)
    labels, x = torch.randint(0, 4, (30,), generator=generator), features[:7] + 0.1
    part = dpa.partition(features, parts)
    expected = torch.zeros(7, 4, dtype=torch.int64)
    for number in range(parts):
        members = (part == number).nonzero().squeeze(1)
        for row in range(7):
            vote = int(labels[members[int((features[members] @ x[row]).argmax())]]) if len(members) else 0
            expected[row, vote] += 1
    assert torch.equal(dpa.nearest_votes(features, labels, part, parts, 4, x), expected)
    order = torch.randperm(30, generator=generator)
    assert torch.equal(dpa.nearest_votes(features[order], labels[order], part[order], parts, 4, x), expected)
