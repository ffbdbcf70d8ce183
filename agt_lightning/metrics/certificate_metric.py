"""What the certified metrics share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE


class CertificateMetric(Metric):
    """Base of the metrics of output bounds, which are averages over samples.

    A subclass names its states after itself. `torchmetrics.MetricCollection` takes metrics for one if the names and the
    first values of their states agree, and from then on updates only one of them: shared names would let one metric
    report another's value.
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
