"""Interval bound propagation: each call by its rule, forward and then backward (section 3.4, appendix C.3)."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from agt_lightning.capture import Call
from agt_lightning.capture.graph import ITEM, Reference, map_references
from agt_lightning.errors import UncertifiableError
from agt_lightning.gradients import FactoredGradient, Summed
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.propagation.program import Program
from agt_lightning.rules.base import Value, as_interval

Refinement = Callable[[Mapping[str, Value], Call, Interval], Interval]
"""Other bounds of a call's result, from all values before it, the call, and its interval bounds (among the values)."""


def propagate_forward(
    program: Program,
    inputs: Mapping[str, Value],
    *,
    skip: frozenset[str] = frozenset(),
    known: Mapping[str, Value] | None = None,
    within: Mapping[str, Interval] | None = None,
    refine: Refinement | None = None,
) -> dict[str, Value]:
    """Bounds of every value, given those of all inputs.

    Args:
        program: a program without problems.
        inputs: parameters, buffers, constants and batch leaves by value name.
        skip: values that nobody asks for.
        known: values that were computed before on the same inputs.
        within: other bounds on some values, which theirs are intersected with.
        refine: makes other bounds of those of each call; None for interval bounds alone.

    Returns:
        Bounds by value name; sound if the inputs' are, exact call by call.
    """
    values: dict[str, Value] = dict(inputs)
    known = known or {}
    dtype = next((value.dtype for value in inputs.values() if isinstance(value, Interval)), torch.float64)
    for call in program.graph.calls:
        if call.name in skip:
            continue
        if call.name in known:
            values[call.name] = known[call.name]
        elif call.name in program.rules:
            operands = [values[name] for name in call.inputs]
            result = program.rules[call.name].forward(program.sites[call.name], operands)
            values[call.name] = result.to(dtype=dtype) if isinstance(result, Interval) else result
            if refine is not None and isinstance(result, Interval):
                values[call.name] = refine(values, call, as_interval(values[call.name]))
            if within and call.name in within:
                values[call.name] = as_interval(values[call.name]).intersect(within[call.name])
        elif call.name not in program.samples:
            values[call.name] = _evaluate(call, values, dtype)
    return values


def propagate_backward(
    program: Program, values: Mapping[str, Value], seeds: Mapping[str, Interval]
) -> dict[str, FactoredGradient]:
    """Bounds of the gradient of each sample's loss, by name of the parameter's value.

    Args:
        program: a program without problems.
        values: result of `propagate_forward`.
        seeds: gradient of the per-sample loss with respect to some values, from which all others follow.
    """
    gradients: dict[str, Interval] = dict(seeds)
    parameters: dict[str, list[FactoredGradient]] = {}
    for call in reversed(program.graph.calls):
        gradient = gradients.pop(call.name, None)
        if gradient is None or call.name not in program.trainable:
            continue
        _backward_call(program, call, gradient, values, gradients, parameters)
    return {name: uses[0] if len(uses) == 1 else Summed(uses) for name, uses in parameters.items()}


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
        gradients[name] = gradients[name] + towards if name in gradients else towards


def _evaluate(call: Call, values: Mapping[str, Value], dtype: torch.dtype) -> Value:
    """Run a call on fixed values, as the program does."""

    def concrete(reference: Reference) -> Tensor:
        value = values[reference.name]
        if isinstance(value, Interval) and not value.is_point:
            raise UncertifiableError([f"`{call.op}` at {call.source} changes a parameter that has bounds; no rule."])
        return value.index if isinstance(value, ClassLabels) else value if isinstance(value, Tensor) else value.lower

    arguments = {name: map_references(argument, concrete) for name, argument in call.arguments.items()}
    positional = [arguments[a.name] for a in call.op._schema.arguments if not a.kwarg_only]
    keywords = {a.name: arguments[a.name] for a in call.op._schema.arguments if a.kwarg_only}
    result = call.op(*positional, **keywords)
    item = call.arguments.get(ITEM)
    if item is not None:
        result = result[item]
    return Interval.point(result.to(dtype)) if result.is_floating_point() else result
