"""Which labels an adversary can write in place of those that a training used."""

from __future__ import annotations

from torch import Tensor

from agt_lightning.adversaries import BoundedAdversary
from agt_lightning.domains.influence.codes import ClassCodes
from agt_lightning.domains.influence.label_sets import LabelBall, LabelFlips, LabelSet
from agt_lightning.errors import UncertifiableError


def reachable_labels(adversary: BoundedAdversary, targets: Tensor, codes: Tensor | None) -> LabelSet:
    """What the adversary can write, sample by sample.

    Args:
        adversary: which moves labels by ``nu``, or flips them with ``q=0``.
        targets: y, (N, K).
        codes: y of each class, (C, K); None where labels are numbers.

    Raises:
        ValueError: if labels are to be flipped and a target is not the code of a class, or a class does not exist.

    Example:
        >>> import torch
        >>> flips = BoundedAdversary(n=1, nu=1, q=0, target_classes=(0,))
        >>> reachable_labels(flips, torch.eye(2), torch.eye(2)).allowed
        tensor([[ True, False],
                [ True,  True]])
    """
    if not adversary.perturbs_labels:
        return LabelBall(targets, nu=0.0)
    if adversary.q == 0:
        return _flips(targets, None if codes is None else ClassCodes(codes), adversary)
    return LabelBall(targets, adversary.nu, adversary.q)


def flips_of_classes(adversary: BoundedAdversary, targets: Tensor, codes: Tensor | None) -> LabelFlips:
    """Flips of class labels, also where the adversary moves labels as numbers or not at all.

    Only the classes of an adversary that flips (``source_classes``, ``target_classes``) restrict them.

    Args:
        adversary: the threat model of the training.
        targets: y, (N, K).
        codes: y of each class, (C, K); None reads them off targets that hold two values.

    Raises:
        UncertifiableError: if the targets are no codes of classes, or outputs are read as classes in another way than
            by their largest, and one output by its sign.
    """
    try:
        chosen = ClassCodes.of_targets(targets) if codes is None else ClassCodes(codes)
        flips = _flips(targets, chosen, adversary)
    except ValueError as error:
        raise UncertifiableError([f"Label flips have no meaning for these targets. {error}"]) from error
    require_read_as_codes(chosen)
    return flips


def require_read_as_codes(codes: ClassCodes) -> None:
    """The nearest code must be the largest of several outputs, or the sign of the only one.

    Raises:
        UncertifiableError: if it is not.

    Example:
        >>> require_read_as_codes(ClassCodes.one_hot(3, low=-1.0))
        >>> require_read_as_codes(ClassCodes.binary(low=0.0))
        Traceback (most recent call last):
        ...
        agt_lightning.errors.UncertifiableError: This training cannot be certified:
          1. One output is read by its sign, but the targets are 0.0 and 1.0, whose midpoint is not 0. Train on -1 and
          1, or on one-hot vectors of two outputs.
    """
    table = codes.codes
    low, high = float(table.min()), float(table.max())
    if table.shape[1] == 1:
        if table.tolist() != [[-high], [high]]:
            raise UncertifiableError(
                [
                    f"One output is read by its sign, but the targets are {float(table[0])} and {float(table[-1])}, "
                    "whose midpoint is not 0. Train on -1 and 1, or on one-hot vectors of two outputs."
                ]
            )
    elif not table.equal(ClassCodes.one_hot(table.shape[1], low=low, high=high).codes):
        raise UncertifiableError(
            ["Outputs are read by the largest, but targets are not one high value at the class. Use one-hot vectors."]
        )


def _flips(targets: Tensor, codes: ClassCodes | None, adversary: BoundedAdversary) -> LabelFlips:
    restricted = adversary.q == 0
    return LabelFlips.of_targets(
        targets,
        codes,
        source_classes=adversary.source_classes if restricted else None,
        target_classes=adversary.target_classes if restricted else None,
    )
