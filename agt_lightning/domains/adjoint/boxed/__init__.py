"""The adjoint recursion with a box of parameters in place of a ball, for few large steps."""

from agt_lightning.domains.adjoint.boxed.trajectory import BoxedTrajectory

__all__ = ["BoxedTrajectory"]
