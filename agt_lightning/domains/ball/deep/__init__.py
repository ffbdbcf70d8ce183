"""Heads with two or more hidden layers of ReLUs, by recursions over norms.

Layers count from 0 to L - 1: ``h_l = W_l ẑ_l``, ``z_{l+1} = relu(h_l)``, ``f = h_{L-1}``, ``B_l = ∂f/∂h_l``. Units have
the number of the layer whose results they are.
Axis letters: ``b`` samples, ``h`` units of a layer, ``q`` rows of what is propagated backward, ``m`` pairs of a sample
and a unit, or poisonable samples.
"""

from agt_lightning.domains.ball.deep.analysis import DeepAnalysis

__all__ = ["DeepAnalysis"]
