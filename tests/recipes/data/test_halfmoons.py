import torch

from recipes.data import HalfMoons


def test_training_points_form_one_batch_of_six_features():
    batches = list(HalfMoons().train_dataloader())
    assert len(batches) == 1
    x, y = batches[0]
    assert x.shape == (3000, 6)
    assert x.dtype == torch.float64
    assert y.bincount().tolist() == [1500, 1500]


def test_features_are_powers_of_both_coordinates():
    points = torch.tensor([[2.0, -3.0]])
    assert HalfMoons.polynomial_features(points).tolist() == [[2.0, -3.0, 4.0, 9.0, 8.0, -27.0]]


def test_shift_moves_only_the_upper_moon_and_up():
    near, labels = HalfMoons(samples=200, shift=0.0).points("train")
    far, same_labels = HalfMoons(samples=200, shift=0.2).points("train")
    assert torch.equal(labels, same_labels)
    moved = far - near
    torch.testing.assert_close(moved[labels == 0], torch.tensor([0.0, 0.2], dtype=torch.float64).expand(100, 2))
    assert not moved[labels == 1].any()
    assert near[labels == 0, 1].mean() > near[labels == 1, 1].mean()


def test_order_is_fixed_by_the_seed_and_held_out_points_are_others():
    first, _ = next(iter(HalfMoons(seed=3).train_dataloader()))
    again, _ = next(iter(HalfMoons(seed=3).train_dataloader()))
    other, _ = next(iter(HalfMoons(seed=4).train_dataloader()))
    test, _ = next(iter(HalfMoons(seed=3).test_dataloader()))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert test.shape == first.shape
    assert not torch.equal(first, test)


def test_validation_has_the_held_out_points():
    data = HalfMoons(samples=50)
    for (x, y), (x_test, y_test) in zip(data.val_dataloader(), data.test_dataloader(), strict=True):
        assert torch.equal(x, x_test)
        assert torch.equal(y, y_test)


def test_batch_size_splits_the_training_points_only():
    data = HalfMoons(samples=10, batch_size=4, dtype="float32")
    assert [len(y) for _, y in data.train_dataloader()] == [4, 4, 2]
    assert [len(y) for _, y in data.test_dataloader()] == [10]
    assert next(iter(data.train_dataloader()))[0].dtype == torch.float32
