import pytest
import torch

from agt_lightning.domains.influence import ClassCodes

OUTPUTS = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (0.1, 0.9)])
def test_one_hot_codes_predict_the_largest_output(low, high):
    codes = ClassCodes.one_hot(3, low=low, high=high)
    assert torch.equal(codes.predicted(OUTPUTS), OUTPUTS.argmax(dim=1))
    classes = OUTPUTS.argmax(dim=1)
    margins = OUTPUTS.gather(1, classes[:, None]) - OUTPUTS
    assert torch.allclose(codes.margins(OUTPUTS, classes), margins, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("low", "high", "middle"), [(-1.0, 1.0, 0.0), (0.0, 1.0, 0.5), (2.0, 3.0, 2.5)])
def test_binary_codes_predict_the_side_of_the_midpoint(low, high, middle):
    codes, output = ClassCodes.binary(low=low, high=high), OUTPUTS[:, :1]
    classes = (output[:, 0] > middle).long()
    assert torch.equal(codes.predicted(output), classes)
    distance = (output[:, 0] - middle).abs()
    margins = codes.margins(output, classes)
    assert torch.allclose(margins.gather(1, 1 - classes[:, None])[:, 0], distance, rtol=0, atol=1e-14)


def test_codes_are_read_off_targets():
    targets = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    codes = ClassCodes.of_targets(targets)
    assert codes.codes.tolist() == [[1.0, -1.0], [-1.0, 1.0]]
    assert codes.classes_of(targets).tolist() == [1, 0]


def test_targets_without_classes_are_refused():
    with pytest.raises(ValueError, match="two values"):
        ClassCodes.of_targets(torch.tensor([[0.0], [0.5], [1.0]]))
    with pytest.raises(ValueError, match="one entry 1.0 in each row"):
        ClassCodes.of_targets(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="the code of a class"):
        ClassCodes.one_hot(2).classes_of(torch.tensor([[0.5, 0.5]]))
    with pytest.raises(ValueError, match="targets of 2 outputs"):
        ClassCodes.one_hot(2).classes_of(torch.tensor([[0.5]]))
    with pytest.raises(ValueError, match="`low` < `high`"):
        ClassCodes.binary(low=1.0, high=0.0)
