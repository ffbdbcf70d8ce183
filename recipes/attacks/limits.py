"""An attack counts only if it does what its adversary may do."""

from collections.abc import Sequence

import torch
from torch import Tensor

from agt_lightning import BoundedAdversary, UnboundedAdversary

_ROUNDING = 1e-12  # relative; x + ε u in float64 is off by an ulp


def require_allowed(
    adversary: BoundedAdversary | UnboundedAdversary, clean: Sequence[Tensor], poisoned: Sequence[Tensor]
) -> None:
    """Raise unless the adversary can turn one batch into the other.

    Args:
        adversary: one with a single feature radius, if it is bounded; binary labels if it flips labels.
        clean: inputs and targets.
        poisoned: the same after the attack.

    Raises:
        ValueError: saying which limit is broken.
    """
    (x, y), (changed_x, changed_y) = clean, poisoned
    if x.shape != changed_x.shape or y.shape != changed_y.shape:
        raise ValueError(f"Expected a batch of shapes {x.shape}, {y.shape}, got {changed_x.shape}, {changed_y.shape}.")
    moved_x, moved_y = (changed_x - x).flatten(1), (changed_y - y).reshape(len(y), -1)
    changed = int(((moved_x != 0).any(dim=1) | (moved_y != 0).any(dim=1)).sum())
    if changed > adversary.n:
        raise ValueError(f"Expected at most {adversary.n} poisoned samples, but the attack changed {changed}.")
    if isinstance(adversary, UnboundedAdversary):
        return
    _require("features", moved_x, adversary.p, float(adversary.epsilon), float(changed_x.abs().max()))
    if adversary.q == 0 and adversary.nu:
        if not bool(((changed_y == 0) | (changed_y == 1)).all()):
            raise ValueError("Expected flipped labels to be 0 or 1, but the attack wrote others.")
        return
    _require("labels", moved_y, adversary.q, adversary.nu, float(changed_y.abs().max()))


def _require(name: str, moved: Tensor, order: float, radius: float, size: float) -> None:
    farthest = float(torch.linalg.vector_norm(moved, ord=order, dim=1).max()) if order else float(moved.abs().max())
    if not farthest <= radius + _ROUNDING * (1 + size):
        raise ValueError(f"Expected {name} moved by at most {radius}, but the attack moved them by {farthest}.")
