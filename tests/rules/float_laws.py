"""The law of roundings: what a call computes in its own type lies in the bounds of the rounded rule, without tolerance.

A setting is captured in the type of the run; its bounds are computed in double precision.
"""

import torch
from torch import Tensor

from agt_lightning.capture import capture, reached
from agt_lightning.interval import Interval
from agt_lightning.propagation import Program, propagate_backward, propagate_forward
from agt_lightning.rounding import Floats
from agt_lightning.rules import RULES, RuleTable, Value
from agt_lightning.rules.rounded import Rounded
from tests.rules.laws import (
    SAMPLES,
    Bounds,
    Box,
    Choice,
    Domain,
    Holder,
    Leaf,
    Setting,
    Values,
    corner,
    draw_domain,
    evaluate,
    inputs_of,
    inside,
    require_inside,
)

POINTS = 3
"""Points drawn inside each box, and as many corners."""


def rounded(table: RuleTable = RULES, floats: Floats = "run") -> RuleTable:
    """Return the table with every rule rounded."""
    return {op: Rounded(rule, torch.float64, floats) for op, rule in table.items()}


def build(setting: Setting, dtype: torch.dtype, table: RuleTable) -> Program:
    """Return the setting as a program of its own type."""
    holder = Holder(setting).to(dtype)
    graph = capture(
        holder,
        lambda leaves: evaluate(setting, holder, list(leaves)),
        [_example(leaf, dtype) for leaf in setting.leaves],
    )
    samples, trainable = reached(graph, set(graph.leaves)), reached(graph, set(graph.parameters))
    return Program.build(graph, table, samples=samples, trainable=trainable)


def _example(leaf: Leaf, dtype: torch.dtype) -> Tensor:
    if isinstance(leaf, Box):
        return torch.ones(SAMPLES, *leaf.shape, dtype=dtype)
    return torch.zeros(SAMPLES, *leaf.shape, dtype=torch.int64)


def widened_bounds(program: Program, domain: Domain) -> Bounds:
    """Return bounds on a setting's output and gradients."""
    graph = program.graph
    values = propagate_forward(program, inputs_of(program, domain))
    factors = propagate_backward(program, values, {graph.output: domain.seed})
    gradients = {}
    for name, gradient in factors.items():
        block = gradient.block(0, gradient.elements)
        gradients[graph.parameters[name]] = block.mapped(lambda bound, g=gradient: bound.T.reshape(-1, *g.shape))
    return Bounds(values[graph.output], gradients)


def in_double(domain: Domain) -> Domain:
    """Return the same box in double precision."""

    def double(value: Value) -> Value:
        return value.to(dtype=torch.float64) if isinstance(value, Interval) else value

    parameters = {name: double(box) for name, box in domain.parameters.items()}
    return Domain(tuple(double(leaf) for leaf in domain.leaves), parameters, double(domain.seed))


def execute(setting: Setting, domain: Domain, dtype: torch.dtype, choose: Choice) -> Values:
    """Return output and per-sample gradients at a point, as torch computes them in a type."""
    holder = Holder(setting).to(dtype)
    parameters = dict(holder.named_parameters())
    with torch.no_grad():
        for name, box in domain.parameters.items():
            parameters[name].copy_(choose(box))
    chosen = [choose(value) for value in domain.leaves]
    output = evaluate(setting, holder, [leaf.to(dtype) if leaf.is_floating_point() else leaf for leaf in chosen])
    seed = choose(domain.seed).to(dtype)
    gradients: dict[str, list[Tensor]] = {}
    for sample in range(SAMPLES) if output.requires_grad else ():
        only = torch.zeros_like(seed)
        only[sample] = seed[sample]
        row = torch.autograd.grad(output, list(parameters.values()), only, retain_graph=True, allow_unused=True)
        for name, gradient in zip(parameters, row, strict=True):
            if gradient is not None:
                gradients.setdefault(name, []).append(gradient.double())
    return Values(output.detach().double(), {name: torch.stack(rows) for name, rows in gradients.items()})


def runs_stay_inside(setting: Setting, dtype: torch.dtype, scale: float, table: RuleTable | None = None) -> None:
    """What torch computes at points and corners of a box lies in the widened bounds.

    Args:
        setting: a use of an op.
        dtype: of the run.
        scale: of the boxes.
        table: rounded rules; the default is the library's.
    """
    program = build(setting, dtype, rounded() if table is None else table)
    generator = torch.Generator().manual_seed(7)
    domain = draw_domain(setting, dtype, 4, scale)
    bounds = widened_bounds(program, in_double(domain))
    for draw in (inside, corner):
        for _ in range(POINTS):
            require_run_inside(setting, bounds, execute(setting, domain, dtype, draw(generator)))


def require_run_inside(setting: Setting, bounds: Bounds, values: Values) -> None:
    """Raise if a number of a run leaves its bounds at all."""
    require_inside(f"{setting}: output of a run", values.output, bounds.output, 0.0)
    for name, gradient in values.gradients.items():
        absent = Interval.point(torch.zeros_like(gradient))
        require_inside(f"{setting}: gradient of {name} of a run", gradient, bounds.gradients.get(name, absent), 0.0)
