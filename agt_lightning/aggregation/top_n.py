"""SEMax: the sum of the n largest entries, separately for each parameter element."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from agt_lightning.aggregation.kernels import SourceKernel, kernel_for


def top_n_sum(gains: Tensor, n: int, membership: Tensor | None = None) -> Tensor:
    """Compute ``SEMax_n``, the largest sum of at most n entries of each row, exactly up to the rounding of that sum.

    Entries below zero are never counted: an adversary that may change n samples may change fewer.

    Args:
        gains: (e, b).
        n: largest number of entries in the sum, or of sources, all of whose entries count.
        membership: ones where a sample belongs to a source, else zeros, (b, sources); None if samples are chosen one by
            one.

    Returns:
        (e,)

    Example:
        >>> import torch
        >>> top_n_sum(torch.tensor([[3.0, -1.0, 2.0], [-1.0, -2.0, -3.0]]), n=2)
        tensor([5., 0.])
    """
    chosen = kernel_for(gains.device)
    return (chosen if membership is None else SourceKernel(membership, chosen)).sums(gains, n)


@dataclass(frozen=True)
class Choice:
    """The sets of samples that an adversary can change in one step: at most n of them, or those of at most n sources.

    Args:
        n: largest number of samples, or of sources.
        membership: ones where a sample belongs to a source, else zeros, (m, sources); None if samples are chosen one by
            one.

    Example:
        >>> import torch
        >>> choice = Choice(1, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
        >>> float(choice.largest(torch.tensor([3.0, 2.0, 2.0]))), choice.samples
        (4.0, 2)
    """

    n: int
    membership: Tensor | None = None

    def largest(self, values: Tensor) -> Tensor:
        """Return the largest sum of ``values``, (m,) and nonnegative, over one of these sets."""
        return top_n_sum(values[None], self.n, self.membership)[0]

    @property
    def samples(self) -> int:
        """The largest number of samples in one of these sets."""
        if self.membership is None:
            return self.n
        counts = self.membership.sum(dim=0).sort(descending=True).values
        return int(counts[: self.n].sum())
