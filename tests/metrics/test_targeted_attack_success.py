import pytest
import torch

from agt_lightning.metrics import TargetedAttackSuccess


def test_safe_sets_are_checked_at_construction() -> None:
    with pytest.raises(ValueError, match=r"`safe_classes\[0\]` to hold classes 0 to 1, but got \[2\]"):
        TargetedAttackSuccess([[0, 2], [1]])


def test_safe_sets_must_fit_the_logits() -> None:
    metric = TargetedAttackSuccess([[0], [1]])
    with pytest.raises(ValueError, match="one safe set for each of 3 classes"):
        metric.update(torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([0]))


def test_an_empty_safe_set_is_always_left() -> None:
    metric = TargetedAttackSuccess([[], [1]])
    lower, upper = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    assert metric(lower, upper, torch.tensor([0, 1])).item() == 0.5
