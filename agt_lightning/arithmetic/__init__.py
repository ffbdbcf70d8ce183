"""Interval arithmetic on tensors: products and softmax, exact wherever they can be.

Axis letters: ``b`` samples, ``k`` inner dimension, ``o`` outputs.
"""

from agt_lightning.arithmetic.norms import ball_product, dual_norm
from agt_lightning.arithmetic.products import matmul, multiply
from agt_lightning.arithmetic.softmax import logsumexp_of_others, softmax, softplus, surprisal

__all__ = ["ball_product", "dual_norm", "logsumexp_of_others", "matmul", "multiply", "softmax", "softplus", "surprisal"]
