"""Interval arithmetic on tensors: products and softmax, exact wherever that is possible.

Axis letters: ``b`` samples, ``k`` inner dimension, ``o`` outputs.
"""

from agt_lightning.arithmetic.norms import ball_product, dual_norm, euclidean_norm
from agt_lightning.arithmetic.products import multiply, product, split_product, splits
from agt_lightning.arithmetic.softmax import logsumexp_of_others, softmax, softplus, surprisal

__all__ = [
    "ball_product",
    "dual_norm",
    "euclidean_norm",
    "logsumexp_of_others",
    "multiply",
    "product",
    "softmax",
    "softplus",
    "split_product",
    "splits",
    "surprisal",
]
