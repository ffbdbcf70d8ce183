"""Gains of every kind that moments bound, and the checks that such a bound must pass."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from agt_lightning.aggregation import SampleSet, bounded_descent
from agt_lightning.arithmetic.convolution import Windows
from agt_lightning.gradients import FactoredGradient, OuterProduct, PatchProduct, Stacked
from agt_lightning.interval import Interval
from agt_lightning.rounding import unit_roundoff
from tests.aggregation.oracles import AMPLE, BoundedDescent, Case, dense, subsets
from tests.gradients.oracles import box

ORACLE_ROUNDINGS = 64
"""One-sided: roundings of the oracle's own sums over fewer than 16 samples, at size ten."""

SLACK = 640 * unit_roundoff(torch.float64)

WINDOWS = Windows((2,), (1,), (1,), (1,), (4,), (5,))

KINDS = (
    "nonnegative",
    "nonnegative narrow",
    "nonnegative point",
    "signed",
    "point",
    "nonpositive",
    "positions",
    "patches",
    "stacked",
)
REACHES = ("labels", "features", "wider", "anything")
"""What differs under poison: outputs; inputs and outputs, around the clean ones or not, as no adversary's are."""


def moment_cases() -> list[Case]:
    """All kinds of inputs and perturbations, few and many poisoned samples, equal and unequal weights."""
    generator = torch.Generator().manual_seed(11)
    settings = itertools.product(KINDS, REACHES, (1, 2, 5, 9), (None, 4))
    return [_case(kind, perturbation, n, rows, generator) for kind, perturbation, n, rows in settings]


def _case(kind: str, perturbation: str, n: int, rows: int | None, generator: torch.Generator) -> Case:
    samples = 6
    poisonable = None if rows is None else torch.randperm(samples, generator=generator)[:rows].sort().values
    weights = 3 * torch.rand(samples, generator=generator, dtype=torch.float64)
    chosen = torch.arange(samples) if poisonable is None else poisonable
    clean, poisoned = _pair(kind, perturbation, samples, chosen, generator)
    return Case(f"{kind}, {perturbation}, n={n}, {rows or samples}", clean, poisoned, SampleSet(weights, poisonable), n)


def _pair(
    kind: str, perturbation: str, samples: int, chosen: Tensor, generator: torch.Generator
) -> tuple[FactoredGradient, FactoredGradient]:
    if kind == "stacked":
        half = samples // 2
        first = _pair("signed", perturbation, half, chosen[chosen < half], generator)
        second = _pair("nonnegative", perturbation, samples - half, chosen[chosen >= half] - half, generator)
        return Stacked([first[0], second[0]]), Stacked([first[1], second[1]])
    positions = 3 if kind == "positions" else 5 if kind == "patches" else 1
    outputs = box((samples, positions, 2), generator)
    shape = (samples, 2, 4) if kind == "patches" else (samples, positions, 3)
    inputs = _inputs(kind, shape, generator)
    far = perturbation == "anything"
    outputs_reach = box((len(chosen), positions, 2), generator) if far else _around(outputs[chosen], generator)
    inputs_reach = inputs[chosen]
    if far:
        inputs_reach = _inputs(kind, (len(chosen), *shape[1:]), generator)
    elif perturbation != "labels":
        width = 0.01 if perturbation == "features" else 1.0
        inputs_reach = _around(inputs_reach, generator, width)
        if kind.startswith("nonnegative"):
            inputs_reach = Interval(inputs_reach.lower.clamp(min=0), inputs_reach.upper, nonnegative=True)
    return _gradient(kind, outputs, inputs), _gradient(kind, outputs_reach, inputs_reach)


def _inputs(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Interval:
    if kind == "nonpositive":
        values = box(shape, generator, "nonnegative")
        return Interval(-values.upper, -values.lower)
    if kind == "nonnegative narrow":
        values = box(shape, generator, "nonnegative point").lower
        return Interval(values, values * (1 + torch.rand(shape, generator=generator, dtype=torch.float64) / 1024))
    return box(shape, generator, kind if kind in ("nonnegative", "nonnegative point", "point") else "signed")


def _around(inner: Interval, generator: torch.Generator, width: float = 1.0) -> Interval:
    """An interval that contains ``inner``; some of its ends do not move."""
    sizes = width * torch.rand(2, *inner.shape, generator=generator, dtype=torch.float64)
    sizes *= torch.rand(2, *inner.shape, generator=generator) < 0.7
    return Interval(inner.lower - sizes[0], inner.upper + sizes[1])


def _gradient(kind: str, outputs: Interval, inputs: Interval) -> FactoredGradient:
    if kind != "patches":
        return OuterProduct(outputs, inputs)
    return PatchProduct(Interval(outputs.lower.transpose(1, 2), outputs.upper.transpose(1, 2)), inputs, WINDOWS)


def check_contains_every_subset(descent: BoundedDescent, case: Case) -> None:
    """The bound contains the extremes over all sets of poisoned samples, each at its own worst corner."""
    clean, poisoned, weights = dense(case.clean), dense(case.poisoned), case.samples.weights
    got = descent(case.clean, case.poisoned, case.samples, case.n, AMPLE)
    for subset in subsets(case.poisonable, case.n):
        lower, upper = clean.lower.clone(), clean.upper.clone()
        rows = [case.poisonable.index(sample) for sample in subset]
        lower[list(subset)], upper[list(subset)] = poisoned.lower[rows], poisoned.upper[rows]
        short = float(torch.maximum(weights @ upper - got.upper.flatten(), got.lower.flatten() - weights @ lower).max())
        assert short <= SLACK, f"{case}: the bound differs from brute force by {short:.3g}, inward"


def random_products(rows: int, generator: torch.Generator) -> Iterator[tuple[FactoredGradient, FactoredGradient]]:
    """Label and feature poison of many samples, some with far larger gains than others."""
    for inputs_kind in ("nonnegative", "signed", "point"):
        outputs, inputs = box((rows, 1, 4), generator), _inputs(inputs_kind, (rows, 1, 5), generator)
        heavy = 1 + 50 * (torch.rand(rows, 1, 1, generator=generator) < 0.02)
        wide = Interval(outputs.lower - heavy, outputs.upper + heavy)
        moved = Interval(inputs.lower - 0.1, inputs.upper + 0.1)
        if inputs_kind == "nonnegative":
            moved = Interval(moved.lower.clamp(min=0), moved.upper, nonnegative=True)
        for poisoned_inputs in (inputs, moved):
            yield OuterProduct(outputs, inputs), OuterProduct(wide, poisoned_inputs)


def check_never_narrower_than_exact(descent: BoundedDescent) -> None:
    """On sums over hundreds of samples, for every number of poisoned ones."""
    generator = torch.Generator().manual_seed(12)
    for clean, poisoned in random_products(300, generator):
        samples = SampleSet(torch.full((300,), 1 / 300, dtype=torch.float64))
        for n in (1, 3, 30, 200, 299, 300, 500):
            exact = bounded_descent(clean, poisoned, samples, n, AMPLE)
            got = descent(clean, poisoned, samples, n, AMPLE)
            short = float(torch.maximum(exact.upper - got.upper, got.lower - exact.lower).max())
            assert short <= SLACK, f"n = {n}: the bound differs from the exact one by {short:.3g}, inward"
