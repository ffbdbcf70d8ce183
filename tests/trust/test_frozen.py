"""Frozen networks that no poison reaches, whatever they compute, and poison that enters at their outputs."""

import json
import math
from collections.abc import Iterator

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from agt_lightning import BoundedAdversary, CertifiedTraining
from agt_lightning.certificates.assumptions import EVALUATED_AS_IT_IS
from agt_lightning.errors import UncertifiableError
from tests.trust.frozen import BatchNormed, ImageEncoder, Probe, SequenceFirst, TextEncoder
from tests.trust.harness import (
    QUIET,
    Case,
    Held,
    attacks_of,
    certify,
    held,
    made,
    outcome,
    plain,
    plain_module,
    refused,
)
from tests.trust.modules import FEATURES, FLIPS, LABELS, variant


def images(size: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(size, 1, 4, 4, generator=generator, dtype=torch.float64)
    return {"x": x, "y": torch.randint(0, 3, (size,), generator=generator)}


def texts(size: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, 11, (size, 5), generator=generator)
    ids[:, 0] = 1
    return {"x": ids, "y": torch.randint(0, 3, (size,), generator=generator)}


def probe(encoder: type, adversary=FLIPS, **members) -> Case:
    data = texts() if encoder is TextEncoder else images()
    return Case(variant(Probe, encoder=encoder, **members), adversary, data)


@pytest.mark.parametrize("encoder", [TextEncoder, ImageEncoder, SequenceFirst, BatchNormed])
def test_a_frozen_network_needs_no_rules_under_label_flips(encoder):
    result = held(probe(encoder))
    assert 0 < result.certified.bounds.mean_width() < 1


@pytest.mark.slow
def test_a_frozen_network_without_no_grad_needs_no_rules():
    held(probe(ImageEncoder, without_gradients=False))


def test_moved_images_reach_a_frozen_network():
    refused(probe(ImageEncoder, FEATURES), "special_i1.*no bound rule")
    result = outcome(probe(SequenceFirst, FEATURES))
    assert isinstance(result, Held)
    assert result.outside <= 0  # far inside: bounds through a frozen network are wide


class Leaks(Probe):
    """The labels enter the frozen network, so that moved ones reach it."""

    encoder = BatchNormed

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self(x + 0.1 * y[:, :, None, None])[:, :1], y)


def test_labels_that_enter_the_frozen_network_move_its_statistics():
    """So that one moved label moves the features of all samples."""
    y = torch.randn(8, 1, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    held(Case(Leaks, LABELS, {"x": images()["x"], "y": y}, settings={"labels": 1}))


class UnfreezesLater(Probe):
    """The table of positions is trained in the first epoch alone."""

    def on_train_epoch_start(self):
        self.backbone.positions.requires_grad_(self.current_epoch == 0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def test_a_trained_parameter_inside_the_frozen_network_is_refused():
    refused(Case(variant(UnfreezesLater, without_gradients=False), FLIPS, images()), "no bound rule|samples' axis|rule")


# --- poison at the outputs of a submodule ---------------------------------------------------------------------------


class Moved(Probe):
    """A probe whose frozen outputs are moved by the rows of `shift` that the attack chose; clean rows are zero."""

    def features(self, x):
        return super().features(x[0]) + x[1] if isinstance(x, tuple | list) else super().features(x)

    def training_step(self, batch, batch_idx):
        x, shift, y = batch
        return F.cross_entropy(self((x, shift)), y)


def at_backbone(encoder: type, adversary: BoundedAdversary) -> CertifiedTraining:
    data = texts() if encoder is TextEncoder else images()
    case = Case(variant(Probe, encoder=encoder), adversary, data)
    result = certify(case)
    assert isinstance(result, Held), result.error
    return result.certified


def shifted_runs(encoder: type, epsilon: float, p: float, flip: bool) -> Iterator[dict[str, torch.Tensor]]:
    """Plain trainings in which the outputs of one sample of each batch are moved by epsilon, and its label flipped."""
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)

        def poison(epoch: int, index: int, rows: dict[str, torch.Tensor], generator=generator, seed=seed):
            move = torch.randint(0, 2, (4,), generator=generator).mul(2).sub(1).double()
            rows["shift"][seed % 4] = epsilon * (move if p == math.inf else move / move.norm(p=p))
            rows["y"][seed % 4] = (rows["y"][seed % 4] + flip) % 3
            return rows

        data = texts() if encoder is TextEncoder else images()
        data = {"x": data["x"], "shift": torch.zeros(len(data["x"]), 4, dtype=torch.float64), "y": data["y"]}
        case = Case(variant(Moved, encoder=encoder), BoundedAdversary(n=4, epsilon=9.0, nu=1, q=0), data)
        case = case.but(features=("shift",), form=lambda rows, epoch, index: tuple(rows.values()))
        yield plain(case, poison)


@pytest.mark.parametrize("flip", [False, True], ids=["features", "and labels"])
@pytest.mark.parametrize(("encoder", "p"), [(TextEncoder, math.inf), (TextEncoder, 2), (ImageEncoder, math.inf)])
def test_outputs_of_a_frozen_submodule_are_moved_within_bounds(encoder, p, flip):
    labels = {"nu": 1, "q": 0} if flip else {}
    certified = at_backbone(encoder, BoundedAdversary(n=1, epsilon=0.2, p=p, at="backbone", **labels))
    runs = list(shifted_runs(encoder, 0.2, p, flip))
    shares = []
    for name, bounds in certified.bounds.items():
        for run in runs:
            assert bool(((bounds.lower <= run[name]) & (run[name] <= bounds.upper)).all()), name
            shares.append(float(((run[name] - runs[0][name]).abs() / (bounds.upper - bounds.lower + 1e-12)).max()))
    assert max(shares) > 0.03


def test_bounds_at_a_submodule_are_those_of_its_outputs_as_data():
    """Training a head on stored outputs, moved by epsilon, is the same training."""
    data, adversary = images(), BoundedAdversary(n=1, epsilon=0.2, at="backbone")
    module = variant(Probe, encoder=ImageEncoder, on_train_epoch_start=lambda self: self.backbone.eval())
    ours = certify(Case(module, adversary, data))
    assert isinstance(ours, Held), ours.error
    case = Case(module, BoundedAdversary(n=1, epsilon=0.2), data)
    backbone = made(case).backbone
    stored = {"x": backbone.eval()(data["x"]).detach(), "y": data["y"]}

    class Head(Probe):
        def features(self, x):
            return x

    head = certify(case.but(module=Head, data=stored, settings={"features": 0, "labels": 1}))
    assert isinstance(head, Held), head.error
    assert ours.certified.bounds.mean_width() == pytest.approx(head.certified.bounds.mean_width(), rel=1e-6)


def test_the_certificate_says_where_features_are_moved(tmp_path):
    adversary = BoundedAdversary(n=1, epsilon=0.2, at="backbone")
    case = Case(variant(Probe, encoder=TextEncoder), adversary, texts())
    assert isinstance(certify(case.but(settings={"dirpath": tmp_path})), Held)
    record = json.loads((tmp_path / "certificate.json").read_text())
    assert record["adversary"]["at"] == "backbone"
    assert record["bounds"]["roles"][0]["features"] == ["outputs of backbone"]
    assert any("outputs of `backbone`" in sentence for sentence in record["assumptions"])
    assert EVALUATED_AS_IT_IS.sentence in record["assumptions"]


@pytest.mark.parametrize(
    ("at", "members", "reason"),
    [
        ("nothing", {}, "names no submodule"),
        ("head", {}, "depend on trained parameters"),
        ("backbone.patches", {}, "no bound rule|samples' axis"),
    ],
)
def test_places_that_cannot_be_poisoned_are_refused(at, members, reason):
    adversary = BoundedAdversary(n=1, epsilon=0.2, at=at)
    case = Case(variant(Probe, encoder=ImageEncoder, **members), adversary, images())
    refused(case.but(attacks=[]), reason)


def test_outputs_of_another_method_of_a_submodule_are_refused():
    """Its `forward` is not called, so that only outputs of its layers are known, which are others."""

    class Encodes(ImageEncoder):
        def encode(self, x):
            return 3 * self.patches(x).flatten(1)[:, :4]

    module = variant(Probe, encoder=Encodes, features=lambda self, x: self.backbone.encode(x))
    case = Case(module, BoundedAdversary(n=1, epsilon=0.2, at="backbone"), images())
    refused(case.but(attacks=[]), "names no submodule")


# --- predictions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", [TextEncoder, ImageEncoder, SequenceFirst])
def test_certified_predictions_of_a_probe_are_those_of_poisoned_runs(encoder):
    case = probe(encoder, rate=0.01)
    result = certify(case)
    assert isinstance(result, Held), result.error
    model = result.certified.certified_model()
    x = case.data["x"]
    for inputs in (x, x[:3]):
        certification = model.certify(inputs)
        assert certification.certified.any()
        for attack in attacks_of(case)[:4]:
            poisoned = plain_module(case, attack).eval()
            agree = poisoned(inputs).argmax(1) == certification.label
            assert bool(agree[certification.certified].all())


@pytest.mark.parametrize(
    ("encoder", "adversary"),
    [(ImageEncoder, BoundedAdversary(n=1, epsilon=0.3, at="backbone")), (TextEncoder, FLIPS)],
    ids=["at", "flips"],
)
@pytest.mark.thinned(1)
def test_validation_certifies_what_the_certified_model_does(encoder, adversary):
    """Whether what is evaluated as it is ends where poison enters, or where rules end."""

    class Validated(Probe):
        def validation_step(self, batch, batch_idx):
            pass

    x, y = probe(encoder).data.values()
    module, certified = variant(Validated, encoder=encoder)(), CertifiedTraining(adversary)
    batches = DataLoader(TensorDataset(x, y), batch_size=4)
    trainer = L.Trainer(callbacks=[certified], **QUIET)
    trainer.fit(module, batches, batches)
    found = certified.certified_model().certify(x)
    expected = ((found.label == y) & found.certified).double().mean()
    assert float(trainer.callback_metrics["agt/val_certified_accuracy"]) == pytest.approx(float(expected))
    nominal = float(trainer.callback_metrics["agt/val_nominal_accuracy"])
    assert nominal == pytest.approx(float((found.label == y).double().mean()))


def test_balls_of_inputs_do_not_pass_through_operations_without_rules():
    result = certify(probe(ImageEncoder))
    assert isinstance(result, Held), result.error
    with pytest.raises(UncertifiableError, match="Set `epsilon=0`"):
        result.certified.certified_model().certify(images()["x"], epsilon=0.1)
