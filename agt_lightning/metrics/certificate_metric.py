"""The base class of the certified metrics."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE


class CertificateMetric(Metric):
    """A metric of output bounds that averages over samples.

    A subclass prefixes the names of its states with its own name. `torchmetrics.MetricCollection` merges metrics whose
    states agree in name and in value after the first batch, and then updates only one of them: with shared names, one
    metric would report the value of another.
    """

    full_state_update = False
    plot_lower_bound: float = 0.0

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
