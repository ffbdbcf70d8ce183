"""The budget of temporary tensors."""

import pytest
import torch

from agt_lightning import BoundedAdversary, CertifiedTraining, memory
from agt_lightning.memory import available_memory, chunks, fitting_memory_budget

CPU = torch.device("cpu")
MEBIBYTE = 2**20


def test_a_chosen_budget_is_kept():
    assert fitting_memory_budget(12_345, CPU) == 12_345


@pytest.mark.parametrize(("available", "budget"), [(2**40, 32), (256 * MEBIBYTE, 16), (0, 1)], ids=str)
def test_the_default_is_a_share_of_what_is_available(monkeypatch, available, budget):
    monkeypatch.setattr(memory, "available_memory", lambda device: available)
    assert fitting_memory_budget(None, CPU) == budget * MEBIBYTE


def test_a_gpu_takes_larger_blocks(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device: 2**36)
    assert fitting_memory_budget(None, torch.device("cuda")) == 1024 * MEBIBYTE


def test_nothing_is_assumed_of_a_system_that_does_not_tell(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device: None)
    assert fitting_memory_budget(None, CPU) == 32 * MEBIBYTE


def test_what_the_system_tells_is_read(monkeypatch, tmp_path):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:  16 kB\nMemAvailable:   12 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", path)
    assert available_memory(CPU) == 12 * 1024
    path.write_text("nothing of the kind")
    assert available_memory(CPU) is None or available_memory(CPU) > 0


@pytest.mark.parametrize(("count", "budget"), [(0, 8), (7, 1), (7, 24), (7, 10**6)])
def test_chunks_cover_every_item_once_and_fit(count, budget):
    parts = list(chunks(count, 8, budget))
    assert [item for part in parts for item in range(part.start, part.stop)] == list(range(count))
    assert all(part.stop - part.start <= max(1, budget // 8) for part in parts)


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_that_nothing_fits_in_is_refused_at_once(budget):
    with pytest.raises(ValueError, match="above 0"):
        CertifiedTraining(BoundedAdversary(n=1, epsilon=0.1), memory_budget=budget)
