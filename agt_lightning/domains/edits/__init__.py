"""Predictions that inserted, deleted and replaced training samples cannot change, whatever these samples are.

Features are a fixed map of each sample: a map that was fitted on the training data changes with them, and nothing here
holds. n counts samples of the **whole data set**. An inserted or deleted sample is one edit. A replaced one counts once
as a replacement, and as two edits.

Axis letters: ``Q`` queries (test points), ``q`` some of them, ``N`` training samples, ``d`` features, ``K`` classes.
"""

from agt_lightning.domains.edits.certified_edits import certified_edits, certified_replacements
from agt_lightning.domains.edits.kernel_sums import KernelSums
from agt_lightning.domains.edits.kernels import InnerProduct, RadiusVote, Shifted
from agt_lightning.domains.edits.least_squares import LeastSquaresSteps

__all__ = [
    "InnerProduct",
    "KernelSums",
    "LeastSquaresSteps",
    "RadiusVote",
    "Shifted",
    "certified_edits",
    "certified_replacements",
]
