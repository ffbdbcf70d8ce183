"""Labels and features that reach the loss by side doors: positive weights, casts that merge classes, ignored labels."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agt_lightning import BoundedAdversary, CertifiedModel, ParameterBounds
from agt_lightning.errors import UncertifiableError
from agt_lightning.labels import ClassLabels
from tests.trust.harness import Case, held, refused
from tests.trust.modules import FLIPS, Classifier, Regressor, binary, classes, variant

_bce = F.binary_cross_entropy_with_logits


# --- positive weights made from the batch ---------------------------------------------------------------------------


def _weight_from_features(self, batch):
    x, y = batch
    return _bce(self(x), y, pos_weight=x[:, :1].abs() + 1)


def _weight_from_labels(self, batch):
    x, y = batch
    return _bce(self(x), y, pos_weight=y + 1)


def _weight_from_predictions(self, batch):
    x, y = batch
    return _bce(self(x)[:, :1], y, pos_weight=self(x)[:, 1:].detach().exp())


@pytest.mark.parametrize(
    ("loss", "adversary"),
    [
        (_weight_from_features, BoundedAdversary(n=1, epsilon=1.0)),
        (_weight_from_labels, FLIPS),
        (_weight_from_predictions, BoundedAdversary(n=1, epsilon=1.0)),
    ],
)
def test_a_positive_weight_that_an_adversary_moves_is_refused(loss, adversary):
    refused(
        Case(variant(Regressor, outputs=2 if loss is _weight_from_predictions else 1, loss=loss), adversary, binary()),
        "pos_weight",
    )


def test_a_fixed_positive_weight_holds():
    loss = lambda self, batch: _bce(self(batch[0]), batch[1], pos_weight=torch.tensor([3.0], dtype=torch.float64))  # noqa: E731
    held(Case(variant(Regressor, loss=loss), FLIPS, binary()))


# --- casts that merge classes ---------------------------------------------------------------------------------------


class TestOfClass(Regressor):
    """A class label, and beside it a head for the question whether it is zero, by a cast to bool."""

    __test__ = False
    outputs = 4

    def loss(self, batch):
        x, y = batch
        scores = self(x)
        return 0.01 * F.cross_entropy(scores[:, :3], y) + _bce(scores[:, 3], y.bool().to(scores.dtype))


class ClassOfClass(TestOfClass):
    """The same with the cast as a class."""

    def loss(self, batch):
        x, y = batch
        scores = self(x)
        return 0.01 * F.cross_entropy(scores[:, :3], y) + F.cross_entropy(scores[:, 2:], y.bool().long())


def _all_of(label: int) -> dict[str, torch.Tensor]:
    rows = classes()
    return rows | {"y": torch.full_like(rows["y"], label)}


def _to(label: int):
    """Attacks that give one sample of each batch this label."""

    def attack(first: int):
        def poison(epoch, index, rows):
            rows["y"][first] = label
            return rows

        return poison

    return [attack(first) for first in range(4)]


@pytest.mark.parametrize("module", [TestOfClass, ClassOfClass])
@pytest.mark.parametrize(("label", "sources", "target"), [(0, None, 2), (2, (2,), 0)])
def test_flips_between_given_classes_reach_what_a_cast_makes_of_them(module, label, sources, target):
    adversary = BoundedAdversary(n=1, nu=1, q=0, target_classes=(target,), source_classes=sources)
    held(Case(module, adversary, _all_of(label), attacks=_to(target)))


def test_casts_merge_the_classes_of_a_flip():
    labels = ClassLabels(torch.tensor([0, 1]), flippable=True, sources=(0,), targets=(2,))
    assert labels.to(torch.bool).reachable(2).tolist() == [[True, True], [False, True]]


# --- flips to a label that the loss ignores -------------------------------------------------------------------------


def _one_less(self, batch):
    return F.cross_entropy(self(batch[0]), batch[1] - 1, ignore_index=-1)


def _behind_the_last(self, batch):
    return F.cross_entropy(self(batch[0]), batch[1], ignore_index=3)


@pytest.mark.parametrize(
    ("loss", "shift", "targets", "ignored"),
    [(_one_less, 1, (0,), 0), (_one_less, 1, None, 0), (_behind_the_last, 0, (3,), 3)],
)
def test_flips_to_an_ignored_label_are_refused(loss, shift, targets, ignored):
    rows = classes()
    adversary = BoundedAdversary(n=1, nu=1, q=0, target_classes=targets)
    case = Case(variant(Classifier, loss=loss), adversary, rows | {"y": rows["y"] + shift}, attacks=_to(ignored))
    refused(case, "ignores label")


def test_flips_that_leave_the_ignored_label_out_hold():
    rows = classes()
    adversary = BoundedAdversary(n=1, nu=1, q=0, target_classes=(1, 2))
    held(Case(variant(Classifier, loss=_one_less), adversary, rows | {"y": rows["y"] + 1}, attacks=_to(1) + _to(2)))


# --- outputs that depend on the size of the batch -------------------------------------------------------------------


class SignBySize(nn.Module):
    """Another network for two inputs, with which `forward` is recorded, than for more."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 2).double()

    def forward(self, x):
        return self.net(x) * (1 if len(x) == 2 else -1)


def test_outputs_that_depend_on_the_size_of_the_batch_are_refused():
    module, x = SignBySize(), classes()["x"]
    model = CertifiedModel(module, ParameterBounds.point(module))
    assert model.bound_forward(x[:2]).contains(module(x[:2]))
    for method in (model.bound_forward, model.certify):
        with pytest.raises(UncertifiableError, match="size of the batch"):
            method(x)


# --- labels that wrap around ----------------------------------------------------------------------------------------


def test_integer_labels_that_can_wrap_around_are_refused():
    loss = lambda self, batch: F.mse_loss(self(batch[0]), 0.01 * (batch[1] * 50).double())  # noqa: E731
    rows = classes()
    rows = rows | {"y": torch.full((len(rows["x"]), 1), 2, dtype=torch.int8)}
    refused(Case(variant(Regressor, loss=loss), BoundedAdversary(n=1, nu=1), rows), "wrap around")
    wide = rows | {"y": rows["y"].long()}
    held(Case(variant(Regressor, loss=loss), BoundedAdversary(n=1, nu=1), wide))


WRAPPING = {
    "a comparison with a number": (torch.uint8, 200, lambda y: 10 * (y < 300)),
    "a comparison with a tensor": (torch.uint8, 200, lambda y: 10 * (y < torch.tensor(300))),
    "a power": (torch.int8, 20, lambda y: 0.01 * (y**2).double()),
    "the smaller of two": (torch.int8, 100, lambda y: 0.1 * torch.minimum(y, torch.tensor(300)).double()),
    "a sum of bytes": (torch.int8, 100, lambda y: 0.01 * y.repeat(1, 2).sum(1, keepdim=True, dtype=torch.int8)),
}


@pytest.mark.parametrize(("kind", "written", "target"), WRAPPING.values(), ids=WRAPPING)
def test_flips_that_integers_of_few_bits_cannot_follow_are_refused(kind, written, target):
    refused(_of_numbers(kind, written, target), "wraps? around")


def test_flips_that_wide_integers_follow_are_certified():
    held(_of_numbers(torch.int64, *WRAPPING["a power"][1:]))
    held(_of_numbers(torch.bool, 0, lambda y: y))


def _of_numbers(kind: torch.dtype, written: int, target) -> Case:
    """Squared errors of targets made of labels that are all one, and that a flip makes another number."""
    loss = lambda self, batch: F.mse_loss(self(batch[0]), target(batch[1]).double())  # noqa: E731
    rows = classes()
    rows = rows | {"y": torch.ones(len(rows["x"]), 1, dtype=kind)}
    adversary = BoundedAdversary(n=1, nu=1, q=0, target_classes=(written,))
    return Case(variant(Regressor, loss=loss), adversary, rows, attacks=_to(written))
