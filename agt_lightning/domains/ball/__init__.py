"""The ball: one Euclidean radius around the nominal parameters."""

from agt_lightning.domains.ball.domain import BallDomain
from agt_lightning.domains.ball.parameter_ball import HeadBall, ParameterBall

__all__ = ["BallDomain", "HeadBall", "ParameterBall"]
