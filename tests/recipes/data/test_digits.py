import pytest
import torch
from sklearn.datasets import load_digits

from recipes.data import Digits
from recipes.data.features import PCA


def test_images_of_three_disjoint_parts_are_those_of_scikit_learn():
    splits = Digits(held_out=100).read()
    assert {part: tuple(x.shape) for part, (x, _) in splits.items()} == {
        "train": (1597, 64),
        "val": (100, 64),
        "test": (100, 64),
    }
    pixels, classes = load_digits(return_X_y=True)
    kept = torch.cat([torch.cat([x * 16, y[:, None]], 1) for x, y in splits.values()])
    wanted = torch.cat([torch.as_tensor(pixels), torch.as_tensor(classes)[:, None]], 1)
    assert sorted(kept.tolist()) == sorted(wanted.tolist())


def test_features_are_fitted_on_training_images_alone():
    pixels, mapped = Digits().read(), Digits(features=PCA(5)).read()
    expected = PCA(5).fit(pixels["train"][0])
    for part in ("train", "test"):
        torch.testing.assert_close(mapped[part][0], expected.transform(pixels[part][0]))
        assert torch.equal(pixels[part][1], mapped[part][1])


def test_a_part_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match="from 1 to 599, but got 900"):
        Digits(held_out=900)
