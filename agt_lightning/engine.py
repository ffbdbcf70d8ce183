"""One abstract training step: from a batch, an adversary and an optimizer to the next box of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from agt_lightning.adversaries import Adversary, UnboundedAdversary
from agt_lightning.aggregation import (
    Clipping,
    NormClipping,
    SampleSet,
    ValueClipping,
    bounded_descent,
    clipped_mean,
    unbounded_descent,
)
from agt_lightning.bounds import ParameterBounds
from agt_lightning.capture import flatten, reached
from agt_lightning.errors import BoundsMismatchError, UncertifiableError, UnsoundBoundError
from agt_lightning.gradients import FactoredGradient, stack
from agt_lightning.interval import Interval, check_finite_and_ordered
from agt_lightning.objective import BoundedObjective, Loss, select
from agt_lightning.optimizers import AbstractOptimizer, abstract_optimizer
from agt_lightning.rounding import accumulated_roundoff, unit_roundoff
from agt_lightning.rules import RULES, RuleTable
from agt_lightning.rules.rounded import Rounded

Poisonable = Callable[[object], Tensor] | str

DEFAULT_MEMORY_BUDGET = 32 * 2**20
"""Bytes for temporary tensors of the aggregation: larger blocks leave the caches and are no faster."""

_UPDATE_ROUNDINGS = 8
"""Roundings of one optimizer update of one parameter: decay, scaling by the rate, two sums, with room to spare."""


@dataclass(frozen=True)
class Descent:
    """What one step's batches say about the gradient that the optimizer is about to apply.

    Args:
        bounds: interval of the applied gradient for every parameter in the box and every move of the adversary.
        gradient: gradient of the loss at the module's own parameters on the data as it is.
        applied: what the optimizer must get: ``gradient``, or for an unbounded adversary the clipped mean.
        tolerance: by parameter, how far a float program can stray from ``gradient`` by rounding.
    """

    bounds: Mapping[str, Interval]
    gradient: Mapping[str, Tensor]
    applied: Mapping[str, Tensor]
    tolerance: Mapping[str, float]


class AbstractGradientEngine:
    """Maintains valid parameter-space bounds (Definition 3.1) beside a training run (Algorithm 1).

    Guarantee: after each `step` the box contains the parameters of every run on the same sequence of batches in which,
    at each step, the adversary changed up to n samples of the batch within its limits; in real arithmetic, up to the
    rounding of the bounds' own computation in ``dtype``.

    Args:
        module: the module in training; never changed.
        loss: maps a module and a batch to the scalar loss that training minimizes.
        adversary: the threat model.
        poisonable: which samples can be poisoned: a function from batch to a boolean mask (batch,), or the key of such
            a mask in the batch. None means all.
        memory_budget: bytes for temporary tensors of the aggregation.
        dtype: floating point type of the bounds' computation.
        rules: bound rules by overload.

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
        memory_budget: int = DEFAULT_MEMORY_BUDGET,
        dtype: torch.dtype = torch.float64,
        rules: RuleTable = RULES,
    ) -> None:
        self.module = module
        self.loss = loss
        self.adversary = adversary
        self.poisonable = poisonable
        self.memory_budget = memory_budget
        self.dtype = dtype
        self.rules = rules
        self.steps = 0
        self.box = {name: Interval.point(p.detach().to(dtype, copy=True)) for name, p in module.named_parameters()}
        self._objectives: dict[object, BoundedObjective] = {}
        self._trained = {name: p.detach().clone() for name, p in module.named_parameters()}

    # --- what is known before a step -------------------------------------------------------------------------------

    def problems(self, batch: object, optimizer: torch.optim.Optimizer | None) -> list[str]:
        """Every reason why training on batches like this one cannot be certified, each with its way out.

        Raises:
            CaptureError: if the loss cannot be recorded.
        """
        bounded = self.objective(batch)
        roles = bounded.objective
        problems = [*bounded.problems]
        leaves, _ = flatten(batch)
        movable = [leaf for leaf in roles.features if leaves[roles.graph.leaves[leaf]].is_floating_point()]
        problems += self.adversary.problems(roles.label_kind, len(roles.labels), len(movable))
        return problems + _optimizer_problems(optimizer)

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

    def step(self, batches: Sequence[object], optimizer: torch.optim.Optimizer) -> None:
        """Train one step and move the box with it: gradient, optimizer update, abstract update, checks.

        This is the engine without Lightning. Doors that do not own the training loop call `descend`, `verify` and
        `update` from the loop's hooks.

        Args:
            batches: micro-batches of this step; their losses are averaged.
            optimizer: the module's optimizer.

        Raises:
            UncertifiableError: if this step cannot be certified.
            UnsoundBoundError: if a self-check fails.
        """
        problems = self.problems(batches[0], optimizer)
        if problems:
            raise UncertifiableError(problems)
        descent = self.descend(batches)
        optimizer.zero_grad()
        for batch in batches:
            (self.loss(self.module, batch) / len(batches)).backward()
        self.verify(descent, batches)
        optimizer.step()
        self.update(descent, optimizer)

    def descend(self, batches: Sequence[object], scale: float | None = None) -> Descent:
        """Bound the gradient of one optimizer step, before it is applied.

        Args:
            batches: the micro-batches of this step; n counts the poisoned samples of all of them together.
            scale: factor in front of each micro-batch's loss; None means 1 / number of micro-batches.

        Raises:
            UnsoundBoundError: if a bound is NaN or infinite.
        """
        self._require_untouched()
        scale = 1.0 / len(batches) if scale is None else scale
        passes = [self._propagate(batch, scale) for batch in batches]
        samples = _sample_set(passes)
        clean = _stacked([part.clean for part in passes])
        poisoned = _stacked([part.poisoned for part in passes])
        nominal = _stacked([self._nominal_pass(batch) for batch in batches])
        clipping, nominal_clipping = self._clipping(clean), self._clipping(nominal)
        gradient, applied, bounds = {}, {}, {}
        for name in clean:
            gradient[name] = self._mean(nominal[name], samples)
            applied[name] = gradient[name]
            if clipping is None or nominal_clipping is None:
                bounds[name] = bounded_descent(
                    clean[name], poisoned.get(name), samples, self.adversary.n, self.memory_budget
                )
            else:
                applied[name] = clipped_mean(nominal[name], samples.weights, nominal_clipping, self.memory_budget)
                bounds[name] = unbounded_descent(clean[name], samples, self.adversary.n, clipping, self.memory_budget)
        tolerance = {name: self._tolerance(name, nominal[name], samples) for name in clean}
        return Descent(bounds, gradient, applied, tolerance)

    def verify(self, descent: Descent, batches: Sequence[object], scale: float | None = None) -> None:
        """Check that the gradient about to be applied is the certified one, then write the clipped one if need be.

        The module's gradients must equal those of the captured program at the module's parameters up to rounding, at
        every step: this proves that what is certified is what is trained. They must also lie in the bounds.

        Raises:
            UnsoundBoundError: naming the parameter, the worst violation and its index.
        """
        for name, parameter in self.module.named_parameters():
            applied = parameter.grad
            expected = descent.gradient.get(name)
            if applied is None and expected is None:
                continue
            if applied is None or expected is None:
                self._verify_absent(name, applied, expected)
                continue
            error = (applied.detach().to(self.dtype) - expected).abs()
            if not bool((error <= descent.tolerance[name]).all()):
                self._verify_rounded(name, applied.detach(), descent, batches, scale)
            _require_inside(name, descent.applied[name], descent.bounds[name], descent.tolerance[name])
        if isinstance(self.adversary, UnboundedAdversary):
            for name, parameter in self.module.named_parameters():
                if name in descent.applied:
                    parameter.grad = descent.applied[name].to(parameter.dtype)

    def update(self, descent: Descent, optimizer: torch.optim.Optimizer) -> None:
        """Move the box by the optimizer's abstract counterpart; call it after the optimizer's own step.

        Learning rate and decay are read from ``param_groups`` as they are now.

        Raises:
            UnsoundBoundError: if the new parameters left the new box, or the box is NaN or infinite.
        """
        counterpart = abstract_optimizer(optimizer)
        if counterpart is None:
            raise UncertifiableError([f"`{type(optimizer).__name__}` has no bounds. Use `torch.optim.SGD`."])
        names = {id(parameter): name for name, parameter in self.module.named_parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update_parameter(names[id(parameter)], parameter, descent, group, counterpart)
        self._trained = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        self.steps += 1

    def restore(self, box: Mapping[str, Interval], steps: int) -> None:
        """Go on from the box of an interrupted run; the module must have that run's parameters already.

        Raises:
            BoundsMismatchError: if names or shapes differ, or the parameters lie outside the box.
        """
        bounds = ParameterBounds(box)
        outside = bounds.violations(self.module)
        if outside:
            raise BoundsMismatchError(
                f"Expected the resumed parameters inside their bounds, but {outside} lie outside."
            )
        device = {name: parameter.device for name, parameter in self.module.named_parameters()}
        self.box = {name: bounds[name].to(dtype=self.dtype, device=device[name]) for name in device}
        self._trained = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        self.steps = steps

    @property
    def bounds(self) -> ParameterBounds:
        """The box in the parameters' own types, rounded outward."""
        types = {name: parameter.dtype for name, parameter in self.module.named_parameters()}
        return ParameterBounds({name: interval.to(dtype=types[name]) for name, interval in self.box.items()})

    # --- the passes ------------------------------------------------------------------------------------------------

    def _propagate(self, batch: object, scale: float) -> _Pass:
        """Clean pass over the box (equation 6), then the poisoned one (equation 7) over the poisonable samples."""
        bounded = self.objective(batch)
        inputs = bounded.inputs(self.module, batch, self.box, self.dtype)
        values = bounded.forward(inputs)
        size = bounded.size(batch)
        clean = bounded.gradients(values, size, self.dtype)
        weight = scale * bounded.sample_weight(size)
        device = next(iter(self.box.values())).device
        weights = torch.full((size,), weight, dtype=self.dtype, device=device)
        rows = self._poisonable_rows(batch, size)
        perturbed = bounded.perturbed_leaves(self.adversary)
        if self.adversary.n == 0 or not perturbed or (rows is not None and len(rows) == 0):
            return _Pass(clean, {}, weights, rows)
        poisoned_inputs = bounded.poisoned(values, self.adversary, rows)
        touched = reached(bounded.program.graph, perturbed)
        known = {
            name: select(value, rows) if name in bounded.program.samples else value
            for name, value in values.items()
            if name not in touched and name not in poisoned_inputs
        }
        poisoned = bounded.gradients(bounded.forward(poisoned_inputs, known), size, self.dtype)
        return _Pass(clean, poisoned, weights, rows)

    def _nominal_pass(
        self, batch: object, rules: Callable[[BoundedObjective], BoundedObjective] | None = None
    ) -> dict[str, FactoredGradient]:
        """Per-sample gradients at the module's own parameters, on the data as it is."""
        bounded = self.objective(batch) if rules is None else rules(self.objective(batch))
        points = {name: Interval.point(p.detach().to(self.dtype)) for name, p in self.module.named_parameters()}
        values = bounded.forward(bounded.inputs(self.module, batch, points, self.dtype))
        return bounded.gradients(values, bounded.size(batch), self.dtype)

    def _poisonable_rows(self, batch: object, size: int) -> Tensor | None:
        if self.poisonable is None:
            return None
        if isinstance(self.poisonable, str):
            if not isinstance(batch, Mapping) or self.poisonable not in batch:
                raise KeyError(
                    f"Expected a batch with the key {self.poisonable!r} of `poisonable`, but got {type(batch)}."
                )
            mask = batch[self.poisonable]
        else:
            mask = self.poisonable(batch)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != (size,):
            got = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(type(mask))
            raise ValueError(f"Expected `poisonable` to give a boolean mask of shape ({size},), but got {got}.")
        return mask.nonzero().squeeze(1)

    def _clipping(self, gradients: Mapping[str, FactoredGradient]) -> Clipping | None:
        if not isinstance(self.adversary, UnboundedAdversary):
            return None
        if self.adversary.clip == "value":
            return ValueClipping(self.adversary.kappa)
        return NormClipping.of(self.adversary.kappa, list(gradients.values()))

    def _mean(self, gradient: FactoredGradient, samples: SampleSet) -> Tensor:
        return bounded_descent(gradient, None, samples, 0, self.memory_budget).lower

    def _require_untouched(self) -> None:
        """Between two steps nothing may change parameters: the box would not have moved with them."""
        for name, parameter in self.module.named_parameters():
            if not torch.equal(parameter.detach(), self._trained[name].to(parameter.device)):
                raise UnsoundBoundError(
                    f"Expected `{name}` as the optimizer left it, but something else changed it (weight clipping, "
                    "averaging, loading or re-initialization in a hook). The bounds do not cover that. Remove it."
                )

    # --- the checks ------------------------------------------------------------------------------------------------

    def _tolerance(self, name: str, gradient: FactoredGradient, samples: SampleSet) -> float:
        """How far a float program's sum of these gradients can be from the real one."""
        terms = gradient.samples + sum(max(interval.shape, default=1) for interval in self.box.values())
        dtype = self.module.get_parameter(name).dtype
        return accumulated_roundoff(terms, dtype) * gradient.scale(samples.weights)

    def _verify_absent(self, name: str, applied: Tensor | None, expected: Tensor | None) -> None:
        """A gradient on one side only is harmless if it is zero."""
        gradient = applied if applied is not None else expected
        if gradient is not None and not bool((gradient == 0).all()):
            raise UnsoundBoundError(
                f"Expected the captured training step and the training itself to use the same parameters, but `{name}` "
                f"has a gradient only in {'training' if applied is not None else 'the captured step'}. "
                + _NOT_WHAT_IS_TRAINED
            )

    def _verify_rounded(
        self, name: str, applied: Tensor, descent: Descent, batches: Sequence[object], scale: float | None
    ) -> None:
        """Compare once more, with rounding followed through every call: a unit at zero can be on or off."""
        dtype = self.module.get_parameter(name).dtype

        def rounded(bounded: BoundedObjective) -> BoundedObjective:
            rules = {call: Rounded(rule, dtype) for call, rule in bounded.program.rules.items()}
            return replace(bounded, program=replace(bounded.program, rules=rules))

        scale = 1.0 / len(batches) if scale is None else scale
        samples = _sample_set([self._propagate(batch, scale) for batch in batches])
        gradient = _stacked([self._nominal_pass(batch, rounded) for batch in batches])[name]
        reachable = bounded_descent(gradient, None, samples, 0, self.memory_budget)
        _require_inside(name, applied.to(self.dtype), reachable, self._tolerance(name, gradient, samples))

    def _update_parameter(
        self,
        name: str,
        parameter: Tensor,
        descent: Descent,
        group: Mapping[str, object],
        counterpart: AbstractOptimizer,
    ) -> None:
        zero = Interval.point(torch.zeros_like(self.box[name].lower))
        box = counterpart.update(group, self.box[name], descent.bounds.get(name, zero))
        nominal = parameter.detach().to(self.dtype)
        rate = float(group["lr"])  # type: ignore[arg-type]
        size = float(self.box[name].magnitude.max() if nominal.numel() else 0.0)
        rounding = _UPDATE_ROUNDINGS * unit_roundoff(parameter.dtype) * size
        _require_inside(name, nominal, box, rounding + rate * descent.tolerance.get(name, 0.0))
        # The hull absorbs the training's own rounding, so that it cannot pile up against the next check.
        self.box[name] = box.hull(Interval.point(nominal))
        check_finite_and_ordered(self.box[name], f"parameter `{name}`")


def _optimizer_problems(optimizer: torch.optim.Optimizer | None) -> list[str]:
    if optimizer is None:
        return []
    counterpart = abstract_optimizer(optimizer)
    if counterpart is None:
        return [f"`{type(optimizer).__name__}` has no bounds. Use `torch.optim.SGD`."]
    return counterpart.problems(optimizer)


_NOT_WHAT_IS_TRAINED = (
    "What is certified is not what is trained: `training_step` depends on something besides the batch and the "
    "parameters (epoch, step, random numbers, a hook that changes gradients). Remove that, or mix in `CertifiedModule` "
    "and write `certified_objective(batch)`."
)


@dataclass(frozen=True)
class _Pass:
    """Per-sample gradient bounds of one micro-batch."""

    clean: Mapping[str, FactoredGradient]
    poisoned: Mapping[str, FactoredGradient]
    weights: Tensor
    poisonable: Tensor | None


def _sample_set(passes: Sequence[_Pass]) -> SampleSet:
    """The samples of all micro-batches, one after another."""
    weights = torch.cat([part.weights for part in passes])
    if all(part.poisonable is None for part in passes):
        return SampleSet(weights)
    rows, offset = [], 0
    for part in passes:
        size = len(part.weights)
        every = torch.arange(size, device=weights.device)
        rows.append(offset + (every if part.poisonable is None else part.poisonable))
        offset += size
    return SampleSet(weights, torch.cat(rows))


def _stacked(parts: Sequence[Mapping[str, FactoredGradient]]) -> dict[str, FactoredGradient]:
    names = dict.fromkeys(name for part in parts for name in part)
    for name in names:
        if any(name not in part for part in parts):
            raise UncertifiableError(
                [f"`{name}` is used in some micro-batches of a step and not in others. Use the same code for all."]
            )
    return {name: stack([part[name] for part in parts]) for name in names}


def _require_inside(name: str, value: Tensor, bounds: Interval, tolerance: float) -> None:
    """Raise unless ``bounds`` contain ``value`` up to rounding; NaN is never inside."""
    excess = torch.maximum(bounds.lower - value, value - bounds.upper)
    if bool((excess <= tolerance).all()):
        return
    worst = torch.where(excess.isnan(), torch.inf, excess)
    index = tuple(int(i) for i in torch.unravel_index(worst.argmax(), worst.shape))
    raise UnsoundBoundError(
        f"Expected `{name}` within its bounds, but at index {index} got {value[index].item():.9g} outside "
        f"[{bounds.lower[index].item():.9g}, {bounds.upper[index].item():.9g}] by {worst[index].item():.3g} "
        f"(rounding allows {tolerance:.3g}). " + _NOT_WHAT_IS_TRAINED
    )


def _doubled(batch: object) -> object:
    """The batch with its single sample twice."""
    leaves, rebuild = flatten(batch)
    return rebuild([torch.cat([leaf, leaf]) if leaf.ndim and leaf.shape[0] == 1 else leaf for leaf in leaves])
