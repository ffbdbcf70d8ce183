from recipes.table import table


def test_names_and_values_stand_in_columns():
    assert table({"accuracy": 0.98765, "seconds": 12.0}).splitlines() == ["  accuracy  0.9877", "  seconds       12"]


def test_text_is_kept():
    assert table({"n = 1": "0.10000"}) == "  n = 1  0.10000"
