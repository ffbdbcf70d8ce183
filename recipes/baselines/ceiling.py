r"""How many flipped labels any classifier can withstand that treats classes alike.

**Theorem.** Let a training be a function of labelled samples that commutes with renaming the classes: if labels are
renamed by a permutation, so are predictions. If ``N_c`` and ``N_k`` samples have the labels c and k, some
``ceil((N_c + N_k) / 2)`` flips change the prediction c of any x. So no certificate exceeds

    min over k ≠ c of  ceil((N_c + N_k) / 2) − 1.

*Proof.* Let S be half of the samples of both classes, rounded up, and T the other half. Exchanging c and k on S is at
most ``ceil((N_c + N_k) / 2)`` flips, and so is exchanging them on T. The two results are each other's renaming by
c ↔ k, so x cannot be predicted c under both. ∎

It holds for linear heads, networks and ensembles alike; a classifier that knows classes by other means than training
labels is not bound by it. Ties that are broken by the order of classes do not commute, and are never certified.
"""

import torch
from torch import Tensor


def largest_flips(labels: Tensor, classes: int) -> Tensor:
    """Return the most flips that can be certified for predictions of each class, integers ``(classes,)``.

    Args:
        labels: training labels ``(samples,)``.
        classes: number of classes, at least two.

    Example:
        >>> largest_flips(torch.tensor([0, 0, 0, 1, 1, 2]), 3)
        tensor([1, 1, 1])
    """
    counts = torch.bincount(labels, minlength=classes)
    pairs = (counts[:, None] + counts + 1).div(2, rounding_mode="floor") - 1
    return pairs.masked_fill(torch.eye(classes, dtype=torch.bool), len(labels)).amin(dim=1)
