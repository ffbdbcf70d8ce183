"""One step of a head with one hidden layer, ready for a replay."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from agt_lightning.domains.adjoint.directions import Directions
from agt_lightning.domains.adjoint.one_hidden.geometry import StepGeometry
from agt_lightning.domains.adjoint.one_hidden.roundings import step_roundings
from agt_lightning.domains.adjoint.one_hidden.step_bound import step_back
from agt_lightning.domains.adjoint.step import StepBound, StepRoundings


@dataclass(frozen=True, eq=False)
class OneHiddenStep(StepGeometry):
    """One step of a head with one hidden layer."""

    @override
    def prepare(self) -> None:
        for name in ("sample_arrays", "pair_arrays", "label_arrays", "feature_arrays", "coupling", "curvature_norm"):
            getattr(self, name)

    @override
    def back(self, directions: Directions) -> tuple[StepBound, Directions]:
        return step_back(self, directions)

    @override
    def roundings(self, rate: float, decay: float) -> StepRoundings:
        return step_roundings(self, rate, decay)
