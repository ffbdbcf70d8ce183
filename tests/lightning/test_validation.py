"""Nominal and certified metrics of the validation loader, against an own computation."""

import pytest
import torch
import torch.nn.functional as F

from agt_lightning import BoundedAdversary, CertifiedTraining

CLOSE = 1e-5
"""Lightning keeps logged values in float32."""


def everything(loader):
    batches = list(loader)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def trained(fit, module, data, val, adversary, **options):
    torch.manual_seed(2)
    certified = CertifiedTraining(adversary)
    trainer = fit(module, data, certified, val=val, **options)
    return certified, {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("agt/")}


def test_accuracies_are_those_of_the_certified_model(fit, loader, classifier):
    module = classifier()
    val = loader("class", size=11)
    adversary = BoundedAdversary(n=1, epsilon=0.01, nu=1, q=0)
    certified, metrics = trained(fit, module, loader("class", size=11), val, adversary, max_epochs=2)
    x, y = everything(val)
    answer = certified.certified_model(module).certify(x)
    assert metrics["agt/val_nominal_accuracy"] == pytest.approx((answer.label == y).float().mean().item(), abs=CLOSE)
    right = (answer.certified & (answer.label == y)).float().mean().item()
    assert metrics["agt/val_certified_accuracy"] == pytest.approx(right, abs=CLOSE)
    assert metrics["agt/mean_width"] == pytest.approx(certified.bounds.mean_width(), rel=CLOSE)


@pytest.mark.slow
def test_without_poison_both_accuracies_agree(fit, loader, classifier):
    _, metrics = trained(fit, classifier(), loader("class"), loader("class", size=11), BoundedAdversary(n=0))
    assert metrics["agt/val_nominal_accuracy"] == metrics["agt/val_certified_accuracy"]


@pytest.mark.slow
def test_squared_errors_are_those_of_the_certified_model(fit, loader, regressor):
    module = regressor()
    val = loader(size=11)
    certified, metrics = trained(fit, module, loader(size=11), val, BoundedAdversary(n=2, epsilon=0.05), max_epochs=2)
    x, y = everything(val)
    out = certified.certified_model(module).bound_forward(x)
    nominal = F.mse_loss(module(x), y).item()
    worst = torch.maximum((out.lower - y).square(), (out.upper - y).square()).mean().item()
    inside = (out.lower <= y) & (y <= out.upper)
    nearest = torch.minimum((out.lower - y).square(), (out.upper - y).square())
    best = torch.where(inside, 0, nearest).mean().item()
    assert metrics["agt/val_nominal_mse"] == pytest.approx(nominal, rel=CLOSE)
    assert metrics["agt/val_certified_mse"] == pytest.approx(worst, rel=CLOSE)
    assert metrics["agt/val_best_mse"] == pytest.approx(best, rel=CLOSE)
    assert best < nominal < worst


@pytest.mark.slow
def test_one_logit_is_a_binary_classifier(fit, loader, regressor):
    class Binary(regressor):
        def training_step(self, batch, batch_idx):
            x, y = batch
            return F.binary_cross_entropy_with_logits(self(x), y)

    module, val = Binary(), loader("binary", size=11)
    adversary = BoundedAdversary(n=1, epsilon=0.01, nu=1, q=0)
    certified, metrics = trained(fit, module, loader("binary", size=11), val, adversary)
    x, y = everything(val)
    answer = certified.certified_model(module).certify(x)
    label = y.squeeze(1).long()
    assert torch.equal(answer.label, (module(x).squeeze(1) > 0).long())
    assert metrics["agt/val_nominal_accuracy"] == pytest.approx(
        (answer.label == label).float().mean().item(), abs=CLOSE
    )
    right = (answer.certified & (answer.label == label)).float().mean().item()
    assert metrics["agt/val_certified_accuracy"] == pytest.approx(right, abs=CLOSE)


@pytest.mark.slow
def test_dropout_is_off_while_validating(fit, loader, classifier):
    """The module validates in `eval` mode, where its code is another one."""
    module = classifier()
    module.net.append(torch.nn.Dropout(0.0))
    _, metrics = trained(fit, module, loader("class"), loader("class", size=6), BoundedAdversary(n=1, epsilon=0.01))
    assert 0 <= metrics["agt/val_certified_accuracy"] <= metrics["agt/val_nominal_accuracy"] <= 1
    assert module.training


def test_batches_of_another_structure_warn_and_train_on(fit, loader, regressor):
    class Other(regressor):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self(batch["x"]).mean())

    val = loader(adapt=lambda x, y: {"x": x, "target": y})
    certified = CertifiedTraining(BoundedAdversary(n=1, epsilon=0.01))
    with pytest.warns(UserWarning, match="No certified metric on the validation loader"):
        trainer = fit(Other(), loader(), certified, val=val)
    assert "val_loss" in trainer.callback_metrics
    assert certified.engine.steps == 2


def test_several_validation_loaders_have_their_own_numbers(fit, loader, regressor):
    class Two(regressor):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            return None

    torch.manual_seed(2)
    trainer = fit(Two(), loader(), CertifiedTraining(BoundedAdversary(n=0)), val=[loader(), loader(size=4)])
    keys = [key for key in trainer.callback_metrics if key.startswith("agt/val_nominal_mse")]
    assert len(keys) == 2, "the numbers of two loaders must not be mixed in one"


def test_validation_does_not_change_the_box(fit, loader, regressor):
    widths = []
    for val in (None, loader(size=11)):
        torch.manual_seed(2)
        certified = CertifiedTraining(BoundedAdversary(n=2, epsilon=0.05))
        fit(regressor(), loader(), certified, val=val, max_epochs=2)
        widths.append(certified.bounds.mean_width())
    assert widths[0] == widths[1]
