"""Norms of matrices against dense eigenvalues."""

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
