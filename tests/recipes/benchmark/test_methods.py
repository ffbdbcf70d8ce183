import pytest

from recipes.benchmark import methods


@pytest.mark.slow
def test_costs_of_every_method(household_root):
    rows = methods.rows(household_root, 20)
    assert [row["method"] for row in rows] == ["ibp", "crown", "tightest", "alpha-crown"]
    widths = {row["method"]: row["mean width"] for row in rows}
    assert widths["tightest"] <= 0.8 * widths["ibp"]
