"""Exact influence of labels on a linear head trained with mean squared error: certificates that are attained.

After any number of SGD steps the outputs of such a head are an affine function of the training labels,
``f(x*) = constant + Σ_i a_i(x*) y_i``, with one coefficient per sample that all outputs share. So the worst change of n
labels is a sum of n largest terms. The coefficients come from a replay of the training, backward from the query.

Axis letters: ``Q`` queries (test points), ``N`` samples (distinct training samples), ``b`` positions of a step's batch,
``d`` features, ``D`` inputs of the head (``d``, and 1 for the bias), ``K`` outputs, ``C`` classes.
"""

from agt_lightning.domains.influence.bounds import margin_bounds, prediction_bounds
from agt_lightning.domains.influence.codes import ClassCodes
from agt_lightning.domains.influence.curve import certified_accuracy_curve
from agt_lightning.domains.influence.domain import InfluenceDomain
from agt_lightning.domains.influence.flips import FlipAttack, certified_flips, strongest_flips
from agt_lightning.domains.influence.label_sets import LabelBall, LabelFlips, LabelSet
from agt_lightning.domains.influence.linear import Budget, LinearInLabels, Predictions, Round
from agt_lightning.domains.influence.record import HeadRecorder
from agt_lightning.domains.influence.recorded_head import HeadInfluence, RecordedHead
from agt_lightning.domains.influence.replay import LabelInfluence
from agt_lightning.domains.influence.ridge import RidgeInfluence

__all__ = [
    "Budget",
    "ClassCodes",
    "FlipAttack",
    "HeadInfluence",
    "HeadRecorder",
    "InfluenceDomain",
    "LabelBall",
    "LabelFlips",
    "LabelInfluence",
    "LabelSet",
    "LinearInLabels",
    "Predictions",
    "RecordedHead",
    "RidgeInfluence",
    "Round",
    "certified_accuracy_curve",
    "certified_flips",
    "margin_bounds",
    "prediction_bounds",
    "strongest_flips",
]
