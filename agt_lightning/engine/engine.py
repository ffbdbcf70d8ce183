"""The engine of abstract gradient training, for any training loop (Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from agt_lightning.adversaries import Adversary
from agt_lightning.aggregation.mean_clipping import MeanClipping
from agt_lightning.bounds import ParameterBounds
from agt_lightning.capture.dropout import RandomState
from agt_lightning.distributed import SINGLE_PROCESS, ProcessGroup
from agt_lightning.domains import DomainFamily, OptimizerStep, ParameterSet
from agt_lightning.domains.head import HeadBounds
from agt_lightning.engine.checkpoint import complete, parameters_digest, require_parameters
from agt_lightning.engine.nominal_step import NominalPass, average_gradients
from agt_lightning.engine.problems import training_problems
from agt_lightning.engine.self_checks import (
    differs,
    require_constant,
    require_same_gradients,
    require_untouched,
)
from agt_lightning.engine.step_bounds import StepBounds, checked_clipping, require_bounded
from agt_lightning.errors import NOT_WHAT_IS_TRAINED, BoundsMismatchError, UncertifiableError
from agt_lightning.interval import Interval, check_finite_and_ordered, require_inside
from agt_lightning.memory import fitting_memory_budget
from agt_lightning.propagation.config import CertificationConfig
from agt_lightning.propagation.objective import BoundedObjective, Loss, ProgramCache, signature
from agt_lightning.propagation.samples import MicroBatch
from agt_lightning.rules import RULES


class AbstractGradientEngine:
    """An engine that keeps valid parameter-space bounds (Definition 3.1) beside a training run (Algorithm 1).

    Guarantee: after each `step` every domain in use contains the parameters of every run on the same sequence of
    batches in which, at each step, the adversary changed up to n samples of the batch within its limits; in real
    arithmetic, up to the rounding of the bounds' own computation in ``config.dtype``.

    `step` trains and bounds one step. A program that owns its training loop calls instead, at each step and in this
    order: its own backward pass, `bound_gradient`, `verify`, `clip` if it clips the mean gradient, its clipping and its
    optimizer step, `update`. It must call `problems` first, for every new kind of batch.

    Args:
        module: the module in training. Only `step` moves its parameters; `verify` may write gradients.
        loss: maps a module and a batch to the scalar loss that training minimizes.
        adversary: the threat model.
        config: how bounds are computed. None means the box alone, by intervals and exact sums.
        clipping: how training clips the mean gradient; None if it does not.
        processes: the group that trains this module together, each process on its own part of every batch, with the
            mean of their gradients. Methods that read batches or move bounds must then be called in every process.
        **settings: fields of `CertificationConfig`, which replace those of ``config``.

    Raises:
        TypeError: if a setting is unknown.
        ValueError: if a setting has an unknown value.

    Attributes:
        config: the settings in use, with ``memory_budget`` fitted to the device.
        domains: the domains in use; each keeps a set of parameters.
        steps: number of certified steps so far.

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
        config: CertificationConfig | None = None,
        *,
        clipping: MeanClipping | None = None,
        processes: ProcessGroup = SINGLE_PROCESS,
        **settings: Any,
    ) -> None:
        config = replace(config or CertificationConfig(domains=("box",)), **settings)
        budget = fitting_memory_budget(config.memory_budget, _device(module))
        self.module = module
        self.loss = loss
        self.adversary = adversary
        self.config = replace(config, memory_budget=budget)
        self.clipping = clipping
        self.processes = processes
        self.domains = DomainFamily(module, adversary, self.config, processes)
        self.steps = 0
        rules = RULES if self.config.rules is None else self.config.rules
        capture = partial(BoundedObjective.of, module, loss, table=rules, named=self.config.roles)
        self._objectives = ProgramCache(capture, partial(signature, module))
        self._nominal = NominalPass(module, adversary, self._objectives, self.config, processes)
        self._approved: set[object] = set()  # kinds of batches that can be certified
        self._trained = _copies(module)  # parameters as the optimizer left them
        self._verified: dict[str, Tensor] = {}  # gradients as they were checked, which the optimizer must apply
        self._buffers: dict[str, Tensor] = {}  # first values of the buffers that the loss reads
        processes.require_same(self._trained.values(), "initial parameters")

    # --- one step (Algorithm 1) --------------------------------------------------------------------------------------

    def step(self, batches: Sequence[object], optimizer: torch.optim.Optimizer, epoch: int = 0) -> None:
        """Train one step and move all domains with it: gradient, optimizer step, abstract step, checks.

        The mean gradient is not clipped.

        Args:
            batches: micro-batches of this step, in this process; their losses are averaged, and so are the gradients of
                all processes.
            optimizer: the module's optimizer.
            epoch: number of the pass over the data set, for domains that follow a sample through all epochs.

        Raises:
            CaptureError: if the loss cannot be recorded.
            UncertifiableError: if this step cannot be certified.
            UnsoundBoundError: if a self-check fails, or a bound is NaN or infinite.
        """
        self._approve(batches[0], optimizer)
        optimizer.zero_grad()
        trained = []
        with self.processes.collective_errors():
            for batch in batches:
                trained.append(MicroBatch(batch, RandomState.now(), epoch))
                (self.loss(self.module, batch) / len(batches)).backward()
        average_gradients(self.module, self.processes)
        bounds = self.bound_gradient(trained)
        self.verify(bounds, trained)
        optimizer.step()
        self.update(bounds, optimizer)

    def bound_gradient(self, batches: Sequence[object], scale: float | None = None) -> StepBounds:
        """Bound the gradient of one optimizer step, before it is applied (Algorithm 1, lines 6, 8 and 9).

        Args:
            batches: the micro-batches of this step, each a batch or, with dropout, a `MicroBatch`; n counts the
                poisoned samples of all of them together.
            scale: factor in front of each micro-batch's loss; None means 1 / number of micro-batches.

        Raises:
            UncertifiableError: if a domain is lost, or processes share a poisonable sample.
            UnsoundBoundError: if a bound is NaN or infinite, or something besides the optimizer changed a parameter or
                a buffer that the loss reads.
        """
        micro_batches, scale = _micro_batches(batches, scale)
        with self.processes.collective_errors():
            self.require_untouched()
            require_constant(self.module, self._read_buffers(micro_batches), self._buffers)
        step, local = self._nominal.step(
            micro_batches, scale, need_poisoned_prefixes=self.domains.use_poisoned_prefixes
        )
        data = self.domains.bound_step(step)
        clipped = self._nominal.clipped_gradient(local)
        return StepBounds(
            bounds=self.domains.gradient_bounds(data),
            gradient=step.gradient,
            applied=step.gradient if clipped is None else clipped,
            tolerance=self._nominal.tolerances(local, step.samples),
            data=data,
        )

    descend = bound_gradient
    """The name of `bound_gradient` before version 0.2."""

    def verify(self, bounds: StepBounds, batches: Sequence[object], scale: float | None = None) -> None:
        """Check that training's gradient is the certified one; with sample clipping, replace it by the clipped one.

        The module's gradients must equal those of the captured program at the module's parameters, up to rounding, at
        every step: this proves that what is certified is what is trained. The gradient to apply must also lie in its
        bounds. If the adversary needs sample clipping, it is then written into the parameters' ``grad``.

        Args:
            bounds: from `bound_gradient`.
            batches: the micro-batches that `bound_gradient` was given.
            scale: the factor that `bound_gradient` was given.

        Raises:
            UnsoundBoundError: naming the parameter, the worst violation and its index.
        """
        with self.processes.collective_errors():
            doubtful = [
                name
                for name, parameter in self.module.named_parameters()
                if differs(name, parameter.grad, bounds.gradient.get(name), bounds.tolerance.get(name))
            ]
        for name in self.processes.union(doubtful):
            self._verify_rounded(name, *_micro_batches(batches, scale))
        with self.processes.collective_errors():
            require_bounded(self.module, bounds)
        if self.adversary.sample_clipping is not None:
            for name, gradient in bounds.applied.items():
                parameter = self.module.get_parameter(name)
                parameter.grad = gradient.to(parameter.dtype)
        gradients = {name: parameter.grad for name, parameter in self.module.named_parameters()}
        self._verified = {name: grad.detach().clone() for name, grad in gradients.items() if grad is not None}

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
        if not self.domains.follow_clipping:
            raise UncertifiableError(
                [
                    "A domain in use does not cover clipping of the mean gradient. Give `clipping` to the engine, so "
                    "that `problems` names that domain, or use the box alone."
                ]
            )
        names = {id(parameter): name for name, parameter in self.module.named_parameters()}
        owned = [names[id(p)] for group in optimizer.param_groups for p in group["params"] if id(p) in names]
        clipped = [name for name in owned if name in self._verified]
        self._verified |= checked_clipping(bounds.bounds, clipping, clipped, self._verified)
        data = self.domains.clip(bounds.data, clipping, clipped)
        return replace(bounds, bounds=self.domains.gradient_bounds(data), data=data)

    def update(self, bounds: StepBounds, optimizer: torch.optim.Optimizer) -> None:
        """Move all domains by the optimizer's abstract counterpart (Algorithm 1, line 10), after its own step.

        Settings are read from ``param_groups`` as they are now, so schedules are followed.

        Args:
            bounds: from `bound_gradient`, or from `clip` if training clips the mean gradient.
            optimizer: the module's optimizer, after its step.

        Raises:
            UncertifiableError: if a domain is lost.
            UnsoundBoundError: if training made another step, or left the new box, or the box is NaN or infinite.
        """
        with self.processes.collective_errors():
            require_same_gradients(self.module, self._verified)
            optimizer_step = OptimizerStep(dict(self.module.named_parameters()), self._trained, optimizer)
            with record_function("agt: update"):
                self.domains.update(bounds.data, optimizer_step)
        self.processes.require_same(self.domains.fingerprint_tensors(), "bounds")
        self._trained = _copies(self.module)
        self.steps += 1

    # --- before a step -----------------------------------------------------------------------------------------------

    def problems(self, batch: object, optimizer: torch.optim.Optimizer | None) -> list[str]:
        """Return every reason why training on batches like this one cannot be certified, each with its way out.

        Raises:
            CaptureError: if the loss cannot be recorded.
        """
        return training_problems(self._nominal, self.domains, batch, optimizer, self.clipping)

    def _approve(self, batch: object, optimizer: torch.optim.Optimizer) -> None:
        """Raise all problems of a new kind of batch at once."""
        kind = (self.signature(batch), type(optimizer))
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
        return self._objectives(batch)

    def signature(self, batch: object) -> object:
        """Return all that the captured code can depend on: shapes, types, modes of the module, trained parameters."""
        return signature(self.module, batch)

    def forget(self) -> None:
        """Drop all captured losses, so that the next batch is recorded again."""
        self._objectives.forget()

    # --- results -----------------------------------------------------------------------------------------------------

    @property
    def box(self) -> dict[str, Interval]:
        """The tightest bounds of all domains on the parameters, by name, in the type of the computation.

        If no domain in use keeps a box at every step, they can take a replay of the whole training.
        """
        return self.domains.box()

    @property
    def bounds(self) -> ParameterBounds:
        """The box in the parameters' own types, rounded outward.

        Raises:
            UnsoundBoundError: if a bound is NaN or infinite.
        """
        types = {name: parameter.dtype for name, parameter in self.module.named_parameters()}
        rounded_outward = {name: interval.to(dtype=types[name]) for name, interval in self.box.items()}
        for name, interval in rounded_outward.items():
            check_finite_and_ordered(interval, f"parameter `{name}` in {types[name]}")
        return ParameterBounds(rounded_outward)

    @property
    def parameter_sets(self) -> dict[str, ParameterSet]:
        """Sets of parameters that certificates can use beside the box, by name of their domain."""
        return self.domains.parameter_sets()

    def head_bounds(self, bounded: BoundedObjective) -> dict[str, HeadBounds]:
        """Return bounds on the trained layers of a captured loss, by name of the domain.

        A costly set is left out unless its domain alone is in use.
        """
        dtype, alone = self.config.dtype, len(self.domains.in_use) == 1
        bounds = {
            name: parameters.head_bounds(bounded.program.graph, bounded.parameters, self.module, dtype)
            for name, parameters in self.parameter_sets.items()
            if alone or not parameters.costly
        }
        return {name: head for name, head in bounds.items() if head is not None}

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, object]:
        """Return all that a checkpoint must keep: tensors, numbers and strings."""
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
        self._trained = _copies(self.module)
        self.steps = steps

    # --- self-checks -------------------------------------------------------------------------------------------------

    def require_untouched(self) -> None:
        """Raise if something besides the optimizer changed a parameter since the last step.

        Raises:
            UnsoundBoundError: naming the parameter.
        """
        require_untouched(self.module, self._trained)

    def _read_buffers(self, batches: Sequence[MicroBatch]) -> set[str]:
        """Return the names of the buffers that the loss reads."""
        objectives = [self.objective(batch.data) for batch in batches]
        return {name for bounded in objectives for name in bounded.program.graph.buffers.values()}

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


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
