import re

import pytest

from recipes import ball_cost, pneumonia_domains


def test_cost_is_that_of_both_kinds_of_poison(capsys):
    ball_cost.main(["--samples", "500", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert all(re.fullmatch(r".*: plain step .* ms, ball .* ms more, .* x at radius .*", line) for line in lines)
    assert [line.split(":")[0] for line in lines] == ["labels", "features", "softmax labels", "softmax features"]


def test_missing_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected PneumoniaMNIST at .*pneumoniamnist.npz"):
        pneumonia_domains.load(tmp_path, "train")
