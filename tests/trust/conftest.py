"""Lightning's own warnings kept out of the way of ours, and one case of each test that runs with every change."""

from pathlib import Path

import pytest

from tests.lightning.conftest import NOISE

EXPECTED = (
    *NOISE,
    "ignore:Your `IterableDataset` has `__len__` defined:UserWarning",
    "ignore:.*does not have a `__len__`:UserWarning",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all but the first case of each test as slow: each of them trains several times."""
    seen: set[tuple[Path, str]] = set()
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            for message in EXPECTED:
                item.add_marker(pytest.mark.filterwarnings(message))
            name = item.path, getattr(item, "originalname", item.name)
            if name in seen:
                item.add_marker(pytest.mark.slow)
            seen.add(name)
