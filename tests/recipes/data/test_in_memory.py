import torch

from recipes.data.in_memory import InMemory


class Counted(InMemory):
    """Ten samples for training and four for each other part; counts how often they were read."""

    reads = 0

    def read(self):
        self.reads += 1
        sizes = {"train": 10, "val": 4, "test": 4}
        return {part: (torch.arange(size)[:, None], torch.arange(size)) for part, size in sizes.items()}


def test_samples_are_read_once_and_keep_their_order():
    data = Counted(batch_size=4)
    data.setup("fit")
    data.setup("test")
    assert data.reads == 1
    for _ in range(2):
        assert [y.tolist() for _, y in data.train_dataloader()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_held_out_parts_are_one_batch_each():
    data = Counted(batch_size=3)
    data.setup()
    assert [y.tolist() for _, y in data.val_dataloader()] == [[0, 1, 2, 3]]
    assert [y.tolist() for _, y in data.test_dataloader()] == [[0, 1, 2, 3]]


def test_without_a_batch_size_training_is_one_batch():
    data = Counted(batch_size=None)
    data.setup()
    assert [len(y) for _, y in data.train_dataloader()] == [10]
