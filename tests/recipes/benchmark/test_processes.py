"""The measurement runs; its figures are no tests."""

from recipes.benchmark import processes


def test_a_row_for_each_size_and_adversary():
    rows = processes.rows([2], 12, 1)
    assert [(row["processes"], row["poisoned"]) for row in rows] == [(2, name) for name in processes.ADVERSARIES]
