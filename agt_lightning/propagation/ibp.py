"""Interval bound propagation: each call by its rule, forward and then backward (section 3.4, appendix C.3)."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.capture import Call
from agt_lightning.capture.graph import ITEM, Reference, map_references
from agt_lightning.errors import UncertifiableError, UnsoundBoundError
from agt_lightning.gradients import Elementwise, FactoredGradient, PulledBack, Summed
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.propagation.composites import CompositeCalls
from agt_lightning.propagation.program import Program
from agt_lightning.rules.base import Rule, Site, address, located
from agt_lightning.rules.roundings import UNSTATED
from agt_lightning.rules.values import Value, as_interval

Refinement = Callable[[Mapping[str, Value], Call, Interval], Interval]
"""Computes other bounds of a call's result from all values up to it, the call, and its interval bounds."""

Observer = Callable[[Call, Interval], None]
"""Receives each call with bounds of the gradient with respect to its result."""


def propagate_forward(
    program: Program,
    inputs: Mapping[str, Value],
    *,
    skip: frozenset[str] = frozenset(),
    known: Mapping[str, Value] | None = None,
    within: Mapping[str, Interval] | None = None,
    refine: Refinement | None = None,
) -> dict[str, Value]:
    """Compute bounds of every value from those of all inputs.

    Args:
        program: a program without problems.
        inputs: parameters, buffers, constants and batch leaves by value name.
        skip: names of values to leave out.
        known: values that were computed before on the same inputs.
        within: other bounds on some values, which theirs are intersected with.
        refine: makes other bounds of those of each call. None if interval bounds are all that is wanted.

    Returns:
        Bounds by value name; sound if the inputs' are, exact call by call.

    Raises:
        UnsoundBoundError: naming the call, if two enclosures of its result do not meet.
        UncertifiableError: naming the call, if its rule cannot bound these inputs.
    """
    values: dict[str, Value] = dict(inputs)
    known, within = known or {}, within or {}
    dtype = next((value.dtype for value in inputs.values() if isinstance(value, Interval)), torch.float64)
    for call in program.graph.calls:
        if call.name in skip:
            continue
        if call.name in known:
            values[call.name] = known[call.name]
            continue
        value = bounded_value(program, call, values, dtype, within.get(call.name), refine)
        if value is not None:
            values[call.name] = value
    return values


def bounded_value(
    program: Program,
    call: Call,
    values: Mapping[str, Value],
    dtype: torch.dtype,
    within: Interval | None = None,
    refine: Refinement | None = None,
) -> Value | None:
    """Return bounds on the result of one call; None for one on samples without a rule.

    Args:
        program: a program without problems.
        call: one of its calls.
        values: all before it, by name.
        dtype: floating point type to compute in.
        within: other bounds on the result, which its own are intersected with.
        refine: makes other bounds of those of the call.
    """
    if call.name in program.rules:
        return _bounded_call(program, call, values, dtype, within, refine)
    return None if call.name in program.samples else _shared_value(program, call, values, dtype)


def _shared_value(program: Program, call: Call, values: Mapping[str, Value], dtype: torch.dtype) -> Value:
    """Compute a value without samples, such as one of buffers; where rounding counts, with that of its calls."""
    inputs = [values[name] for name in call.inputs]
    rounds = program.floats is not None and call.dtype.is_floating_point and bool(inputs)
    try:
        if call.name in program.shared and (rounds or call.name in program.trainable):
            return program.shared[call.name].forward(program.sites[call.name], inputs)
        result = evaluate(call, values, dtype)
    except (UnsoundBoundError, UncertifiableError) as error:
        raise located(error, call) from error
    if not rounds:
        return result
    run = call.dtype if program.floats == "run" else None
    return UNSTATED.result(as_interval(result), inputs, Arithmetic(run, dtype))


def _bounded_call(
    program: Program,
    call: Call,
    values: Mapping[str, Value],
    dtype: torch.dtype,
    within: Interval | None,
    refine: Refinement | None,
) -> Value:
    """Bound the result of one call by its rule, and by whatever else is known of it."""
    try:
        result = program.rules[call.name].forward(program.sites[call.name], [values[name] for name in call.inputs])
        bounds = result.to(dtype=dtype) if isinstance(result, Interval) else result
        bounds = _as_composite(program, call, values, bounds)
        if refine is not None and isinstance(bounds, Interval):
            bounds = refine({**values, call.name: bounds}, call, bounds)
        return bounds if within is None else as_interval(bounds).intersect(within)
    except (UnsoundBoundError, UncertifiableError) as error:
        raise located(error, call) from error


def _as_composite(program: Program, call: Call, values: Mapping[str, Value], bounds: Value) -> Value:
    """Intersect bounds with those of the function of one number that ends with a call, if there is one."""
    composite = program.composites.get(call.name)
    if composite is None or composite.argument not in values:
        return bounds
    argument = as_interval(values[composite.argument])
    exact = composite.function.range(argument, program.arithmetic(call.name, argument.dtype))
    return bounds if exact is None else as_interval(bounds).intersect(exact)


def propagate_backward(
    program: Program,
    values: Mapping[str, Value],
    seeds: Mapping[str, Interval],
    observe: Observer | None = None,
) -> dict[str, FactoredGradient]:
    """Compute bounds of the gradient of each sample's loss, by name of the parameter's value.

    Args:
        program: a program without problems.
        values: result of `propagate_forward`.
        seeds: gradient of the per-sample loss with respect to some values, from which all others follow.
        observe: called for each call on the way, last one first. None if nothing but the parameters' gradients is
            wanted.

    Raises:
        UnsoundBoundError: naming the call, if bounds of a gradient are crossed by more than rounding.
        UncertifiableError: naming the call, if its rule cannot bound the gradient.
    """
    gradients, parameters = split_seeds(program, seeds)
    for call in reversed(program.graph.calls):
        gradient = gradients.pop(call.name, None)
        if gradient is None or call.name not in program.trainable:
            continue
        if observe is not None:
            observe(call, gradient)
        pass_back(program, call, gradient, values, gradients, parameters)
    return parameter_gradients(program, values, parameters)


def split_seeds(
    program: Program, seeds: Mapping[str, Interval]
) -> tuple[dict[str, Interval], dict[str, list[FactoredGradient]]]:
    """Return the gradients that begin at values of samples, and those at values of parameters alone: penalties.

    Args:
        program: a program without problems.
        seeds: gradient of the per-sample loss with respect to some values.
    """
    of_samples = {name: seed for name, seed in seeds.items() if name in program.samples}
    return of_samples, {name: [Elementwise(seed)] for name, seed in seeds.items() if name not in program.samples}


def pass_back(
    program: Program,
    call: Call,
    gradient: Interval,
    values: Mapping[str, Value],
    gradients: dict[str, Interval],
    parameters: dict[str, list[FactoredGradient]],
) -> None:
    """Pass the gradient of one call's result on to its inputs.

    Args:
        program: a program without problems.
        call: one of its calls.
        gradient: with respect to its result.
        values: all values by name.
        gradients: those of values, to which this adds.
        parameters: summands of those of parameters, to which this adds.
    """
    try:
        if call.name in program.composites:
            _backward_composite(program, program.composites[call.name], gradient, values, gradients)
        else:
            _backward_call(program, call, gradient, values, gradients, parameters)
    except (UnsoundBoundError, UncertifiableError) as error:
        raise located(error, call) from error


def parameter_gradients(
    program: Program, values: Mapping[str, Value], gradients: dict[str, list[FactoredGradient]]
) -> dict[str, FactoredGradient]:
    """Return the gradient of each parameter from its summands.

    Gradients of values that are made of parameters alone go back to these.

    Args:
        program: a program without problems.
        values: all values by name.
        gradients: summands by name; emptied.
    """
    for call in reversed(program.graph.calls):
        uses = gradients.pop(call.name, None)
        if uses is None:
            continue
        result, site = _summed(uses), program.sites[call.name]
        for position, name in enumerate(call.inputs):
            if site.trainable[position]:
                shape = tuple(as_interval(values[name]).shape)
                back = partial(_back, program.shared[call.name], site, position, values)
                gradients.setdefault(name, []).append(PulledBack(result, back, shape, call.dtype))
    return {name: _summed(uses) for name, uses in gradients.items()}


def _summed(uses: list[FactoredGradient]) -> FactoredGradient:
    return uses[0] if len(uses) == 1 else Summed(uses)


def _back(rule: Rule, site: Site, position: int, values: Mapping[str, Value], gradient: Interval) -> Interval:
    """Take gradients of a call's result, with a sample axis in front, back to one of its inputs."""
    operands = [values[name] for name in site.call.inputs]
    try:
        pulled = rule.backward(site, gradient, operands, values[site.call.name])[position]
    except (UnsoundBoundError, UncertifiableError) as error:
        raise located(error, site.call) from error
    assert pulled is not None
    return pulled


def _backward_call(
    program: Program,
    call: Call,
    gradient: Interval,
    values: Mapping[str, Value],
    gradients: dict[str, Interval],
    parameters: dict[str, list[FactoredGradient]],
) -> None:
    """Pass the gradient of one call on to its trainable inputs."""
    rule, site = program.rules[call.name], program.sites[call.name]
    operands = [values[name] for name in call.inputs]
    for position, name in enumerate(call.inputs):
        if site.trainable[position] and not site.samples[position]:
            factors = rule.parameter_gradient(site, position, gradient, operands)
            parameters.setdefault(name, []).append(factors)
    if not any(trains and samples for trains, samples in zip(site.trainable, site.samples, strict=True)):
        return
    output = values.get(call.name, gradient)
    for position, towards in enumerate(rule.backward(site, gradient, operands, output)):
        name = call.inputs[position]
        if towards is None or not (site.trainable[position] and site.samples[position]):
            continue
        uses = program.uses(name)
        share = rule.share(site, towards, uses) if uses > 1 else towards
        gradients[name] = gradients[name] + share if name in gradients else share


def _backward_composite(
    program: Program,
    composite: CompositeCalls,
    gradient: Interval,
    values: Mapping[str, Value],
    gradients: dict[str, Interval],
) -> None:
    """Pass the gradient of a function that takes several calls on to its argument, as the chain rule and it allow."""
    name, last = composite.argument, composite.calls[-1]
    chain: dict[str, Interval] = {last.name: gradient}
    for call in reversed(composite.calls):
        _backward_call(program, call, chain.pop(call.name), values, chain, {})
    uses = program.uses(name)
    arithmetic = program.arithmetic(last.name, gradient.dtype)
    exact = composite.function.towards(gradient, as_interval(values[name]), uses, arithmetic)
    if uses > 1:
        exact = program.rules[last.name].share(program.sites[last.name], exact, uses)
    towards = chain[name].intersect(exact)
    gradients[name] = gradients[name] + towards if name in gradients else towards


def evaluate(call: Call, values: Mapping[str, Value], dtype: torch.dtype) -> Value:
    """Run a call on fixed values, as the program does.

    Args:
        call: the call.
        values: points, labels or discrete tensors by name.
        dtype: floating point type of a result that is not discrete.

    Raises:
        UncertifiableError: if an input is a parameter that has bounds.
    """

    def concrete(reference: Reference) -> Tensor:
        value = values[reference.name]
        if isinstance(value, Interval) and not value.is_point:
            raise UncertifiableError(
                [
                    f"{address(call)} changes a parameter that has bounds, or a rounded result; it has no rule. "
                    "Compute it before training."
                ]
            )
        return value.index if isinstance(value, ClassLabels) else value if isinstance(value, Tensor) else value.lower

    arguments = {name: map_references(argument, concrete) for name, argument in call.arguments.items()}
    positional = [arguments[a.name] for a in call.op._schema.arguments if not a.kwarg_only]
    keywords = {a.name: arguments[a.name] for a in call.op._schema.arguments if a.kwarg_only}
    result = call.op(*positional, **keywords)
    item = call.arguments.get(ITEM)
    if item is not None:
        result = result[item]
    return Interval.point(result.to(dtype)) if result.is_floating_point() else result
