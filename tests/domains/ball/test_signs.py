"""Signs in blocks against the whole matrices that they stand for."""

import pytest
import torch

from agt_lightning.domains.ball.hidden import signs
from agt_lightning.domains.ball.hidden.signs import Signs
from agt_lightning.domains.ball.kinks import Kinks
from agt_lightning.domains.ball.pairs import Pairs

SAMPLES, UNITS = 23, 5


@pytest.fixture(params=[1, 3 * UNITS, 4 * UNITS + 1, 10**6], ids="blocks of {}".format)
def hidden(request, monkeypatch):
    """Preactivations with zeros among them, in blocks that do and do not divide the samples."""
    monkeypatch.setattr(signs, "_BLOCK", request.param)
    values = torch.randn(SAMPLES, UNITS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return values * (values.abs() > 0.3)


@pytest.fixture
def draw():
    """Random tensors between zero and one."""
    generator = torch.Generator().manual_seed(1)
    return lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)


def joined(blocks):
    """Copies of all blocks, one below the other; their rows must be all samples in order."""
    rows, values = zip(*((part, block.clone()) for part, block in blocks), strict=True)
    assert [row for part in rows for row in range(part.start, part.stop)] == list(range(SAMPLES))
    return torch.cat(values)


def look(hidden, within, along=None, values=None):
    """One look, with values only where they matter."""
    return Signs(hidden).look(within, along, torch.ones(UNITS).double() if values is None else values)


def test_masks_norms_and_sums(hidden, draw):
    mask, values = (hidden > 0).double(), draw(UNITS)
    assert torch.equal(joined(Signs(hidden).masks()), mask)
    seen = look(hidden, draw(SAMPLES), values=values)
    torch.testing.assert_close(seen.activation_norm, hidden.relu().norm(dim=1))
    torch.testing.assert_close(seen.sum_on, mask @ values)


@pytest.mark.parametrize("rows", [None, 1, SAMPLES])
def test_near_units_are_those_within_the_sum(hidden, draw, rows):
    within, along = draw(SAMPLES) / 2, None if rows is None else draw(rows, UNITS) / 2
    near = look(hidden, within, along).near
    expected = hidden.abs() <= within[:, None] + (0 if along is None else along)
    assert 0 < int(expected.sum()) < expected.numel()
    assert torch.equal(torch.stack([near.sample, near.unit], dim=1), expected.nonzero())
    assert torch.equal(near.hidden, hidden[near.sample, near.unit])
    kept = near.hidden > 0
    assert torch.equal(near.among(kept).hidden, near.hidden[kept])


def test_zero_is_near_whatever_the_distance(hidden):
    near = look(hidden, torch.zeros(SAMPLES).double()).near
    assert torch.equal(near.hidden, torch.zeros(int((hidden == 0).sum())).double())


def test_slopes_of_unsure_units_are_a_half(hidden, draw):
    chosen = draw(SAMPLES, UNITS) < 0.4
    expected = torch.where(chosen, 0.5, (hidden > 0).double())
    assert torch.equal(joined(Signs(hidden).slopes(Pairs.where(chosen))), expected)
    assert torch.equal(joined(Signs(hidden).slopes(Pairs.where(chosen & False))), (hidden > 0).double())


def test_preactivations_in_any_layout(hidden):
    strided = hidden.T.contiguous().T
    unsure = look(strided, torch.full((SAMPLES,), 0.5).double()).near
    assert torch.equal(unsure.of(strided), hidden[unsure.sample, unsure.unit])
    assert torch.equal(unsure.hidden, unsure.of(strided))
    assert torch.equal(joined(Signs(strided).slopes(unsure)), joined(Signs(hidden).slopes(unsure)))


def test_entries_of_pairs(draw):
    pairs, matrix, row = Pairs.where(draw(SAMPLES, UNITS) < 0.4), draw(SAMPLES, UNITS), draw(1, UNITS)
    assert torch.equal(pairs.of(matrix), matrix[pairs.sample, pairs.unit])
    assert torch.equal(pairs.of(row), row.expand(SAMPLES, UNITS)[pairs.sample, pairs.unit])
    assert torch.equal(pairs.by_sample(matrix[:, 0]), matrix[:, 0][pairs.sample])
    assert torch.equal(pairs.by_unit(row[0]), row[0][pairs.unit])
    chosen = torch.zeros(SAMPLES, UNITS, dtype=torch.bool)
    chosen[pairs.sample, pairs.unit] = True
    torch.testing.assert_close(pairs.sums(pairs.of(matrix), SAMPLES), (matrix * chosen).sum(dim=1))


@pytest.mark.parametrize("units", [UNITS, 300, 70_000])
def test_kinks_are_sorted_by_unit_and_distance(draw, units):
    pairs = Pairs(torch.arange(400), (draw(400) * units).long())
    kinks = Kinks.sorted(pairs, draw(400).round(decimals=2))
    listed = list(zip(kinks.pairs.unit.tolist(), kinks.distance.tolist(), strict=True))
    assert listed == sorted(listed)
    assert sorted(kinks.pairs.sample.tolist()) == list(range(400))
    ends = [
        place
        for place, unit in enumerate(kinks.pairs.unit.tolist())
        if [*kinks.pairs.unit.tolist(), -1][place + 1] != unit
    ]
    assert kinks.last.nonzero().squeeze(1).tolist() == ends
