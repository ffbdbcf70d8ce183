"""The box domain: an interval for every parameter, moved by interval arithmetic as in the paper (Algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from typing_extensions import override

from agt_lightning.adversaries import Adversary
from agt_lightning.aggregation import Clipping, NormClipping, bounded_descent, edited_descent, unbounded_descent
from agt_lightning.aggregation.mean_clipping import MeanClipping, coarsest_arithmetic
from agt_lightning.aggregation.rounded_sums import StepSums
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.distributed import ProcessGroup
from agt_lightning.domains.base import Domain, OptimizerStep, Step, TrainingSetup, relative_to_center
from agt_lightning.errors import BoundsMismatchError, UncertifiableError, UnsoundBoundError
from agt_lightning.gradients import Buffers, FactoredGradient, all_gathered, partitioned
from agt_lightning.interval import Interval, check_finite_and_ordered
from agt_lightning.memory import fitting_memory_budget
from agt_lightning.optimizers import OptimizerState, abstract_optimizer, optimizer_problems
from agt_lightning.optimizers.checked_update import TrainedUpdate, arithmetic_of, checked_update, foreign_state_problems
from agt_lightning.propagation.config import CertificationConfig
from agt_lightning.propagation.diagnose import diagnose
from agt_lightning.propagation.passes import GradientBounds, ValueBounds, poisonable_at_all, propagate
from agt_lightning.propagation.running_statistics import StatisticsUpdate, followed, with_trained
from agt_lightning.propagation.samples import stacked
from agt_lightning.rules.base import address


@dataclass(frozen=True)
class BoxStep:
    """Bounds on the gradient of one step, with the parameters anywhere in the box.

    Args:
        bounds: interval of the applied gradient, by parameter name.
        values: bounds on layer outputs, one per micro-batch, for other domains.
        clipped_in: the roundings of a mean gradient that is clipped.
        statistics: how the step moves running statistics of batch normalization, in this order.
    """

    bounds: Mapping[str, Interval]
    values: tuple[ValueBounds, ...]
    clipped_in: Arithmetic
    statistics: tuple[StatisticsUpdate, ...] = ()


class BoxDomain(Domain[BoxStep]):
    """A box that is a valid parameter-space bound (Definition 3.1), with intervals for the optimizer's state.

    Args:
        module: at its initial parameters.
        config: how bounds are propagated forward, in which type and memory.

    Attributes:
        intervals: bounds on the parameters, by name.
        states: bounds on the optimizer's state, by parameter name.
        running: bounds on those running statistics that training has moved, by name of the buffer.
    """

    name: ClassVar[str] = "box"
    follows_clipping: ClassVar[bool] = True
    tightens: ClassVar[bool] = True
    covers_batch_statistics: ClassVar[bool] = True
    covers_sources: ClassVar[bool] = True

    def __init__(self, module: nn.Module, config: CertificationConfig) -> None:
        self.config = config
        self.dtype = config.dtype
        starts = {name: Interval.point(p.detach().clone()) for name, p in module.named_parameters()}
        self.intervals = {name: start.to(dtype=self.dtype) for name, start in starts.items()}
        self.states: dict[str, OptimizerState] = {}
        self.running: dict[str, Interval] = {}
        self._buffers_at_start = {
            name: Interval.point(buffer.detach().clone()).to(dtype=self.dtype)
            for name, buffer in module.named_buffers()
            if buffer.is_floating_point()
        }
        self._remembered: dict[str, OptimizerState] = {}
        self._buffers = Buffers()

    @classmethod
    @override
    def build(cls, module: nn.Module, adversary: Adversary, config: CertificationConfig) -> Self:
        return cls(module, config)

    @override
    def problems(self, setup: TrainingSetup) -> list[str]:
        return [
            *optimizer_problems(setup.optimizer),
            *foreign_state_problems(setup.module, setup.optimizer, self.states),
        ]

    @override
    def bound_step(self, step: Step, value_bounds: Sequence[ValueBounds]) -> BoxStep:
        with step.processes.collective_errors():
            sums = self._sums(step)
            self._buffers.reclaim()
            passes = self._passes(step, sums, value_bounds)
            local_clean = stacked([bounds.clean for bounds in passes])
            local_poisoned = stacked([bounds.poisoned for bounds in passes if bounds.poisoned])
            rule = step.adversary.sample_clipping
            clipping = None if rule is None else rule.fitted(list(local_clean.values()))
        clipping = _of_all_samples(clipping, step.processes)
        clean, poisoned = all_gathered(step.processes, local_clean, local_poisoned)

        with record_function("agt: sums over samples"):
            bounds = self._gradient_bounds(step, clean, poisoned, clipping, sums)
        self._require_finite(step, bounds)
        statistics: tuple[StatisticsUpdate, ...] = ()
        if step.processes.size == 1:  # of several, each has statistics that others overwrite
            statistics = tuple(update for each in passes for update in each.statistics)
        arithmetic = coarsest_arithmetic(sums.types, self.dtype)
        return BoxStep(bounds, tuple(each.values for each in passes), arithmetic, statistics)

    def _sums(self, step: Step) -> StepSums:
        """Return the roundings of the run's sums over the samples of this step, in all processes."""
        types = {name: parameter.dtype for name, parameter in step.module.named_parameters()}
        inserted = 0 if step.edits is None else step.edits.n
        factors = max(len(part.bounded.objective.reduced) for part in step.parts) if step.parts else 0
        return StepSums(
            types if self.config.floats == "run" else None,
            self.dtype,
            len(step.samples.weights) + len(step.parts) + step.processes.size + factors + inserted,
        )

    def _require_finite(self, step: Step, bounds: Mapping[str, Interval]) -> None:
        """Raise if a gradient's bound is NaN or infinite, naming the call where that begins."""
        try:
            for name, interval in bounds.items():
                check_finite_and_ordered(interval, f"the gradient of `{name}`")
        except UnsoundBoundError as error:
            origins = step.processes.union(self._origins_of_infinity(step))
            raise UnsoundBoundError(" ".join([str(error), *origins[:1]])) from error

    def _origins_of_infinity(self, step: Step) -> list[str]:
        """Return a sentence that names the first call with a bound that is NaN or infinite; none if it is not found.

        Clean samples are looked at before poisonable ones. Whatever goes wrong here must not hide the error that this
        explains.
        """
        for part in step.parts:
            poisonable_too = poisonable_at_all(part.bounded, step.adversary, part.poisonable)
            for adversary in (None, step.adversary) if poisonable_too else (None,):
                try:
                    first = diagnose(
                        part.bounded,
                        step.module,
                        part.batch.data,
                        self.intervals,
                        adversary=adversary,
                        poisonable=part.poisonable,
                        method=self.config.method,
                        memory_budget=self.config.memory_budget,
                        state=part.batch.state,
                    ).first_infinite
                except Exception:
                    return []
                if first is not None:
                    return [f"It begins at {address(first.call)}."]
        return []

    def _passes(self, step: Step, sums: StepSums, value_bounds: Sequence[ValueBounds]) -> list[GradientBounds]:
        """Bound the gradients of each micro-batch, with the parameters anywhere in the box (equations 6 and 7)."""
        others = value_bounds or [ValueBounds()] * len(step.parts)
        return [
            propagate(part, step.module, self.intervals, step.adversary, self.config, sums, self._buffers, values)
            for part, values in zip(step.parts, others, strict=True)
        ]

    def _gradient_bounds(
        self,
        step: Step,
        clean: Mapping[str, FactoredGradient],
        poisoned: Mapping[str, FactoredGradient],
        clipping: Clipping | None,
        sums: StepSums,
    ) -> dict[str, Interval]:
        """Bound the descent direction of every parameter (Theorem 3.4 or D.1)."""
        budget = fitting_memory_budget(self.config.memory_budget, step.samples.weights.device)
        samples = step.chosen

        def bound(clean: FactoredGradient, poisoned: FactoredGradient | None) -> Interval:
            return bounded_descent(clean, poisoned, samples, step.adversary.n, budget)

        def clipped(name: str, clean: FactoredGradient, poisoned: FactoredGradient | None) -> Interval:
            assert clipping is not None
            if step.edits is not None:
                return edited_descent(clean, step.samples, step.edits, clipping, budget, sums.arithmetic(name))
            return unbounded_descent(clean, samples, step.adversary.n, clipping, budget, sums.arithmetic(name))

        bounds: dict[str, Interval] = {}
        if clipping is None:
            bounds = partitioned(step.processes, clean, poisoned, bound)
        else:
            for name, gradient in clean.items():
                bounds |= partitioned(step.processes, {name: gradient}, {}, partial(clipped, name))
        return {name: sums.clear_of_underflow(name, bounds[name], clean[name], poisoned.get(name)) for name in clean}

    @override
    def found_values(self, data: BoxStep) -> list[ValueBounds]:
        return list(data.values)

    @override
    def gradient_bounds(self, data: BoxStep) -> Mapping[str, Interval]:
        return data.bounds

    @override
    def clip(self, data: BoxStep, clipping: MeanClipping, names: Sequence[str]) -> BoxStep:
        before = {name: data.bounds[name] for name in names if name in data.bounds}
        return replace(data, bounds={**data.bounds, **clipping.bounds(before, data.clipped_in)})

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
            parameter = optimizer_step.parameters[name]
            arithmetic = arithmetic_of(parameter, group, self.dtype)
            trained = TrainedUpdate.of(
                parameter,
                optimizer_step.applied(name),
                optimizer_step.before[name],
                remembered,
                after,
                arithmetic,
                self.config.floats,
            )
            gradient = data.bounds.get(name, Interval.point(torch.zeros_like(box.lower)))
            self.states[name], self.intervals[name] = checked_update(
                name, counterpart, group, state, box, gradient, trained
            )
            self._remembered[name] = after
        buffers = {name: optimizer_step.buffers[name] for update in data.statistics for name in update.by_name}
        types = {name: buffer.dtype for name, buffer in buffers.items()}
        moved = followed({**self._buffers_at_start, **self.running}, data.statistics, types, self.config.floats)
        for name, interval in moved.items():
            self.running[name] = with_trained(name, interval, buffers[name], self.config.floats)

    @override
    def restart_optimizer(self) -> None:
        self.states, self._remembered = {}, {}

    @override
    def tighten(self, other: Mapping[str, Interval]) -> None:
        for name, interval in other.items():
            if not self.intervals[name].is_point:  # a point cannot become tighter, and must stay marked as a point
                self.intervals[name] = self.intervals[name].intersect(interval)

    @override
    def box(self) -> dict[str, Interval]:
        return self.intervals

    @override
    def relative_size(self) -> float:
        """Return the sum of half widths over that of the magnitudes of midpoints, of all parameters that move."""
        moving = [interval for interval in self.intervals.values() if not interval.is_point]
        radii = sum(float((interval.upper - interval.lower).sum()) / 2 for interval in moving)
        sizes = sum(float(interval.center.abs().sum()) for interval in moving)
        return relative_to_center(radii, sizes)

    @override
    def running_statistics(self) -> dict[str, Interval]:
        return self.running

    @override
    def fingerprint_tensors(self) -> Iterator[Tensor]:
        for interval in (*self.intervals.values(), *self.running.values()):
            yield from (interval.lower, interval.upper)
        for state in self.states.values():
            for moment in state.moments.values():
                yield from (moment.lower, moment.upper)

    @override
    def state(self) -> dict[str, Any]:
        return {
            "lower": {name: interval.lower for name, interval in self.intervals.items()},
            "upper": {name: interval.upper for name, interval in self.intervals.items()},
            "optimizer": {name: state.plain() for name, state in self.states.items()},
            "running": {name: {"lower": each.lower, "upper": each.upper} for name, each in self.running.items()},
        }

    @override
    def restore(self, state: Mapping[str, Any]) -> None:
        box = {name: Interval.checked(lower, state["upper"][name]) for name, lower in state["lower"].items()}
        states = {name: OptimizerState.from_plain(plain) for name, plain in state["optimizer"].items()}
        self.adopt(box, states)
        running = {name: Interval.checked(**bounds) for name, bounds in state.get("running", {}).items()}
        devices = {name: interval.device for name, interval in self._buffers_at_start.items()}
        self.running = {name: each.to(dtype=self.dtype, device=devices[name]) for name, each in running.items()}

    def adopt(self, box: Mapping[str, Interval], states: Mapping[str, OptimizerState]) -> None:
        """Take over bounds and optimizer states of an interrupted run.

        Args:
            box: interval of each parameter, by name.
            states: bounds on the optimizer's state, by parameter name.

        Raises:
            BoundsMismatchError: if names are missing or shapes differ.
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
    """Return the clipping with the norms of the samples of all processes, by rank."""
    if not isinstance(clipping, NormClipping):
        return clipping
    norms = [message["norms"] for message in processes.gather({"norms": clipping.square_norms})]
    return replace(clipping, square_norms=Interval.cat([part for part in norms if isinstance(part, Interval)]))
