"""Activation patterns in blocks against the whole matrices that they stand for."""

import pytest
import torch

from agt_lightning.domains.ball.one_hidden import activation_scan
from agt_lightning.domains.ball.one_hidden.activation_scan import ActivationScan
from agt_lightning.domains.ball.unstable import Pairs, UnstableUnits

SAMPLES, UNITS = 23, 5


@pytest.fixture(params=[1, 3 * UNITS, 4 * UNITS + 1, 10**6], ids="blocks of {}".format)
def hidden(request, monkeypatch):
    """Preactivations with zeros among them, in blocks that do and do not divide the samples."""
    monkeypatch.setattr(activation_scan, "_BLOCK", request.param)
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


def stats(hidden, within, more=None, values=None):
    """One scan, with values only where they matter."""
    return ActivationScan(hidden).stats(within, more, torch.ones(UNITS).double() if values is None else values)


def test_masks_norms_and_sums(hidden, draw):
    mask, values = (hidden > 0).double(), draw(UNITS)
    assert torch.equal(joined(ActivationScan(hidden).masks()), mask)
    found = stats(hidden, draw(SAMPLES), values=values)
    torch.testing.assert_close(found.activation_norm, hidden.relu().norm(dim=1))
    torch.testing.assert_close(found.active_sum, mask @ values)


@pytest.mark.parametrize("rows", [None, 1, SAMPLES])
def test_unstable_units_are_those_within_the_sum(hidden, draw, rows):
    within, more = draw(SAMPLES) / 2, None if rows is None else draw(rows, UNITS) / 2
    unstable = stats(hidden, within, more).unstable
    expected = hidden.abs() <= within[:, None] + (0 if more is None else more)
    assert 0 < int(expected.sum()) < expected.numel()
    assert torch.equal(torch.stack([unstable.sample, unstable.unit], dim=1), expected.nonzero())
    assert torch.equal(unstable.hidden, hidden[unstable.sample, unstable.unit])
    kept = unstable.hidden > 0
    assert torch.equal(unstable.among(kept).hidden, unstable.hidden[kept])


def test_zero_is_unstable_whatever_the_distance(hidden):
    unstable = stats(hidden, torch.zeros(SAMPLES).double()).unstable
    assert torch.equal(unstable.hidden, torch.zeros(int((hidden == 0).sum())).double())


def test_slopes_of_unstable_units_are_a_half(hidden, draw):
    chosen = draw(SAMPLES, UNITS) < 0.4
    expected = torch.where(chosen, 0.5, (hidden > 0).double())
    assert torch.equal(joined(ActivationScan(hidden).mean_slopes(Pairs.where(chosen))), expected)
    assert torch.equal(joined(ActivationScan(hidden).mean_slopes(Pairs.where(chosen & False))), (hidden > 0).double())


def test_preactivations_in_any_layout(hidden):
    strided = hidden.T.contiguous().T
    unstable = stats(strided, torch.full((SAMPLES,), 0.5).double()).unstable
    assert torch.equal(unstable.of(strided), hidden[unstable.sample, unstable.unit])
    assert torch.equal(unstable.hidden, unstable.of(strided))
    assert torch.equal(
        joined(ActivationScan(strided).mean_slopes(unstable)), joined(ActivationScan(hidden).mean_slopes(unstable))
    )


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
def test_unstable_units_are_sorted_by_unit_and_distance(draw, units):
    pairs = Pairs(torch.arange(400), (draw(400) * units).long())
    found = UnstableUnits.sorted(pairs, draw(400).round(decimals=2))
    order = found.pairs.unit.tolist()
    listed = list(zip(order, found.distance.tolist(), strict=True))
    assert listed == sorted(listed)
    assert sorted(found.pairs.sample.tolist()) == list(range(400))
    ends = [place for place, unit in enumerate(order) if [*order, -1][place + 1] != unit]
    assert found.last.nonzero().squeeze(1).tolist() == ends
