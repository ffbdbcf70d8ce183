"""The page of refusals says what the code says, and each way out is one."""

from pathlib import Path

import pytest

from docs.refusals_table import CASES, TARGET, document

pytestmark = pytest.mark.filterwarnings("ignore")

TITLES = [case.title for case in CASES]


def test_every_case_has_a_section():
    page = TARGET.read_text(encoding="utf-8")
    assert [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")] == TITLES


@pytest.mark.thinned(6)
@pytest.mark.parametrize("case", CASES, ids=TITLES)
def test_what_is_refused_is_mended_as_the_page_says(case):
    problems = case.refused.problems()
    assert problems
    assert case.accepted.problems() == ()
    page = Path(TARGET).read_text(encoding="utf-8")
    for problem in problems:
        assert f"> {problem}" in page, "Expected the page of today's refusals; run `python docs/refusals_table.py`."


@pytest.mark.slow
def test_the_page_is_up_to_date():
    assert document() == TARGET.read_text(encoding="utf-8")
