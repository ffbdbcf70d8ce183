"""Certificates of single predictions (equation 18)."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Certification:
    """A batch of predictions, with the classes that an adversary could have turned them into.

    If each of several outputs decides between two classes of its own, shapes have an axis (outputs) after the batch.

    Args:
        label: class that the trained module predicts, integers of shape (batch,).
        certified: whether all parameters within the bounds predict this class, boolean of shape (batch,). A tie is not
            certified, since only the order of the classes breaks it.
        possible: classes that some parameters within the bounds may predict, boolean of shape (batch, classes).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from agt_lightning import CertifiedModel, ParameterBounds
        >>> module = nn.Linear(1, 2)
        >>> _ = module.load_state_dict({"weight": torch.tensor([[1.0], [-1.0]]), "bias": torch.zeros(2)})
        >>> found = CertifiedModel(module, ParameterBounds.point(module)).certify(torch.tensor([[2.0], [0.0]]))
        >>> found.label, found.certified                   # the second one is a tie
        (tensor([0, 0]), tensor([ True, False]))
    """

    label: Tensor
    certified: Tensor
    possible: Tensor
