"""What an optimizer remembers of a parameter, as intervals: momentum, moments and the number of steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from agt_lightning.errors import BoundsMismatchError
from agt_lightning.interval import Interval


@dataclass(frozen=True)
class OptimizerState:
    """State intervals of one parameter; they contain the optimizer's state in every poisoned run.

    Args:
        step: number of steps so far.
        moments: intervals of the parameter's shape, by the name that torch gives them in ``optimizer.state``.

    Example:
        >>> OptimizerState(1, {"momentum_buffer": Interval.point(torch.ones(2))}).plain()["step"]
        1
    """

    step: int = 0
    moments: Mapping[str, Interval] = field(default_factory=dict)

    def plain(self) -> dict[str, object]:
        """Numbers and tensors alone, for a checkpoint that loads with ``weights_only=True``."""
        return {
            "step": self.step,
            "lower": {name: interval.lower for name, interval in self.moments.items()},
            "upper": {name: interval.upper for name, interval in self.moments.items()},
        }

    @classmethod
    def from_plain(cls, state: Mapping[str, object]) -> OptimizerState:
        """What `plain` returned, checked.

        Raises:
            BoundsMismatchError: if it is something else.
        """
        step, lower, upper = (state.get(key) for key in ("step", "lower", "upper"))
        if not isinstance(step, int) or not isinstance(lower, Mapping) or not isinstance(upper, Mapping):
            raise BoundsMismatchError(
                f"Expected an optimizer's state with `step`, `lower` and `upper`, but got {sorted(state)}. Resume from "
                "a checkpoint that was written with `CertifiedTraining`."
            )
        return cls(step, {name: Interval.checked(bound, upper[name]) for name, bound in lower.items()})

    def to(self, *, dtype: torch.dtype, device: torch.device) -> OptimizerState:
        """Move or cast, rounding outward."""
        moments = {name: interval.to(dtype=dtype, device=device) for name, interval in self.moments.items()}
        return OptimizerState(self.step, moments)

    def hull(self, other: OptimizerState) -> OptimizerState:
        """Smallest intervals that contain both."""
        moments = {
            name: interval.hull(other.moments[name]) if name in other.moments else interval
            for name, interval in self.moments.items()
        }
        return OptimizerState(self.step, moments)
