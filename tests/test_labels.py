import itertools

import pytest
import torch

from agt_lightning.errors import UncertifiableError
from agt_lightning.labels import ClassLabels

LABELS = torch.tensor([0, 1, 2, 2])
SETS = (None, (), (0,), (1, 2), (5,))


def expected(label, sources, targets):
    """Which classes a flip of this label reaches, by definition."""
    flips = sources is None or label in sources
    return [k == label or (flips and (targets is None or k in targets)) for k in range(3)]


@pytest.mark.parametrize(("sources", "targets"), list(itertools.product(SETS, SETS)))
def test_reachable_classes_are_those_of_the_definition(sources, targets):
    labels = ClassLabels(LABELS, flippable=True, sources=sources, targets=targets)
    assert labels.reachable(3).tolist() == [expected(int(label), sources, targets) for label in LABELS]


def test_fixed_labels_reach_themselves():
    labels = ClassLabels(LABELS, targets=(0,))
    assert labels.reachable(3).tolist() == [expected(int(label), (), None) for label in LABELS]
    assert labels.one_hot(3, torch.float64).is_point


@pytest.mark.parametrize(("sources", "targets"), list(itertools.product(SETS, SETS)))
def test_one_hot_bounds_are_the_hull_of_reachable_unit_vectors(sources, targets):
    labels = ClassLabels(LABELS, flippable=True, sources=sources, targets=targets)
    bounds = labels.one_hot(3, torch.float32)
    for row, reachable in enumerate(labels.reachable(3)):
        vectors = torch.eye(3)[reachable]
        assert torch.equal(bounds.lower[row], vectors.amin(dim=0))
        assert torch.equal(bounds.upper[row], vectors.amax(dim=0))
    assert bounds.nonnegative


@pytest.mark.parametrize("wrong", [-1, 3, -100])
def test_labels_outside_the_classes_are_refused(wrong):
    with pytest.raises(UncertifiableError, match=rf"Expected class labels in 0\.\.2, but got {wrong}\..*ignore_index"):
        ClassLabels(torch.tensor([0, wrong])).reachable(3)


def test_shapes_and_types_can_change_and_flips_stay():
    labels = ClassLabels(torch.tensor([[0], [1]], dtype=torch.int32), flippable=True, sources=(0,), targets=(2,))
    squeezed = labels.map(lambda index: index.squeeze(1).long())
    assert squeezed.reachable(3).tolist() == [[True, False, True], [False, True, False]]


def test_no_samples_have_no_reachable_classes():
    assert ClassLabels(torch.zeros(0, dtype=torch.int64)).reachable(3).shape == (0, 3)


def test_pixels_have_their_own_labels():
    labels = ClassLabels(torch.tensor([[0, 1]]), flippable=True, targets=(2,))
    assert labels.reachable(3).tolist() == [[[True, False, True], [False, True, True]]]
