"""One `CertifiedTraining` for several adversaries: results, log, files and checkpoints of each."""

import json

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from agt_lightning import (
    AbstractGradientStrategy,
    BoundedAdversary,
    BoundsMismatchError,
    CertifiedTraining,
    ParameterBounds,
    UnboundedAdversary,
    UncertifiableError,
)
from agt_lightning.lightning.training_step import TrainingLoss
from agt_lightning.lightning.validation import TrainedBatch

ADVERSARIES = [BoundedAdversary(n=n, epsilon=0.01, nu=0.05) for n in (1, 2, 4)]
NAMES = ["n_1", "n_2", "n_4"]
DOMAINS = ["box", "ball"]


def made(kind):
    torch.manual_seed(5)
    return kind()


def lasting(record):
    """A certificate without what is another one in each run: times, and the bytes of the file of bounds."""
    del record["made"], record["sha256_of_content"], record["digests"]["bounds"]["sha256_of_file"]
    return record


def assert_same_bounds(found, expected):
    for name, interval in expected.items():
        assert torch.equal(found[name].lower, interval.lower)
        assert torch.equal(found[name].upper, interval.upper)


@pytest.fixture
def trained(fit, loader, regressor, tmp_path):
    """A training for all adversaries, validated, with its Trainer."""
    certified = CertifiedTraining(ADVERSARIES, domains=DOMAINS, dirpath=tmp_path)
    trainer = fit(made(regressor), loader(size=10), certified, val=loader(size=11), max_epochs=2)
    return certified, trainer


@pytest.fixture
def alone(fit, loader, regressor, tmp_path):
    """Trainings for one of the adversaries each."""

    def train(adversary):
        certified = CertifiedTraining(adversary, domains=DOMAINS, dirpath=tmp_path / "alone")
        trainer = fit(made(regressor), loader(size=10), certified, val=loader(size=11), max_epochs=2)
        return certified, trainer

    return train


@pytest.mark.slow
def test_bounds_and_results_are_those_of_trainings_alone(trained, alone, tmp_path):
    certified, trainer = trained
    record = json.loads((tmp_path / "certificate.json").read_text())
    for adversary, name in zip(ADVERSARIES, NAMES, strict=True):
        single, single_trainer = alone(adversary)
        assert_same_bounds(certified.bounds_of(adversary), single.bounds)
        for key, value in single_trainer.callback_metrics.items():
            if key.startswith("agt/"):
                assert trainer.callback_metrics[key.replace("agt/", f"agt/{name}/")] == value
        single_record = json.loads((tmp_path / "alone" / "certificate.json").read_text())
        assert lasting(record["certificates"][name]) == lasting(single_record)
        assert_same_bounds(ParameterBounds.load(tmp_path / f"bounds-{name}.safetensors"), single.bounds)


@pytest.mark.slow
def test_the_log_has_no_values_without_the_name_of_their_adversary(trained):
    _, trainer = trained
    keys = [key for key in trainer.callback_metrics if key.startswith("agt/")]
    assert {key.split("/")[1] for key in keys} == set(NAMES)
    assert all(f"agt/{name}/mean_width" in keys and f"agt/{name}/val_certified_mse" in keys for name in NAMES)


@pytest.mark.slow
def test_the_certificate_has_a_curve(trained, tmp_path):
    record = json.loads((tmp_path / "certificate.json").read_text())
    curve = record["curve"]
    assert [point["name"] for point in curve] == NAMES == list(record["certificates"])
    assert [point["settings"] for point in curve] == [{"n": 1}, {"n": 2}, {"n": 4}]
    losses = [point["results"]["val_certified_mse"] for point in curve]
    assert losses[0] < losses[1] < losses[2]
    assert len({point["results"]["val_nominal_mse"] for point in curve}) == 1


@pytest.mark.slow
def test_certified_models_are_by_adversary(trained, alone):
    certified, _ = trained
    x = torch.randn(5, 3)
    for adversary in ADVERSARIES:
        expected = alone(adversary)[0].certified_model().bound_forward(x)
        found = certified.certified_model(adversary=adversary).bound_forward(x)
        assert torch.equal(found.lower, expected.lower)
        assert torch.equal(found.upper, expected.upper)
    first = certified.certified_model().bound_forward(x)
    assert torch.equal(first.lower, certified.certified_model(adversary=ADVERSARIES[0]).bound_forward(x).lower)
    assert_same_bounds(certified.bounds, certified.bounds_of(ADVERSARIES[0]))
    with pytest.raises(ValueError, match=r"Expected an adversary that the training was certified for"):
        certified.certified_model(adversary=BoundedAdversary(n=3))


@pytest.mark.slow
def test_each_step_is_made_and_checked_once(fit, loader, regressor, monkeypatch):
    def losses(adversaries):
        calls = []
        loss = TrainingLoss.__call__
        monkeypatch.setattr(TrainingLoss, "__call__", lambda *given: calls.append(1) or loss(*given))
        fit(made(regressor), loader(size=10), CertifiedTraining(adversaries))
        monkeypatch.setattr(TrainingLoss, "__call__", loss)
        return len(calls)

    assert losses(ADVERSARIES) == losses(ADVERSARIES[:1]) > 0


def test_a_validation_passes_through_the_trained_module_once(fit, loader, regressor, monkeypatch):
    passed = []
    of_batch = TrainedBatch.of
    monkeypatch.setattr(TrainedBatch, "of", lambda *given: passed.append(of_batch(*given)) or passed[-1])
    certified, held_out = CertifiedTraining(ADVERSARIES), loader(size=11)
    trainer = fit(made(regressor), loader(size=10), certified, val=held_out)
    assert len(passed) == len(held_out)
    losses = {float(trainer.callback_metrics[f"agt/{name}/val_nominal_mse"]) for name in NAMES}
    assert len(losses) == 1


def test_samples_that_are_substituted_have_one_training(fit, loader, regressor):
    substituted = [UnboundedAdversary(n=n, kappa=0.1) for n in (1, 2)]
    together, single = CertifiedTraining(substituted), CertifiedTraining(substituted[1])
    fit(made(regressor), loader(size=10), together)
    fit(made(regressor), loader(size=10), single)
    assert_same_bounds(together.bounds_of(substituted[1]), single.bounds)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_adversaries_of_different_trainings_are_refused():
    with pytest.raises(ValueError, match=r"clipped in different ways.*train once for each, with a Trainer and a"):
        CertifiedTraining([ADVERSARIES[0], UnboundedAdversary(n=1, kappa=0.1)])


def test_an_adversary_that_does_not_fit_is_found_before_the_first_step(fit, loader, regressor):
    flips = BoundedAdversary(n=1, nu=1, q=0)
    with pytest.raises(UncertifiableError, match="`q=0` flips class labels"):
        fit(made(regressor), loader(), CertifiedTraining([ADVERSARIES[0], flips]))


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(fit, loader, regressor, tmp_path):
    """The checkpoint of two epochs of three."""
    saver = ModelCheckpoint(dirpath=tmp_path, filename="last", save_top_k=1)
    certified = CertifiedTraining(ADVERSARIES, domains=DOMAINS)
    fit(made(regressor), loader(size=10), certified, saver, max_epochs=2, enable_checkpointing=True)
    return tmp_path / "last.ckpt", certified


@pytest.mark.slow
def test_a_resumed_training_has_the_bounds_of_an_uninterrupted_one(interrupted, fit, loader, regressor, tmp_path):
    whole = CertifiedTraining(ADVERSARIES, domains=DOMAINS, dirpath=tmp_path / "whole")
    rest = CertifiedTraining(ADVERSARIES, domains=DOMAINS, dirpath=tmp_path / "rest")
    fit(made(regressor), loader(size=10), whole, max_epochs=3)
    fit(made(regressor), loader(size=10), rest, max_epochs=3, ckpt_path=interrupted[0])
    for adversary in ADVERSARIES:
        assert_same_bounds(rest.bounds_of(adversary), whole.bounds_of(adversary))
    certificates = [json.loads((tmp_path / name / "certificate.json").read_text()) for name in ("whole", "rest")]
    assert certificates[0]["curve"] == certificates[1]["curve"]
    assert [each["steps"] for each in certificates[1]["certificates"].values()] == [9, 9, 9]


@pytest.mark.slow
def test_a_second_fit_goes_on_for_all_adversaries(fit, loader, regressor):
    module, certified, single = made(regressor), CertifiedTraining(ADVERSARIES), CertifiedTraining(ADVERSARIES[2])
    for _ in range(2):
        fit(module, loader(size=10), certified)
    module = made(regressor)
    for _ in range(2):
        fit(module, loader(size=10), single)
    assert certified.engine.steps == single.engine.steps == 6
    assert_same_bounds(certified.bounds_of(ADVERSARIES[2]), single.bounds)


@pytest.mark.parametrize("others", [ADVERSARIES[0], ADVERSARIES[:2], ADVERSARIES[::-1]], ids=["first", "two", "order"])
def test_resuming_with_other_adversaries_is_refused(others, interrupted, fit, loader, regressor):
    with pytest.raises(BoundsMismatchError, match=r"adversary of the checkpoint, \[Bounded.*but got .*use the same"):
        fit(made(regressor), loader(size=10), CertifiedTraining(others), max_epochs=3, ckpt_path=interrupted[0])


def test_a_second_fit_with_other_adversaries_is_refused(fit, loader, regressor):
    module = made(regressor)
    fit(module, loader(size=10), CertifiedTraining(ADVERSARIES))
    with pytest.raises(BoundsMismatchError, match=r"the module's earlier training, \[Bound.*Train a new module"):
        fit(module, loader(size=10), CertifiedTraining(ADVERSARIES[:2]))


@pytest.mark.slow
def test_damage_to_the_bounds_of_any_adversary_is_found(interrupted, fit, loader, regressor):
    path, _ = interrupted
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["agt_bounds"]["domains_of_others"][1]["box"]["upper"]["net.0.weight"] += 1
    torch.save(checkpoint, path)
    with pytest.raises(BoundsMismatchError, match="the file is damaged"):
        fit(made(regressor), loader(), CertifiedTraining(ADVERSARIES), max_epochs=3, ckpt_path=path)


@pytest.mark.slow
def test_models_of_a_checkpoint_are_by_adversary(interrupted):
    path, certified = interrupted
    x = torch.randn(5, 3)
    for adversary in ADVERSARIES:
        at_checkpoint = certified.certified_model_at(path, adversary=adversary).bound_forward(x)
        at_the_end = certified.certified_model(adversary=adversary).bound_forward(x)
        assert torch.equal(at_checkpoint.upper, at_the_end.upper)


# --- other doors -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_callbacks_with_several_adversaries_have_keys_of_their_own(fit, loader, regressor):
    first, second = CertifiedTraining(ADVERSARIES[:2]), CertifiedTraining(ADVERSARIES)
    trainer = fit(made(regressor), loader(size=10), first, second)
    assert {"agt/n_1/mean_width", "agt/1/n_1/mean_width", "agt/1/n_4/mean_width"} <= trainer.callback_metrics.keys()


def test_a_configuration_lists_several_adversaries():
    hydra = pytest.importorskip("hydra.utils")
    nodes = [{"_target_": "agt_lightning.BoundedAdversary", "n": n, "epsilon": 0.01, "nu": 0.05} for n in (1, 2, 4)]
    certified = hydra.instantiate(
        {"_target_": "agt_lightning.CertifiedTraining", "_convert_": "all", "adversary": nodes}
    )
    assert certified.adversaries == tuple(ADVERSARIES)


def test_the_strategy_takes_several_adversaries():
    strategy = AbstractGradientStrategy(ADVERSARIES)
    assert strategy.certified is not None
    assert strategy.certified.adversaries == tuple(ADVERSARIES)
