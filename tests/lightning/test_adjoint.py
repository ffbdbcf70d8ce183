"""The adjoint domain by `CertifiedTraining`: named beside the ball, in the certificate, after a resumed training."""

import json

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from agt_lightning import BoundedAdversary, CertifiedTraining, UncertifiableError
from agt_lightning.certificates.record import Weights
from agt_lightning.domains.adjoint import recorded_trajectory
from agt_lightning.domains.adjoint.replay import displacements
from agt_lightning.lightning.validation import ValidationResults

ADVERSARY = BoundedAdversary(n=1, epsilon=0.02, nu=0.05)


def made(kind):
    torch.manual_seed(5)
    return kind()


def certified(folder, domains=("ball", "adjoint")):
    return CertifiedTraining(ADVERSARY, domains=domains, dirpath=folder)


@pytest.mark.slow
def test_certified_models_use_it_and_the_certificate_names_it(fit, loader, regressor, tmp_path):
    module, callback = made(regressor), certified(tmp_path)
    fit(module, loader(), callback, max_epochs=2)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    model = callback.certified_model(module)
    bounds = model.bound_forward(x)
    assert bounds.contains(module(x).detach())
    assert model.deciding_domains(x)["adjoint"] > 0.5
    in_use = json.loads((tmp_path / "certificate.json").read_text())["bounds"]["domains"]["in_use"]
    assert set(in_use) == {"ball", "adjoint"}
    assert in_use["adjoint"]["steps"] == 4

    alone = made(regressor)
    ball = certified(tmp_path / "ball", ("ball",))
    fit(alone, loader(), ball, max_epochs=2)
    assert float(bounds.width.mean()) < float(ball.certified_model(alone).bound_forward(x).width.mean())


@pytest.mark.slow
def test_validation_after_training_uses_it_and_the_certificate_says_so(fit, loader, regressor, tmp_path):
    """In the course of a training it is left out, since each validation would replay all steps."""
    module, callback = made(regressor), certified(tmp_path)
    trainer = fit(module, loader(), callback, val=loader(size=11), max_epochs=2)
    during = read(tmp_path)
    assert set(during["bounds"]["domains"]["decided_validation_bounds"]["0"]) == {"ball", "box"}
    assert "do without the bounds of adjoint" in during["remarks"][0]

    fit.trainer(callback).validate(module, loader(size=11), verbose=False)
    callback.save(tmp_path, trainer.optimizers[0])
    after = read(tmp_path)
    assert after["bounds"]["domains"]["decided_validation_bounds"]["0"]["adjoint"] > 0.5
    assert after["remarks"] == []
    assert after["results"]["val_certified_mse"] < during["results"]["val_certified_mse"]
    assert after["results"]["val_nominal_mse"] == during["results"]["val_nominal_mse"]


def test_results_without_it_are_not_kept_beside_those_with_it():
    weights = Weights(3, "digest")
    during = ValidationResults({"val_mse/dataloader_idx_1": 2.0}, {1: {"ball": 1.0}}, weights, left_out=("adjoint",))
    after = ValidationResults({"val_mse": 1.0}, {0: {"adjoint": 1.0}}, weights)
    assert after.after(during) is after
    again = ValidationResults({"val_other": 1.0}, {1: {"adjoint": 1.0}}, weights)
    assert again.after(after).metrics == {"val_mse": 1.0, "val_other": 1.0}


def read(folder):
    return json.loads((folder / "certificate.json").read_text())


@pytest.mark.slow
def test_predictions_margins_and_validation_of_classes_replay_the_training_once(
    fit, loader, classifier, tmp_path, monkeypatch
):
    replays = []

    def counted(*arguments, **settings):
        replays.append(1)
        return displacements(*arguments, **settings)

    monkeypatch.setattr(recorded_trajectory, "displacements", counted)
    module = made(classifier)
    callback = CertifiedTraining(BoundedAdversary(n=1, nu=1, q=0), domains=("ball", "adjoint"))
    fit(module, loader("class"), callback, val=loader("class", size=5))
    assert replays == []
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    model = callback.certified_model(module)
    certification = model.certify(x)
    assert len(replays) == 1
    model.margins(x, certification.label)
    assert len(replays) == 1, "the margins of the predicted classes are kept"
    model.margins(x, (certification.label + 1) % 3)
    assert len(replays) == 2
    fit.trainer(callback).validate(module, loader("class", size=5, batch_size=5), verbose=False)
    assert len(replays) == 3


def test_a_resumed_training_has_the_same_certificate(fit, loader, regressor, tmp_path):
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    module, callback = made(regressor), certified(tmp_path)
    fit(module, loader(), callback, max_epochs=2)
    whole = callback.certified_model(module).bound_forward(x)

    saver = ModelCheckpoint(dirpath=tmp_path / "saved", filename="last", enable_version_counter=False)
    fit(made(regressor), loader(), certified(tmp_path), saver, max_epochs=1, enable_checkpointing=True)
    module, callback = made(regressor), certified(tmp_path)
    fit(module, loader(), callback, max_epochs=2, ckpt_path=tmp_path / "saved" / "last.ckpt")
    again = callback.certified_model(module).bound_forward(x)
    torch.testing.assert_close(again.lower, whole.lower)
    torch.testing.assert_close(again.upper, whole.upper)


def test_without_the_ball_it_is_refused_before_the_first_step(fit, loader, regressor, tmp_path):
    module = made(regressor)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    with pytest.raises(UncertifiableError, match="domains=\\('ball', 'adjoint'\\)"):
        fit(module, loader(), certified(tmp_path, ("adjoint",)))
    assert all(torch.equal(one, two) for one, two in zip(before, module.parameters(), strict=True))
