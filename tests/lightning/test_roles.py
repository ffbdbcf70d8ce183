"""Which batch entries an adversary moves: found and held under attack, asked for where it is not certain, or named."""

import copy
import json
import logging
import re
from dataclasses import dataclass

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from agt_lightning import BoundedAdversary, CertifiedTraining, UnboundedAdversary, UncertifiableError

EPSILON, NU = 0.1, 0.2
ROUNDING = 1e-6
"""Of a few float32 steps; the bounds are computed in float64."""

MOVES = BoundedAdversary(n=1, epsilon=EPSILON)
SHIFTS = BoundedAdversary(n=1, nu=NU)
FLIPS = BoundedAdversary(n=1, nu=1, q=0)

GENERATOR = torch.Generator().manual_seed(0)
ROWS, SIZE = 8, 4
DATA = {
    "x": torch.randn(ROWS, 3, generator=GENERATOR),
    "z": torch.randn(ROWS, 4, generator=GENERATOR),
    "y": torch.randn(ROWS, 1, generator=GENERATOR),
    "w": 0.5 + torch.rand(ROWS, 1, generator=GENERATOR),
    "mask": torch.arange(ROWS)[:, None] % 4 != 3,
    "kind": torch.arange(ROWS) % 3,
    "from one": 1 + torch.arange(ROWS) % 3,
    "pixels": torch.randint(0, 256, (ROWS, 3), generator=GENERATOR).to(torch.uint8),
}


class Net(L.LightningModule):
    """Layers of all sizes that the steps below need."""

    def __init__(self, step, outputs):
        super().__init__()
        torch.manual_seed(0)
        self.step = step
        self.first = nn.Linear(3, 4)
        self.last = nn.Linear(4, outputs)
        self.fused = nn.Linear(8, outputs)
        self.table = nn.Embedding(3, 4)
        self.offset = nn.Parameter(torch.ones(1))

    def hidden(self, x):
        return torch.relu(self.first(x))

    def forward(self, x):
        return self.last(self.hidden(x))

    def training_step(self, batch, batch_idx):
        return self.step(self, batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(data):
    """Batches by key, always in the same order."""
    keys = list(data)

    def collate(samples):
        return dict(zip(keys, torch.utils.data.default_collate(samples), strict=True))

    return DataLoader(TensorDataset(*data.values()), batch_size=SIZE, collate_fn=collate)


def entries(keys):
    return {key: DATA[key] for key in keys.split(", ")}


def poisoned(data, moved, change):
    """Yield the data with one sample of each batch changed in the given entries."""
    for row in (0, SIZE - 1):
        for sign in (-1.0, 1.0):
            other = {key: tensor.clone() for key, tensor in data.items()}
            for key in moved:
                for start in range(0, ROWS, SIZE):
                    other[key][start + row] = change(other[key][start + row], sign)
            yield other


def outside(step, outputs, data, fit, certified, poisons):
    """Train on clean data with bounds, then without on poisoned data; the largest distance outside of the bounds."""
    module = Net(step, outputs)
    start = copy.deepcopy(module)
    fit(module, loader(data), certified, max_epochs=2)
    distances = [0.0]
    for other in poisons:
        run = copy.deepcopy(start)
        fit(run, loader(other), max_epochs=2)
        for name, parameter in run.named_parameters():
            bounds = certified.bounds[name]
            distances.append(float(torch.maximum(bounds.lower - parameter, parameter - bounds.upper).detach().max()))
    return max(distances)


def shifted(radius):
    return lambda row, sign: row + sign * radius


def refused(step, outputs, data, fit, certified):
    with pytest.raises(UncertifiableError) as error:
        fit(Net(step, outputs), loader(data), certified)
    return str(error.value)


@dataclass(frozen=True)
class Case:
    """A training step whose roles are found.

    Args:
        step: the training step.
        keys: entries of the batch.
        roles: as the log states them.
        moved: entries that an adversary with ε moves.
    """

    step: object
    keys: str
    roles: str
    moved: tuple[str, ...]


def late_fusion(self, b):
    return F.mse_loss(self.fused(torch.cat([self.hidden(b["x"]), b["z"]], dim=1)), b["y"])


def gate(self, b):
    return F.mse_loss(self.last(self.hidden(b["x"]) * b["z"]), b["y"])


def table_and_numbers(self, b):
    return F.mse_loss(self.fused(torch.cat([self.table(b["kind"]), b["z"]], dim=1)), b["y"])


def weights(self, b):
    return (b["w"] * (self(b["x"]) - b["y"]) ** 2).mean()


def masked(self, b):
    return (b["mask"] * (self(b["x"]) - b["y"]) ** 2).mean()


def offset(self, b):
    return (b["w"] * (self(b["x"]) - (b["y"] - self.offset)) ** 2).mean()


def residual(self, b):
    return F.mse_loss(b["x"][:, :1] + self(b["x"]), b["y"])


FOUND = {
    "late fusion": Case(
        late_fusion, "x, z, y", "features: batch['x'], batch['z']; label: batch['y'] (number)", ("x", "z")
    ),
    "gate": Case(gate, "x, z, y", "features: batch['x'], batch['z']; label: batch['y'] (number)", ("x", "z")),
    "categories and numbers": Case(
        table_and_numbers,
        "kind, z, y",
        "features: batch['z']; label: batch['y'] (number); not moved: batch['kind'] (discrete)",
        ("z",),
    ),
    "weights": Case(
        weights,
        "x, y, w",
        "features: batch['x']; label: batch['y'] (number); not moved: batch['w'] (weight)",
        ("x",),
    ),
    "mask": Case(
        masked,
        "x, y, mask",
        "features: batch['x']; label: batch['y'] (number); not moved: batch['mask'] (weight)",
        ("x",),
    ),
    "offset": Case(offset, "x, y, w", "features: batch['x'], batch['y']; label: batch['w'] (number)", ("x", "y")),
    "residual": Case(residual, "x, y", "features: batch['x']; label: batch['y'] (number)", ("x",)),
}


@pytest.mark.parametrize("case", FOUND.values(), ids=FOUND)
def test_all_features_are_moved_and_every_role_is_stated(case, fit, caplog, tmp_path):
    data, certified = entries(case.keys), CertifiedTraining(MOVES, domains=("box",), dirpath=tmp_path)
    caplog.set_level(logging.INFO)
    poisons = poisoned(data, case.moved, shifted(EPSILON))
    assert outside(case.step, 1, data, fit, certified, poisons) <= ROUNDING
    assert f"reads the batch as {case.roles}" in caplog.text
    (roles,) = json.loads((tmp_path / "certificate.json").read_text())["bounds"]["roles"]
    assert roles["features"] == [f"batch['{key}']" for key in case.moved]


@pytest.mark.slow
def test_a_label_beside_weights_is_moved_and_the_weights_are_not(fit):
    data = entries("x, y, w")
    found, named = (CertifiedTraining(SHIFTS, domains=("box",), labels=labels) for labels in (None, "y"))
    assert outside(weights, 1, data, fit, found, poisoned(data, ["y"], shifted(NU))) <= ROUNDING
    fit(Net(weights, 1), loader(data), named, max_epochs=2)
    assert found.bounds.mean_width() == pytest.approx(named.bounds.mean_width(), rel=1e-3)


def gated_output(self, b):
    return F.mse_loss(self(b["x"]) * b["w"], b["y"])


def reconstruction_with_gate(self, b):
    return F.mse_loss(self(b["x"]) * b["w"], b["x"][:, :1])


def pixels_and_numbers(self, b):
    out = self(b["pixels"] / 255) + self.last(b["z"])
    return F.mse_loss(out, b["y"])


UNCERTAIN = {
    "offset with label": (offset, "x, y, w", SHIFTS, "batch['w'] or batch['x'] or batch['y'] is the label", "labels="),
    "gate behind the model": (gated_output, "x, y, w", MOVES, "batch['w'] enters the model", "features="),
    "gate behind the model with label": (gated_output, "x, y, w", SHIFTS, "2 batch entries meet", "labels="),
    "gate in a reconstruction": (reconstruction_with_gate, "x, w", MOVES, "batch['w'] enters the model", "features="),
    "images of integers": (pixels_and_numbers, "pixels, z, y", MOVES, "batch['pixels'] (uint8", "floating point"),
}


@pytest.mark.parametrize(("step", "keys", "adversary", "reason", "way_out"), UNCERTAIN.values(), ids=UNCERTAIN)
def test_what_is_not_certain_is_asked_for_before_the_first_step(step, keys, adversary, reason, way_out, fit):
    message = refused(step, 1, entries(keys), fit, CertifiedTraining(adversary))
    assert reason in message
    assert way_out in message


NAMED = {
    "gate as feature": (gated_output, "x, y, w", MOVES, {"features": ("x", "w")}, ("x", "w"), EPSILON),
    "gate left alone": (gated_output, "x, y, w", MOVES, {"features": "x"}, ("x",), EPSILON),
    "target of a gate": (gated_output, "x, y, w", SHIFTS, {"labels": "y"}, ("y",), NU),
    "label with an offset": (offset, "x, y, w", SHIFTS, {"labels": "y"}, ("y",), NU),
    "weights as labels": (weights, "x, y, w", SHIFTS, {"labels": "w"}, ("w",), NU),
    "two labels": (gated_output, "x, y, w", SHIFTS, {"labels": ["y", "batch['w']"]}, ("y", "w"), NU),
    "images left alone": (pixels_and_numbers, "pixels, z, y", MOVES, {"features": "z"}, ("z",), EPSILON),
    "half of a fusion": (late_fusion, "x, z, y", MOVES, {"features": "z"}, ("z",), EPSILON),
}


@pytest.mark.parametrize(("step", "keys", "adversary", "names", "moved", "radius"), NAMED.values(), ids=NAMED)
def test_named_entries_are_moved_and_no_others(step, keys, adversary, names, moved, radius, fit):
    data, certified = entries(keys), CertifiedTraining(adversary, domains=("box",), **names)
    assert outside(step, 1, data, fit, certified, poisoned(data, moved, shifted(radius))) <= ROUNDING
    (roles,) = certified.roles
    named = {*roles["features"], *roles["labels"]}
    assert named == {f"batch['{key}']" for key in moved}
    assert set(roles["not_moved"]) == {f"batch['{key}']" for key in data} - named


@pytest.mark.slow
def test_an_entry_that_is_not_named_adds_no_width(fit):
    def width(features):
        certified = CertifiedTraining(MOVES, domains=("box",), features=features)
        fit(Net(gated_output, 1), loader(entries("x, y, w")), certified)
        return certified.bounds.mean_width()

    assert 0 < width("w") < width(["x", "w"])
    assert 0 < width("x") < width(["x", "w"])


WRONG = {
    "no such key": (late_fusion, MOVES, {"features": "image"}, "no tensor of the batch is called 'image'"),
    "not read": (late_fusion, MOVES, {"features": "w"}, "which the loss does not read"),
    "discrete": (table_and_numbers, MOVES, {"features": ["kind", "z"]}, "`epsilon` cannot move"),
    "no label": (table_and_numbers, FLIPS, {"labels": "kind"}, "no prediction is compared with it"),
    "both": (late_fusion, MOVES, {"features": ["x", "y"], "labels": "y"}, "Both `features` and `labels` name"),
    "features missing": (late_fusion, MOVES, {"labels": "y"}, "only `labels` names entries"),
    "labels missing": (late_fusion, SHIFTS, {"features": "x"}, "only `features` names entries"),
}


@pytest.mark.parametrize(("step", "adversary", "names", "message"), WRONG.values(), ids=WRONG)
def test_names_that_do_not_fit_are_refused_with_the_names_there_are(step, adversary, names, message, fit):
    found = refused(step, 1, entries("x, z, y, w, kind"), fit, CertifiedTraining(adversary, **names))
    assert message in found
    assert re.search(r"batch\['\w+'\]", found)


def test_names_must_be_keys_or_positions():
    with pytest.raises(TypeError, match="Expected `features` to be a key or position"):
        CertifiedTraining(MOVES, features=0.5)


# --- labels that are computed ---------------------------------------------------------------------------------------


def classes_from_one(self, b):
    return F.cross_entropy(self(b["x"]), b["from one"] - 1)


def one_class_against_all(self, b):
    return F.binary_cross_entropy_with_logits(self(b["x"])[:, 0], (b["from one"] == 2).float())


def one_hot_from_one(self, b):
    return F.mse_loss(self(b["x"]), F.one_hot(b["from one"] - 1, 3).float())


def padded_classes(self, b):
    losses = F.cross_entropy(self(b["x"]), b["from one"] - 1, reduction="none")
    return (losses * b["mask"].squeeze(1)).sum() / len(losses)


@pytest.mark.parametrize("step", [classes_from_one, one_class_against_all, one_hot_from_one, padded_classes])
@pytest.mark.parametrize("limits", [{}, {"source_classes": [2], "target_classes": [3]}], ids=["all", "2 to 3"])
def test_flips_of_labels_that_are_computed_are_contained(step, limits, fit):
    data = entries("x, from one, mask")
    adversary = BoundedAdversary(n=1, nu=1, q=0, **limits)

    def flips():
        for row in range(SIZE):
            for label in range(1, 4):
                other = {key: tensor.clone() for key, tensor in data.items()}
                rows = [start + row for start in range(0, ROWS, SIZE)]
                for index in rows:
                    if not limits or (int(data["from one"][index]), label) == (2, 3):
                        other["from one"][index] = label
                yield other

    assert outside(step, 3, data, fit, CertifiedTraining(adversary, domains=("box",)), flips()) <= ROUNDING


def squeezed_probability(self, b):
    return F.binary_cross_entropy(torch.sigmoid(self(b["x"])).squeeze(-1), (b["kind"] == 1).float())


def log_of_softmax(self, b):
    return F.nll_loss(torch.log(torch.softmax(self.fused(torch.cat([self.hidden(b["x"]), b["z"]], 1)), 1)), b["kind"])


@pytest.mark.parametrize(("step", "outputs"), [(squeezed_probability, 1), (log_of_softmax, 3)])
def test_losses_of_probabilities_are_certified(step, outputs, fit):
    data = entries("x, z, kind")
    moved = ("x", "z") if step is log_of_softmax else ("x",)
    certified = CertifiedTraining(MOVES, domains=("box",))
    assert outside(step, outputs, data, fit, certified, poisoned(data, moved, shifted(EPSILON))) <= ROUNDING


# --- other domains and adversaries ----------------------------------------------------------------------------------


class Head(Net):
    """One trained layer, to which all domains apply."""

    def __init__(self, step, outputs):
        super().__init__(step, outputs)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith("last"))


def from_labels(self, b):
    return F.mse_loss(self.last(b["z"]), b["y"])


def test_the_ball_follows_a_label_that_enters_the_model(fit):
    """``z`` is named as label, but it is the input of the last layer."""
    certified, start = CertifiedTraining(SHIFTS, domains=("ball",), labels="z"), Head(from_labels, 1)
    data = entries("z, y")
    fit(copy.deepcopy(start), loader(data), certified, max_epochs=2)
    for other in poisoned(data, ["z"], shifted(NU)):
        run = copy.deepcopy(start)
        fit(run, loader(other), max_epochs=2)
        assert certified.bounds.contains(run)


def test_influence_declines_a_label_that_enters_the_model(fit):
    with pytest.raises(UncertifiableError, match="the targets' batch entry alone"):
        fit(
            Head(from_labels, 1), loader(entries("z, y")), CertifiedTraining(SHIFTS, domains=("influence",), labels="z")
        )


def test_influence_declines_classes_that_are_computed_before_the_encoding(fit):
    def step(self, b):
        return F.mse_loss(self.last(b["z"]), F.one_hot(b["from one"] - 1, 3).float())

    with pytest.raises(UncertifiableError, match="number the classes from 0"):
        fit(Head(step, 3), loader(entries("z, from one")), CertifiedTraining(FLIPS, domains=("influence",)))


@pytest.mark.slow
def test_a_tensor_that_all_samples_share_may_come_from_a_substituted_sample(fit):
    def step(self, b):
        return F.mse_loss(self(b["x"]) * b["scale"], b["y"])

    def batches():
        batch = {"x": DATA["x"], "y": DATA["y"], "scale": DATA["x"].abs().mean(dim=(0, 1), keepdim=True)}
        return DataLoader([batch], batch_size=None)

    with pytest.raises(UncertifiableError, match=r"batch\['scale'\], whose first axis does not count samples"):
        fit(Net(step, 1), batches(), CertifiedTraining(UnboundedAdversary(n=1, kappa=1.0)))
    certified = CertifiedTraining(MOVES, domains=("box",))
    fit(Net(step, 1), batches(), certified)
    assert certified.roles[0]["not_moved"] == {"batch['scale']": "the same for all samples"}
