"""Sums of vectors by unit against every choice of summands and signs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agt_lightning.domains.ball import unit_sums
from agt_lightning.domains.ball.unit_kernels import CompiledUnitKernel, UnitKernel
from agt_lightning.domains.ball.unit_sums import UnitSums
from agt_lightning.domains.ball.unstable import Pairs

ROUNDING = 1e-12
"""Relative; above the rounding of sums of ten terms, 1e-15."""

UNITS = 4
"""The last one has no pairs."""


class Problem:
    """A few pairs with lengths and signs, of inputs that are alike, zero or repeated now and then."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=torch.float64, generator=generator)

        samples = 1 + seed % 7
        self.inputs = noise(samples, 1 + seed % 3)
        if seed % 4 == 1:
            self.inputs = self.inputs[:1] + 0.3 * noise(*self.inputs.shape)
        if seed % 5 == 2:
            self.inputs[0] = 0
        chosen = noise(samples, UNITS - 1).abs().mT < 1.5
        unit, sample = chosen.nonzero().unbind(dim=1)
        self.pairs = Pairs(sample, unit)
        self.sums = UnitSums(self.pairs, self.inputs, self.inputs.norm(dim=1), UNITS)
        self.sizes = noise(len(unit)).abs() * (noise(len(unit)).abs() > 0.2)
        self.sign = noise(len(unit)).sign() * (noise(len(unit)).abs() > 0.4 * (seed % 3))
        self.lengths = self.sizes * self.sums.norm[sample]

    def of(self, unit: int) -> tuple[Tensor, Tensor]:
        """Vectors of a unit without their signs, and the signs."""
        here = self.pairs.unit == unit
        return self.sizes[here, None] * self.inputs[self.pairs.sample[here]], self.sign[here]

    def largest(self, unit: int) -> float:
        """Of all parts and of all signs where they are unknown."""
        vectors, sign = self.of(unit)
        options = [(0.0, float(s)) if s else (0.0, 1.0, -1.0) for s in sign]
        choices = list(itertools.product(*options))
        factors = torch.tensor(choices, dtype=torch.float64).reshape(len(choices), len(sign))
        return float((factors @ vectors).norm(dim=1).max())


@pytest.mark.parametrize("seed", range(24))
def test_no_part_of_a_sum_is_longer(seed):
    problem = Problem(seed)
    bound = problem.sums.of_any_part(problem.lengths, problem.sign)
    for unit in range(UNITS):
        assert problem.largest(unit) <= float(bound[unit]) * (1 + ROUNDING)


def test_samples_that_pull_a_sum_apart_do_not_lengthen_it():
    """Two opposite pulls along nearly the same input: one of them is all that a part can use."""
    problem = Problem(0)
    inputs = torch.tensor([[1.0, 0.1], [1.0, -0.1]]).double()
    sums = UnitSums(Pairs(torch.arange(2), torch.zeros(2).long()), inputs, inputs.norm(dim=1), 1)
    lengths = sums.norm.clone()
    bound = float(sums.of_any_part(lengths, torch.tensor([1.0, -1.0]).double()))
    assert float(sums.norm[0]) <= bound <= 1.2 * float(sums.norm[0])
    unknown = float(sums.of_any_part(lengths, torch.tensor([1.0, 0.0]).double()))
    assert unknown >= float((inputs[0] + inputs[1]).norm())
    assert len(problem.sums.of_any_part(problem.lengths, problem.sign)) == UNITS


@pytest.mark.parametrize("n", [1, 2, 9])
@pytest.mark.parametrize("seed", range(6))
def test_largest_adds_up_the_largest_of_each_unit(seed, n):
    problem = Problem(seed)
    found = problem.sums.largest(problem.lengths, n)
    for unit in range(UNITS):
        own = problem.lengths[problem.pairs.unit == unit]
        assert float(found[unit]) == pytest.approx(float(own.sort(descending=True).values[:n].sum()))


@pytest.mark.parametrize("seed", range(8))
def test_gram_norms_are_eigenvalues(seed, monkeypatch):
    problem = Problem(seed)
    bound = problem.sums.gram_norms(problem.lengths)
    rows = problem.inputs / problem.sums.norm.clamp(min=1e-300)[:, None]
    for unit in range(UNITS):
        here = problem.pairs.unit == unit
        own = rows[problem.pairs.sample[here]]
        exact = float(torch.linalg.eigvalsh(own.T @ (problem.lengths[here, None] * own))[-1])
        assert exact * (1 - ROUNDING) <= float(bound[unit]) <= 1.05 * exact + 1e-300
    monkeypatch.setattr(unit_sums, "_LARGEST", 0)  # as if there were too many features
    trace = problem.sums.gram_norms(problem.lengths)
    assert bool((trace >= bound).all())


def test_sums_of_nothing_are_zero():
    none = torch.zeros(0).long()
    sums = UnitSums(Pairs(none, none), torch.ones(3, 2).double(), torch.ones(3).double(), 2)
    nothing = torch.zeros(0).double()
    assert sums.of_any_part(nothing, nothing).tolist() == [0, 0]
    assert sums.largest(nothing, 1).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tiny_and_huge_vectors_are_not_lost(dtype):
    scale = 1e15 if dtype is torch.float32 else 1e140
    inputs = torch.tensor([[3.0, 4.0], [4.0, 3.0]], dtype=dtype)
    for size in (scale, 1 / scale):
        sums = UnitSums(
            Pairs(torch.arange(2), torch.zeros(2).long()), inputs * size, 5 * size * torch.ones(2).to(dtype), 1
        )
        lengths = torch.full((2,), 5 * size, dtype=dtype)
        both = float(sums.of_any_part(lengths, torch.ones(2, dtype=dtype)))
        assert 9.89 * size <= both <= 10.01 * size
        assert float(replace(sums, units=3).gram_norms(lengths)[0]) >= 9.79 * size


@pytest.mark.parametrize("seed", range(6))
def test_compiled_sums_are_those_of_torch(seed):
    problem = Problem(seed)
    plain, fast = (kind(problem.pairs, UNITS) for kind in (UnitKernel, CompiledUnitKernel))
    factors = problem.sign * problem.lengths
    close = torch.testing.assert_close
    for n in (0, 1, 2, 9):
        close(fast.largest(problem.lengths, n), plain.largest(problem.lengths, n))
    close(fast.vectors(problem.inputs, factors), plain.vectors(problem.inputs, factors))
    close(fast.outer_products(problem.inputs, factors), plain.outer_products(problem.inputs, factors))


def test_compiled_sums_keep_nan():
    fast = CompiledUnitKernel(Pairs(torch.arange(3), torch.tensor([0, 0, 1])), 2)
    values = torch.tensor([1.0, torch.nan, 2.0]).double()
    assert fast.largest(values, 1).isnan().tolist() == [True, False]
    assert fast.vectors(torch.ones(3, 1).double(), values).isnan().flatten().tolist() == [True, False]
    assert fast.outer_products(torch.ones(3, 1).double(), values).isnan().flatten().tolist() == [True, False]
