"""Threads that share nothing: each computes on one core."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_core_each() -> Iterator[None]:
    """Run the body with one thread per torch operation; threads that start inside inherit the setting.

    Example:
        >>> with one_core_each():
        ...     torch.get_num_threads()
        1
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
