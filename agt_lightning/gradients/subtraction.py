"""The cheapest way to the gains of two bounds on the same gradients."""

from torch import Tensor

from agt_lightning.gradients.base import FactoredGradient
from agt_lightning.gradients.differences import Differences, ElementwiseDifferences, ExpandedDifferences
from agt_lightning.gradients.elementwise import Elementwise
from agt_lightning.gradients.outer_differences import OuterDifferences
from agt_lightning.gradients.outer_product import OuterProduct


def differences_between(
    clean: FactoredGradient, poisoned: FactoredGradient, weights: Tensor, positions: Tensor | None
) -> Differences:
    """What poisoning can add to weighted gradients.

    Args:
        clean: bounds of all samples.
        poisoned: bounds of the poisonable samples.
        weights: w_i >= 0 of the poisonable samples, (m,).
        positions: which samples these are; None means all.

    Example:
        >>> import torch
        >>> from agt_lightning.interval import Interval
        >>> clean = Elementwise(Interval.point(torch.zeros(2, 1)))
        >>> poisoned = Elementwise(Interval(-torch.ones(2, 1), 2 * torch.ones(2, 1)))
        >>> next(differences_between(clean, poisoned, torch.ones(2), None).tiles(entries=100)).gains
        tensor([[2., 2.]])
    """
    if isinstance(clean, Elementwise) and isinstance(poisoned, Elementwise):
        return ElementwiseDifferences.between(clean, poisoned, weights, positions)
    if isinstance(clean, OuterProduct) and isinstance(poisoned, OuterProduct) and clean.outputs.shape[1] == 1:
        return OuterDifferences.between(clean, poisoned, weights, positions)
    return ExpandedDifferences(clean, poisoned, weights, positions)
