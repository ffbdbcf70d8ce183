"""Sums of a kernel by class: kernel machines of one step, radius votes, class sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.domains.edits.kernels import Kernel
from agt_lightning.domains.edits.model import Damage, check_finite, check_samples
from agt_lightning.errors import UnsoundBoundError
from agt_lightning.interval import Interval

_FLOAT64 = Arithmetic(torch.float64, torch.float64)


@dataclass(frozen=True, eq=False)
class KernelSums:
    """A classifier ``f_k(x*) = Σ_i g(x*, x_i) [y_i = k]`` that predicts the class of the largest sum, in float64.

    An inserted or deleted sample changes one summand of one class. So it takes at most ``C = max(high, -low)`` from any
    margin, for a kernel with ``low <= g <= high``, and a margin m withstands n edits if ``n C < m``. That is exact if
    some sample has ``g = C``: for a radius vote, a copy of the query.

    Args:
        kernel: g, such as `RadiusVote`.
        features: of the training samples, (N, d), by a map that no training sample has a part in.
        labels: classes, integers (N,).
        classes: number of classes K.

    Raises:
        ValueError: if shapes do not match, or a label is no class.
        UnsoundBoundError: if a feature is NaN or infinite.

    Reference:
        docs/theory.md, section 14.1.

    Example:
        >>> from agt_lightning.domains.edits import RadiusVote
        >>> x = torch.tensor([[1.0], [1.0], [-1.0]])
        >>> votes = KernelSums(RadiusVote(0.5), x, torch.tensor([0, 1, 1]), classes=2)
        >>> votes.outputs(-x)
        tensor([[0., 1.],
                [0., 1.],
                [1., 1.]], dtype=torch.float64)
    """

    kernel: Kernel
    features: Tensor
    labels: Tensor
    classes: int

    def __post_init__(self) -> None:
        """Check the samples."""
        check_samples(self.features, self.labels, self.classes)

    def outputs(self, queries: Tensor) -> Tensor:
        """Return the sums for queries (Q, d), (Q, K); a vote in doubt counts one half."""
        return self.at(queries).outputs

    def at(self, queries: Tensor) -> KernelValues:
        """Return the model at queries (Q, d).

        Raises:
            UnsoundBoundError: if a value of the kernel is NaN, infinite or out of its own range.
        """
        check_finite(queries, "queries")
        values, reach = self.kernel(queries, self.features), self.kernel.reach(queries)
        _check_range(values, reach)
        return KernelValues(values, reach, F.one_hot(self.labels.long(), self.classes).double())


class KernelValues:
    """The values of a kernel at some queries: an `Evaluation`.

    Args:
        values: bounds on g, (Q, N).
        reach: bounds on g for any sample, (Q,).
        members: which sample is of which class, zeros and ones (N, K).
    """

    def __init__(self, values: Interval, reach: Interval, members: Tensor) -> None:
        self._values, self._members = values, members
        self._largest = torch.maximum(reach.upper, -reach.lower)
        lower, upper = values.lower @ members, values.upper @ members
        self.outputs = (lower + upper) / 2
        self.predicted = self.outputs.argmax(dim=1)
        own = lower.gather(1, self.predicted[:, None])
        self.spare = own - upper - self._slack()[:, None]

    def edits(self, members: Tensor, label: int, rival: int) -> Damage:
        """Return C for each edit: no deletion takes more than an insertion can."""
        each = self._largest[members]
        return Damage(each, each.new_zeros(len(each), 0), torch.zeros_like(each), len(self._members))

    def replacements(self, members: Tensor, label: int, rival: int) -> Damage:
        """Return C for each sample that comes, and ``(y_ic - y_ik) g_i`` for the one that goes."""
        each = self._largest[members]
        removed = torch.zeros(len(members), len(self._members), dtype=torch.float64, device=each.device)
        own, other = (self._members[:, k].nonzero().squeeze(1) for k in (label, rival))
        removed[:, own] = self._values.upper[members[:, None], own]
        removed[:, other] = -self._values.lower[members[:, None], other]
        return Damage(each, removed, torch.zeros_like(each), len(self._members))

    def _slack(self) -> Tensor:
        """Return what rounding can take from the difference of two sums, here and in a run on edited data.

        A margin is at most the sum A of all magnitudes, and each of them at most C. So what is certified is fewer than
        A / C <= N edits, whose summands add up to at most A.
        """
        magnitudes = torch.maximum(self._values.upper.abs(), self._values.lower.abs()).sum(dim=1)
        count = 2 * len(self._members) + 8
        return 4 * _FLOAT64.relative(count) * magnitudes + _FLOAT64.absolute(count)


def _check_range(values: Interval, reach: Interval) -> None:
    """Require values of training samples within the range of any sample.

    Raises:
        UnsoundBoundError: if there are others.
    """
    for bound in (values.lower, values.upper):
        check_finite(bound, "kernel values")
    above, below = values.upper - reach.upper[:, None], reach.lower[:, None] - values.lower
    worst = max((float(excess.max()) for excess in (above, below) if excess.numel()), default=0.0)
    if worst > 0:
        raise UnsoundBoundError(
            f"Expected kernel values within the range that `reach` states for any sample, but one is {worst:.3g} out "
            "of it. State the range of every sample that can be inserted."
        )
