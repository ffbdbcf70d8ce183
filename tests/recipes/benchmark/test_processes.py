"""The measurement runs; its figures are no tests."""

import pytest

from recipes.benchmark import processes


@pytest.mark.slow
def test_a_row_for_each_size_and_adversary(pool, monkeypatch):
    monkeypatch.setattr(processes, "spawned", lambda size, *args: pool.run(size, processes.measure, *args))
    rows = processes.rows([2], 12, 1)
    assert [(row["processes"], row["poisoned"]) for row in rows] == [(2, name) for name in processes.ADVERSARIES]
    assert all(row["certified MB sent"] > row["plain MB sent"] > 0 for row in rows)


def test_a_new_process_measures(monkeypatch):
    monkeypatch.setattr(processes.mp, "spawn", lambda function, args, nprocs: function(0, *args))
    assert set(*processes.spawned(1, 6, 1)) == {"plain", *processes.ADVERSARIES}
