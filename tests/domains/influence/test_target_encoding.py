import pytest
import torch

from agt_lightning.domains.influence.target_encoding import TargetEncoding

OUTPUTS = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (0.1, 0.9)])
def test_one_hot_targets_predict_the_largest_output(low, high):
    encoding = TargetEncoding.one_hot(3, low=low, high=high)
    assert torch.equal(encoding.predicted(OUTPUTS), OUTPUTS.argmax(dim=1))
    classes = OUTPUTS.argmax(dim=1)
    margins = OUTPUTS.gather(1, classes[:, None]) - OUTPUTS
    assert torch.allclose(encoding.margins(OUTPUTS, classes), margins, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("low", "high", "middle"), [(-1.0, 1.0, 0.0), (0.0, 1.0, 0.5), (2.0, 3.0, 2.5)])
def test_binary_targets_predict_the_side_of_the_midpoint(low, high, middle):
    encoding, output = TargetEncoding.binary(low=low, high=high), OUTPUTS[:, :1]
    classes = (output[:, 0] > middle).long()
    assert torch.equal(encoding.predicted(output), classes)
    distance = (output[:, 0] - middle).abs()
    margins = encoding.margins(output, classes)
    assert torch.allclose(margins.gather(1, 1 - classes[:, None])[:, 0], distance, rtol=0, atol=1e-14)


def test_encoding_is_inferred_from_targets():
    targets = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    encoding = TargetEncoding.of_targets(targets)
    assert encoding.codewords.tolist() == [[1.0, -1.0], [-1.0, 1.0]]
    assert encoding.classes_of(targets).tolist() == [1, 0]


def test_targets_without_classes_are_refused():
    with pytest.raises(ValueError, match="two values"):
        TargetEncoding.of_targets(torch.tensor([[0.0], [0.5], [1.0]]))
    with pytest.raises(ValueError, match="one entry 1.0 in each row"):
        TargetEncoding.of_targets(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="the codeword of a class"):
        TargetEncoding.one_hot(2).classes_of(torch.tensor([[0.5, 0.5]]))
    with pytest.raises(ValueError, match="targets of 2 outputs"):
        TargetEncoding.one_hot(2).classes_of(torch.tensor([[0.5]]))
    with pytest.raises(ValueError, match="`low` < `high`"):
        TargetEncoding.binary(low=1.0, high=0.0)
