"""The search for the largest n: what it returns, how many trainings it takes, and what it does not rely on."""

import json
import math

import pytest
import torch

from agt_lightning import Acceptance, BoundedAdversary, Budget, budget
from agt_lightning.certificates.budget_search import read_off


def search(values, **settings):
    """Search with a list of values by n, and return what was found and what was trained."""
    trained = []

    def train(n: int) -> float:
        trained.append(n)
        return values[n]

    return budget(train, largest=len(values) - 1, **settings), trained


@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_the_largest_n_is_that_of_trying_all(size):
    for place in range(size + 1):
        values = [0.9] * place + [0.1] * (size - place)
        found, trained = search(values, at_least=0.5)
        assert found.n == (place - 1 if place else None)
        assert found.fails_at == (place if place < size else None)
        assert found.value == (0.9 if place else None)
        assert found.trainings == len(trained) == len(set(trained)) <= math.ceil(math.log2(size + 1))


def test_errors_have_a_largest_value_that_is_accepted():
    found, _ = search([torch.tensor(0.5), torch.tensor(1.5), math.inf, math.inf], at_most=1.0)
    assert (found.n, found.value, found.fails_at, found.out_of_order) == (0, 0.5, 1, ())


def test_a_value_at_the_limit_is_within_it():
    assert search([0.9, 0.9, 0.8], at_least=0.9)[0].n == 1


def test_values_that_get_better_with_n_are_told():
    found, _ = search([0.9, 0.9, 0.9, 0.4, 0.4, 0.6, 0.3], at_least=0.5)
    assert found.n == 2  # 5 is within the limit as well, and bisection does not see it
    tried = {1: 0.5, 2: 0.4, 4: 0.6, 8: 0.6 + 1e-9}
    assert Budget.of(tried, Acceptance("value", at_least=0.45)).out_of_order == ((2, 4),)
    assert Budget.of(tried, Acceptance("value", at_most=0.45)).out_of_order == ((1, 2),)
    found = Budget.of(tried, Acceptance("value", at_least=0.45))
    assert (found.n, found.fails_at) == (8, None)  # the certificate at 8 holds whatever 2 says


def test_an_interrupted_search_goes_on(tmp_path):
    file, trained = tmp_path / "new" / "found.json", []

    def train(n: int) -> float:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(n)
        return math.inf if n > 5 else 0.5

    with pytest.raises(KeyboardInterrupt):
        budget(train, at_most=1.0, largest=30, results=file, about="a test")
    before, trained[:] = list(trained), []
    trained.append(-1)
    with pytest.raises(KeyboardInterrupt):  # after one more
        budget(train, at_most=1.0, largest=30, results=file, about="a test")
    values = json.loads(file.read_text())["values"]
    assert list(map(int, values)) == sorted([*before, trained[1]])
    assert values["15"] == "inf"
    found = budget(lambda n: math.inf if n > 5 else 0.5, at_most=1.0, largest=30, results=file, about="a test")
    assert (found.n, found.fails_at, found.trainings) == (5, 6, 5 - 3)
    assert budget(no_training, at_most=1.0, largest=30, results=file, about="a test").trainings == 0


def no_training(n: int) -> float:
    raise AssertionError(f"trained n={n}")


def test_values_of_another_training_are_not_taken(tmp_path):
    file = tmp_path / "found.json"
    budget(lambda n: 1.0, at_least=0.5, largest=3, results=file, about="seed 0")
    with pytest.raises(ValueError, match="to be about 'seed 1', but it is about 'seed 0'"):
        budget(no_training, at_least=0.5, largest=3, results=file, about="seed 1")
    for text in ("", "[]", '{"format": "other"}', '{"format": "agt_lightning budget 1", "values": {"1": "nan"}}'):
        file.write_text(text)
        with pytest.raises(ValueError, match="Expected values of a search"):
            budget(no_training, at_least=0.5, largest=3, results=file)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"largest": -1, "at_least": 0.5}, ValueError, "`largest` to be at least 0"),
        ({"largest": 1.5, "at_least": 0.5}, TypeError, "`largest` to be an integer"),
        ({"largest": 4}, ValueError, "either `at_least` or `at_most`"),
        ({"largest": 4, "at_least": 0.1, "at_most": 0.2}, ValueError, "either `at_least` or `at_most`"),
    ],
)
def test_what_makes_no_question_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        budget(no_training, **given)


def test_what_is_no_value_is_refused():
    with pytest.raises(ValueError, match="but got NaN"):
        budget(lambda n: math.nan, at_least=0.5, largest=4)
    with pytest.raises(TypeError, match="to return a certified value, but got None"):
        budget(lambda n: None, at_least=0.5, largest=4)


def test_what_cannot_be_read_off_a_training_is_refused():
    limit = Acceptance("val_certified_accuracy", at_least=0.5)
    curve = [BoundedAdversary(n=n, epsilon=0.1) for n in (1, 2)]
    other = [curve[0], BoundedAdversary(n=2, epsilon=0.2)]
    good = {"val_certified_accuracy": 0.9}
    with pytest.raises(ValueError, match="differ in n alone, but they differ in epsilon"):
        read_off(other, [good, good], limit)
    with pytest.raises(ValueError, match="but they are val_certified_accuracy, val_mse"):
        read_off(curve, [good, {"val_mse": 1.0}], limit)
    with pytest.raises(ValueError, match="Validate after the last step"):
        read_off(curve, [{}, {}], limit)
