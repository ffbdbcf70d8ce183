"""The adjoint domain: per-direction bounds on what poison can do to one output, by the adjoint of the training."""

from agt_lightning.domains.adjoint.domain import AdjointDomain, AdjointStep
from agt_lightning.domains.adjoint.recorded_trajectory import RecordedTrajectory

__all__ = ["AdjointDomain", "AdjointStep", "RecordedTrajectory"]
