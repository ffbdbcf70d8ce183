"""The memory budget of temporary tensors, its default, and chunks of work that fit a budget."""

import os
from collections.abc import Hashable, Iterator
from pathlib import Path

import torch
from torch import Tensor

_MEMINFO = Path("/proc/meminfo")

_CACHED = 32 * 2**20
"""Default budget on a CPU, in bytes: larger blocks do not fit in the caches and are no faster."""

_LAUNCHES = 2**30
"""Default budget on a GPU, in bytes: few large kernels are faster than many small ones."""

_SHARE = 16
"""Divisor of the available memory, for an upper limit on the default: several such tensors can exist at once."""

_LEAST = 2**20
"""Smallest default budget, in bytes; below it, the overhead of each block dominates."""


def fitting_memory_budget(budget: int | None, device: torch.device) -> int:
    """Return the bytes for temporary tensors: the given budget, else a default that fits the device.

    Args:
        budget: the user's budget, in bytes; None for the default.
        device: device of the tensors.

    Raises:
        ValueError: if ``budget`` is not positive.

    Example:
        >>> fitting_memory_budget(2**24, torch.device("cpu")), fitting_memory_budget(None, torch.device("cpu")) <= 2**25
        (16777216, True)
    """
    require_memory_budget(budget)
    if budget is not None:
        return budget
    most = _LAUNCHES if device.type == "cuda" else _CACHED
    available = available_memory(device)
    return most if available is None else max(_LEAST, min(most, available // _SHARE))


def require_memory_budget(budget: int | None) -> None:
    """Require a positive budget, or None.

    Raises:
        ValueError: if ``budget`` is not positive.
    """
    if budget is not None and budget <= 0:
        raise ValueError(f"Expected `memory_budget` in bytes, above 0, or None for the default, but got {budget}.")


def available_memory(device: torch.device) -> int | None:
    """Return the free bytes on a device, including reclaimable caches; None if the system does not report them."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    if _MEMINFO.is_file():
        entries = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
        if "MemAvailable" in entries:
            return 1024 * int(entries["MemAvailable"].split()[0])
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def chunks(count: int, bytes_each: int, budget: int) -> Iterator[slice]:
    """Yield consecutive ranges of items, as large as fit a budget, of at least one item each.

    Args:
        count: number of items.
        bytes_each: memory that one item takes, positive.
        budget: memory for one chunk, in bytes.

    Example:
        >>> [(chunk.start, chunk.stop) for chunk in chunks(5, bytes_each=8, budget=20)]
        [(0, 2), (2, 4), (4, 5)]
    """
    size = max(1, budget // bytes_each)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def place_of(tensor: Tensor) -> Hashable:
    """Return what tensors have in common that are the same memory, read in the same order; axes of size 1 do not count.

    Example:
        >>> values = torch.ones(2, 3)
        >>> place_of(values) == place_of(values[:, None]), place_of(values) == place_of(values.clone())
        (True, False)
    """
    axes = [(size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size != 1]
    return tensor.data_ptr(), tensor.dtype, tuple(axes)
