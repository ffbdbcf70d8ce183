"""Differences from factors equal the differences of expanded bounds."""

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from agt_lightning.gradients import Elementwise, FactoredGradient, OuterProduct, differences_between, outer_differences
from agt_lightning.gradients.differences import Differences, ExpandedDifferences, samples_last, tiling
from agt_lightning.gradients.outer_differences import Formula, OuterDifferences
from agt_lightning.interval import Interval
from tests.gradients.oracles import box

ROUNDINGS = 1e-13
"""Of sums of at most eight products of size ten."""

KINDS = ("point", "nonnegative point", "nonnegative", "signed")


def factor(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Interval:
    value = box(shape, generator, "nonnegative" if "nonnegative" in kind else "signed")
    return Interval.point(value.lower, nonnegative=value.nonnegative) if "point" in kind else value


def wider(value: Interval, generator: torch.Generator) -> Interval:
    slack = [0.3 * torch.rand(value.shape, generator=generator, dtype=value.dtype) for _ in range(2)]
    lower = value.lower - slack[0]
    lower = lower.clamp(min=0) if value.nonnegative else lower
    return Interval.trusted(lower, value.upper + slack[1], nonnegative=value.nonnegative)


def pairs() -> list[tuple[str, OuterProduct, OuterProduct]]:
    """Every kind of factor in both passes; inputs the same, wider, or anything; outputs wider, or anything."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for d_kind, z_kind, inputs, outputs in itertools.product(
        KINDS, KINDS, ("same", "wider", "other"), ("wider", "other")
    ):
        d, z = factor(d_kind, (7, 1, 3), generator), factor(z_kind, (7, 1, 4), generator)
        worst_z = {"same": z, "wider": wider(z, generator), "other": factor("signed", (7, 1, 4), generator)}[inputs]
        worst_d = {"wider": wider(d, generator), "other": factor("signed", (7, 1, 3), generator)}[outputs]
        name = f"{d_kind} x {z_kind}, inputs {inputs}, outputs {outputs}"
        found.append((name, OuterProduct(d, z), OuterProduct(worst_d, worst_z)))
    return found


PAIRS = pairs()


def assembled(gains: Differences, gradient: FactoredGradient, entries: int) -> dict[bool, Tensor]:
    """Differences of both bounds, (elements, m); each element exactly once."""
    rows, columns = gradient.elements // gradient.row, gradient.row
    values: dict[bool, Tensor] = {}
    for tile in gains.tiles(entries):
        full = values.setdefault(tile.up, torch.full((rows, columns, tile.gains.shape[1]), torch.nan).double())
        place = full[tile.rows, tile.columns]
        assert bool(place.isnan().all()), "an element came twice"
        place.copy_(tile.gains.reshape(place.shape))
    return {up: value.flatten(0, 1) for up, value in values.items()}


def check_gains(clean: OuterProduct, poisoned: OuterProduct, entries: int, positions: Tensor | None) -> None:
    weights = torch.linspace(0, 1, poisoned.samples, dtype=torch.float64)
    gains = differences_between(clean, poisoned, weights, positions)
    assert isinstance(gains, OuterDifferences)
    found = assembled(gains, clean, entries)
    expected = assembled(ExpandedDifferences(clean, poisoned, weights, positions), clean, entries)
    for up in (True, False):
        error = float((found[up] - expected[up]).abs().max())
        assert error <= ROUNDINGS, f"gains differ from the difference of bounds by {error:.3g}"


@pytest.mark.parametrize("entries", [1, 20, 10_000], ids=["one element", "part of a row", "all"])
@pytest.mark.parametrize(("name", "clean", "poisoned"), PAIRS, ids=[name for name, *_ in PAIRS])
def test_gains_from_factors_equal_those_of_expanded_bounds(name, clean, poisoned, entries):
    check_gains(clean, poisoned, entries, None)


def test_gains_of_some_samples():
    name, clean, _ = PAIRS[-1]
    positions = torch.tensor([5, 0, 2])
    poisoned = OuterProduct(clean.outputs[positions], clean.inputs[positions])
    check_gains(clean, poisoned, 20, positions)
    gains = differences_between(clean, poisoned, torch.ones(3).double(), positions)
    assert assembled(gains, clean, 20)[True].abs().max() == 0


@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 2)])
@pytest.mark.parametrize("positions", [None, torch.tensor([3, 1])], ids=["all", "some"])
def test_gains_of_values_equal_those_of_expanded_bounds(shape, positions):
    generator = torch.Generator().manual_seed(1)
    clean = Elementwise(box((5, *shape), generator))
    poisoned = Elementwise(box((5 if positions is None else 2, *shape), generator))
    weights = torch.linspace(0.1, 1, poisoned.samples, dtype=torch.float64)
    found = assembled(differences_between(clean, poisoned, weights, positions), clean, 10)
    expected = assembled(ExpandedDifferences(clean, poisoned, weights, positions), clean, 10)
    assert all(torch.equal(found[up], expected[up]) for up in (True, False))


def test_an_attack_on_labels_takes_one_product_per_sign_of_the_inputs():
    """Where both passes have the same points as inputs, nothing but differences of outputs is multiplied."""
    clean, poisoned = next((c, p) for name, c, p in PAIRS if name == "signed x point, inputs same, outputs wider")
    gains = differences_between(clean, poisoned, torch.ones(7).double(), None)
    assert isinstance(gains, OuterDifferences)
    formula = Formula.of(gains.outputs, gains.inputs, up=True)
    assert sorted(part.sign for part in formula.sums) == [-1, 1]
    assert not formula.maxima


def test_tiles_cover_a_matrix_once():
    for rows, columns, elements in itertools.product((1, 2, 5), (1, 3, 4), (0, 1, 2, 3, 7, 100)):
        covered = torch.zeros(rows, columns)
        for block in tiling(rows, columns, elements):
            covered[block] += 1
            assert covered[block].numel() <= max(1, elements)
        assert bool((covered == 1).all())


def test_samples_move_to_the_last_axis():
    values = torch.arange(1300.0 * 70).reshape(1300, 70)
    assert torch.equal(samples_last(values), values.T)
    assert samples_last(values[:0]).shape == (70, 0)


def without_maxima(formula: Formula) -> Formula:
    return dataclasses.replace(formula, maxima=())


def with_one_product_less(formula: Formula) -> Formula:
    return dataclasses.replace(formula, sums=dict(list(formula.sums.items())[1:]))


def with_a_sign_changed(formula: Formula) -> Formula:
    changed = {part: {a: -c for a, c in terms.items()} for part, terms in formula.sums.items()}
    return dataclasses.replace(formula, sums=changed)


@pytest.mark.parametrize("fault", [without_maxima, with_one_product_less, with_a_sign_changed])
def test_a_wrong_formula_is_found(monkeypatch, fault):
    right = Formula.of
    monkeypatch.setattr(outer_differences.Formula, "of", lambda *factors, up: fault(right(*factors, up=up)))
    name, clean, poisoned = next(pair for pair in PAIRS if pair[0] == "signed x signed, inputs wider, outputs wider")
    with pytest.raises(AssertionError, match="gains differ"):
        check_gains(clean, poisoned, 20, None)
