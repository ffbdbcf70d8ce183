"""Labels that a loss leaves out: their number divides the loss, so it must be one that no adversary can change."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agt_lightning import BoundedAdversary, UnboundedAdversary
from agt_lightning.capture.counted_labels import CountedLabels, ignored_labels
from tests.trust.harness import Case, held, refused
from tests.trust.modules import FEATURES, FLIPS, Classifier, classes, classification, variant


def loss(**arguments) -> type:
    return variant(
        Classifier, training_step=lambda self, batch, i: F.cross_entropy(self(batch[0]), batch[1], **arguments)
    )


def masked(rows: tuple[int, ...] = (1, 3, 6), label: int = -100) -> dict[str, torch.Tensor]:
    data = classes()
    data["y"][list(rows)] = label
    return data


class Pixels(Classifier):
    """Three classes for each of two places."""

    def network(self):
        return nn.Linear(3, 6)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x).unflatten(1, (3, 2)), y)


def places() -> dict[str, torch.Tensor]:
    data = classes()
    generator = torch.Generator().manual_seed(3)
    y = torch.randint(0, 3, (8, 2), generator=generator)
    return {"x": data["x"], "y": y.masked_fill(torch.rand(8, 2, generator=generator) < 0.4, -100)}


def case(module: type | None = None, **changes) -> Case:
    return classification(module, FEATURES, data=masked()).but(**changes)


HELD = {
    "some in each batch": case(),
    "none in the first batch": case(data=masked((6, 7))),
    "a class": case(loss(ignore_index=0), data=classes()),
    "beyond the classes": case(loss(ignore_index=255), data=masked(label=255)),
    "added up": case(loss(reduction="sum")),
    "a mean of all": case(
        variant(
            Classifier,
            training_step=lambda self, batch, i: F.cross_entropy(self(batch[0]), batch[1], reduction="none").mean(),
        )
    ),
    "accumulated": case(options={"accumulate_grad_batches": 2}, attacks=[]),
    "places": case(Pixels, data=places()),
    "in real arithmetic": case(settings={"floats": "real"}, attacks=[]),
    "log softmax": case(
        variant(
            Classifier, training_step=lambda self, batch, i: F.nll_loss(self(batch[0]).log_softmax(1), batch[1].long())
        )
    ),
}


@pytest.mark.parametrize("case", HELD.values(), ids=HELD)
def test_fixed_labels_may_be_left_out(case):
    """Every step compares the gradient with training's, so the number that the mean divides by is the right one."""
    held(case, reach=0.03 if case.attacks is None else 0)


REFUSED = {
    "flips": FLIPS,
    "flips and moves": BoundedAdversary(n=1, epsilon=0.1, nu=1, q=0),
    "anything": UnboundedAdversary(n=1, kappa=0.1),
}


@pytest.mark.parametrize("adversary", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize(
    ("module", "data"), [(Classifier, masked()), (loss(ignore_index=0), classes())], ids=["left out", "a class"]
)
def test_labels_that_can_change_may_not(adversary, module, data):
    refused(classification(module, adversary, data=data), r"changed label would change the weight|one changed label")


def test_smoothed_labels_may_not():
    """Versions of torch divide by different numbers."""
    refused(case(loss(label_smoothing=0.1)), "without smoothing")


def test_a_class_of_bytes_is_not_left_out():
    """As a byte, -100 is 156."""
    labels = torch.tensor([156, 3], dtype=torch.uint8)
    assert not ignored_labels(labels)
    assert CountedLabels("y", -100, True, (2,), "").factors(labels, torch.float64).tolist() == [1.0, 1.0]


def test_a_batch_without_labels_is_named():
    refused(case(data=masked((4, 5, 6, 7))), r"Every label of a batch is -100.*ignore_index", late=True)


def chosen(self, batch, batch_idx):
    x, y = batch
    return F.cross_entropy(self(x), torch.where(y == 0, -100, y), reduction="none").mean()


def vectors(self, batch, batch_idx):
    x, y = batch
    return F.mse_loss(self(x), F.one_hot(torch.where(y == 0, 1, y), 3).to(x.dtype))


@pytest.mark.thinned(1)
@pytest.mark.parametrize("step", [chosen, vectors])
def test_labels_that_the_step_chooses_are_named(step):
    refused(classification(variant(Classifier, training_step=step), FLIPS), "Compute them in the data set")


def shared_out(divisor) -> type:
    def step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y, reduction="none").sum() / divisor(x, y)

    return variant(Classifier, training_step=step)


def test_a_divisor_that_no_poison_reaches_may_be_made_of_labels():
    held(classification(shared_out(lambda x, y: 1 + (y == 0).sum()), FEATURES), reach=0.01)


@pytest.mark.thinned(1)
@pytest.mark.parametrize(
    ("divisor", "adversary"),
    [
        (lambda x, y: 1 + (y == 0).sum(), FLIPS),
        (lambda x, y: 1 + (y == 0).sum(), UnboundedAdversary(n=1, kappa=0.1, clip="value")),
        (lambda x, y: x.abs().sum(), FEATURES),
    ],
    ids=["flips", "replaced", "moved"],
)
def test_a_divisor_that_poison_reaches_is_refused(divisor, adversary):
    refused(classification(shared_out(divisor), adversary), "samples|reach")
