"""How much memory temporary tensors may take, if nobody says."""

import os
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")

_CACHED = 32 * 2**20
"""Bytes on a CPU: larger blocks leave the caches and are no faster."""

_LAUNCHES = 2**30
"""Bytes on a GPU, where few large kernels are faster than many small ones."""

_SHARE = 16
"""At most one part in so many of what is available: several tensors of this size may be alive at once."""

_LEAST = 2**20
"""Bytes below which blocks become so small that a step takes longer than waiting for memory."""


def fitting_memory_budget(chosen: int | None, device: torch.device) -> int:
    """Bytes for temporary tensors: those chosen, else a part of what is available.

    Args:
        chosen: by the user; None leaves it to the machine.
        device: where the tensors will be.

    Raises:
        ValueError: if it is not positive.

    Example:
        >>> fitting_memory_budget(2**24, torch.device("cpu")), fitting_memory_budget(None, torch.device("cpu")) <= 2**25
        (16777216, True)
    """
    require_memory_budget(chosen)
    if chosen is not None:
        return chosen
    most = _LAUNCHES if device.type == "cuda" else _CACHED
    available = available_memory(device)
    return most if available is None else max(_LEAST, min(most, available // _SHARE))


def require_memory_budget(chosen: int | None) -> None:
    """Refuse a budget that nothing fits in.

    Raises:
        ValueError: if it is not positive.
    """
    if chosen is not None and chosen <= 0:
        raise ValueError(f"Expected `memory_budget` in bytes, above 0, or None for the default, but got {chosen}.")


def available_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device, caches that can be dropped included; None if the system does not tell."""
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
