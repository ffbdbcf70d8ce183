"""`agt budget`: the answer of a sweep's certificates, and sweeps that answer nothing."""

import copy
import json

import pytest

from agt_lightning import Acceptance, Budget
from agt_lightning.certificates.alike import ALIKE, differences, families
from agt_lightning.certificates.assumptions import OF_BUDGETS
from agt_lightning.certificates.document import with_digest
from agt_lightning.command.budget import report

LIMIT = ("--at-least", "0.4")


def one(trained) -> dict:
    return json.loads(trained.certificate.read_text())


def sibling(record: dict, n: int, certified: float) -> dict:
    """Return a certificate as a training for another n leaves it."""
    record = copy.deepcopy(record)
    record["adversary"]["n"] = record["budget"]["n"] = n
    record["budget"]["share_of_the_smallest_batch"] = min(1.0, n / record["budget"]["samples_per_step"][0])
    record["results"]["val_certified_accuracy"] = record["metrics"][0]["certified"] = certified
    record["by_class"] = []
    record["acceptance"] = []
    return with_digest(record)


@pytest.fixture
def sweep(trained, tmp_path):
    """Write certificates by n, with a value each, in folders as a sweep does."""

    def write(**values):
        for name, value in values.items():
            folder = tmp_path / "sweep" / name
            folder.mkdir(parents=True)
            n = int(name.strip("n_").partition("_")[0])
            (folder / "certificate.json").write_text(json.dumps(sibling(one(trained), n, value)))
        return tmp_path / "sweep"

    return write


def test_a_sweep_has_a_largest_n_and_a_next_one(agt, sweep):
    code, printed = agt("budget", sweep(n1=0.41, n2=0.4, n6=0.1), *LIMIT)
    assert code == 0
    assert "largest n of these within the limit is 2, and 6 is not" in printed
    assert "Try n=4 next" in printed
    assert "different weights" not in printed


def test_several_adversaries_of_one_training_are_a_sweep(agt, several):
    code, printed = agt("budget", several.certificate, "--metric", "mean_width", "--at-most", "1e9")
    assert code == 0
    assert "within the limit is 4, the largest that was tried" in printed
    assert "Try n=8 next" in printed


def test_no_n_within_the_limit(agt, sweep):
    code, printed = agt("budget", sweep(n1=0.3, n6=0.1), *LIMIT)
    assert code == 1
    assert "None of these is within the limit" in printed
    assert "Try n=0 next" in printed


def test_of_two_certificates_for_one_n_the_worse_counts(agt, sweep):
    folder = sweep(n1=0.41, n2_seed0=0.41, n2_seed1=0.2)
    assert "limit is 1, and 2 is not" in agt("budget", folder, *LIMIT)[1]
    assert "limit is 2, the largest" in agt("budget", folder, "--at-most", "0.41")[1]
    assert "None of these" in agt("budget", folder / "n2_seed0", folder / "n2_seed1", "--at-most", "0.4")[1]


def test_certificates_that_are_not_alike_answer_nothing(agt, sweep, trained):
    folder = sweep(n1=0.41, n2=0.4)
    record = sibling(one(trained), 4, 0.1)
    record["adversary"]["epsilon"] = 0.5
    (folder / "n2" / "certificate.json").write_text(json.dumps(with_digest(record)))
    code, printed = agt("budget", folder, *LIMIT)
    assert code == 2
    assert "differ in the adversary but for n." in printed


@pytest.mark.parametrize("words", list(ALIKE))
def test_each_difference_is_seen(words, trained):
    record, other = one(trained), one(trained)
    change = {
        "the adversary but for n": lambda: other["adversary"].update(p=2),
        "the unit of n": lambda: other["budget"].update(edits="insert-delete"),
        "the float level": lambda: other["floats"].update(level="real"),
        "the optimizer": lambda: other["optimizer"]["param_groups_at_the_end"][0].update(lr=0.3),
        "the number of steps": lambda: other.update(steps=7),
        "the training batches": lambda: other["digests"]["training_batches"].update(sha256_chain="0" * 64),
        "the validation data": lambda: other["digests"].update(validation_data=[]),
        "the source": lambda: other["digests"]["source"][0].update(sha256="0" * 64),
        "the hyperparameters": lambda: other["digests"].update(hyperparameters=None),
    }
    change[words]()
    assert differences([record, other]) == [words]
    assert families([record, other, sibling(record, 9, 0.1)]) == [[0, 2], [1]]


def test_a_changed_or_missing_certificate_answers_nothing(agt, sweep, tmp_path):
    folder = sweep(n1=0.41)
    path = folder / "n1" / "certificate.json"
    path.write_text(path.read_text().replace("0.41", "0.91"))
    code, printed = agt("budget", folder, *LIMIT)
    assert code == 1
    assert "something in it was changed" in printed
    assert agt("budget", tmp_path / "none.json", *LIMIT)[0] == 2
    (tmp_path / "empty").mkdir()
    assert "but there is none" in agt("budget", tmp_path / "empty", *LIMIT)[1]


def test_a_result_that_is_not_there_is_named(agt, trained):
    code, printed = agt("budget", trained.certificate, "--metric", "val_certified_mse", *LIMIT)
    assert code == 2
    assert "they have mean_width, val_certified_accuracy, val_nominal_accuracy" in printed


def test_an_n_of_the_data_set_can_be_larger_than_a_batch(agt, trained, tmp_path):
    record = one(trained)
    most = record["budget"]["samples_per_step"][1]
    record["adversary"]["per"] = record["budget"]["unit"] = "dataset"
    record["assumptions"][0] = OF_BUDGETS["samples", "dataset"].sentence
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(sibling(record, most, 0.41)))
    code, printed = agt("budget", path, *LIMIT)
    assert code == 0, printed
    assert f"Try n={2 * most} next" in printed


def test_what_to_try_next_ends():
    limit = Acceptance("value", at_least=0.5)
    advice = {
        (0.9,): "Try n=1 next.",
        (0.9, 0.9): "Try n=2 next.",
        (0.9, 0.9, 0.9): "A batch has no more than 2 samples",
        (0.9, 0.9, 0.1): "No n between is left",
        (0.1,): "No smaller n is left",
    }
    for values, expected in advice.items():
        assert expected in report(Budget.of(dict(enumerate(values)), limit), limit, largest=2)
    assert "Try n=2 next" in report(Budget.of({1: 0.9}, limit), limit, largest=None)
    assert "n=2 has a better value than n=1" in report(Budget.of({1: 0.1, 2: 0.9}, limit), limit, largest=4)
