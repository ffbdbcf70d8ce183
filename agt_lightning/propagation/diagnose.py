"""Where bounds become wide, wrong or infinite: a report on the bounds of one batch, call by call."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from agt_lightning.adversaries import Adversary
from agt_lightning.capture.dropout import RandomState
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.propagation.crown import DEFAULT_MEMORY_BUDGET
from agt_lightning.propagation.diagnosis import CallReport, Diagnosis, Excess
from agt_lightning.propagation.ibp import evaluate, propagate_backward
from agt_lightning.propagation.methods import Method
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.rules import Value

Run = tuple[nn.Module | Mapping[str, Tensor], object]
"""A training's parameters, as a module or by name, and a batch; an adversary may have changed both."""


def diagnose(
    bounded: BoundedObjective,
    module: nn.Module,
    batch: object,
    box: Mapping[str, Interval],
    run: Run | None = None,
    *,
    adversary: Adversary | None = None,
    poisonable: Tensor | None = None,
    method: Method = "ibp",
    memory_budget: int | None = None,
    state: RandomState | None = None,
) -> Diagnosis:
    """Report how wide the bounds of a batch are at each call, and where a run leaves them.

    Costs about three certified passes over the batch; nothing is changed.

    Args:
        bounded: the captured loss of the batch, such as ``engine.objective(batch)``, without problems.
        module: owner of the buffers; of the parameters too, as far as types are concerned.
        batch: a batch of the captured shapes.
        box: bounds by parameter name, such as ``engine.box``.
        run: parameters and a batch that the bounds should contain; the batch has the captured shapes. None to look at
            the bounds alone.
        adversary: bound samples as poisoned by it. None to bound the batch as it is.
        poisonable: positions of the samples to bound as poisoned, if there is an adversary; None means all. A run must
            then have these samples alone in its batch.
        method: how bounds are propagated forward.
        memory_budget: bytes for the coefficients of linear bounds; None means the default.
        state: the generators' state when the training step began; needed for dropout alone.

    Returns:
        A report with one entry for each call with bounds, which contain what programs in floating point compute.

    Raises:
        UncertifiableError: if some call cannot be bounded.
        UnsoundBoundError: if two enclosures of a call's result do not meet.

    Example:
        >>> from agt_lightning import AbstractGradientEngine, BoundedAdversary
        >>> layer = nn.Linear(2, 1)
        >>> engine = AbstractGradientEngine(layer, lambda m, x: m(x).square().mean(), BoundedAdversary(n=1, epsilon=1))
        >>> batch = torch.ones(4, 2)
        >>> engine.step([batch], torch.optim.SGD(layer.parameters(), lr=0.1))
        >>> report = diagnose(engine.objective(batch), layer, batch, engine.box, run=(layer, batch))
        >>> report.first_outside is None, report.widest_growth.call.module
        (True, '')
    """
    if bounded.program.mixing:
        raise UncertifiableError(
            [
                f"`diagnose` looks at samples as they are or as poisoned, and {bounded.program.mixed_by} needs both "
                f"side by side. To look at the module, {bounded.program.unmixed}."
            ]
        )
    dtype = next(iter(box.values())).dtype
    bounded = bounded.rounded(dtype, "run")
    inputs = bounded.inputs(module, batch, box, dtype, state)
    if adversary is not None:
        inputs = bounded.poisoned(inputs, adversary, poisonable)
    budget = memory_budget or DEFAULT_MEMORY_BUDGET
    values = bounded.forward(inputs, method=method, memory_budget=budget)
    size = bounded.size(batch)
    gradients = _gradients(bounded, values, size, dtype)
    outside: Mapping[str, Excess] = {}
    gradients_outside: Mapping[str, Excess] = {}
    if run is not None:
        run_values, run_gradients = _run(bounded, module, run, dtype, state)
        outside = _excesses(values, run_values)
        gradients_outside = _excesses(gradients, run_gradients)
    calls = tuple(
        CallReport(
            call,
            width=_mean_width(bounds),
            growth=_growth(bounds, [values[name] for name in call.inputs]),
            gradient_width=_mean_width(gradients[call.name]) if call.name in gradients else None,
            excess=outside.get(call.name),
            gradient_excess=gradients_outside.get(call.name),
        )
        for call in bounded.program.graph.calls
        if call.name in bounded.program.rules and isinstance(bounds := values.get(call.name), Interval)
    )
    names: Mapping[str, str | int] = {**bounded.parameters, **bounded.program.graph.leaves}
    return Diagnosis(calls, {names[name]: excess for name, excess in outside.items() if name in names})


def _gradients(
    bounded: BoundedObjective, values: Mapping[str, Value], size: int, dtype: torch.dtype
) -> dict[str, Interval]:
    """Bound the gradient of each sample's loss with respect to the results of calls, by name."""
    gradients: dict[str, Interval] = {}
    seeds = bounded.seeds(values, size, dtype)
    propagate_backward(bounded.program, values, seeds, lambda call, bounds: gradients.update({call.name: bounds}))
    return gradients


def _run(
    bounded: BoundedObjective, module: nn.Module, run: Run, dtype: torch.dtype, state: RandomState | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Compute values and gradients of a run by the program's own operations and autograd, without rules."""
    owner, batch = run
    parameters = dict(owner.named_parameters()) if isinstance(owner, nn.Module) else owner
    leaves = {name: parameter.detach().to(dtype).clone().requires_grad_() for name, parameter in parameters.items()}
    inputs = {name: Interval.point(leaf) for name, leaf in leaves.items()}
    values = bounded.inputs(module, batch, inputs, dtype, state)
    with torch.enable_grad():
        for call in bounded.program.graph.calls:
            if call.name not in bounded.objective.reduced:
                values[call.name] = evaluate(call, values, dtype)
    results = {name: value.lower for name, value in values.items() if isinstance(value, Interval)}
    seeds = bounded.seeds(values, bounded.size(batch), dtype)
    moving = {name: result for name, result in results.items() if result.requires_grad}
    terms = [name for name in seeds if name in moving]
    found = torch.autograd.grad(
        [moving[name] for name in terms],
        list(moving.values()),
        [seeds[name].lower for name in terms],
        allow_unused=True,
    )
    gradients = {name: gradient for name, gradient in zip(moving, found, strict=True) if gradient is not None}
    return {name: result.detach() for name, result in results.items()}, gradients


def _excesses(bounds: Mapping[str, Value], values: Mapping[str, Tensor]) -> dict[str, Excess]:
    """Return how far the values lie outside of their bounds, by name, for those that do."""
    found: dict[str, Excess] = {}
    for name, interval in bounds.items():
        value = values.get(name)
        if value is None or not isinstance(interval, Interval) or not value.numel():
            continue
        excess = torch.maximum(interval.lower - value, value - interval.upper)
        excess = torch.where(excess.isnan(), torch.inf, excess)
        worst = excess.argmax()
        if excess.flatten()[worst] > 0:
            index = tuple(int(i) for i in torch.unravel_index(worst, excess.shape))
            found[name] = Excess(float(excess[index]), index)
    return found


def _growth(bounds: Interval, inputs: list[Value]) -> float | None:
    """Return the mean width relative to the widest input; None if all inputs are points."""
    widest = max((_mean_width(value) for value in inputs if isinstance(value, Interval)), default=0.0)
    return _mean_width(bounds) / widest if widest > 0 else None


def _mean_width(bounds: Interval) -> float:
    return 0.0 if bounds.is_point else float(bounds.width.mean())
