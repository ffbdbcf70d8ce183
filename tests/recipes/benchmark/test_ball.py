from recipes.benchmark import ball


def test_cost_is_that_of_both_kinds_of_poison():
    rows = ball.rows(500, 1, None)
    assert [row["head and poison"] for row in rows] == ["labels", "features", "softmax labels", "softmax features"]
    assert all(row["ratio"] > 0 and row["radius"] > 0 for row in rows)
