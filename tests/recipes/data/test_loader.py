import pytest
import torch

from recipes.data.loader import content_loader, tensor_loader


@pytest.mark.parametrize(("rows", "batch_size", "sizes"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (4, 9, [4])])
def test_every_row_comes_once_in_order_with_a_short_last_batch(rows, batch_size, sizes):
    x, y = torch.randn(rows, 2), torch.arange(rows)
    loader = tensor_loader(x, y, batch_size=batch_size)
    for _ in range(2):
        batches = list(loader)
        assert [len(labels) for _, labels in batches] == sizes
        assert torch.equal(torch.cat([labels for _, labels in batches]), y)
        assert torch.equal(torch.cat([features for features, _ in batches]), x)


def test_a_missing_row_leaves_all_batches_but_one_as_they_are():
    x = torch.randn(60, 2)
    whole = [rows for (rows,) in content_loader(x, batches=4)]
    less = [rows for (rows,) in content_loader(x[1:], batches=4)]
    assert sum(map(len, whole)) == 60
    assert sum(torch.equal(one, other) for one, other in zip(whole, less, strict=True)) == 3
