"""Steps of least squares on digits of MNIST, retrained on edited data: how near the worst copies come to the bound."""

import os
from pathlib import Path

import pytest
import torch

from agt_lightning.domains.edits import LeastSquaresSteps, certified_edits, certified_replacements
from recipes.data.hog import DeskewedHOG
from recipes.data.mnist import SHA256, find_file, read_digits

pytestmark = pytest.mark.slow
F64 = torch.float64
SAMPLES, QUERIES, RATE = 3000, 40, 1.0


@pytest.fixture(scope="module")
def digits():
    root = Path(os.environ.get("AGT_DATA_ROOT") or Path(__file__).parents[4] / "shared" / "data")
    if any(find_file(root, name) is None for name in SHA256):
        pytest.skip("no real data; set AGT_DATA_ROOT")
    return load(root)


def load(root):
    """Features and labels of the first training digits, and features of the first test digits."""
    (images, labels), (tests, _) = read_digits(root, "train"), read_digits(root, "test")
    fixed = DeskewedHOG().fit(images[:0])
    return fixed.transform(images[:SAMPLES]), labels[:SAMPLES], fixed.transform(tests[:QUERIES])


def retrained(features, labels, steps):
    """The head that real steps make, whose mean divides by the original number of samples."""
    head = torch.zeros(10, features.shape[1], dtype=F64)
    targets = torch.nn.functional.one_hot(labels, 10).to(F64)
    for _ in range(steps):
        head = head - RATE / SAMPLES * (features @ head.T - targets).T @ features
    return head


def outcomes(digits, steps, factor, *, replaced, random=False):
    """How many predictions change by ``factor`` times the certified number of edits, of how many.

    Copies of the query with the label of the nearest rival come; if samples are replaced, the most helpful ones go. Or
    random digits come with that label, and random ones go.
    """
    features, labels, queries = digits
    model = LeastSquaresSteps(features, labels, 10, RATE, steps)
    certify = certified_replacements if replaced else certified_edits
    generator = torch.Generator().manual_seed(steps)
    changed, tried = 0, 0
    for query, n in zip(queries, certify(model, queries).tolist(), strict=True):
        if n < 1:
            continue
        count = n if factor == 1 else int(factor * n) + 1
        scores = (model.outputs(query[None])[0]).clone()
        label = int(scores.argmax())
        rival = int(scores.index_fill(0, torch.tensor([label]), -torch.inf).argmax())
        found = model.at(query[None])
        _, going, _ = found._costs(torch.tensor([0]), label, rival)
        order = torch.randperm(SAMPLES, generator=generator) if random else going[0].argsort(descending=True)
        kept = order[count:] if replaced else order
        new = features[torch.randperm(SAMPLES, generator=generator)[:count]] if random else query.expand(count, -1)
        x = torch.cat([features[kept], new])
        y = torch.cat([labels[kept], torch.full((count,), rival)])
        tried += 1
        changed += int((retrained(x, y, steps) @ query).argmax()) != label
    return changed, tried


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "inserted"])
def test_what_is_certified_holds_and_few_more_edits_change_most(digits, steps, replaced):
    for random in (False, True):
        changed, tried = outcomes(digits, steps, 1.0, replaced=replaced, random=random)
        assert changed == 0
        assert tried > QUERIES / 2
    changed, tried = outcomes(digits, steps, 1.1 if replaced or steps < 3 else 1.3, replaced=replaced)
    assert changed > tried / 2
