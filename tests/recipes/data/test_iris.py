import pytest
import torch
from sklearn.datasets import load_iris

from recipes.data.iris import SPECIES, Iris


def test_species_are_those_of_scikit_learn():
    assert tuple(load_iris().target_names) == SPECIES


@pytest.mark.parametrize("species", [("setosa", "versicolor"), ("virginica", "versicolor")])
def test_flowers_of_two_species_in_three_disjoint_parts(species):
    data = Iris(species=species, standardize=False)
    data.setup()
    assert {part: tuple(x.shape) for part, (x, _) in data.splits.items()} == {
        "train": (60, 4),
        "val": (20, 4),
        "test": (20, 4),
    }
    lengths, codes = load_iris(return_X_y=True)
    for code, name in enumerate(species):
        kept = torch.cat([x[y == code] for x, y in data.splits.values()])
        wanted = torch.as_tensor(lengths[codes == SPECIES.index(name)])
        assert sorted(kept.tolist()) == sorted(wanted.tolist())


def test_features_are_standardized_by_the_training_flowers():
    plain, standardized = Iris(standardize=False, seed=4).read(), Iris(seed=4).read()
    x = plain["train"][0]
    for part in ("train", "test"):
        expected = (plain[part][0] - x.mean(0)) / x.std(0, unbiased=False)
        torch.testing.assert_close(standardized[part][0], expected)
        assert torch.equal(plain[part][1], standardized[part][1])


def test_the_seed_fixes_the_split():
    first, again, other = (Iris(seed=seed).read()["test"][0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_batches_hold_all_training_flowers_in_the_asked_type():
    data = Iris(dtype="float32")
    data.setup()
    ((x, y),) = data.train_dataloader()
    assert len(x) == 60
    assert x.dtype == y.dtype == torch.float32


@pytest.mark.parametrize("species", [("setosa",), ("setosa", "setosa"), ("setosa", "rose")])
def test_other_species_are_refused(species):
    with pytest.raises(ValueError, match="Expected `species` to be two of setosa, versicolor, virginica"):
        Iris(species=species)


@pytest.mark.parametrize("held_out", [0, 50])
def test_every_part_has_flowers(held_out):
    with pytest.raises(ValueError, match=f"Expected `held_out` to be from 1 to 49, but got {held_out}"):
        Iris(held_out=held_out)
