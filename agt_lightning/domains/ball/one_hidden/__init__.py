"""Heads with one hidden layer of ReLUs, ``f(x) = W₂ ẑ``, ``z = relu(h)``, ``h = W₁ x̂``.

Axis letters: ``b`` samples, ``d`` features, ``h`` hidden units, ``K`` outputs, ``m`` pairs of a sample and a unit, or
poisonable samples.
"""

from agt_lightning.domains.ball.one_hidden.analysis import OneHiddenAnalysis

__all__ = ["OneHiddenAnalysis"]
