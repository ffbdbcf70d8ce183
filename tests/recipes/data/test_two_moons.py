import pytest
import torch

from recipes.data import TwoMoons


def test_parts_have_the_sizes_of_the_published_problem():
    data = TwoMoons()
    data.setup()
    assert {part: tuple(x.shape) for part, (x, _) in data.splits.items()} == {
        "train": (100, 2),
        "val": (200, 2),
        "test": (200, 2),
    }
    for _, classes in data.splits.values():
        assert classes.dtype == torch.float64
        assert classes.sum() * 2 == len(classes)
        assert set(classes.tolist()) == {0, 1}


def test_class_one_is_the_arc_below():
    data = TwoMoons(samples=200, noise=0.0)
    data.setup()
    x, y = data.splits["train"]
    torch.testing.assert_close(x[y == 0].norm(dim=1), torch.ones(100, dtype=torch.float64))
    assert x[y == 0, 1].mean() > x[y == 1, 1].mean()


def test_no_point_is_in_two_parts_or_two_seeds():
    parts = []
    for seed in range(3):
        data = TwoMoons(samples=30, held_out=20, seed=seed)
        data.setup()
        parts += [x for x, _ in data.splits.values()]
    assert len(torch.unique(torch.cat(parts), dim=0)) == 3 * 70


def test_the_seed_fixes_points_and_their_order():
    first, again = (TwoMoons(seed=2).read()["train"] for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_batch_size_splits_the_training_points_only():
    data = TwoMoons(samples=10, held_out=6, batch_size=4, dtype="float32")
    data.setup()
    assert [len(y) for _, y in data.train_dataloader()] == [4, 4, 2]
    assert [len(y) for _, y in data.val_dataloader()] == [6]
    assert next(iter(data.test_dataloader()))[0].dtype == torch.float32


def test_batch_size_must_be_positive():
    with pytest.raises(ValueError, match="Expected `batch_size` to be at least 1, or None for all, but got 0"):
        TwoMoons(batch_size=0)
