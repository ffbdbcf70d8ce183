"""A validation has a metric where exactly one label meets exactly one prediction, and the one that suits the loss."""

import json

import pytest
import torch
import torch.nn.functional as F

from agt_lightning import BoundedAdversary, CertifiedTraining

ADVERSARY = BoundedAdversary(n=0)  # which entry it moves need not be certain


def masked(module, batch):
    return F.mse_loss(module(batch["x"]) * batch["m"], batch["y"] * batch["m"])


def masked_prediction(module, batch):
    return F.mse_loss(module(batch["x"]) * batch["m"], batch["y"])


def weighted(module, batch):
    return (batch["m"] * (module(batch["x"]) - batch["y"]).square()).mean()


def offset(module, batch):
    return F.mse_loss(module(batch["x"]), batch["y"] - batch["m"])


def auxiliary_first(module, batch):
    hidden = module.net[1](module.net[0](batch["x"]))
    return F.mse_loss(hidden[:, :1], batch["y"]) + F.mse_loss(module.net[2](hidden), batch["y"])


def read_by_a_later_layer(module, batch):
    return module.head(module(batch["x"]) - batch["y"]).square().mean()


def hinge(module, batch):
    return F.relu(1 - module(batch["x"]) * batch["y"]).mean()


def probabilities(module, batch):
    return F.cross_entropy(module.head3(module(batch["x"])), batch["p"])


def several_labels(module, batch):
    return F.binary_cross_entropy_with_logits(module.head3(module(batch["x"])), batch["p"])


def squared(module, batch):
    return F.mse_loss(module(batch["x"]), batch["y"])


def by_hand(module, batch):
    return (batch["y"] - module(batch["x"])).square().mean()


def two_errors(module, batch):
    out = module(batch["x"])
    return F.mse_loss(out, batch["y"]) + 0.5 * F.l1_loss(out, batch["y"])


def fused_late(module, batch):
    return F.mse_loss(module.head(module(batch["x"]) - batch["m"]), batch["y"])


def residual_network(module, batch):
    return F.mse_loss(module(batch["x"]) + batch["x"][:, :1], batch["y"])


def classes(module, batch):
    return F.cross_entropy(module.head3(module(batch["x"])), batch["c"])


def one_hot_errors(module, batch):
    return F.mse_loss(module.head3(module(batch["x"])), F.one_hot(batch["c"], 3).float() * 2 - 1)


def no_class(module, batch):
    return F.mse_loss(module.head3(module(batch["x"])), 0.0 * F.one_hot(batch["c"], 3).float())


def binary(module, batch):
    return F.binary_cross_entropy_with_logits(module(batch["x"]), batch["b"])


def soft_binary(module, batch):
    return F.binary_cross_entropy_with_logits(module(batch["x"]), 0.1 + 0.8 * batch["b"])


def entries(x, y):
    m, p = (x[:, :1] > 0).float(), torch.softmax(x, dim=1)
    return {"x": x, "y": y, "m": m, "p": p, "c": p.argmax(dim=1), "b": (y > 0).float()}


@pytest.fixture
def certify(fit, loader, regressor, tmp_path):
    """Train a module with this loss, validate it, and return its certificate and the module."""

    def run(loss):
        class Module(regressor):
            def __init__(self):
                super().__init__()
                self.head, self.head3 = torch.nn.Linear(1, 1), torch.nn.Linear(1, 3)

            def training_step(self, batch, batch_idx):
                return loss(self, batch)

            def validation_step(self, batch, batch_idx):
                """Do nothing."""

        torch.manual_seed(3)
        module, certified = Module(), CertifiedTraining(ADVERSARY, domains="box", dirpath=tmp_path)
        fit(module, loader(adapt=entries), certified, val=loader(size=11, adapt=entries))
        return json.loads((tmp_path / "certificate.json").read_text()), module

    return run


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (masked, "2 batch entries"),
        (masked_prediction, "2 batch entries"),
        (weighted, "2 batch entries"),
        (offset, "2 batch entries"),
        (auxiliary_first, "several predictions"),
        (read_by_a_later_layer, "no batch entry"),
        (no_class, "do not encode one class"),
        (hinge, "no loss with a metric"),
        (probabilities, "probabilities, not classes"),
        (several_labels, "several labels"),
        (soft_binary, "no classes 0 to 1"),
    ],
)
def test_without_one_label_and_one_prediction_there_is_no_metric(loss, reason, certify):
    record, _ = certify(loss)
    assert set(record["results"]) == {"mean_width"}
    assert reason in record["remarks"][0]


@pytest.mark.parametrize("loss", [squared, by_hand, two_errors, residual_network, fused_late])
def test_errors_are_those_of_the_module(loss, certify, loader):
    record, module = certify(loss)
    batch = entries(*(torch.cat(parts) for parts in zip(*loader(size=11), strict=True)))
    outputs = {
        residual_network: lambda: module(batch["x"]) + batch["x"][:, :1],
        fused_late: lambda: module.head(module(batch["x"]) - batch["m"]),
    }
    out = outputs.get(loss, lambda: module(batch["x"]))()
    assert record["results"]["val_nominal_mse"] == pytest.approx(F.mse_loss(out, batch["y"]).item(), rel=1e-5)


@pytest.mark.parametrize("loss", [classes, one_hot_errors, binary])
def test_accuracies_are_those_of_the_module(loss, certify, loader):
    record, module = certify(loss)
    batch = entries(*(torch.cat(parts) for parts in zip(*loader(size=11), strict=True)))
    out = module(batch["x"])
    wide = module.head3(out).argmax(dim=1) == batch["c"]
    right = (out > 0).float() == batch["b"] if loss is binary else wide
    assert record["results"]["val_nominal_accuracy"] == pytest.approx(right.float().mean().item())
