"""The ball: one Euclidean radius around the nominal parameters."""

from agt_lightning.domains.ball.domain import BallDomain
from agt_lightning.domains.ball.element import HeadBall, ParameterBall

__all__ = ["BallDomain", "HeadBall", "ParameterBall"]
