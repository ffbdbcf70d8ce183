"""Gradient and curvature of one output move no further than bounded."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agt_lightning.domains.adjoint.boxed.scalar_loss import ScalarLoss

F64 = torch.float64


@pytest.mark.parametrize("squared", [False, True])
@given(output=st.floats(-40, 40), reach=st.floats(0, 30))
def test_changes_within_reach_are_bounded_and_attained(squared, output, reach):
    loss, here = ScalarLoss(0.7, squared), torch.tensor([output], dtype=F64)
    moves = reach * torch.linspace(-1, 1, 801, dtype=F64)
    moves = torch.cat([moves, (-2 * here).clamp(-reach, reach), (-here).clamp(-reach, reach)])

    def slope(f):
        return 0.7 * (2 * f if squared else f.sigmoid())

    change = slope(here + moves) - slope(here)
    bend = change - loss.curvature(here) * moves
    curve = loss.curvature(here + moves)
    far, bent = loss.change(here, torch.tensor([reach], dtype=F64))
    top, other = loss.curvatures(here, torch.tensor([reach], dtype=F64))
    for values, bound in ((change, far), (bend, bent), (curve, top), (curve - loss.curvature(here), other)):
        assert float(values.abs().max()) <= float(bound) + 1e-12
        assert float(bound) <= 1.05 * float(values.abs().max()) + 1e-9
