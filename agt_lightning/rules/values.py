"""What is known of a value of a program: an interval, class labels, or a tensor that nothing changes."""

from torch import Tensor

from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels

Value = Interval | ClassLabels | Tensor
"""An interval, class labels, or a discrete tensor that no adversary can change."""


def as_interval(value: Value) -> Interval:
    """Return the value as an interval; discrete data become a point in double precision.

    Raises:
        UncertifiableError: for class labels that an adversary can flip: their index is not a quantity.
    """
    if isinstance(value, Interval):
        return value
    if isinstance(value, ClassLabels) and value.flippable:
        raise UncertifiableError(
            [
                "Class labels that can be flipped are used as numbers. Use them through `cross_entropy`, `nll_loss`, "
                "`one_hot` or `(labels == k).float()` only, or set `nu=0`."
            ]
        )
    tensor = value.index if isinstance(value, ClassLabels) else value
    return Interval.point(tensor if tensor.is_floating_point() else tensor.double())
