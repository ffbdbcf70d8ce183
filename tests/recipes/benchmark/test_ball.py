import re

import pytest

from recipes import ball_ablation, pneumonia_domains
from recipes.benchmark import ball as ball_cost


def test_no_part_of_the_step_can_be_spared(household_root, capsys):
    ball_ablation.main(["--root", str(household_root), "--steps", "3"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    radii = {row.split("|")[1].strip(): [float(r) for r in re.findall(r"\(([^)]+)\)", row)] for row in rows}
    assert set(radii) == set(ball_ablation.VARIANTS)
    for values in radii.values():
        assert all(value >= whole for value, whole in zip(values, radii["all"], strict=True))


def test_cost_is_that_of_both_kinds_of_poison(capsys):
    ball_cost.main(["--samples", "500", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert all(re.fullmatch(r".*: plain step .* ms, ball .* ms more, .* x at radius .*", line) for line in lines)
    assert [line.split(":")[0] for line in lines] == ["labels", "features", "softmax labels", "softmax features"]


def test_missing_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected PneumoniaMNIST at .*pneumoniamnist.npz"):
        pneumonia_domains.load(tmp_path, "train")
