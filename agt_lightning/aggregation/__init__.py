"""From per-sample gradient bounds to bounds on the descent direction (Theorems 3.4 and D.1).

Axis letters: ``e`` parameter elements, ``b`` samples.
"""

from agt_lightning.aggregation.clipping import Clipping, NormClipping, ValueClipping
from agt_lightning.aggregation.descent import SampleSet, bounded_descent, clipped_mean, unbounded_descent
from agt_lightning.aggregation.moments import moment_descent
from agt_lightning.aggregation.top_n import top_n_sum

__all__ = [
    "Clipping",
    "NormClipping",
    "SampleSet",
    "ValueClipping",
    "bounded_descent",
    "clipped_mean",
    "moment_descent",
    "top_n_sum",
    "unbounded_descent",
]
