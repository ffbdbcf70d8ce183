import pytest
import torch

from agt_lightning.domains.influence.certified_flips import certified_flips
from agt_lightning.domains.influence.label_sets import LabelFlips
from agt_lightning.errors import UncertifiableError
from tests.domains.influence.oracles import class_labelings, random_queries, random_training
from tests.domains.influence.ridge import RidgeInfluence

QUERIES = random_queries(15)
TRAINING = random_training(1)


@pytest.mark.parametrize("bias", [False, True])
def test_head_minimizes_the_penalized_error(bias):
    ridge = RidgeInfluence(TRAINING.features, TRAINING.targets, penalty=0.2, bias=bias)
    inputs = torch.nn.functional.pad(TRAINING.features, (0, int(bias)), value=1.0)
    basis = torch.eye(2, dtype=torch.float64)
    outputs = ridge.outputs(torch.cat([basis, torch.zeros(1, 2)]))
    head = torch.cat([outputs[:2] - (outputs[2] if bias else 0), outputs[2:] if bias else outputs[:0]]).T
    head = head.clone().requires_grad_()
    error = (inputs @ head.T - TRAINING.targets).square().sum(dim=1).mean() + 0.2 * head.square().sum()
    (gradient,) = torch.autograd.grad(error, head)
    assert float(gradient.abs().max()) < 1e-12


def test_certificate_is_exact():
    def fitted(targets):
        return RidgeInfluence(TRAINING.features, targets, penalty=0.3, bias=True).outputs(QUERIES)

    ridge = RidgeInfluence(TRAINING.features, TRAINING.targets, penalty=0.3, bias=True)
    own, nominal = TRAINING.targets.argmax(dim=1), fitted(TRAINING.targets).argmax(dim=1)
    needed = torch.full((15,), 7)
    for labels in class_labelings(3, 6):
        altered = fitted(torch.eye(3, dtype=torch.float64)[labels]).argmax(dim=1) != nominal
        needed[altered] = needed[altered].clamp(max=int((labels != own).sum()))
    assert torch.equal(certified_flips(ridge, QUERIES, LabelFlips.of_targets(TRAINING.targets)), needed - 1)


def test_poisonable_samples_alone_count():
    poisonable = torch.tensor([True, False, False, False, False, False])
    ridge = RidgeInfluence(TRAINING.features, TRAINING.targets, penalty=0.3, bias=True, poisonable=poisonable)
    assert ridge.group_sizes("dataset") == [1]
    assert int(certified_flips(ridge, QUERIES, LabelFlips.of_targets(TRAINING.targets)).max()) == 1


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="`penalty` to be positive"):
        RidgeInfluence(TRAINING.features, TRAINING.targets, penalty=0.0, bias=True)
    with pytest.raises(ValueError, match="`features` of shape"):
        RidgeInfluence(TRAINING.features, TRAINING.targets[:2], penalty=1.0, bias=True)
    with pytest.raises(UncertifiableError, match="no batches"):
        RidgeInfluence(TRAINING.features, TRAINING.targets, penalty=1.0, bias=True).group_sizes("batch")
