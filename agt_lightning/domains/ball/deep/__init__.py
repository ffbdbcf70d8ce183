"""Two or more hidden layers of ReLUs, by recursions over norms.

Axis letters: ``b`` samples, ``h`` units of a layer, ``q`` rows of a signal that is sent back, ``m`` pairs of a sample
and a unit. Layers count from 0 to L - 1; what is said of a layer's units stands under its own number.
"""

from agt_lightning.domains.ball.deep.reach import DeepHead, DeepReach
from agt_lightning.domains.ball.deep.step import deep_constants

__all__ = ["DeepHead", "DeepReach", "deep_constants"]
