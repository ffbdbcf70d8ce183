import pytest
import torch

from agt_lightning.domains.influence.label_sets import LabelBall, LabelFlips
from tests.domains.influence.attacks import strongest_classes


def test_range_is_the_best_allowed_codeword():
    targets = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 1]]
    flips = LabelFlips.of_targets(targets, source_classes=(1, 2), target_classes=(0, 1))
    allowed = {0: [0], 1: [0, 1], 2: [0, 1, 2]}
    direction = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64)
    fall, rise = flips.range(direction)
    for sample, own in enumerate([0, 1, 2, 1]):
        changes = [float(direction[other] - direction[own]) for other in allowed[own]]
        assert float(fall[sample]) == pytest.approx(-min(changes))
        assert float(rise[sample]) == pytest.approx(max(changes))


def test_strongest_classes_attain_the_range():
    targets = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 1, 0]]
    flips = LabelFlips.of_targets(targets)
    direction = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    coefficients, samples = torch.tensor([0.5, -0.2, 0.1, 0.7, -0.3]).double(), torch.arange(5)
    written = strongest_classes(flips, direction, coefficients, samples)
    change = coefficients * ((targets - torch.eye(3).double()[written]) @ direction)
    assert torch.allclose(change, flips.range(direction).loss(coefficients, samples))


def test_wrong_sets_are_refused():
    with pytest.raises(ValueError, match="classes in 0..2"):
        LabelFlips.of_targets(torch.eye(3), target_classes=(3,))
    with pytest.raises(ValueError, match="`nu`"):
        LabelBall(torch.zeros(1, 1), nu=-1.0)
    with pytest.raises(ValueError, match="`q`"):
        LabelBall(torch.zeros(1, 1), nu=1.0, q=0)
