"""The base class of the certified metrics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE


class CertificateMetric(Metric):
    """A metric of output bounds that averages over samples, kept as a sum and a number of samples.

    A subclass prefixes the names of its states with its own name. `torchmetrics.MetricCollection` merges metrics whose
    states agree in name and in value after the first batch, and then updates only one of them: with shared names, one
    metric would report the value of another.
    """

    full_state_update = False
    plot_lower_bound: float = 0.0

    def add_sums(self, sum_name: str, total_name: str, zero: Tensor) -> None:
        """Register the two states of the average.

        Args:
            sum_name: name of the sum over samples.
            total_name: name of the number of samples.
            zero: initial value of the sum, of its type.
        """
        self._names = (sum_name, total_name)
        self.add_state(sum_name, default=zero, dist_reduce_fx="sum")
        self.add_state(total_name, default=torch.tensor(0), dist_reduce_fx="sum")

    def accumulate(self, batch_sum: Tensor, batch_total: Tensor) -> None:
        """Add the sum and the number of samples of a batch."""
        for name, value in zip(self._names, (batch_sum, batch_total), strict=True):
            setattr(self, name, getattr(self, name) + value)

    @property
    def sums(self) -> tuple[Tensor, Tensor]:
        """The sum over all samples so far, and their number."""
        total_sum, total = (getattr(self, name) for name in self._names)
        return total_sum, total

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot one or several values of the metric.

        Args:
            val: a result of ``forward`` or ``compute``, or a list of them; by default that of ``compute`` now.
            ax: matplotlib axes to draw in; by default those of a new figure.

        Returns:
            The figure and its axes.

        Raises:
            ModuleNotFoundError: if matplotlib is not installed.
        """
        return self._plot(val, ax)
