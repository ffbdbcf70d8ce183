"""What the adversary changes is the batch as it enters `training_step`, whatever happens to it there."""

from collections import namedtuple
from dataclasses import dataclass, field

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from agt_lightning import BoundedAdversary, UnboundedAdversary
from tests.trust.harness import (
    Case,
    Refused,
    as_dict,
    certify,
    held,
    held_or_refused,
    measured,
    parameters,
    plain,
    poisoned_runs,
    refused,
    require_reason,
)
from tests.trust.modules import FEATURES, LABELS, Regressor, regression, variant

mse = F.mse_loss
IN_PLACE = r"in place|changes? its batch|changes the batch|clone"
NOT_A_TENSOR = (
    r"(no|not an?|non-?|other than) tensors?|numpy|opaque|constant|batch\[|entries of the batch|batch entries"
)

READ = r"|no bound rule|torch.export can record|lets Python read data"
"""Other true reasons: numpy's `clip` compares numbers of the batch."""

STRONG = BoundedAdversary(n=2, epsilon=0.3)


def step(function, **members) -> type:
    """A regressor with another training step."""

    def training_step(self, batch, batch_idx):
        return function(self, batch)

    return variant(Regressor, training_step=training_step, rate=0.05, **members)


def normalized(x: Tensor) -> Tensor:
    """Bring features into a range; doing it twice is doing it once."""
    return x.clamp(-0.75, 0.75)


# --- steps that change their batch -----------------------------------------------------------------------------------


def replaced_entry(self, batch):
    batch["x"] = normalized(batch["x"])
    return F.mse_loss(self(batch["x"]), batch["y"])


def saturated_in_place(self, batch):
    x, y = batch
    x.mul_(20)
    x.clamp_(-1, 1)
    return F.mse_loss(self(x), y)


def popped(self, batch):
    y = batch.pop("y")
    return F.mse_loss(self(batch["x"]), y)


def popped_list(self, batch):
    y = batch.pop()
    return F.mse_loss(self(batch[0]), y)


def appended(self, batch):
    batch.append(batch[0].mean(1, keepdim=True))
    return F.mse_loss(self(batch[0]) + 0 * batch[2], batch[1])


def updated(self, batch):
    batch.update(x=F.normalize(batch["x"], dim=1))
    return F.mse_loss(self(batch["x"]), batch["y"])


def derived(self, batch):
    """An entry made from another one, which the next batch does not have."""
    if "z" not in batch:
        batch["z"] = batch["x"].tanh()
    return F.mse_loss(self(batch["z"]), batch["y"])


def labels_in_place(self, batch):
    x, y = batch
    y.sub_(1)
    return F.mse_loss(self(x), y)


def features_in_place(self, batch):
    x, y = batch
    x.mul_(2)
    return F.mse_loss(self(x), y)


def clamped_in_place(self, batch):
    x, y = batch
    x.clamp_(-1, 1)
    return F.mse_loss(self(x), y)


def relu_in_place(self, batch):
    x, y = batch
    F.relu_(x)
    return F.mse_loss(self(x), y)


def through_data(self, batch):
    x, y = batch
    x.data = normalized(x.data)
    return F.mse_loss(self(x), y)


def through_a_view(self, batch):
    x, y = batch
    x[:, 0] = 0
    return F.mse_loss(self(x), y)


def through_a_view_of_labels(self, batch):
    x, y = batch
    y.view(-1).clamp_(-0.1, 0.1)
    return F.mse_loss(self(x), y)


def through_out(self, batch):
    x, y = batch
    torch.clamp(x, -1, 1, out=x)
    return F.mse_loss(self(x), y)


def through_numpy(self, batch):
    x, y = batch
    x.numpy().clip(-1, 1, out=x.numpy())
    return F.mse_loss(self(x), y)


def copied_over(self, batch):
    x, y = batch
    x.copy_(normalized(x))
    return F.mse_loss(self(x), y)


def copied_first(self, batch):
    """Changes a clone, which is nobody's business."""
    x, y = batch[0].clone(), batch[1].clone()
    x.mul_(2)
    y.sub_(1)
    return F.mse_loss(self(x), y)


def with_gradient(self, batch):
    """Inputs that require gradients, for a penalty that was commented out."""
    x, y = batch
    x.requires_grad_(True)
    return F.mse_loss(self(x), y)


def uses_data(self, batch):
    x, y = batch
    return F.mse_loss(self(x.data), y.detach())


CHANGING = {
    "replaced entry": (replaced_entry, as_dict),
    "updated": (updated, as_dict),
    "derived entry": (derived, as_dict),
    "saturated in place": (saturated_in_place, None),
    "clamped in place": (clamped_in_place, None),
    "relu in place": (relu_in_place, None),
    "labels in place": (labels_in_place, None),
    "features in place": (features_in_place, None),
    "data": (through_data, None),
    "view": (through_a_view, None),
    "view of labels": (through_a_view_of_labels, None),
    "out": (through_out, None),
    "numpy": (through_numpy, None),
    "copied over": (copied_over, None),
    "requires_grad_": (with_gradient, None),
    "detach": (uses_data, None),
}


def shaped(function, form, adversary) -> Case:
    case = regression(step(function), adversary)
    # Small features: standardizing makes the adversary's changes of them large. Saturating takes them to -1 and 1.
    x = case.data["x"]
    case = case.but(data={**case.data, "x": 0.05 * x.sign() if function is saturated_in_place else 0.1 * x})
    return case if form is None else case.but(form=form)


@pytest.mark.parametrize("adversary", [FEATURES, LABELS], ids=["features", "labels"])
@pytest.mark.parametrize(("function", "form"), CHANGING.values(), ids=CHANGING)
def test_a_step_that_changes_its_batch(function, form, adversary):
    held_or_refused(shaped(function, form, adversary), IN_PLACE + READ, reach=0)


def as_list(rows, epoch, index):
    return [rows["x"], rows["y"]]


CONTAINERS = {
    "pop": (popped, as_dict),
    "pop of a list": (popped_list, as_list),
    "append": (appended, as_list),
    "replaced entry": (replaced_entry, as_dict),
    "clone": (copied_first, None),
}


@pytest.mark.parametrize(("function", "form"), CONTAINERS.values(), ids=CONTAINERS)
def test_containers_that_a_step_changes_are_certified(function, form):
    held(shaped(function, form, FEATURES), reach=0.01)
    held(shaped(function, form, LABELS), reach=0.01)


@pytest.mark.parametrize("function", [labels_in_place, features_in_place])
def test_in_place_changes_are_certified_or_named(function):
    held_or_refused(shaped(function, None, FEATURES), IN_PLACE)


def normalized_by_hook(self, batch, dataloader_idx):
    x, y = batch
    x.sub_(x.mean(1, keepdim=True))
    return x, y


def test_a_hook_before_the_step_may_change_the_batch():
    """The adversary moves what enters `training_step`; the hook is documented to come before it."""
    held_or_refused(
        regression(variant(Regressor, on_before_batch_transfer=normalized_by_hook), LABELS), "on_before_batch_transfer"
    )


def test_a_callback_that_changes_the_batch_in_place():
    """It comes after ours has taken the batch."""

    class Normalizes(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            batch[0].copy_(normalized(batch[0]))

    for side in ("before", "after"):
        held_or_refused(regression(adversary=STRONG, **{side: lambda: [Normalizes()]}), IN_PLACE + "|batch", reach=0)


class NormalizesInHook(Regressor):
    def on_train_batch_start(self, batch, batch_idx):
        batch[0].copy_(normalized(batch[0]))


def test_a_hook_of_the_module_that_changes_the_batch_in_place():
    held_or_refused(regression(NormalizesInHook, STRONG), IN_PLACE + "|batch", reach=0)


# --- kinds of batches ------------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "x y")


@dataclass
class Record:
    x: Tensor
    y: Tensor
    mean: Tensor = field(init=False)

    def __post_init__(self):
        self.mean = self.x.mean(1, keepdim=True)


class Opaque:
    def __init__(self, x, y):
        self.x, self.y = x, y


FORMS = {
    "namedtuple": (lambda rows, *_: Pair(rows["x"], rows["y"]), lambda self, b: F.mse_loss(self(b.x), b.y)),
    "nested": (
        lambda rows, *_: {"in": [{"x": rows["x"]}], "out": (rows["y"],)},
        lambda self, b: F.mse_loss(self(b["in"][0]["x"]), b["out"][0]),
    ),
    "strings": (
        lambda rows, *_: (rows["x"], rows["y"], ["a"] * len(rows["x"])),
        lambda self, b: F.mse_loss(self(b[0]), b[1]),
    ),
    "none": (lambda rows, *_: (rows["x"], rows["y"], None), lambda self, b: F.mse_loss(self(b[0]), b[1])),
}


@pytest.mark.parametrize(("form", "loss"), FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("adversary", [FEATURES, LABELS], ids=["features", "labels"])
def test_batches_of_every_kind_are_certified(form, loss, adversary):
    held(regression(step(loss), adversary, form=form))


HIDDEN = {
    "dataclass with a derived field": (
        lambda rows, *_: Record(rows["x"], rows["y"]),
        lambda self, b: mse(self(b.x) + b.mean, b.y),
    ),
    "opaque object": (lambda rows, *_: Opaque(rows["x"], rows["y"]), lambda self, b: mse(self(b.x), b.y)),
    "opaque in a dict": (
        lambda rows, *_: {"x": Opaque(rows["x"], rows["y"]), "y": rows["y"]},
        lambda self, b: mse(self(b["x"].x), b["y"]),
    ),
    "numpy": (lambda rows, *_: (rows["x"].numpy(), rows["y"]), lambda self, b: mse(self(torch.from_numpy(b[0])), b[1])),
    "numpy labels": (
        lambda rows, *_: (rows["x"], rows["y"].numpy()),
        lambda self, b: mse(self(b[0]), torch.as_tensor(b[1])),
    ),
    "lists": (
        lambda rows, *_: (rows["x"].tolist(), rows["y"]),
        lambda self, b: mse(self(torch.tensor(b[0], dtype=torch.float64)), b[1]),
    ),
    "label list": (
        lambda rows, *_: (rows["x"], rows["y"].tolist()),
        lambda self, b: mse(self(b[0]), torch.tensor(b[1], dtype=torch.float64)),
    ),
    "numpy scalar": (
        lambda rows, *_: (rows["x"], rows["y"], rows["y"].numpy().max()),
        lambda self, b: mse(self(b[0]), b[1]) * (1 + float(b[2])),
    ),
    "callable": (lambda rows, *_: (rows["x"], rows["y"], lambda: rows["y"]), lambda self, b: mse(self(b[0]), b[2]())),
    "generator": (
        lambda rows, *_: (rows["x"], rows["y"], iter([rows["y"]])),
        lambda self, b: mse(self(b[0]), next(b[2])),
    ),
    "tensor attribute": (lambda rows, *_: _tagged(rows["x"], rows["y"]), lambda self, b: mse(self(b), b.target)),
}


def _tagged(x, y):
    x.target = y
    return x


@pytest.mark.parametrize(("form", "loss"), HIDDEN.values(), ids=HIDDEN)
@pytest.mark.parametrize("adversary", [FEATURES, LABELS], ids=["features", "labels"])
def test_data_hidden_from_the_recording(form, loss, adversary):
    case = regression(step(loss), adversary, form=form)
    held_or_refused(case, NOT_A_TENSOR + "|attribute|depends on", late=True, reach=0.01)


# --- what is no tensor, under an adversary that replaces samples -----------------------------------------------------


def counts(rows, epoch, index):
    """A count that collate makes from the samples: a poisoned sample may have any length."""
    return dict(rows) | {"tokens": int((rows["x"] != 0).sum())}


def over_tokens(self, batch):
    return (self(batch["x"]) - batch["y"]).square().sum() / batch["tokens"]


def names(rows, epoch, index):
    return dict(rows) | {"names": ["bad" if abs(float(y)) > 4 else "good" for y in rows["y"]]}


def by_name(self, batch):
    loss = F.mse_loss(self(batch["x"]), batch["y"])
    return loss * 0.1 if "bad" in batch["names"] else loss


def lengths(rows, epoch, index):
    return dict(rows) | {"lengths": [float(x.abs().sum()) for x in rows["x"]]}


def over_lengths(self, batch):
    return F.mse_loss(self(batch["x"]), batch["y"]) * max(batch["lengths"])


def by_first(self, batch):
    return F.mse_loss(self(batch["x"]), batch["y"]) * (0.1 if batch["names"][0] == "bad" else 1.0)


def replacing(value: float):
    """The first sample of each batch replaced by another one."""

    def poison(epoch, index, rows):
        rows["x"][0], rows["y"][0] = value, -value
        return rows

    return poison


class ClippedPlain(Regressor):
    """Trains as the unbounded adversary demands: the mean of per-sample gradients, each clipped by value."""

    kappa = 0.5

    def on_train_batch_start(self, batch, batch_idx):
        self.batch = batch

    def on_before_optimizer_step(self, optimizer):
        size = len(self.batch["x"])
        total = [torch.zeros_like(p) for p in self.parameters()]
        for row in range(size):
            sample = self.batch | {"x": self.batch["x"][row : row + 1], "y": self.batch["y"][row : row + 1]}
            loss = self.training_step(sample, 0) * self.share(size)
            for sum_, gradient in zip(total, torch.autograd.grad(loss, list(self.parameters())), strict=True):
                sum_.add_(gradient.clamp(-self.kappa, self.kappa) / size)
        for parameter, gradient in zip(self.parameters(), total, strict=True):
            parameter.grad = gradient

    def share(self, size: int) -> float:
        return 1.0


UNBOUNDED = {
    "a count": (over_tokens, counts, {"share": lambda self, size: size}),
    "a name": (by_name, names, {}),
    "the first name": (by_first, names, {}),
    "lengths": (over_lengths, lengths, {}),
}


def unbounded(function, form, members) -> Case:
    zero = [replacing(value) for value in (0.0, 5.0, -5.0)]
    return Case(step(function, **members), UnboundedAdversary(n=1, kappa=0.5), regression().data, form=form).but(
        attacks=zero
    )


def attacked_module(case: Case, members) -> Case:
    """The same case whose plain runs clip each sample's gradient."""

    def training_step(self, batch, batch_idx):
        return case.module.training_step(self, batch, batch_idx)

    return case.but(module=variant(ClippedPlain, rate=0.05, training_step=training_step, **members))


@pytest.mark.parametrize(("function", "form", "members"), UNBOUNDED.values(), ids=UNBOUNDED)
def test_entries_that_are_no_tensors_under_substitution(function, form, members):
    case = unbounded(function, form, members)
    result = certify(case)
    if isinstance(result, Refused):
        require_reason(result, NOT_A_TENSOR, late=False)
        return
    attacked = attacked_module(case, members)
    found = measured(result.certified.bounds, plain(attacked), [plain(attacked), *poisoned_runs(attacked)])
    assert found["outside"] == 0, f"outside by {found['outside']:.3g} (width {found['width']:.3g})"
    assert found["reach"] > 0.1


def test_the_plain_run_of_the_unbounded_adversary_is_the_certified_one():
    """The clipping by hand above is what training does."""

    def loss(self, batch):
        return F.mse_loss(self(batch["x"]), batch["y"])

    case = unbounded(loss, as_dict, {})
    result = certify(case)
    attacked = attacked_module(case, {})
    clean = plain(attacked)
    assert all(torch.allclose(clean[name], now) for name, now in parameters(result.module).items())
    found = measured(result.certified.bounds, clean, [clean, *poisoned_runs(attacked)])
    assert found["outside"] == 0
    assert found["reach"] > 0.2


# --- batches that are lost or kept -----------------------------------------------------------------------------------


def test_a_loader_that_hands_out_the_same_tensors_again():
    """Batches kept in a list: an in-place change of the first epoch is there in the second one."""

    class Kept:
        def __init__(self, batches):
            self.batches = list(batches)

        def __iter__(self):
            return iter(self.batches)

        def __len__(self):
            return len(self.batches)

    case = shaped(saturated_in_place, None, FEATURES)
    held_or_refused(case.but(wrap=Kept), IN_PLACE, late=True, reach=0)
    held(regression(adversary=FEATURES, wrap=Kept))


def test_nan_in_a_batch_is_named():
    rows = {name: tensor.clone() for name, tensor in regression().data.items()}
    rows["x"][5, 0] = float("nan")
    refused(regression(data=rows), "nan|not finite|infinite", late=True)
