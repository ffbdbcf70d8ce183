import pytest
import torch

from agt_lightning.domains.influence import certified_accuracy_curve


def test_curve_counts_points_one_n_at_a_time():
    generator = torch.Generator().manual_seed(0)
    flips, correct = torch.randint(0, 30, (200,), generator=generator), torch.rand(200, generator=generator) < 0.8
    curve = certified_accuracy_curve(flips, correct, 20)
    expected = [float((correct & (flips >= n)).double().mean()) for n in range(21)]
    assert curve.tolist() == pytest.approx(expected)


def test_shapes_are_checked():
    for flips, correct in ((torch.zeros(2), torch.ones(3)), (torch.zeros(0), torch.zeros(0))):
        with pytest.raises(ValueError, match="`flips` and `correct`"):
            certified_accuracy_curve(flips.long(), correct.bool(), 1)
