"""One hidden layer of ReLUs."""

from agt_lightning.domains.ball.hidden.reach import HiddenLayer, HiddenReach
from agt_lightning.domains.ball.hidden.step import hidden_constants

__all__ = ["HiddenLayer", "HiddenReach", "hidden_constants"]
