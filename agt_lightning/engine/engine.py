"""The engine of abstract gradient training, for any training loop (Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from agt_lightning.adversaries import Adversary
from agt_lightning.adversaries.base import inserts_and_deletes
from agt_lightning.adversaries.several import Adversaries, all_adversaries, describe, described, names_of
from agt_lightning.aggregation.mean_clipping import MeanClipping
from agt_lightning.bounds import ParameterBounds
from agt_lightning.capture.clock import Clock
from agt_lightning.deprecation import warn_of_former
from agt_lightning.digest import tensors_digest, values_digest
from agt_lightning.distributed import SINGLE_PROCESS, ProcessGroup
from agt_lightning.domains import DomainFamily, OptimizerStep, ParameterSet
from agt_lightning.domains.head import HeadBounds
from agt_lightning.engine.bounded_runs import BoundedRuns
from agt_lightning.engine.checkpoint import complete, require_parameters
from agt_lightning.engine.entry_values import blaming_data
from agt_lightning.engine.nominal_step import NominalPass, average_gradients
from agt_lightning.engine.probes import step_problems
from agt_lightning.engine.problems import require_initialized, training_problems
from agt_lightning.engine.self_checks import (
    WriteMarks,
    differs,
    require_constant,
    require_same_gradients,
    require_unhooked,
    require_unmoved,
    require_untouched,
    require_unwritten,
    with_momentum,
)
from agt_lightning.engine.step_bounds import RunsStep, StepBounds, checked_clipping, require_bounded
from agt_lightning.engine.trained_statistics import TrainedStatistics
from agt_lightning.errors import NOT_WHAT_IS_TRAINED, BoundsMismatchError, UncertifiableError
from agt_lightning.interval import Interval, check_finite_and_ordered, require_inside
from agt_lightning.memory import fitting_memory_budget
from agt_lightning.propagation.config import CertificationConfig
from agt_lightning.propagation.evaluated import Moves
from agt_lightning.propagation.loss_capture import LossCapture
from agt_lightning.propagation.objective import BoundedObjective, Loss
from agt_lightning.propagation.recorder import Recorder
from agt_lightning.propagation.recordings import Recordings
from agt_lightning.propagation.samples import MicroBatch
from agt_lightning.rules import RULES

_ALL_TRIED = 16
"""Kinds of steps of which each is tried where an adversary can lead; of more, as in schedules by steps, ever fewer."""


class AbstractGradientEngine:
    """An engine that keeps valid parameter-space bounds (Definition 3.1) beside a training run (Algorithm 1).

    Guarantee: after each `step` every domain in use contains the parameters of every run on the same sequence of
    batches in which, at each step, the adversary changed up to n samples of the batch within its limits: every run as
    hardware executes it with ``floats="run"``, every run in real arithmetic with ``floats="real"``. The bounds' own
    computation in ``config.dtype`` is rounded outward.

    `step` trains and bounds one step. A program that owns its training loop calls instead, at each step and in this
    order: `observe`, its own backward pass in the context `MicroBatch.running`, `bound_gradient` of what `observe`
    returned, `verify`, `clip` if it clips the mean gradient, its clipping and its optimizer step, `update`. It must
    call `problems` first, for every new kind of batch.

    Args:
        module: the module in training. Only `step` moves its parameters; `verify` may write gradients.
        loss: maps a module and a batch to the scalar loss that training minimizes.
        adversary: the threat model, or several, for each of which bounds are kept beside one training. They must have
            the same clipping of each sample's gradient.
        config: how bounds are computed. None means the box alone, by intervals and exact sums.
        clipping: how training clips the mean gradient; None if it does not.
        processes: the group that trains this module together, each process on its own part of every batch, with the
            mean of their gradients. Methods that read batches or move bounds must then be called in every process.
        trained: the loss as training computes it, if ``loss`` is other code with the same gradient; `problems` tries
            whether they agree. It runs on copies of the module.
        start: returns a replica of the module as it was when training began; None means as it is at the first batch.
        **settings: fields of `CertificationConfig`, which replace those of ``config``.

    Raises:
        TypeError: if a setting is unknown, or an adversary is none.
        ValueError: if a setting has an unknown value, or the adversaries are not of one training.

    Attributes:
        config: the settings in use, with ``memory_budget`` fitted to the device.
        runs: the bounded runs of each adversary. `adversary`, `domains`, `box` and `bounds` are those of the first.
        steps: number of certified steps so far.
        statistics: the running statistics that steps have moved, in training itself.
        stated: facts about the training that certificates and checkpoints state beside the settings, by name; numbers,
            strings, lists and dictionaries.
        noted: what else checkpoints keep of the training, by name, which is no setting of its steps; of the same kinds.

    Reference:
        Paper, Algorithm 1 and Theorem 3.3.

    Example:
        >>> from agt_lightning.adversaries import BoundedAdversary
        >>> module = nn.Linear(2, 1)
        >>> loss = lambda module, batch: nn.functional.mse_loss(module(batch[0]), batch[1])
        >>> engine = AbstractGradientEngine(module, loss, BoundedAdversary(n=1, epsilon=0.1))
        >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        >>> batch = (torch.randn(8, 2), torch.randn(8, 1))
        >>> engine.step([batch], optimizer)
        >>> engine.bounds.contains(module), engine.bounds.mean_width() > 0
        (True, True)
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        adversary: Adversaries,
        config: CertificationConfig | None = None,
        *,
        clipping: MeanClipping | None = None,
        processes: ProcessGroup = SINGLE_PROCESS,
        trained: Loss | None = None,
        start: Callable[[], nn.Module] | None = None,
        **settings: Any,
    ) -> None:
        require_initialized(module)
        adversaries = all_adversaries(adversary)
        config = replace(config or CertificationConfig(domains=("box",)), **settings)
        budget = fitting_memory_budget(config.memory_budget, _device(module))
        self.module = module
        self.loss = loss
        self.trained = loss if trained is None else trained
        self.config = replace(config, memory_budget=budget)
        self.clipping = clipping
        self.processes = processes
        self.runs = tuple(
            BoundedRuns(module, each, name, self.config, processes)
            for each, name in zip(adversaries, names_of(adversaries), strict=True)
        )
        self.steps = 0
        self.stated: dict[str, Any] = {}
        self.noted: dict[str, Any] = {}
        rules = RULES if self.config.rules is None else self.config.rules
        whole_samples = self.adversary.sample_clipping is not None
        capture = LossCapture(
            rules,
            named=self.config.roles,
            moves=Moves.of(adversaries),
            whole_samples=whole_samples,
            mixes=True,
            labels_are_fixed=not whole_samples
            and not any(each.perturbs_labels or inserts_and_deletes(each) for each in adversaries),
        )
        self._recordings = Recordings(
            Recorder(module, loss, lambda owner, batch: capture.of(owner, loss, batch), start)
        )
        self._clock = Clock()  # of the last batch
        self._tried = 0  # kinds of batches and times whose step was asked about
        self._nominal = NominalPass(module, self.adversary, self._recorded, self.config, processes)
        self._approved: set[object] = set()  # kinds of batches that can be certified
        self._trained = _copies(module)  # parameters as the optimizer left them
        self.statistics = TrainedStatistics(module)
        self._verified: dict[str, Tensor] = {}  # gradients as they were checked, which the optimizer must apply
        self._marks: WriteMarks | None = None  # of the gradients as they were checked; None if training clips them
        processes.require_same(self._trained.values(), "initial parameters")

    def expect_repeats(self, *, possible: bool) -> None:
        """Say whether a sample could be drawn twice for a step; at first, it is assumed that none is.

        Steps with equal samples are then refused, unless samples have names by ``sample_ids``. Steps with equal names
        are refused in any case.
        """
        self._nominal = replace(self._nominal, drawn_once=not possible)

    # --- one step (Algorithm 1) --------------------------------------------------------------------------------------

    def step(self, batches: Sequence[object], optimizer: torch.optim.Optimizer, epoch: int | None = None) -> None:
        """Train one step and move all domains with it: gradient, optimizer step, abstract step, checks.

        The mean gradient is not clipped.

        Args:
            batches: micro-batches of this step, in this process; their losses are averaged, and so are the gradients of
                all processes.
            optimizer: the module's optimizer.
            epoch: number of the pass over the data set, for domains that follow a sample through all epochs or count
                those of an epoch; a sample is in one step of it at most, and steps of a pass follow each other. None
                makes each step a pass of its own: samples of later steps that the first one did not have are then not
                known apart from changed ones, and `certified_flips` is refused, unless ``sample_ids`` names them.

        Raises:
            CaptureError: if the loss cannot be recorded.
            UncertifiableError: if this step cannot be certified.
            UnsoundBoundError: if a self-check fails, or a bound is NaN or infinite.
        """
        self._approve(batches[0], optimizer)
        optimizer.zero_grad()
        trained = []
        with self.processes.collective_errors():
            for at, batch in enumerate(batches):
                observed = self.observe(batch, Clock(epoch or 0, self.steps, at), epoch)
                trained.append(observed)
                with observed.running(self.module):
                    (self.loss(self.module, batch) / len(batches)).backward()
        average_gradients(self.module, self.processes)
        bounds = self.bound_gradient(trained)
        self.verify(bounds, trained, optimizer=optimizer)
        optimizer.step()
        self.update(bounds, optimizer)

    def bound_gradient(self, batches: Sequence[object], scale: float | None = None) -> StepBounds:
        """Bound the gradient of one optimizer step, before it is applied (Algorithm 1, lines 6, 8 and 9).

        Args:
            batches: the micro-batches of this step, each a batch or a `MicroBatch`, which dropout needs, and domains
                that follow a sample through all epochs; n counts the poisoned samples of all of them together.
            scale: factor in front of each micro-batch's loss; None means 1 / number of micro-batches.

        Raises:
            UncertifiableError: if a domain is lost, or processes share a poisonable sample.
            UnsoundBoundError: if a bound is NaN or infinite, or something besides the optimizer changed a parameter or
                a buffer that the loss reads, or autograd calls hooks.
        """
        micro_batches, scale = _micro_batches(batches, scale)
        with self.processes.collective_errors():
            require_untouched(self.module, self._trained)
            for batch in micro_batches:
                batch.require_unchanged()
                batch.require_drawn(self._recorded(batch))
                self.require_constant(self._recorded(batch))
            require_unhooked(self.module)
            if self.processes.size == 1:  # of several, each has statistics that others overwrite
                recorded = [(self._recorded(each), each) for each in micro_batches]
                self.statistics.follow(recorded, self.start, self.config.dtype)
        with blaming_data(micro_batches):
            step, local = self._nominal.step(micro_batches, scale)
            bounded = []
            for runs in self.runs:
                step = self._nominal.against(step, runs.adversary)
                with runs.named_in_errors():
                    data = runs.domains.bound_step(step)
                bounded.append(RunsStep(runs.domains.gradient_bounds(data), data))
        clipped = self._nominal.clipped_gradient(local)
        return StepBounds(
            runs=tuple(bounded),
            gradient=step.gradient,
            applied=step.gradient if clipped is None else clipped,
            tolerance=self._nominal.tolerances(local, step.samples),
        )

    def descend(self, batches: Sequence[object], scale: float | None = None) -> StepBounds:
        """Call `bound_gradient` by its name of before version 0.2, with a warning."""
        warn_of_former("engine.descend", "`engine.descend` has another name.", stacklevel=3)
        return self.bound_gradient(batches, scale)

    def verify(
        self,
        bounds: StepBounds,
        batches: Sequence[object],
        scale: float | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Check that training's gradient is the certified one; with sample clipping, replace it by the clipped one.

        The module's gradients must equal those of the captured program at the module's parameters, up to rounding, at
        every step: this proves that what is certified is what is trained. The gradient to apply must also lie in its
        bounds. If the adversary needs sample clipping, it is then written into the parameters' ``grad``.

        Args:
            bounds: from `bound_gradient`.
            batches: the micro-batches that `bound_gradient` was given.
            scale: the factor that `bound_gradient` was given.
            optimizer: the module's optimizer, if gradients of parameters that it does not own need no check: they move
                nothing, and pile up if only the optimizer sets gradients to zero. None checks all.

        Raises:
            UnsoundBoundError: naming the parameter, the worst violation and its index.
        """
        moving = _moving_parameters(self.module, optimizer)
        with self.processes.collective_errors():
            doubtful = [
                name
                for name, parameter in moving.items()
                if differs(name, parameter.grad, bounds.gradient.get(name), bounds.tolerance.get(name))
            ]
        for name in self.processes.union(doubtful):
            self._verify_rounded(name, *_micro_batches(batches, scale))
        with self.processes.collective_errors():
            require_bounded(moving, bounds, self.config.floats)
        if self.adversary.sample_clipping is not None:
            for name, gradient in bounds.applied.items():
                parameter = self.module.get_parameter(name)
                parameter.grad = gradient.to(parameter.dtype)
        gradients = {name: parameter.grad for name, parameter in moving.items()}
        self._verified = {name: grad.detach().clone() for name, grad in gradients.items() if grad is not None}
        self._marks = WriteMarks.of(self.module)

    def clip(self, bounds: StepBounds, clipping: MeanClipping, optimizer: torch.optim.Optimizer) -> StepBounds:
        """Return bounds on the mean gradient after clipping; call it after `verify`, before training clips.

        Training must clip the gradients of all parameters of the optimizer together, by torch's own function; `update`
        checks the result to the last bit.

        Args:
            bounds: from `bound_gradient`.
            clipping: how training clips.
            optimizer: the module's optimizer.

        Raises:
            UncertifiableError: if a domain in use does not cover clipping of the mean gradient.
            UnsoundBoundError: if the clipped gradient leaves its bounds.
        """
        if not all(runs.domains.follow_clipping for runs in self.runs):
            raise UncertifiableError(
                [
                    "A domain in use does not cover clipping of the mean gradient. Give `clipping` to the engine, so "
                    "that `problems` names that domain, or use the box alone."
                ]
            )
        names = {id(parameter): name for name, parameter in self.module.named_parameters()}
        owned = [names[id(p)] for group in optimizer.param_groups for p in group["params"] if id(p) in names]
        clipped = [name for name in owned if name in self._verified]
        clipped_steps = []
        for runs, before in zip(self.runs, bounds.runs, strict=True):
            gradients = checked_clipping(before.bounds, clipping, clipped, self._verified, self.config.floats)
            data = runs.domains.clip(before.data, clipping, clipped)
            clipped_steps.append(RunsStep(runs.domains.gradient_bounds(data), data))
        self._verified |= gradients
        self._marks = None
        return replace(bounds, runs=tuple(clipped_steps))

    def update(self, bounds: StepBounds, optimizer: torch.optim.Optimizer) -> None:
        """Move all domains by the optimizer's abstract counterpart (Algorithm 1, line 10), after its own step.

        Settings are read from ``param_groups`` as they are now, so schedules are followed.

        Args:
            bounds: from `bound_gradient`, or from `clip` if training clips the mean gradient.
            optimizer: the module's optimizer, after its step.

        Raises:
            UncertifiableError: if a domain is lost.
            UnsoundBoundError: if training made another step, moved a parameter that the optimizer does not step, or
                left the new box, or the box is NaN or infinite.
        """
        with self.processes.collective_errors():
            moving = _moving_parameters(self.module, optimizer)
            changed = with_momentum(moving, optimizer, self._verified)
            require_same_gradients(moving, self._verified | changed)
            if self._marks is not None:
                require_unwritten(self.module, self._marks, changed)
            after = require_unmoved(self.module, self._trained, optimizer)
            optimizer_step = OptimizerStep(
                dict(self.module.named_parameters()),
                self._trained,
                optimizer,
                self._verified,
                dict(self.module.named_buffers()),
            )
            with record_function("agt: update"):
                for runs, step in zip(self.runs, bounds.runs, strict=True):
                    with runs.named_in_errors():
                        runs.domains.update(step.data, optimizer_step)
        self.processes.require_same(self._fingerprint_tensors(), "bounds")
        self._trained, self._marks = after, None
        self.steps += 1

    # --- before a step -----------------------------------------------------------------------------------------------

    def problems(self, batch: object, optimizer: torch.optim.Optimizer | None) -> list[str]:
        """Return every reason why training on batches like this one cannot be certified, each with its way out.

        Raises:
            CaptureError: if the loss cannot be recorded.
        """
        micro_batch = MicroBatch.of(batch)
        problems = training_problems(self._nominal, self.runs, micro_batch, optimizer, self.clipping)
        self._tried += 1
        if problems or self._tried > _ALL_TRIED and self._tried & (self._tried - 1):
            return problems
        with self.processes.collective_errors():
            local = step_problems(self._nominal, self.adversaries, micro_batch, self.loss, self.trained)
        return self.processes.union(local)

    def observe(self, batch: object, clock: Clock, epoch: int | None = None) -> MicroBatch:
        """Return a batch with its captured loss, as its training step is about to find it; call it before that step.

        Args:
            batch: in this process.
            clock: the time of the step.
            epoch: number of the pass over the data set, for domains that follow a sample through all epochs; None means
                a pass of its own, as for `step`.

        Raises:
            CaptureError: if the loss cannot be recorded.
            UnsoundBoundError: if the loss depends on something that earlier batches may have changed.
        """
        self._clock = clock
        return MicroBatch.observed(batch, self._recordings(batch, clock), epoch)

    def _approve(self, batch: object, optimizer: torch.optim.Optimizer) -> None:
        """Raise all problems of a new kind of batch at once."""
        kind = (self.objective(batch), type(optimizer))
        if not self.processes.any(kind not in self._approved):
            return
        problems = self.problems(batch, optimizer)
        if problems:
            raise UncertifiableError(problems)
        self._approved.add(kind)

    def objective(self, batch: object) -> BoundedObjective:
        """Return the captured loss for batches of this kind, recorded once.

        Raises:
            CaptureError: if it cannot be recorded.
        """
        return self._recordings(batch, self._clock)

    @property
    def start(self) -> nn.Module:
        """A replica of the module as it was when training began: its attributes and buffers are those of then."""
        return self._recordings.start

    def _recorded(self, batch: MicroBatch) -> BoundedObjective:
        return self.objective(batch.data) if batch.recorded is None else batch.recorded

    # --- results -----------------------------------------------------------------------------------------------------

    @property
    def adversaries(self) -> tuple[Adversary, ...]:
        """All threat models."""
        return tuple(runs.adversary for runs in self.runs)

    @property
    def adversary(self) -> Adversary:
        """The threat model; of several, the first one."""
        return self.runs[0].adversary

    @property
    def domains(self) -> DomainFamily:
        """The domains in use for the first adversary."""
        return self.runs[0].domains

    @property
    def box(self) -> dict[str, Interval]:
        """The box of the first adversary; see `BoundedRuns.box`."""
        return self.runs[0].box

    @property
    def bounds(self) -> ParameterBounds:
        """The bounds of the first adversary; see `bounds_of`."""
        return self.bounds_of(self.adversary)

    def runs_of(self, adversary: Adversary | None = None) -> BoundedRuns:
        """Return the runs of one of the adversaries; of the first one for None.

        Raises:
            ValueError: if the bounds are not about this adversary.
        """
        if adversary is None:
            return self.runs[0]
        found = [runs for runs in self.runs if describe(runs.adversary) == describe(adversary)]
        if not found:
            raise ValueError(
                f"Expected an adversary that the training was certified for, {described(self.adversaries)}, but got "
                f"{describe(adversary)}. Bounds for one adversary do not hold for another: ask for one of these, or "
                "train with it."
            )
        return found[0]

    def bounds_of(self, adversary: Adversary | None = None) -> ParameterBounds:
        """Return the box in the parameters' own types, rounded outward, for the weights that the last step left.

        Args:
            adversary: one of those of the training; None means the first.

        Raises:
            UnsoundBoundError: if a bound is NaN or infinite.
            ValueError: if the bounds are not about this adversary.
        """
        runs = self.runs_of(adversary)
        types = {name: parameter.dtype for name, parameter in self.module.named_parameters()}
        rounded_outward = {name: interval.to(dtype=types[name]) for name, interval in runs.box.items()}
        for name, interval in rounded_outward.items():
            check_finite_and_ordered(interval, f"parameter `{name}` in {types[name]}")
        moved = self.statistics.values
        running = {name: each.to(dtype=moved[name].dtype) for name, each in runs.running_statistics.items()}
        for name, interval in running.items():
            check_finite_and_ordered(interval, f"buffer `{name}` in {interval.dtype}")
        digest = values_digest([*self._trained.items(), *((name, moved[name]) for name in sorted(running))])
        return ParameterBounds(rounded_outward, digest, self.config.floats, running)

    @property
    def parameter_sets(self) -> dict[str, ParameterSet]:
        """The sets of the first adversary; see `BoundedRuns.parameter_sets`."""
        return self.runs[0].parameter_sets

    def head_bounds(self, bounded: BoundedObjective) -> dict[str, HeadBounds]:
        """Return the cheap bounds of the first adversary on trained layers; see `BoundedRuns.head_bounds`."""
        return self.runs[0].head_bounds(bounded, self.runs[0].cheap_sets)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, object]:
        """Return all that a checkpoint must keep: tensors, numbers and strings."""
        return {
            "steps": self.steps,
            "floats": self.config.floats,
            "parameters": tensors_digest(self._trained.items()),
            "statistics": self.statistics.state(),
            "domains": self.domains.state(),
            "domains_of_others": [runs.domains.state() for runs in self.runs[1:]],
            "noted": dict(self.noted),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the `state` of an interrupted run; the module must have that run's parameters already.

        Raises:
            BoundsMismatchError: if names or shapes differ, something is missing, the parameters are not those that the
                bounds were computed for, or the bounds are about runs in real arithmetic and this engine is not.
        """
        with self.processes.collective_errors():
            with complete(state):
                floats = state.get("floats", "unknown")
                if floats != self.config.floats == "run":
                    raise BoundsMismatchError(
                        'Expected bounds on runs as hardware executes them (`floats="run"`), but those of the '
                        f'checkpoint have `floats` {floats}. Go on with `floats="real"`, or train from the start.'
                    )
                states = [state["domains"], *state.get("domains_of_others", [])]
                for runs, domains in zip(self.runs, states, strict=True):
                    runs.domains.restore(domains)
                steps, digest = int(state["steps"]), str(state["parameters"])
                statistics = state.get("statistics", {"digest": "", "moved": [], "foreign": []})
                noted = dict(state.get("noted", {}))
            self.statistics.restore(statistics)
            for runs in self.runs:
                outside = self.bounds_of(runs.adversary).violations(self.module)
                if outside:
                    raise BoundsMismatchError(
                        f"Expected the resumed parameters inside their bounds, but {outside} lie outside."
                    )
            require_parameters(self.module, digest)
        self.processes.require_same(self._fingerprint_tensors(), "resumed bounds")
        self._trained = _copies(self.module)
        self.steps, self.noted = steps, noted

    def restart_optimizer(self) -> None:
        """Go on with a new optimizer, whose state is empty in every run.

        Raises:
            UncertifiableError: if a domain does not cover that.
        """
        for runs in self.runs:
            runs.domains.restart_optimizer()

    def _fingerprint_tensors(self) -> Iterator[Tensor]:
        for runs in self.runs:
            yield from runs.domains.fingerprint_tensors()

    # --- self-checks -------------------------------------------------------------------------------------------------

    def require_constant(self, bounded: BoundedObjective, *, but: frozenset[str] = frozenset()) -> None:
        """Raise if a buffer or another tensor that a captured loss reads has changed since training began.

        Args:
            bounded: the captured loss.
            but: names of buffers that may have changed.

        Raises:
            UnsoundBoundError: naming the buffer, or the line that reads the tensor.
        """
        require_constant(bounded.graph, self.module, self.start, but)

    def require_recorded(self) -> None:
        """Raise if the code of the last step no longer does what was recorded; call it when training ends.

        Raises:
            UnsoundBoundError: naming the place in the code.
        """
        with self.processes.collective_errors():
            self._recordings.require_last()

    def require_untouched(self) -> None:
        """Raise if something besides the optimizer changed a parameter since the last step, or running statistics.

        Raises:
            UnsoundBoundError: naming the parameter or buffer.
        """
        require_untouched(self.module, self._trained)
        self.statistics.require_untouched()

    def require_contained(self) -> None:
        """Raise unless the module's parameters lie in the bounds, for the end of a training.

        Only bounds that are at hand are read: those of a set that needs a replay were checked at every step.

        Raises:
            UnsoundBoundError: naming the parameter.
        """
        with self.processes.collective_errors():
            boxes = [runs.domains.cheap_box() for runs in self.runs]
            for name, interval in (named for box in boxes for named in box.items()):
                value = self.module.get_parameter(name).detach()
                # Lightning may have moved the module to another device.
                require_inside(f"parameter {name}", value, interval.to(device=value.device, dtype=value.dtype), 0.0)

    def _verify_rounded(self, name: str, batches: Sequence[MicroBatch], scale: float) -> None:
        """Compare once more, with rounding followed through every call, so that a unit at zero can be on or off.

        Raises:
            UnsoundBoundError: if training's gradient lies outside even then.
        """
        bounds, tolerance = self._nominal.rounded_gradient(name, batches, scale)
        with self.processes.collective_errors():
            gradient = self.module.get_parameter(name).grad
            assert gradient is not None
            allowed = tolerance[name].largest
            require_inside(name, gradient.detach().to(self.config.dtype), bounds, allowed, NOT_WHAT_IS_TRAINED)


def _micro_batches(batches: Sequence[object], scale: float | None) -> tuple[list[MicroBatch], float]:
    return [MicroBatch.of(batch) for batch in batches], 1.0 / len(batches) if scale is None else scale


def _copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def _moving_parameters(module: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, nn.Parameter]:
    """Return the parameters that an optimizer owns, by name; all if there is none."""
    parameters = dict(module.named_parameters())
    if optimizer is None:
        return parameters
    owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: parameter for name, parameter in parameters.items() if id(parameter) in owned}


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
