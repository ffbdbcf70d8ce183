"""Norms of matrices against dense eigenvalues."""

import math

import pytest
import torch

from agt_lightning.domains.ball import norms
from agt_lightning.domains.ball.norms import append_one, gram_norm


@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize(("samples", "features"), [(7, 3), (3, 7), (4, 4), (4, 3), (1, 1)])
def test_gram_norm_is_the_largest_eigenvalue_with_and_without_ones(samples, features, one, monkeypatch):
    generator = torch.Generator().manual_seed(samples)
    rows = torch.randn(samples, features, generator=generator, dtype=torch.float64)
    weights = torch.rand(samples, generator=generator, dtype=torch.float64)
    whole = append_one(rows, one)
    gram = whole.T @ (weights[:, None] * whole)
    largest = float(torch.linalg.eigvalsh(gram)[-1])
    assert largest * (1 - 1e-14) <= gram_norm(rows, weights, one) <= largest * (1 + 1e-11)
    monkeypatch.setattr(norms, "_LARGEST_GRAM", 0)
    assert gram_norm(rows, weights, one) == pytest.approx(float(gram.trace()))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (40, 7), (7, 40), (30, 30)], ids=str)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_norms_in_single_precision_are_above_those_in_double(shape, scale):
    """Without any tolerance, and tight."""
    generator = torch.Generator().manual_seed(0)
    matrices = scale * torch.randn(20, *shape, generator=generator)
    matrices[1:5] = matrices[1:5, :1]  # of rank one
    matrices[5] = 0
    exact = torch.linalg.matrix_norm(matrices.double(), ord=2)
    together = norms.spectral_norms(matrices).double()
    one_by_one = torch.tensor([norms.spectral_norm(matrix) for matrix in matrices]).double()
    for bound in (together, one_by_one):
        assert bool((bound >= exact).all())
        assert bool((bound <= 1.001 * exact).all())


def test_an_eigenvalue_that_is_not_proved_is_replaced_by_the_trace(monkeypatch):
    matrices = torch.eye(3).expand(2, 3, 3).double()
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda each: torch.full(each.shape[:2], 0.99).double())
    assert torch.allclose(norms._largest_eigenvalues(matrices), torch.full((2,), 3.0).double())


def test_numbers_that_are_not_finite_have_no_norm():
    rows = torch.tensor([[math.inf, 1.0], [0.0, 1.0]]).double()
    assert norms.gram_norm(rows, torch.ones(2).double()) == math.inf


def test_norms_of_matrices_whose_squares_underflow():
    matrix = torch.full((2, 3), 1e-170, dtype=torch.float64)
    largest = math.sqrt(6) * 1e-170
    assert norms.spectral_norm(matrix) >= largest
    assert float(norms.spectral_norms(matrix[None])[0]) >= largest
    assert norms.spectral_norm(torch.zeros(2, 3)) == 0.0


def test_norms_on_some_entries_whose_squares_underflow():
    rows = torch.tensor([[3e-170, 4e-170], [0.0, 0.0]], dtype=torch.float64)
    first, second = norms.norms_on(torch.ones(1, 2).double(), rows)[0]
    assert first >= 5e-170
    assert second == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_norms_by_squaring_are_above_and_near(dtype, scale):
    generator = torch.Generator().manual_seed(0)
    matrices = scale * torch.randn(20, 12, 12, generator=generator).to(dtype)
    matrices[1:5] = matrices[1:5, :1]  # of rank one
    matrices[5] = 0
    matrices[6] = scale * torch.eye(12, dtype=dtype)  # the worst: all singular values are the same
    exact = torch.linalg.matrix_norm(matrices.double(), ord=2)
    bound = norms.norms_by_squaring(matrices).double()
    assert bool((bound >= exact * (1 - 1e-14)).all())  # the rounding of what it is compared with
    assert bool((bound <= 1.05 * exact).all())


def test_norms_by_squaring_of_what_is_not_finite_are_no_bounds():
    matrices = torch.eye(3).double().repeat(3, 1, 1)
    matrices[0, 1, 1], matrices[1, 0, 2] = math.nan, math.inf
    assert norms.norms_by_squaring(matrices).isfinite().tolist() == [False, False, True]
