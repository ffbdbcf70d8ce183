"""The list of assumptions is one list: in the code, on the page about the guarantee, and in certificates."""

import re
from pathlib import Path

import pytest

from agt_lightning import BoundedAdversary, UnboundedAdversary
from agt_lightning.certificates.assumptions import (
    ASSUMPTIONS,
    EVALUATED_AS_IT_IS,
    FLOAT_RUNS,
    MADE_BY_CONTENT,
    NAMED_SAMPLES,
    NO_INSERTIONS,
    OF_DATASET,
    OF_SOURCES,
    OF_SOURCES_OF_DATASET,
    OWN_OBJECTIVE,
    REAL_RUNS,
    assumptions,
)

CONDITIONAL = (
    OF_SOURCES,
    OF_DATASET,
    OF_SOURCES_OF_DATASET,
    NO_INSERTIONS,
    MADE_BY_CONTENT,
    FLOAT_RUNS,
    REAL_RUNS,
    OWN_OBJECTIVE,
    NAMED_SAMPLES,
    EVALUATED_AS_IT_IS,
)
PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "guarantee.md"
ADVERSARY = BoundedAdversary(n=1, epsilon=0.1)


def shown():
    """Return name and sentence of each item that the page lists under its heading."""
    section = re.search(r"## What must be true\n(.*?)\n## ", PAGE.read_text(encoding="utf-8"), re.S)
    items = re.findall(r"^- \*(.+?)\*: (.+?)(?=\n- |\n\n)", section.group(1), re.S | re.M)
    return [(name, " ".join(sentence.split())) for name, sentence in items]


def test_the_page_shows_exactly_this_list():
    listed = [*ASSUMPTIONS, *CONDITIONAL]
    assert shown() == [(assumption.name, assumption.sentence) for assumption in listed]


def test_names_are_unique_and_sentences_end():
    listed = [*ASSUMPTIONS, *CONDITIONAL]
    assert len({assumption.name for assumption in listed}) == len(listed)
    assert all(assumption.sentence.endswith(".") for assumption in listed)


def test_certificates_list_what_applies():
    always = [assumption.sentence for assumption in (*ASSUMPTIONS, NO_INSERTIONS)]
    usual = [*always, FLOAT_RUNS.sentence]
    assert assumptions(ADVERSARY) == usual
    assert assumptions(ADVERSARY, real=True) == [*always, REAL_RUNS.sentence]
    assert assumptions(ADVERSARY, own_objective=True) == [*usual, OWN_OBJECTIVE.sentence]
    assert assumptions(ADVERSARY, named_samples=True) == [*usual, NAMED_SAMPLES.sentence]
    assert assumptions(ADVERSARY, evaluated=True) == [*usual, EVALUATED_AS_IT_IS.sentence]


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({"counts": "sources"}, OF_SOURCES),
        ({"per": "dataset"}, OF_DATASET),
        ({"counts": "sources", "per": "dataset"}, OF_SOURCES_OF_DATASET),
    ],
    ids=["sources", "dataset", "both"],
)
def test_other_units_replace_the_budget_of_samples_per_batch(settings, first):
    listed = assumptions(BoundedAdversary(n=1, epsilon=0.1, **settings))
    assert listed == [first.sentence, *assumptions(ADVERSARY)[1:]]


def test_an_adversary_adds_its_own():
    adversary = UnboundedAdversary(n=1, kappa=1.0)
    assert assumptions(adversary)[-1:] == list(adversary.assumptions)


def test_insertions_replace_the_assumption_that_there_are_none():
    adversary = UnboundedAdversary(n=1, kappa=1.0, edits="insert-delete")
    listed = assumptions(adversary)
    assert MADE_BY_CONTENT.sentence in listed
    assert NO_INSERTIONS.sentence not in listed
    assert NO_INSERTIONS.sentence in assumptions(UnboundedAdversary(n=1, kappa=1.0))
