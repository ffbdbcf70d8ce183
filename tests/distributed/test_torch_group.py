"""Collectives of the default group, and errors that all processes raise together."""

import pytest
import torch
import torch.distributed as dist

from agt_lightning.distributed import TorchProcessGroup
from agt_lightning.errors import UncertifiableError, UnsoundBoundError
from tests.distributed.pool import FailedError


def group():
    return TorchProcessGroup(torch.device("cpu"))


def errors_of(pool, function, *args):
    with pytest.raises(FailedError) as failed:
        pool.run(3, function, *args)
    return failed.value.errors


def test_there_must_be_a_group():
    with pytest.raises(RuntimeError, match="init_process_group"):
        group()


def _gather(size):
    processes = group()
    rank = processes.rank
    own = {f"only {rank}": "x", "rows": torch.full((rank * size, 2), float(rank))}
    return [{name: entry for name, entry in sent.items()} for sent in processes.gather(own)]


@pytest.mark.parametrize("size", [1, 1000], ids=["short", "long"])
def test_messages_may_differ_in_names_and_shapes(size, pool):
    for received in pool.run(3, _gather, size):
        assert [list(sent) for sent in received] == [[f"only {rank}", "rows"] for rank in range(3)]
        for rank, sent in enumerate(received):
            assert torch.equal(sent["rows"], torch.full((rank * size, 2), float(rank)))


def _sum():
    processes = group()
    own = {"a": torch.full((2, 2), processes.rank + 0.5), "b": torch.tensor(processes.rank), "c": torch.ones(0)}
    return processes.sum(own), processes.union([f"{processes.rank}\n", "same"]), processes.any(processes.rank == 2)


def test_sums_and_unions(pool):
    for sums, union, flag in pool.run(3, _sum):
        assert torch.equal(sums["a"], torch.full((2, 2), 4.5))
        assert int(sums["b"]) == 3
        assert union == ["0\n", "same", "1\n", "2\n"]
        assert flag


def _together(kind):
    with group().collective_errors():
        if dist.get_rank() == 1 and kind == "ours":
            raise UnsoundBoundError("it broke")
        if dist.get_rank() > 0 and kind == "problems":
            raise UncertifiableError([f"problem {dist.get_rank()}", "common"])
        if dist.get_rank() == 2 and kind == "foreign":
            raise KeyError("x")
    return "went on"


def test_nothing_to_raise(pool):
    assert pool.run(3, _together, "") == ["went on"] * 3


def test_an_error_of_ours_is_raised_everywhere(pool):
    assert errors_of(pool, _together, "ours") == [("UnsoundBoundError", "it broke")] * 3


def test_problems_of_all_processes_are_listed(pool):
    kinds, messages = zip(*errors_of(pool, _together, "problems"), strict=True)
    assert set(kinds) == {"UncertifiableError"}
    assert len(set(messages)) == 1
    assert all(problem in messages[0] for problem in ("problem 1", "problem 2", "common"))


def test_other_errors_name_their_process(pool):
    kinds, messages = zip(*errors_of(pool, _together, "foreign"), strict=True)
    assert kinds == ("ProcessError", "ProcessError", "KeyError")
    assert "Process 2 of 3 stopped: KeyError" in messages[0]


def _same(different):
    values = torch.ones(3)
    if dist.get_rank() == different:
        values[2] = torch.nextafter(values[2], torch.tensor(2.0))
    group().require_same([values], "values")


def test_one_bit_of_difference_is_an_error_everywhere(pool):
    assert pool.run(3, _same, None) == [None] * 3
    for kind, message in errors_of(pool, _same, 1):
        assert kind == "UnsoundBoundError"
        assert "those of [1] differ from process 0" in message
