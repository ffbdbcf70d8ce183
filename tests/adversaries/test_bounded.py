import math

import pytest
import torch

from agt_lightning.adversaries import BoundedAdversary
from agt_lightning.capture import LabelKind
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels

WRONG = {
    "n is a float": ({"n": 1.0}, TypeError, r"Expected `n` to be an integer, but got 1.0 \(float\)"),
    "n is a bool": ({"n": True}, TypeError, r"Expected `n` to be an integer, but got True \(bool\)"),
    "n is a string": ({"n": "3"}, TypeError, r"Expected `n` to be an integer, but got '3' \(str\)"),
    "n is None": ({"n": None}, TypeError, "Expected `n` to be an integer, but got None"),
    "n is negative": ({"n": -1}, ValueError, "Expected `n` to be at least 0, but got -1"),
    "epsilon is negative": (
        {"epsilon": -0.1},
        ValueError,
        "Expected `epsilon` to be finite and at least 0, but got -0.1",
    ),
    "epsilon is NaN": (
        {"epsilon": math.nan},
        ValueError,
        "Expected `epsilon` to be finite and at least 0, but got nan",
    ),
    "epsilon is infinite": ({"epsilon": math.inf}, ValueError, "Expected `epsilon` to be finite .* but got inf"),
    "epsilon is a bool": ({"epsilon": True}, TypeError, r"Expected `epsilon` to be a number, but got True \(bool\)"),
    "epsilon is a tensor of integers": (
        {"epsilon": torch.ones(1, dtype=torch.long)},
        TypeError,
        "Expected `epsilon` to be a number or a floating point tensor, but got torch.int64",
    ),
    "epsilon is negative for one feature": (
        {"epsilon": torch.tensor([0.1, -0.1])},
        ValueError,
        "Expected all of `epsilon` to be finite and at least 0",
    ),
    "bounds are a number": ({"epsilon": 0.1, "bounds": 1}, TypeError, "Expected `bounds` to be a pair"),
    "bounds are reversed": (
        {"epsilon": 0.1, "bounds": (1, 0)},
        ValueError,
        "Expected `bounds` with smallest < largest",
    ),
    "bounds without a ball": ({"bounds": (0, 1)}, ValueError, "Expected `bounds` only with `epsilon > 0`"),
    "targets without a radius": (
        {"q": 0, "target_classes": (1,)},
        ValueError,
        "Expected `target_classes` only with label flips",
    ),
    "epsilon is a string": ({"epsilon": "0.1"}, TypeError, r"Expected `epsilon` to be a number, but got '0.1' \(str\)"),
    "p is unknown": ({"p": 3}, ValueError, r"Expected `p` to be one of \[1, 2, inf\], but got 3"),
    "p is zero": ({"p": 0}, ValueError, r"Expected `p` to be one of \[1, 2, inf\], but got 0"),
    "p is NaN": ({"p": math.nan}, ValueError, "Expected `p` to be one of .* but got nan"),
    "p is a string": ({"p": "inf"}, TypeError, r"Expected `p` to be a number, but got 'inf' \(str\)"),
    "p is a bool": ({"p": True}, TypeError, "Expected `p` to be a number, but got True"),
    "nu is negative": ({"nu": -1}, ValueError, "Expected `nu` to be finite and at least 0, but got -1"),
    "nu is NaN": ({"nu": math.nan}, ValueError, "Expected `nu` to be finite .* but got nan"),
    "nu is a list": ({"nu": [1]}, TypeError, "Expected `nu` to be a number"),
    "nu is a fraction with q = 0": (
        {"nu": 0.5, "q": 0},
        ValueError,
        "Expected `nu` to be 0 or 1 with `q=0`, .* got 0.5",
    ),
    "nu counts more than one label": ({"nu": 2, "q": 0}, ValueError, "Expected `nu` to be 0 or 1 with `q=0`"),
    "q is unknown": ({"q": 3}, ValueError, r"Expected `q` to be one of \[0, 1, 2, inf\], but got 3"),
    "q is NaN": ({"q": math.nan}, ValueError, "Expected `q` to be one of .* but got nan"),
    "q is None": ({"q": None}, TypeError, "Expected `q` to be a number, but got None"),
    "targets without flips": (
        {"nu": 1, "target_classes": (1,)},
        ValueError,
        r"Expected `target_classes` only with label flips \(`nu=1, q=0`\), but got it with `nu=1, q=inf`",
    ),
    "sources without flips": ({"source_classes": [1]}, ValueError, "Expected `source_classes` only with label flips"),
    "targets are a number": (
        {"nu": 1, "q": 0, "target_classes": 1},
        TypeError,
        "Expected `target_classes` to be a sequence of class indices or None, but got 1",
    ),
    "targets are a string": (
        {"nu": 1, "q": 0, "target_classes": "12"},
        TypeError,
        "Expected `target_classes` to be a seq",
    ),
    "a target is a float": (
        {"nu": 1, "q": 0, "target_classes": (1.0,)},
        TypeError,
        "Expected `target_classes` to be an int",
    ),
    "a source is negative": (
        {"nu": 1, "q": 0, "source_classes": (-1,)},
        ValueError,
        "Expected `source_classes` to be at l",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused(name):
    arguments, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        BoundedAdversary(**{"n": 1, **arguments})


@pytest.mark.parametrize(
    "arguments",
    [{"n": 0}, {"n": 10**6, "epsilon": 3}, {"n": 1, "p": 2.0, "q": 1}, {"n": 1, "nu": 1, "q": 0, "target_classes": []}],
    ids=str,
)
def test_sensible_arguments_are_accepted(arguments):
    adversary = BoundedAdversary(**arguments)
    assert adversary.n == arguments["n"]


def test_classes_are_kept_as_a_tuple():
    adversary = BoundedAdversary(n=1, nu=1, q=0, target_classes=[2, 1])
    assert adversary.target_classes == (2, 1)
    assert hash(adversary) == hash(BoundedAdversary(n=1, nu=1, q=0, target_classes=(2, 1)))


# adversary, kind of the labels, number of labels, number of features, message; None if it fits
PROBLEMS = [
    ({"epsilon": 0.1}, LabelKind.CLASS, 1, 1, None),
    ({"epsilon": 0.1}, LabelKind.CLASS, 1, 0, "`epsilon` is positive, but the loss reads no feature that it can move"),
    ({"nu": 1, "q": 0}, LabelKind.CLASS, 1, 1, None),
    ({"nu": 1, "q": 0}, LabelKind.BINARY, 1, 1, None),
    ({"nu": 0.5}, LabelKind.BINARY, 1, 1, None),
    ({"nu": 0.5}, LabelKind.NUMBER, 1, 1, None),
    ({"nu": 0.5}, LabelKind.CLASS, 1, 1, "Class labels cannot move by `nu=0.5` in norm `q=inf`. Use `nu=1, q=0`"),
    ({"nu": 1, "q": 0}, LabelKind.NUMBER, 1, 1, "`q=0` flips class labels, but the loss reads real-valued labels"),
    ({"nu": 1}, LabelKind.NUMBER, 2, 1, "`nu` is positive, but 2 batch entries meet the predictions like labels"),
    ({"nu": 1}, LabelKind.NONE, 0, 1, "`nu` is positive, but 0 batch entries meet the predictions"),
    (
        {"nu": 1, "q": 0, "source_classes": (0,)},
        LabelKind.BINARY,
        1,
        1,
        "`source_classes` needs class",
    ),
    ({"n": 0, "nu": 0.5, "epsilon": 1}, LabelKind.CLASS, 3, 0, None),
]


@pytest.mark.parametrize(("arguments", "kind", "labels", "features", "message"), PROBLEMS, ids=str)
def test_problems_name_what_does_not_fit(arguments, kind, labels, features, message):
    problems = BoundedAdversary(**{"n": 2, **arguments}).problems(kind, labels, features)
    assert len(problems) == (message is not None)
    assert all(problem.startswith(message) for problem in problems)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_poisoned_features_contain_every_point_of_the_ball(p):
    generator = torch.Generator().manual_seed(0)
    adversary = BoundedAdversary(n=1, epsilon=0.3, p=p)
    x = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    box = adversary.poisoned_features(Interval.point(x))
    for axis in torch.eye(5, dtype=torch.float64):
        assert box.contains(x + 0.3 * axis)
        assert box.contains(x - 0.3 * axis)
    assert torch.allclose(box.radius, torch.full_like(x, 0.3), rtol=1e-15, atol=0)


def test_poisoned_features_are_not_known_to_be_nonnegative():
    box = BoundedAdversary(n=1, epsilon=0.3).poisoned_features(Interval.point(torch.zeros(2, 2), nonnegative=True))
    assert not box.nonnegative
    assert bool((box.lower < 0).all())


def test_poisoned_class_labels_are_those_a_flip_reaches():
    adversary = BoundedAdversary(n=1, nu=1, q=0, source_classes=(0,), target_classes=(2,))
    labels = adversary.poisoned_labels(torch.tensor([0, 1, 2]), LabelKind.CLASS)
    assert isinstance(labels, ClassLabels)
    assert labels.reachable(3).tolist() == [[True, False, True], [False, True, False], [False, False, True]]


def test_poisoned_binary_labels_reach_both_values():
    labels = BoundedAdversary(n=1, nu=1, q=0).poisoned_labels(torch.tensor([[0], [1]]), LabelKind.BINARY)
    assert labels.lower.tolist() == [[0.0], [0.0]]
    assert labels.upper.tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("kind", [LabelKind.NUMBER, LabelKind.BINARY])
@pytest.mark.parametrize("q", [1, 2, math.inf])
def test_poisoned_numbers_are_a_box(q, kind):
    labels = BoundedAdversary(n=1, nu=0.25, q=q).poisoned_labels(torch.tensor([0.0, 1.0]), kind)
    assert labels.lower.tolist() == [-0.25, 0.75]
    assert labels.upper.tolist() == [0.25, 1.25]


@pytest.mark.parametrize(
    ("arguments", "features", "labels"),
    [
        ({}, False, False),
        ({"epsilon": 1}, True, False),
        ({"nu": 1}, False, True),
        ({"epsilon": 1, "nu": 1}, True, True),
    ],
    ids=str,
)
def test_an_adversary_knows_what_it_moves(arguments, features, labels):
    adversary = BoundedAdversary(n=1, **arguments)
    assert (adversary.perturbs_features, adversary.perturbs_labels) == (features, labels)
