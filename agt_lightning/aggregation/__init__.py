"""Aggregation of per-sample gradient bounds to bounds on the descent direction (Theorems 3.4 and D.1).

Axis letters: ``e`` parameter elements, ``b`` samples.
"""

from agt_lightning.aggregation.descent import bounded_descent, clipped_mean, unbounded_descent
from agt_lightning.aggregation.edited_descent import BatchEdits, edited_descent
from agt_lightning.aggregation.sample_clipping import (
    Clipping,
    NormClipping,
    SampleClipping,
    SampleNormClipping,
    ValueClipping,
)
from agt_lightning.aggregation.top_n import Choice, top_n_sum
from agt_lightning.aggregation.weighted_sums import SampleSet

__all__ = [
    "BatchEdits",
    "Choice",
    "Clipping",
    "NormClipping",
    "SampleClipping",
    "SampleNormClipping",
    "SampleSet",
    "ValueClipping",
    "bounded_descent",
    "clipped_mean",
    "edited_descent",
    "top_n_sum",
    "unbounded_descent",
]
