"""Lightning's own warnings kept out of the way of ours."""

from pathlib import Path

import pytest

from tests.lightning.conftest import NOISE

EXPECTED = (
    *NOISE,
    "ignore:Your `IterableDataset` has `__len__` defined:UserWarning",
    "ignore:.*does not have a `__len__`:UserWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            for message in EXPECTED:
                item.add_marker(pytest.mark.filterwarnings(message))
