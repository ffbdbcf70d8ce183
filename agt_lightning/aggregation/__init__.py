"""From per-sample gradient bounds to bounds on the descent direction (Theorems 3.4 and D.1).

Axis letters: ``e`` parameter elements, ``b`` samples.
"""

from agt_lightning.aggregation.descent import bounded_descent, clipped_mean, unbounded_descent
from agt_lightning.aggregation.methods import (
    AGGREGATIONS,
    DESCENTS,
    Aggregation,
    SumMethod,
    choose,
    require_aggregation,
)
from agt_lightning.aggregation.moments import moment_descent
from agt_lightning.aggregation.sample_clipping import (
    Clipping,
    NormClipping,
    SampleClipping,
    SampleNormClipping,
    ValueClipping,
)
from agt_lightning.aggregation.top_n import top_n_sum
from agt_lightning.aggregation.weighted_sums import SampleSet

__all__ = [
    "AGGREGATIONS",
    "DESCENTS",
    "Aggregation",
    "Clipping",
    "NormClipping",
    "SampleClipping",
    "SampleNormClipping",
    "SampleSet",
    "SumMethod",
    "ValueClipping",
    "bounded_descent",
    "choose",
    "clipped_mean",
    "moment_descent",
    "require_aggregation",
    "top_n_sum",
    "unbounded_descent",
]
