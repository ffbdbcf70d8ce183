"""Gradients that are collected part by part are those of all samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agt_lightning.gradients import (
    Buffers,
    CollectedGradients,
    Elementwise,
    FactoredGradient,
    OuterProduct,
    PatchProduct,
    Stacked,
)
from agt_lightning.interval import Interval

SAMPLES = 7
PARTS = (3, 3, 1)


def _interval(*shape: int) -> Interval:
    lower = torch.randn(shape)
    return Interval(lower, lower + torch.rand(shape))


def _gradients() -> dict[str, FactoredGradient]:
    """Gradients of all samples, two of which read the same memory."""
    torch.manual_seed(0)
    d = _interval(SAMPLES, 1, 4)
    return {
        "weight": OuterProduct(d, Interval.point(torch.randn(SAMPLES, 1, 5))),
        "bias": Elementwise(d.rearranged(lambda bound: bound[:, 0])),
        "scale": Elementwise(_interval(SAMPLES, 2, 3)),
        "tokens": OuterProduct(_interval(SAMPLES, 2, 4), _interval(SAMPLES, 2, 5)),
    }


def _rows(gradient: FactoredGradient, rows: slice, *, copied: bool) -> FactoredGradient:
    """Return some samples, in new memory or in that of all samples."""
    return gradient.with_leaves(
        [
            leaf[rows].rearranged(lambda bound: bound.clone() if copied else bound)
            if isinstance(leaf, Interval)
            else leaf
            for leaf in gradient.leaves
        ]
    )


def _parts(gradients: dict[str, FactoredGradient], *, copied: bool) -> list[dict[str, FactoredGradient]]:
    starts = [sum(PARTS[:number]) for number in range(len(PARTS))]
    parts = []
    for start, size in zip(starts, PARTS, strict=True):
        part = {name: _rows(each, slice(start, start + size), copied=copied) for name, each in gradients.items()}
        weight = part["weight"]
        assert isinstance(weight, OuterProduct)
        part["bias"] = Elementwise(weight.outputs.rearranged(lambda bound: bound[:, 0]))
        parts.append(part)
    return parts


def _collected(parts: list[dict[str, FactoredGradient]], buffers: Buffers | None = None) -> dict[str, FactoredGradient]:
    collected = CollectedGradients(SAMPLES, 0, buffers or Buffers())
    for part in parts:
        collected.add(part, {})
    return collected.result()[0]


def _require_same(found: dict[str, FactoredGradient], expected: dict[str, FactoredGradient]) -> None:
    assert found.keys() == expected.keys()
    weights = torch.rand(SAMPLES)
    for name, gradient in expected.items():
        assert found[name].shape == gradient.shape
        assert found[name].samples == SAMPLES
        ours, theirs = (each.block(0, gradient.elements) for each in (found[name], gradient))
        torch.testing.assert_close(ours.lower, theirs.lower, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.upper, theirs.upper, rtol=1e-5, atol=1e-6)
        sums = [each.total(weights) for each in (found[name], gradient)]
        assert (sums[0] is None) == (sums[1] is None)
        if sums[0] is not None and sums[1] is not None:
            torch.testing.assert_close(sums[0].lower, sums[1].lower, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("copied", [True, False], ids=["new memory", "rows of one tensor"])
def test_collected_gradients_are_those_of_all_samples(copied: bool) -> None:
    gradients = _gradients()
    _require_same(_collected(_parts(gradients, copied=copied)), gradients)


def test_what_two_gradients_read_is_stored_once() -> None:
    found = _collected(_parts(_gradients(), copied=True))
    weight, bias = found["weight"], found["bias"]
    assert isinstance(weight, OuterProduct)
    assert isinstance(bias, Elementwise)
    assert weight.outputs.upper.data_ptr() == bias.values.upper.data_ptr()
    assert weight.inputs.is_point


def test_rows_of_one_tensor_are_not_copied() -> None:
    gradients = _gradients()
    found = _collected(_parts(gradients, copied=False))["weight"]
    whole = gradients["weight"]
    assert isinstance(found, OuterProduct)
    assert isinstance(whole, OuterProduct)
    assert found.inputs.lower.data_ptr() == whole.inputs.lower.data_ptr()


def test_rows_of_several_tensors_are_not_taken_for_one() -> None:
    """Parts of tensors that are as large as all samples together."""
    large = [Elementwise(Interval.point(torch.randn(SAMPLES, 2))) for _ in PARTS]
    rows = [_rows(gradient, slice(0, size), copied=False) for gradient, size in zip(large, PARTS, strict=True)]
    found = _collected([{"bias": each} for each in rows])["bias"]
    expected = torch.cat([gradient.values.lower[:size] for gradient, size in zip(large, PARTS, strict=True)])
    assert torch.equal(found.block(0, 2).lower, expected.T)


def test_samples_are_last_in_memory() -> None:
    found = _collected(_parts(_gradients(), copied=True))["scale"]
    assert isinstance(found, Elementwise)
    assert found.values.lower.stride(0) == 1


@pytest.mark.parametrize("late", [1, 2])
def test_gradients_that_cease_to_read_the_same_memory_are_parted(late: int) -> None:
    gradients = _gradients()
    parts = _parts(gradients, copied=True)
    other = _interval(PARTS[late], 4)
    parts[late]["bias"] = Elementwise(other)
    found = _collected(parts)
    start = sum(PARTS[:late])
    bias, weight = found["bias"].block(0, 4), found["weight"]
    assert isinstance(weight, OuterProduct)
    assert torch.equal(bias.lower[:, start : start + PARTS[late]], other.lower.T)
    whole = gradients["weight"]
    assert isinstance(whole, OuterProduct)
    assert torch.equal(weight.outputs.lower, whole.outputs.lower)
    assert torch.equal(bias.lower[:, :start], whole.outputs.lower[:start, 0].T)


def test_points_that_become_intervals_are_intervals() -> None:
    points, wide = torch.randn(4, 2), _interval(3, 2)
    collected = CollectedGradients(SAMPLES, 0, Buffers())
    collected.add({"bias": Elementwise(Interval.point(points))}, {})
    collected.add({"bias": Elementwise(wide)}, {})
    values = collected.result()[0]["bias"].block(0, 2)
    assert torch.equal(values.lower, torch.cat([points, wide.lower]).T)
    assert torch.equal(values.upper, torch.cat([points, wide.upper]).T)


def test_facts_hold_only_if_they_hold_of_all_parts() -> None:
    collected = CollectedGradients(4, 0, Buffers())
    collected.add({"bias": Elementwise(Interval.point(torch.ones(2, 1), nonnegative=True))}, {})
    collected.add({"bias": Elementwise(Interval.point(-torch.ones(2, 1)))}, {})
    bias = collected.result()[0]["bias"]
    assert isinstance(bias, Elementwise)
    assert not bias.values.nonnegative


def test_parts_of_other_kinds_are_kept_beside_each_other() -> None:
    torch.manual_seed(0)
    first, second = Elementwise(_interval(3, 4, 5)), OuterProduct(_interval(2, 1, 4), _interval(2, 1, 5))
    third = OuterProduct(_interval(2, 3, 4), _interval(2, 3, 5))
    collected = CollectedGradients(SAMPLES, 0, Buffers())
    for gradient in (first, second, third):
        collected.add({"weight": gradient}, {})
    found = collected.result()[0]["weight"]
    assert isinstance(found, Stacked)
    expected = torch.cat([gradient.block(0, 20).upper for gradient in (first, second, third)], dim=1)
    torch.testing.assert_close(found.block(0, 20).upper, expected)


def test_many_positions_are_kept_as_they_are() -> None:
    gradient = _gradients()["tokens"]
    found = _collected([{"tokens": _rows(gradient, slice(0, 4), copied=True)}])["tokens"]
    assert isinstance(found, OuterProduct)
    assert not isinstance(found, PatchProduct)
    assert found.positions == 2


def test_both_passes_share_what_is_the_same() -> None:
    d, z = _interval(3, 1, 2), Interval.point(torch.randn(3, 1, 4))
    collected = CollectedGradients(6, 6, Buffers())
    for _ in range(2):
        part = Interval.point(z.lower.clone())
        wider = d.widened(0.1)
        collected.add({"w": OuterProduct(d, part)}, {"w": OuterProduct(wider, part)})
    clean, poisoned = (each["w"] for each in collected.result())
    assert isinstance(clean, OuterProduct)
    assert isinstance(poisoned, OuterProduct)
    assert clean.inputs.lower.data_ptr() == poisoned.inputs.lower.data_ptr()
    assert torch.equal(poisoned.outputs.upper[3:], d.upper + 0.1)


def test_memory_is_used_again_for_the_same_shapes() -> None:
    buffers = Buffers()
    first = _collected(_parts(_gradients(), copied=True), buffers)
    places = {name: each.block(0, 1).lower.clone() for name, each in first.items()}
    buffers.reclaim()
    again = _collected(_parts(_gradients(), copied=True), buffers)
    _require_same(again, _gradients())
    assert all(torch.equal(places[name], again[name].block(0, 1).lower) for name in places)


def test_buffers_that_are_taken_are_different() -> None:
    buffers = Buffers()
    like = torch.ones(1)
    taken: list[Tensor] = [buffers.take(like, (2, 3)) for _ in range(3)]
    assert len({tensor.data_ptr() for tensor in taken}) == 3
    buffers.reclaim()
    again = buffers.take(like, (2, 3))
    assert again.data_ptr() in {tensor.data_ptr() for tensor in taken}
    assert buffers.take(like, (3, 2)).data_ptr() not in {tensor.data_ptr() for tensor in taken}


def test_leaves_that_are_copied_to_be_written_are_not_mistaken_for_each_other() -> None:
    """Their copies are freed at once, so that the next one can have the same memory."""
    torch.manual_seed(0)
    lower = [torch.randn(6, 300, 40).transpose(1, 2) for _ in range(2)]
    whole = [Interval.trusted(each, each + 1) for each in lower]
    collected = CollectedGradients(6, 0, Buffers())
    for rows in (slice(0, 4), slice(4, 6)):
        collected.add({str(number): Elementwise(each[rows]) for number, each in enumerate(whole)}, {})
    for number, each in enumerate(whole):
        found = collected.result()[0][str(number)]
        assert isinstance(found, Elementwise)
        assert torch.equal(found.values.lower, each.lower)
        assert torch.equal(found.values.upper, each.upper)
