"""What can be said of one prediction under all reachable parameters (equation 18)."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Certification:
    """Predictions and what an adversary could have made of them.

    Args:
        label: class that the trained module predicts, integers of shape (batch,).
        certified: whether every reachable parameter predicts the same class, boolean of shape (batch,). A tie is not
            certified, since it is decided by the order of the classes.
        possible: which classes some reachable parameter might predict, boolean of shape (batch, classes).
    """

    label: Tensor
    certified: Tensor
    possible: Tensor
