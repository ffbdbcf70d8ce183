import pytest

from recipes.data.mixing import is_new, mixed_batches


def test_clean_samples_are_used_in_turn_and_new_ones_once():
    batches = mixed_batches(range(10), range(100, 107), 10, 0.3)
    assert [len(batch) for batch in batches] == [10, 10, 3]
    assert [i for batch in batches for i in batch if i >= 100] == list(range(100, 107))
    assert [i for batch in batches for i in batch if i < 100] == [*range(10), *range(6)]


@pytest.mark.parametrize(("new", "sizes"), [(3, [6]), (4, [8]), (5, [8, 2])])
def test_half_of_each_batch_is_new(new, sizes):
    batches = mixed_batches(range(20), range(100, 100 + new), 8, 0.5)
    assert [len(batch) for batch in batches] == sizes
    assert all(2 * sum(i >= 100 for i in batch) == len(batch) for batch in batches)


def test_the_third_part_of_a_batch_says_what_is_new():
    assert is_new(("x", "y", "new")) == "new"
