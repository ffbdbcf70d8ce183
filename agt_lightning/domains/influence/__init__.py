"""Exact influence of labels on a linear head trained with mean squared error: certificates that are attained.

After any number of SGD steps the outputs of such a head are an affine function of the training labels,
``f(x*) = constant + Σ_i a_i(x*) y_i``, with one coefficient per sample that all outputs share. So the worst change of n
labels is a sum of n largest terms. The coefficients come from a replay of the training, backward from the query.

Axis letters: ``Q`` queries (test points), ``N`` samples (distinct training samples), ``b`` positions of a step's batch,
``d`` features, ``D`` inputs of the head (``d``, and 1 for the bias), ``K`` outputs, ``C`` classes.
"""

from agt_lightning.domains.influence.domain import InfluenceDomain
from agt_lightning.domains.influence.recorded_head import HeadInfluence, RecordedHead
from agt_lightning.domains.influence.smoother import SmootherInfluence

__all__ = ["HeadInfluence", "InfluenceDomain", "RecordedHead", "SmootherInfluence"]
