"""One abstract training step: from a batch, an adversary and an optimizer to the next box of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from agt_lightning.adversaries import Adversary, UnboundedAdversary
from agt_lightning.aggregation import Aggregation, SampleSet, SumMethod, bounded_descent
from agt_lightning.aggregation.mean_clipping import MeanClipping
from agt_lightning.bounds import ParameterBounds
from agt_lightning.capture import flatten
from agt_lightning.capture.dropout import RandomState
from agt_lightning.distributed import SINGLE_PROCESS, ProcessGroup
from agt_lightning.domains import (
    BallDomain,
    BoundedBatch,
    BoxDomain,
    BoxStep,
    Choice,
    DomainFamily,
    InfluenceDomain,
    OptimizerStep,
    ParameterBall,
    RecordedHead,
    Step,
    TrainingSetup,
)
from agt_lightning.domains.head import HeadBounds
from agt_lightning.engine.checkpoint import complete, parameters_digest, require_parameters
from agt_lightning.engine.duplicates import sample_marks
from agt_lightning.engine.nominal_step import OwnPart, all_samples, average_gradients, tolerances
from agt_lightning.engine.self_checks import require_both, require_constant, require_same_gradients, require_untouched
from agt_lightning.engine.step_bounds import StepBounds, Tolerance, clipped_descent
from agt_lightning.errors import NOT_WHAT_IS_TRAINED, BoundsMismatchError, UncertifiableError
from agt_lightning.gradients import FactoredGradient
from agt_lightning.interval import Interval, check_finite_and_ordered, require_inside
from agt_lightning.memory import fitting_memory_budget
from agt_lightning.optimizers import OptimizerState, optimizer_problems
from agt_lightning.propagation import Method, require_method
from agt_lightning.propagation.objective import BoundedObjective, Loss, rounded
from agt_lightning.propagation.passes import PoisonedPrefix, poisonable_at_all, propagate_nominal
from agt_lightning.propagation.samples import (
    MicroBatch,
    Poisonable,
    SampleIds,
    ids_of_samples,
    poisonable_rows,
    sample_set,
    sample_weights,
    stacked,
)
from agt_lightning.rounding import accumulated_roundoff
from agt_lightning.rules import RULES, RuleTable, Value


class AbstractGradientEngine:
    """Maintains valid parameter-space bounds (Definition 3.1) beside a training run (Algorithm 1).

    Guarantee: after each `step` every domain in use contains the parameters of every run on the same sequence of
    batches in which, at each step, the adversary changed up to n samples of the batch within its limits; in real
    arithmetic, up to the rounding of the bounds' own computation in ``dtype``.

    Args:
        module: the module in training; never changed.
        loss: maps a module and a batch to the scalar loss that training minimizes.
        adversary: the threat model.
        poisonable: which samples can be poisoned: a function from batch to a boolean mask (batch,), or the key of such
            a mask in the batch. None means all.
        sample_ids: names of the samples in all epochs: a function from batch to integers (batch,), or the key of such
            a tensor in the batch. None means they are known by their content. The influence domain alone asks.
        memory_budget: bytes for temporary tensors of the aggregation, and for the coefficients of linear bounds. None
            means a part of what is available: at most 32 MiB on a CPU, 1 GiB on a GPU.
        dtype: floating point type of the bounds' computation.
        rules: bound rules by overload.
        domains: which sets of parameters are kept: ``"box"``, ``"ball"``, ``"influence"``, several, or ``"auto"``
            for all that apply.
        clipping: how training clips the mean gradient; None if it does not.
        method: how the box propagates bounds forward, see `agt_lightning.propagation.Method`.
        aggregation: how the box turns per-sample bounds into bounds of their sum: ``"exact"``; ``"moment"``, wider, by
            matrix products alone; or ``"auto"``, exact while it is cheap.
        processes: all that train this module together, each on its own part of every batch, with the mean of their
            gradients. Every method that looks at batches or moves bounds must then be called in all of them.

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
        adversary: Adversary,
        *,
        poisonable: Poisonable | None = None,
        sample_ids: SampleIds | None = None,
        memory_budget: int | None = None,
        dtype: torch.dtype = torch.float64,
        rules: RuleTable = RULES,
        domains: Choice = ("box",),
        clipping: MeanClipping | None = None,
        method: Method = "ibp",
        aggregation: Aggregation = "exact",
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        require_method(method)
        self.module = module
        self.loss = loss
        self.adversary = adversary
        self.poisonable = poisonable
        self.sample_ids = sample_ids
        self.memory_budget = memory_budget = fitting_memory_budget(memory_budget, _device(module))
        self.dtype = dtype
        self.rules = rules
        self.steps = 0
        self.clipping = clipping
        self.method: Method = method
        self.processes = processes
        self.domains = DomainFamily(
            domains, module, adversary, self.memory_budget, dtype, method, aggregation, processes
        )
        self._objectives: dict[object, BoundedObjective] = {}
        self._trained = {name: p.detach().clone() for name, p in module.named_parameters()}
        self._approved: set[object] = set()
        self._verified: dict[str, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}
        processes.require_same(self._trained.values(), "initial parameters")

    # --- what is known before a step -------------------------------------------------------------------------------

    def problems(self, batch: object, optimizer: torch.optim.Optimizer | None) -> list[str]:
        """Every reason why training on batches like this one cannot be certified, each with its way out.

        Raises:
            CaptureError: if the loss cannot be recorded.
        """
        with self.processes.collective_errors():
            bounded = self.objective(batch)
            own = self._adversary_problems(bounded, batch)
        unbounded, problems = self.processes.union(bounded.problems), self.processes.union(own)
        if unbounded:
            problems += optimizer_problems(optimizer)
        else:
            problems += self.domains.problems(
                TrainingSetup(self.module, bounded, self.adversary, optimizer, self.clipping)
            )
        if not problems and not unbounded:
            try:
                step, _ = self._look([MicroBatch(batch, RandomState.now())], scale=1.0)
                self.domains.bound_step(step)  # what only values can tell
            except UncertifiableError as error:
                problems += error.problems
        return [*unbounded, *problems]

    def _adversary_problems(self, bounded: BoundedObjective, batch: object) -> list[str]:
        roles = bounded.objective
        leaves, _ = flatten(batch)
        movable = [leaf for leaf in roles.features if leaves[roles.graph.leaves[leaf]].is_floating_point()]
        return self.adversary.problems(roles.label_kind, len(roles.labels), len(movable))

    def objective(self, batch: object) -> BoundedObjective:
        """The captured loss for batches of this structure, recorded once."""
        key = self.signature(batch)
        if key not in self._objectives:
            self._objectives[key] = self._capture(batch)
        return self._objectives[key]

    def forget(self) -> None:
        """Drop all captured losses, so that the next batch is recorded again."""
        self._objectives.clear()

    def _capture(self, batch: object) -> BoundedObjective:
        bounded = BoundedObjective.capture(self.module, self.loss, batch, self.rules)
        if not bounded.problems or bounded.size(batch) != 1:
            return bounded
        # A single sample can lose its axis to `.squeeze()`. The code for two samples is the same code.
        return BoundedObjective.capture(self.module, self.loss, _doubled(batch), self.rules)

    def signature(self, batch: object) -> object:
        """What the captured code can depend on: shapes, types, and the modes of the module."""
        leaves, _ = flatten(batch)
        shapes = tuple((tuple(leaf.shape), leaf.dtype) for leaf in leaves)
        modes = tuple(module.training for module in self.module.modules())
        return shapes, modes, tuple(parameter.requires_grad for parameter in self.module.parameters())

    # --- one step --------------------------------------------------------------------------------------------------

    def step(self, batches: Sequence[object], optimizer: torch.optim.Optimizer, epoch: int = 0) -> None:
        """Train one step and move the box with it: gradient, optimizer update, abstract update, checks.

        This is the engine without Lightning. Where another program owns the training loop, call `bound_gradient`,
        `verify` and `update` from the loop's hooks.

        Args:
            batches: micro-batches of this step, in this process; their losses are averaged, and so are processes.
            optimizer: the module's optimizer.
            epoch: number of the pass over the data set; the influence domain alone asks, see `SampleTable`.

        Raises:
            UncertifiableError: if this step cannot be certified.
            UnsoundBoundError: if a self-check fails.
        """
        self._approve(batches[0], optimizer)
        optimizer.zero_grad()
        trained = []
        with self.processes.collective_errors():
            for batch in batches:
                trained.append(MicroBatch(batch, RandomState.now(), epoch))
                (self.loss(self.module, batch) / len(batches)).backward()
        average_gradients(self.module, self.processes)
        descent = self.bound_gradient(trained)
        self.verify(descent, trained)
        optimizer.step()
        self.update(descent, optimizer)

    def _approve(self, batch: object, optimizer: torch.optim.Optimizer) -> None:
        """Raise all problems of a new kind of batch; those that depend on values come up in `bound_gradient`."""
        kind = (self.signature(batch), type(optimizer))
        if not self.processes.any(kind not in self._approved):
            return
        problems = self.problems(batch, optimizer)
        if problems:
            raise UncertifiableError(problems)
        self._approved.add(kind)

    def bound_gradient(self, batches: Sequence[object], scale: float | None = None) -> StepBounds:
        """Bound the gradient of one optimizer step, before it is applied.

        Args:
            batches: the micro-batches of this step, each a batch or, with dropout, a `MicroBatch`; n counts the
                poisoned samples of all of them together.
            scale: factor in front of each micro-batch's loss; None means 1 / number of micro-batches.

        Raises:
            UnsoundBoundError: if a bound is NaN or infinite.
        """
        with self.processes.collective_errors():
            require_untouched(self.module, self._trained)
            require_constant(self.module, self._read_buffers(batches), self._buffers)
        scale = 1.0 / len(batches) if scale is None else scale
        step, own = self._look(batches, scale)
        data = self.domains.bound_step(step)
        box_step = data.pop("box", None)
        bounds = box_step.bounds if isinstance(box_step, BoxStep) else {}
        applied = dict(step.gradient)
        clipping = BoxDomain.clipping(self.adversary, own.gradients)
        if clipping is not None:
            means = {name: own.clipped_mean(name, clipping, self.memory_budget) for name in own.gradients}
            applied = self.processes.sum(means)
        return StepBounds(bounds, step.gradient, applied, self._tolerances(own, step.samples), data)

    def verify(self, descent: StepBounds, batches: Sequence[object], scale: float | None = None) -> None:
        """Check that the gradient about to be applied is the certified one, then write the clipped one if need be.

        The module's gradients must equal those of the captured program at the module's parameters up to rounding, at
        every step: this proves that what is certified is what is trained. They must also lie in the bounds.

        Raises:
            UnsoundBoundError: naming the parameter, the worst violation and its index.
        """
        with self.processes.collective_errors():
            doubtful = [name for name, parameter in self.module.named_parameters() if self._strays(name, descent)]
        for name in self.processes.union(doubtful):
            self._verify_rounded(name, descent, batches, scale)
        with self.processes.collective_errors():
            for name, bounds in descent.bounds.items():
                if self.module.get_parameter(name).grad is not None and not bounds.contains(descent.applied[name]):
                    require_inside(
                        name, descent.applied[name], bounds, descent.tolerance[name].largest, NOT_WHAT_IS_TRAINED
                    )
        if isinstance(self.adversary, UnboundedAdversary):
            for name, parameter in self.module.named_parameters():
                if name in descent.applied:
                    parameter.grad = descent.applied[name].to(parameter.dtype)
        self._verified = {
            name: parameter.grad.detach().clone()
            for name, parameter in self.module.named_parameters()
            if parameter.grad is not None
        }

    def _strays(self, name: str, descent: StepBounds) -> bool:
        """Whether training's gradient differs from that of the captured program by more than rounding of sums.

        Raises:
            UnsoundBoundError: if only one of them has a gradient that is not zero.
        """
        applied, expected = self.module.get_parameter(name).grad, descent.gradient.get(name)
        if applied is None or expected is None:
            require_both(name, applied, expected)
            return False
        error = (applied.detach().to(self.dtype) - expected).abs()
        return not descent.tolerance[name].covers(error, expected)

    def clip(self, descent: StepBounds, clipping: MeanClipping, optimizer: torch.optim.Optimizer) -> StepBounds:
        """Bound what clipping of the mean gradient makes of it; call it after `verify`, before training clips.

        Training must clip the gradients of the optimizer's parameters by torch's own function; `update` checks the
        result to the last bit.

        Raises:
            UncertifiableError: if a domain is in use that was not told of this clipping.
            UnsoundBoundError: if the clipped gradient leaves its bounds.
        """
        if self.domains.others and self.clipping != clipping:
            raise UncertifiableError(["Domains beside the box must know of clipping. Give `clipping` to the engine."])
        names = {id(parameter): name for name, parameter in self.module.named_parameters()}
        held = [names[id(p)] for group in optimizer.param_groups for p in group["params"] if id(p) in names]
        held = [name for name in held if name in self._verified]
        descent, clipped = clipped_descent(descent, clipping, held, self._verified)
        self._verified = self._verified | clipped
        return descent

    def update(self, descent: StepBounds, optimizer: torch.optim.Optimizer) -> None:
        """Move the box by the optimizer's abstract counterpart; call it after the optimizer's own step.

        Settings are read from ``param_groups`` as they are now, so schedules are followed.

        Raises:
            UnsoundBoundError: if training made another step, or left the new box, or the box is NaN or infinite.
        """
        with self.processes.collective_errors():
            require_same_gradients(self.module, self._verified)
            applied = OptimizerStep(dict(self.module.named_parameters()), self._trained, optimizer)
            with record_function("agt: update"):
                self.domains.update({"box": BoxStep(descent.bounds, ()), **descent.data}, applied)
        self.processes.require_same(self.domains.fingerprint_tensors(), "bounds")
        self._trained = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        self.steps += 1

    def require_untouched(self) -> None:
        """Raise if something besides the optimizer changed a parameter since the last step.

        Raises:
            UnsoundBoundError: naming the parameter.
        """
        require_untouched(self.module, self._trained)

    def state(self) -> dict[str, object]:
        """Everything that a checkpoint must keep: tensors, numbers and strings."""
        return {
            "steps": self.steps,
            "parameters": parameters_digest(self.module),
            "domains": self.domains.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the `state` of an interrupted run; the module must have that run's parameters already.

        Raises:
            BoundsMismatchError: if names or shapes differ, something is missing, or the parameters are not those that
                the bounds were computed for.
        """
        with self.processes.collective_errors():
            with complete(state):
                self.domains.restore(state["domains"])
                steps, digest = int(state["steps"]), str(state["parameters"])
            outside = self.bounds.violations(self.module)
            if outside:
                raise BoundsMismatchError(
                    f"Expected the resumed parameters inside their bounds, but {outside} lie outside."
                )
            require_parameters(self.module, digest)
        self.processes.require_same(self.domains.fingerprint_tensors(), "resumed bounds")
        self._trained = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        self.steps = steps

    @property
    def box(self) -> dict[str, Interval]:
        """Bounds on the parameters by name, in ``dtype``: the tightest of all domains.

        Where the influence domain is in use alone, they take a replay of the whole training.
        """
        return self.domains.box()

    @property
    def ball(self) -> ParameterBall | None:
        """The ball, if it is in use."""
        domain = self.domains.in_use.get("ball")
        return domain.ball if isinstance(domain, BallDomain) else None

    @property
    def recorded_head(self) -> RecordedHead | None:
        """The record of a head's training, if the influence domain is in use and a step was made."""
        domain = self.domains.in_use.get("influence")
        return domain.recorded_head if isinstance(domain, InfluenceDomain) else None

    def heads(self, bounded: BoundedObjective) -> dict[str, HeadBounds]:
        """What domains know of the trained layers of a captured loss, by name of the domain.

        The influence domain would replay the whole training, so it is asked only where no other domain is in use.
        """
        found: dict[str, HeadBounds] = {}
        ball = self.domains.in_use.get("ball")
        if isinstance(ball, BallDomain):
            found["ball"] = ball.around(bounded)
        recorded = self.recorded_head
        if recorded is not None and len(self.domains.in_use) == 1:
            influence = recorded.on(bounded.program.graph, bounded.parameters, self.module)
            return found if influence is None else {"influence": influence}
        return found

    @property
    def states(self) -> dict[str, OptimizerState]:
        """Intervals of what the optimizer remembers, by parameter name; the box keeps them."""
        return {} if self.domains.box_domain is None else self.domains.box_domain.states

    @property
    def bounds(self) -> ParameterBounds:
        """The box in the parameters' own types, rounded outward."""
        types = {name: parameter.dtype for name, parameter in self.module.named_parameters()}
        rounded_outward = {name: interval.to(dtype=types[name]) for name, interval in self.box.items()}
        for name, interval in rounded_outward.items():
            check_finite_and_ordered(interval, f"parameter `{name}` in {types[name]}")
        return ParameterBounds(rounded_outward)

    @property
    def sum_methods(self) -> dict[str, SumMethod]:
        """How the gains of each parameter were summed in the last step, by name; the box knows."""
        return {} if self.domains.box_domain is None else self.domains.box_domain.sum_methods

    # --- parts of a step -------------------------------------------------------------------------------------------

    def _read_buffers(self, batches: Sequence[object]) -> set[str]:
        """Names of the buffers that the loss reads."""
        objectives = [self.objective(MicroBatch.of(batch).data) for batch in batches]
        return {name for bounded in objectives for name in bounded.program.graph.buffers.values()}

    def _look(self, batches: Sequence[object], scale: float) -> tuple[Step, OwnPart]:
        """The step at the module's own parameters, and the gradients of this process's samples there."""
        micros = [MicroBatch.of(batch) for batch in batches]
        scale = scale / self.processes.size
        with self.processes.collective_errors():
            with record_function("agt: nominal pass"):
                seen = [self._nominal_pass(micro) for micro in micros]
            parts = [self._part(micro, values) for micro, (values, _) in zip(micros, seen, strict=True)]
            own = self._own_part(parts, [gradients for _, gradients in seen], scale)
            means = {name: own.mean(name, self.memory_budget) for name in own.gradients}
        samples = all_samples(self.processes, own)
        gradient = self.processes.sum(means)
        return Step(self.module, self.adversary, tuple(parts), scale, samples, gradient, self.processes), own

    def _own_part(
        self, parts: Sequence[BoundedBatch], gradients: Sequence[Mapping[str, FactoredGradient]], scale: float
    ) -> OwnPart:
        device = next(self.module.parameters()).device
        weights = [sample_weights(part.bounded, part.batch, scale, self.dtype, device) for part in parts]
        samples = sample_set(weights, [part.rows for part in parts])
        if self.processes.size == 1:  # nobody to share a sample with
            return OwnPart(stacked(gradients), samples)
        marks = [sample_marks(part.bounded, part.batch.data, part.ids) for part in parts]
        return OwnPart(stacked(gradients), samples, torch.cat(marks))

    def _part(self, micro: MicroBatch, values: Mapping[str, Value]) -> BoundedBatch:
        bounded = self.objective(micro.data)
        rows = poisonable_rows(self.poisonable, micro.data, bounded.size(micro.data))
        frozen = None
        asked = any(domain.uses_poisoned_prefix for domain in self.domains.others.values())
        if asked and poisonable_at_all(bounded, self.adversary, rows):
            frozen = PoisonedPrefix(bounded, values, self.adversary, rows)
        ids = ids_of_samples(self.sample_ids, micro.data, bounded.size(micro.data))
        return BoundedBatch(bounded, micro, rows, values, frozen, ids)

    def _nominal_pass(
        self, micro: MicroBatch, dtype: torch.dtype | None = None
    ) -> tuple[dict[str, Value], dict[str, FactoredGradient]]:
        """Values and per-sample gradients at the module's own parameters; with rounding in ``dtype`` followed."""
        bounded = self.objective(micro.data)
        program = bounded if dtype is None else rounded(bounded, dtype)
        return propagate_nominal(program, self.module, micro, self.dtype)

    def _tolerances(self, own: OwnPart, samples: SampleSet) -> dict[str, Tolerance]:
        """How far a float program's sum of these gradients, over samples and processes, can be from the real one."""
        terms = (
            len(samples.weights) + self.processes.size + sum(max(p.shape, default=1) for p in self.module.parameters())
        )
        types = {name: self.module.get_parameter(name).dtype for name in own.gradients}
        return tolerances(self.processes, own, {n: accumulated_roundoff(terms, dtype) for n, dtype in types.items()})

    def _verify_rounded(self, name: str, descent: StepBounds, batches: Sequence[object], scale: float | None) -> None:
        """Compare once more, with rounding followed through every call: a unit at zero can be on or off."""
        parameter = self.module.get_parameter(name)
        scale = 1.0 / len(batches) if scale is None else scale
        micros = [MicroBatch.of(batch) for batch in batches]
        step, own = self._look(micros, scale)
        with self.processes.collective_errors():
            gradients = [self._nominal_pass(micro, parameter.dtype)[1] for micro in micros]
            reached = OwnPart({name: stacked(gradients)[name]}, own.samples, own.marks)
            reachable = bounded_descent(reached.gradients[name], None, own.samples, 0, self.memory_budget)
        tolerance = self._tolerances(reached, step.samples)[name].largest
        sums = self.processes.sum({"lower": reachable.lower, "upper": reachable.upper})
        with self.processes.collective_errors():
            assert parameter.grad is not None
            bounds = Interval.trusted(sums["lower"], sums["upper"])
            require_inside(name, parameter.grad.detach().to(self.dtype), bounds, tolerance, NOT_WHAT_IS_TRAINED)


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _doubled(batch: object) -> object:
    """The batch with its single sample twice."""
    leaves, rebuild = flatten(batch)
    return rebuild([torch.cat([leaf, leaf]) if leaf.ndim and leaf.shape[0] == 1 else leaf for leaf in leaves])
