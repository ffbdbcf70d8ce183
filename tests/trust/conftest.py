"""Lightning's own warnings kept out of the way of ours, and a few cases that run with every change."""

from pathlib import Path

import pytest

from tests.lightning.conftest import NOISE

EXPECTED = (
    *NOISE,
    "ignore:Your `IterableDataset` has `__len__` defined:UserWarning",
    "ignore:.*does not have a `__len__`:UserWarning",
)


QUICK = 3
"""Tests of each file of which one case runs with every change."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all but a few cases as slow: each of them trains several times."""
    seen: dict[Path, list[str]] = {}
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            for message in EXPECTED:
                item.add_marker(pytest.mark.filterwarnings(message))
            names, name = seen.setdefault(item.path, []), getattr(item, "originalname", item.name)
            if name in names or len(names) >= QUICK:
                item.add_marker(pytest.mark.slow)
            if name not in names:
                names.append(name)
