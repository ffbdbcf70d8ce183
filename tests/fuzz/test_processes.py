"""The first seconds of the fuzzer of divided trainings."""

import pytest

from tests.fuzz.divided import divided, examine


@pytest.mark.slow
def test_divided_trainings_stay_inside(pool):
    seeds = [seed for seed in range(40) if divided(seed)][:3]
    assert [examine(pool, seed, trainings=6) for seed in seeds] == ["inside"] * 3
