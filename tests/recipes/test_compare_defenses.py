"""The comparison of defenses against flipped labels, on files of the official format and on the real ones."""

import os
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from recipes.baselines.defense import Defense, load, save
from recipes.compare_defenses import compare
from recipes.data.mnist import SHA256, find_file
from recipes.figures.label_defenses import AUTHORS, half, markdown
from recipes.runs.flips import CertifiedFlips
from recipes.runs.tables import read
from recipes.train import train

ROOT = Path(__file__).parents[2]


@pytest.fixture
def labels(tmp_path):
    """Compose ``conf/compare_defenses.yaml`` with overrides and an output folder of this test."""

    def compose_config(*overrides, name="compare_defenses"):
        (tmp_path / "compared").mkdir(exist_ok=True)
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose(name, [f"output_dir={tmp_path / 'compared'}", *overrides])

    return compose_config


@pytest.fixture
def sweep(swept, mnist_root):
    """Folder of a sweep with n = 0 and 10."""
    places = [(panel, level) for panel in ("AGT-box", "AGT-ball") for level in (0, 2)]
    points = {f"{panel}{level}": [f"panel={panel}", f"level={level}"] for panel, level in places}
    return swept("mnist_labels", points, "debug=fast", f"data.root={mnist_root}")


@pytest.mark.slow
def test_every_defense_is_run_written_and_drawn(labels, sweep, mnist_root, tmp_path):
    defenses = compare(labels("debug=fast", "logger=none", f"data.root={mnist_root}", f"defenses.sweep={sweep}"))
    names = ["AGT, box", "AGT, ball", "AGT, exact influence", "partitions, k = 5", "partitions, k = 9"]
    assert [defense.flips.label for defense in defenses] == [*names, "smoothing, q = 0.05"]
    assert [defense.budget for defense in defenses] == ["each step"] * 2 + ["whole data set"] * 4
    run = tmp_path / "compared"
    assert {"flips.csv", "figure.png", "table.md"} <= {path.name for path in run.iterdir()}
    assert (run / "table.md").read_text().count("\n") == 2 + len(defenses)
    again = compare(labels(f"defenses.results={run / 'flips.csv'}"))
    assert markdown(again) == markdown(defenses)
    box, ball = (defense.flips for defense in defenses[:2])
    assert set(box.flips.tolist()) <= {-1, 0, 10}
    assert bool((box.flips >= 0).all())
    assert box.certified_accuracy(0) == box.accuracy == ball.accuracy
    for row in read(sweep):
        flips = {"AGT-box": box, "AGT-ball": ball}[row["panel"]]
        assert flips.certified_accuracy(int(row["adversary.n"])) == float(row["certified accuracy"])


@pytest.mark.parametrize(
    ("name", "classes"), [("compare_features", 10), ("compare_features_pneumonia", 2)], ids=["digits", "scans"]
)
def test_heads_and_votes_on_spectral_features(labels, mnist_root, pneumonia_root, name, classes):
    own = [] if classes == 10 else ["data.official=false"]
    few = ["debug=fast", "logger=none", "defenses.every=2", "defenses.dpa.parts=[5,9]"]
    config = labels(*few, f"data.root={mnist_root}", *own, name=name)
    defenses = {defense.flips.label: defense for defense in compare(config)}
    heads = ["AGT, exact influence", "class sums, shift 0.0", "class sums, shift half"]
    assert list(defenses) == [*heads, "partitions, k = 5", "partitions, k = 9", "ceiling of symmetric classifiers"]
    step, sums, shifted = (defenses[label].flips for label in heads)
    assert bool((step.flips <= sums.flips).all())  # samples of equal features are one to the influence domain
    assert torch.equal(step.correct, sums.correct)
    most = defenses["ceiling of symmetric classifiers"].flips
    assert int(max(sums.flips.max(), shifted.flips.max())) <= int(most.flips.max())
    votes = defenses["partitions, k = 5"].flips
    assert int(votes.flips.max()) <= 2
    assert len(votes.flips) == len(most.flips) == 2 * len(sums.flips)


def test_the_sweep_comes_first(labels, tmp_path):
    with pytest.raises(FileNotFoundError, match="-m sweep=mnist_labels"):
        compare(labels(f"defenses.sweep={tmp_path}"))


def test_files_keep_all(tmp_path):
    flips = CertifiedFlips("a, b", torch.tensor([3, -1, 0]), torch.tensor([True, False, True]))
    defenses = [Defense(flips, "each step", torch.tensor([0, 2, 4]))]
    (read,) = load(save(defenses, tmp_path / "some" / "flips.csv"))
    assert (read.flips.label, read.budget, read.numbers.tolist()) == ("a, b", "each step", [0, 2, 4])
    assert torch.equal(read.flips.flips, flips.flips)
    assert torch.equal(read.flips.correct, flips.correct)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "flips.csv").write_text("test_sample,certified_flips\n1,2\n")
    with pytest.raises(ValueError, match="Expected the columns defense, budget, .* but got test_sample"):
        load(tmp_path / "flips.csv")


@pytest.mark.parametrize(
    ("flips", "correct", "expected"),
    [([5, 4, 3, 2], [1, 1, 1, 1], 4), ([5, 4, 3], [1, 1, 1], 4), ([5, 9, 3], [1, 0, 1], 3), ([5, 4], [0, 0], -1)],
)
def test_half_of_the_samples_withstand_so_many(flips, correct, expected):
    defense = Defense(
        CertifiedFlips("a", torch.tensor(flips), torch.tensor(correct).bool()), "each step", torch.arange(len(flips))
    )
    assert half(defense) == expected
    assert expected < 0 or defense.flips.certified_accuracy(expected) >= 0.5 > defense.flips.certified_accuracy(
        expected + 1
    )


@pytest.mark.slow
@pytest.mark.parametrize("n", [0, 5, 20, 100])
def test_certified_accuracy_is_at_least_that_of_the_authors(labels, n):
    root = Path(os.environ.get("AGT_DATA_ROOT") or ROOT.parent / "shared" / "data")
    if any(find_file(root, name) is None for name in SHA256):
        pytest.skip("no real data; set AGT_DATA_ROOT")
    overrides = [f"adversary.n={n}", "callbacks.certified.domains=[box]", "trainer.enable_progress_bar=false"]
    assert train(labels(*overrides, f"data.root={root}")).results["certified accuracy"] >= AUTHORS[n]
