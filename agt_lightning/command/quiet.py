"""What Lightning tells about every Trainer, kept out of the way of what a command finds."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("lightning.pytorch", "pytorch_lightning", "lightning.fabric", "lightning")


@contextmanager
def quietly() -> Iterator[None]:
    """Let Lightning tell nothing about Trainers that train nothing."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
