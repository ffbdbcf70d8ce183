"""Interval arithmetic on tensors: products and softmax, exact wherever they can be.

Axis letters: ``b`` samples, ``k`` inner dimension, ``o`` outputs.
"""

from agt_lightning.arithmetic.products import matmul, multiply
from agt_lightning.arithmetic.softmax import logsumexp_of_others, softmax, softplus, surprisal

__all__ = ["logsumexp_of_others", "matmul", "multiply", "softmax", "softplus", "surprisal"]
