"""The box: an interval for every parameter, moved by interval arithmetic (the paper's abstract gradient training)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from typing_extensions import override

from agt_lightning.adversaries import Adversary, UnboundedAdversary
from agt_lightning.aggregation import (
    DESCENTS,
    Aggregation,
    Clipping,
    NormClipping,
    SumMethod,
    ValueClipping,
    choose,
    require_aggregation,
    unbounded_descent,
)
from agt_lightning.distributed import ProcessGroup
from agt_lightning.domains.base import Domain, OptimizerStep, Step, TrainingSetup
from agt_lightning.errors import BoundsMismatchError, UncertifiableError
from agt_lightning.gradients import FactoredGradient, all_gathered, partitioned
from agt_lightning.interval import Interval, check_finite_and_ordered
from agt_lightning.optimizers import OptimizerState, abstract_optimizer, optimizer_problems
from agt_lightning.optimizers.checked_update import TrainedUpdate, checked_update, foreign_state_problems
from agt_lightning.propagation import Method
from agt_lightning.propagation.passes import Pass, ValueBounds, propagate
from agt_lightning.propagation.samples import stacked


@dataclass(frozen=True)
class BoxStep:
    """What one step's batches say about the gradient, for parameters anywhere in the box.

    Args:
        bounds: interval of the applied gradient, by parameter name.
        values: bounds on values of each micro-batch that other domains read.
    """

    bounds: Mapping[str, Interval]
    values: tuple[ValueBounds, ...]


class BoxDomain(Domain[BoxStep]):
    """Valid parameter-space bounds (Definition 3.1), and intervals for what the optimizer remembers.

    Args:
        module: at its initial parameters.
        memory_budget: bytes for temporary tensors of the aggregation, and for the coefficients of linear bounds.
        dtype: floating point type of the bounds' computation.
        method: how bounds are propagated forward.
        aggregation: how per-sample bounds become bounds of the sum; gradients that are clipped are summed exactly.

    Raises:
        ValueError: if ``aggregation`` is unknown.

    Attributes:
        sum_methods: the way of aggregation that each parameter took in the last step, by name.
    """

    name: ClassVar[str] = "box"

    def __init__(
        self,
        module: nn.Module,
        memory_budget: int,
        dtype: torch.dtype,
        method: Method = "ibp",
        aggregation: Aggregation = "exact",
    ) -> None:
        require_aggregation(aggregation)
        self.method: Method = method
        self.aggregation: Aggregation = aggregation
        self.sum_methods: dict[str, SumMethod] = {}
        self.memory_budget = memory_budget
        self.dtype = dtype
        self.intervals = {n: Interval.point(p.detach().to(dtype, copy=True)) for n, p in module.named_parameters()}
        self.states: dict[str, OptimizerState] = {}
        self._remembered: dict[str, OptimizerState] = {}

    @override
    def problems(self, setup: TrainingSetup) -> list[str]:
        return [
            *optimizer_problems(setup.optimizer),
            *foreign_state_problems(setup.module, setup.optimizer, self.states),
        ]

    @override
    def bound_step(self, step: Step, value_bounds: Sequence[ValueBounds]) -> BoxStep:
        with step.processes.collective_errors():
            passes = self.passes(step, value_bounds)
            own_clean = stacked([part.clean for part in passes])
            own_poisoned = stacked([part.poisoned for part in passes if part.poisoned])
            clipping = self.clipping(step.adversary, own_clean)
        clipping = _of_all_samples(clipping, step.processes)
        clean, poisoned = all_gathered(step.processes, own_clean, own_poisoned)

        with record_function("agt: sums over samples"):
            bounds = self._bounds(step, clean, poisoned, clipping)
        for name, interval in bounds.items():
            check_finite_and_ordered(interval, f"the gradient of `{name}`")
        return BoxStep(bounds, tuple(part.values for part in passes))

    def _bounds(
        self,
        step: Step,
        clean: Mapping[str, FactoredGradient],
        poisoned: Mapping[str, FactoredGradient],
        clipping: Clipping | None,
    ) -> dict[str, Interval]:
        """The descent direction of every parameter, each the way that is chosen for it."""
        self.sum_methods = choose(self.aggregation if clipping is None else "exact", clean, poisoned, step.samples)

        def bound(way: SumMethod, gradient: FactoredGradient, reachable: FactoredGradient | None) -> Interval:
            if clipping is None:
                return DESCENTS[way](gradient, reachable, step.samples, step.adversary.n, self.memory_budget)
            return unbounded_descent(gradient, step.samples, step.adversary.n, clipping, self.memory_budget)

        bounds: dict[str, Interval] = {}
        for way in dict.fromkeys(self.sum_methods.values()):
            names = [name for name, chosen in self.sum_methods.items() if chosen == way]
            before, after = ({name: group[name] for name in names if name in group} for group in (clean, poisoned))
            bounds |= partitioned(step.processes, before, after, partial(bound, way))
        return {name: bounds[name] for name in clean}

    def passes(self, step: Step, value_bounds: Sequence[ValueBounds]) -> list[Pass]:
        """Clean and poisoned pass over each micro-batch, with the parameters anywhere in the box.

        Args:
            step: the step.
            value_bounds: what other domains know of each micro-batch's values; none if empty.
        """
        known = value_bounds or [ValueBounds()] * len(step.parts)
        return [
            propagate(
                part.bounded,
                step.module,
                part.batch,
                self.intervals,
                step.adversary,
                scale=step.scale,
                rows=part.rows,
                dtype=self.dtype,
                nominal=part.nominal,
                known=enclosure,
                method=self.method,
                memory_budget=self.memory_budget,
            )
            for part, enclosure in zip(step.parts, known, strict=True)
        ]

    @staticmethod
    def clipping(adversary: Adversary, gradients: Mapping[str, FactoredGradient]) -> Clipping | None:
        """How each sample's gradient is clipped; None if it is not."""
        if not isinstance(adversary, UnboundedAdversary):
            return None
        if adversary.clip == "value":
            return ValueClipping(adversary.kappa)
        return NormClipping.of(adversary.kappa, list(gradients.values()))

    @override
    def update(self, data: BoxStep, optimizer_step: OptimizerStep) -> None:
        counterpart = abstract_optimizer(optimizer_step.optimizer)
        if counterpart is None:
            raise UncertifiableError(optimizer_problems(optimizer_step.optimizer))
        for name, group, kept in optimizer_step.updates():
            state, remembered = self.states.get(name), self._remembered.get(name)
            box = self.intervals[name]
            if state is None:
                state = remembered = counterpart.initial(group, box)
            after = counterpart.nominal(kept, state.step + 1, self.dtype)
            seen = TrainedUpdate.of(
                optimizer_step.parameters[name], optimizer_step.before[name], remembered, after, self.dtype
            )
            gradient = data.bounds.get(name, Interval.point(torch.zeros_like(box.lower)))
            self.states[name], self.intervals[name] = checked_update(
                name, counterpart, group, state, box, gradient, seen
            )
            self._remembered[name] = after

    def tighten(self, other: Mapping[str, Interval]) -> None:
        """Intersect with the bounds of another domain, which contain the same runs."""
        for name, interval in other.items():
            if not self.intervals[name].is_point:  # which stays one, and is computed with as one
                self.intervals[name] = self.intervals[name].intersect(interval)

    @override
    def box(self) -> dict[str, Interval]:
        return self.intervals

    @override
    def fingerprint_tensors(self) -> Iterator[Tensor]:
        for interval in self.intervals.values():
            yield from (interval.lower, interval.upper)
        for state in self.states.values():
            for moment in state.moments.values():
                yield from (moment.lower, moment.upper)

    @override
    def record(self) -> dict[str, object]:
        return {"aggregation": dict(self.sum_methods)}

    @override
    def state(self) -> dict[str, Any]:
        return {
            "lower": {name: interval.lower for name, interval in self.intervals.items()},
            "upper": {name: interval.upper for name, interval in self.intervals.items()},
            "optimizer": {name: state.plain() for name, state in self.states.items()},
        }

    @override
    def restore(self, state: Mapping[str, Any]) -> None:
        box = {name: Interval.checked(lower, state["upper"][name]) for name, lower in state["lower"].items()}
        states = {name: OptimizerState.from_plain(plain) for name, plain in state["optimizer"].items()}
        self.adopt(box, states)

    def adopt(self, box: Mapping[str, Interval], states: Mapping[str, OptimizerState]) -> None:
        """Take over bounds and optimizer states of an interrupted run.

        Raises:
            BoundsMismatchError: if they are of other names or shapes.
        """
        for name, interval in self.intervals.items():
            shapes = [m.shape for m in states[name].moments.values()] if name in states else []
            if name not in box or any(shape != interval.shape for shape in (box[name].shape, *shapes)):
                got = tuple(box[name].shape) if name in box else "none"
                raise BoundsMismatchError(
                    f"Expected bounds of `{name}` of shape {tuple(interval.shape)} in the checkpoint, but got {got}. "
                    "Resume with the module of the interrupted training."
                )
        device = {name: interval.device for name, interval in self.intervals.items()}
        self.intervals = {name: box[name].to(dtype=self.dtype, device=device[name]) for name in device}
        self.states = {name: s.to(dtype=self.dtype, device=device[name]) for name, s in states.items()}
        self._remembered = {}


def _of_all_samples(clipping: Clipping | None, processes: ProcessGroup) -> Clipping | None:
    """The clipping that knows the norms of the samples of all processes, by rank."""
    if not isinstance(clipping, NormClipping):
        return clipping
    norms = [message["norms"] for message in processes.gather({"norms": clipping.square_norms})]
    return replace(clipping, square_norms=Interval.cat([part for part in norms if isinstance(part, Interval)]))
