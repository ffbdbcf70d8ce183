import pytest
import torch

from recipes.data.loader import tensor_loader


@pytest.mark.parametrize(("rows", "batch_size", "sizes"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (4, 9, [4])])
def test_every_row_comes_once_in_order_with_a_short_last_batch(rows, batch_size, sizes):
    x, y = torch.randn(rows, 2), torch.arange(rows)
    loader = tensor_loader(x, y, batch_size=batch_size)
    for _ in range(2):
        batches = list(loader)
        assert [len(labels) for _, labels in batches] == sizes
        assert torch.equal(torch.cat([labels for _, labels in batches]), y)
        assert torch.equal(torch.cat([features for features, _ in batches]), x)
