"""The laws that every rule obeys, as functions of a setting and a table of rules.

A setting is a small function of samples and parameters. It goes through the real pipeline: captured, joined with the
table, propagated forward and backward. Each differentiable leaf has a parameter of zeros added to it, so that the
gradient with respect to the leaf is the per-sample gradient of that parameter. A law raises `AssertionError`.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from agt_lightning.capture import Graph, capture, reached
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.propagation import Program, propagate_backward, propagate_forward
from agt_lightning.rounding import unit_roundoff
from agt_lightning.rules import RuleTable, Value

SAMPLES = 3
POINTS = 6
"""Points drawn inside each box, and as many corners."""

ROUNDINGS = 256
"""Roundings on the longest path of any setting: sums of fewer than 64 terms, 16 for each exp or log."""

MOST_CANDIDATES = 5000
"""Exactness is proved by trying all corners; a setting with more than these is too large."""


@dataclass(frozen=True)
class Box:
    """Real-valued input: centers between ``low`` and ``high``, radii up to ``radius``; shape without samples."""

    shape: tuple[int, ...] = ()
    low: float = -1.2
    high: float = 1.2
    radius: float = 0.9
    nonnegative: bool = False
    differentiable: bool = True


@dataclass(frozen=True)
class Labels:
    """Class labels that can be flipped."""

    classes: int
    shape: tuple[int, ...] = ()
    sources: tuple[int, ...] | None = None
    targets: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Integers:
    """Discrete data that nobody can change."""

    shape: tuple[int, ...] = ()


Leaf = Box | Labels | Integers


@dataclass(frozen=True, eq=False)
class Setting:
    """One use of an op.

    ``exact`` names the bounds that are attained: ``output``, ``gradient``.
    """

    name: str
    op: OpOverload
    function: Callable[..., Tensor]
    leaves: tuple[Leaf, ...]
    parameters: Mapping[str, Box] = field(default_factory=dict)
    exact: tuple[str, ...] = ("output", "gradient")

    def __str__(self) -> str:
        return f"{self.op} {self.name}"


class Holder(nn.Module):
    """Owner of a setting's parameters and of the zeros added to its leaves."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        for name, box in setting.parameters.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(box.shape, dtype=torch.float64)))
        for position, leaf in enumerate(setting.leaves):
            if isinstance(leaf, Box) and leaf.differentiable:
                self.register_parameter(f"shift{position}", nn.Parameter(torch.zeros(1, *leaf.shape).double()))


def evaluate(setting: Setting, holder: nn.Module, leaves: list[Tensor]) -> Tensor:
    """The setting's function, with the leaves shifted by parameters of zeros."""
    shifts = dict(holder.named_parameters())
    shifted = [leaf + shifts[f"shift{i}"] if f"shift{i}" in shifts else leaf for i, leaf in enumerate(leaves)]
    return setting.function(holder, *shifted)


def _example(leaf: Leaf) -> Tensor:
    if isinstance(leaf, Box):
        return torch.ones(SAMPLES, *leaf.shape, dtype=torch.float64)
    return torch.zeros(SAMPLES, *leaf.shape, dtype=torch.int64)


@cache
def captured(setting: Setting) -> Graph:
    """The setting as a graph of calls."""
    holder = Holder(setting)
    return capture(
        holder, lambda leaves: evaluate(setting, holder, list(leaves)), [_example(x) for x in setting.leaves]
    )


def build(setting: Setting, table: RuleTable) -> Program:
    """The setting joined with rules; its op must be among the calls."""
    graph = captured(setting)
    assert setting.op in {call.op for call in graph.calls}, f"{setting}: the graph does not call the op"
    program = Program.build(
        graph,
        table,
        samples=reached(graph, set(graph.leaves)),
        trainable=reached(graph, set(graph.parameters)),
    )
    assert not program.problems, program.problems
    return program


# --- boxes and points in them ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Domain:
    """A value for each leaf, for each parameter, and for the gradient of the result."""

    leaves: tuple[Value, ...]
    parameters: Mapping[str, Interval]
    seed: Interval


def draw_domain(setting: Setting, dtype: torch.dtype, seed: int, scale: float = 1.0) -> Domain:
    """A box for each input; a larger ``scale`` gives larger boxes around the same centers."""
    generator = torch.Generator().manual_seed(seed)
    leaves = tuple(_draw(leaf, (SAMPLES,), dtype, generator, scale) for leaf in setting.leaves)
    parameters = {name: _draw_box(box, (), dtype, generator, scale) for name, box in setting.parameters.items()}
    shape = captured(setting).shapes[captured(setting).output]
    return Domain(leaves, parameters, _draw_box(Box(shape), (), dtype, generator, scale))


def _draw(leaf: Leaf, samples: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator, scale: float) -> Value:
    if isinstance(leaf, Box):
        return _draw_box(leaf, samples, dtype, generator, scale)
    classes = leaf.classes if isinstance(leaf, Labels) else 3
    index = torch.randint(classes, (*samples, *leaf.shape), generator=generator)
    if isinstance(leaf, Integers):
        return index
    return ClassLabels(index, flippable=True, sources=leaf.sources, targets=leaf.targets)


def _draw_box(
    box: Box, samples: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator, scale: float
) -> Interval:
    shape = (*samples, *box.shape)
    center = box.low + (box.high - box.low) * torch.rand(shape, generator=generator, dtype=torch.float64)
    radius = scale * box.radius * torch.rand(shape, generator=generator, dtype=torch.float64)
    lower, upper = (center - radius).to(dtype), (center + radius).to(dtype)
    if box.nonnegative:
        lower, upper = lower.clamp(min=0), upper.clamp(min=0)
    return Interval(lower, upper, nonnegative=box.nonnegative)


Choice = Callable[[Value], Tensor]


def inside(generator: torch.Generator) -> Choice:
    """A uniform point of a box, a uniform reachable label."""

    def choose(value: Value) -> Tensor:
        if isinstance(value, Interval):
            share = torch.rand(value.shape, generator=generator, dtype=torch.float64)
            return _between(value, share)
        return _reachable_label(value, generator)

    return choose


def corner(generator: torch.Generator) -> Choice:
    """A corner of a box, or zero where that is inside; a uniform reachable label."""

    def choose(value: Value) -> Tensor:
        if isinstance(value, Interval):
            picks = torch.randint(3, value.shape, generator=generator)
            return torch.stack(_extremes(value)).gather(0, picks[None])[0]
        return _reachable_label(value, generator)

    return choose


def _between(value: Interval, share: Tensor) -> Tensor:
    lower, upper = value.lower.double(), value.upper.double()
    return torch.minimum(upper, lower + share * (upper - lower))


def _extremes(value: Interval) -> tuple[Tensor, Tensor, Tensor]:
    lower, upper = value.lower.double(), value.upper.double()
    return lower, upper, torch.zeros_like(lower).clamp(lower, upper)


def _reachable_label(value: Value, generator: torch.Generator) -> Tensor:
    if isinstance(value, Tensor):
        return value
    assert isinstance(value, ClassLabels)
    chances = value.reachable(_classes(value)).double()
    picks = torch.multinomial(chances.reshape(-1, chances.shape[-1]), 1, generator=generator)
    return picks.reshape(value.index.shape)


def _classes(labels: ClassLabels) -> int:
    """All settings with labels have three classes."""
    return 3


# --- the two ways to the same numbers --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bounds:
    """Output and per-sample gradients by parameter, each (b, ...)."""

    output: Interval
    gradients: Mapping[str, Interval]


@dataclass(frozen=True)
class Values:
    """What `Bounds` must contain."""

    output: Tensor
    gradients: Mapping[str, Tensor]


def inputs_of(program: Program, domain: Domain) -> dict[str, Value]:
    """Bounds of everything that goes into a setting."""
    graph, dtype = program.graph, domain.seed.dtype
    inputs: dict[str, Value] = {name: domain.leaves[position] for name, position in graph.leaves.items()}
    for name, target in graph.parameters.items():
        shape = graph.shapes[name]
        zeros = Interval.point(torch.zeros(shape, dtype=dtype), nonnegative=True)
        inputs[name] = domain.parameters.get(target, zeros)
    for name, constant in graph.constants.items():
        inputs[name] = Interval.point(constant.to(dtype)) if constant.is_floating_point() else constant
    return inputs


def propagate(setting: Setting, table: RuleTable, domain: Domain) -> Bounds:
    """Bounds by the rules."""
    program = build(setting, table)
    graph = program.graph
    values = propagate_forward(program, inputs_of(program, domain))
    output = values[graph.output]
    assert isinstance(output, Interval)
    factors = propagate_backward(program, values, {graph.output: domain.seed})
    gradients = {}
    for name, gradient in factors.items():
        block = gradient.block(0, gradient.elements)
        lower, upper = (bound.T.reshape(-1, *gradient.shape) for bound in (block.lower, block.upper))
        gradients[graph.parameters[name]] = Interval.trusted(lower, upper)
    return Bounds(output, gradients)


def run(setting: Setting, domain: Domain, choose: Choice) -> Values:
    """The function itself at one point, in double precision, and autograd's gradient of each sample."""
    holder = Holder(setting)
    leaves = [choose(value) for value in domain.leaves]
    parameters = dict(holder.named_parameters())
    with torch.no_grad():
        for name, box in domain.parameters.items():
            parameters[name].copy_(choose(box))
    output = evaluate(setting, holder, leaves)
    seed = choose(domain.seed)
    rows: list[tuple[Tensor | None, ...]] = []
    for sample in range(SAMPLES):
        only = torch.zeros_like(seed)
        only[sample] = seed[sample]
        rows.append(
            torch.autograd.grad(output, list(parameters.values()), only, retain_graph=True, allow_unused=True)
            if output.requires_grad
            else (None,) * len(parameters)
        )
    gradients = {}
    for position, name in enumerate(parameters):
        column = [row[position] for row in rows]
        if column[0] is not None:
            gradients[name] = torch.stack([gradient for gradient in column if gradient is not None])
    return Values(output.detach(), gradients)


# --- the laws --------------------------------------------------------------------------------------------------------


def slack(bounds: Interval) -> float:
    """How far rounding can move a bound: relative to the largest magnitude, and to the inputs' size of one."""
    largest = float(bounds.magnitude.double().max()) if bounds.lower.numel() else 0.0
    return ROUNDINGS * unit_roundoff(bounds.dtype) * (1.0 + largest)


def require_inside(what: str, value: Tensor, bounds: Interval, tolerance: float) -> None:
    """Raise unless the bounds contain the value."""
    assert bounds.shape == value.shape, f"{what}: bounds of shape {bounds.shape} for a value of {value.shape}"
    excess = torch.maximum(bounds.lower.double() - value, value - bounds.upper.double())
    assert bool((excess <= tolerance).all()), f"{what} leaves its bounds by {excess.max().item():.3g}"


def require_contained(setting: Setting, bounds: Bounds, values: Values) -> None:
    """Raise unless output and gradients lie in their bounds."""
    require_inside(f"{setting}: output", values.output, bounds.output, slack(bounds.output))
    for name, gradient in values.gradients.items():
        absent = Interval.point(torch.zeros_like(gradient))
        box = bounds.gradients.get(name, absent)
        require_inside(f"{setting}: gradient of {name}", gradient, box, slack(box))


def zero_width_equals_autograd(setting: Setting, dtype: torch.dtype, table: RuleTable) -> None:
    """On points, marked as such or not, bounds are the op's own value and autograd's per-sample gradients."""
    generator = torch.Generator().manual_seed(11)
    choose = inside(generator)
    for unmarked in (False, True):
        domain = _point_domain(draw_domain(setting, dtype, seed=5), choose, dtype, unmarked=unmarked)
        bounds = propagate(setting, table, domain)
        values = run(setting, domain, corner(generator))
        require_contained(setting, bounds, values)
        for name, interval in (("output", bounds.output), *bounds.gradients.items()):
            width = float(interval.width.abs().max())
            assert width <= 2 * slack(interval), f"{setting}: {name} has width {width:.3g} on a point"


def _point_domain(domain: Domain, choose: Choice, dtype: torch.dtype, *, unmarked: bool) -> Domain:
    def point(value: Value) -> Value:
        if isinstance(value, ClassLabels):
            return ClassLabels(choose(value))
        if isinstance(value, Tensor):
            return value
        lower = choose(value).to(dtype)
        upper = lower.clone() if unmarked else lower
        return Interval.trusted(lower, upper, nonnegative=value.nonnegative)

    parameters = {name: point(box) for name, box in domain.parameters.items()}
    return Domain(tuple(point(value) for value in domain.leaves), parameters, point(domain.seed))


def bounds_contain_sampled_points(setting: Setting, dtype: torch.dtype, table: RuleTable) -> None:
    """Points and corners of the input box give outputs and gradients inside the bounds."""
    generator = torch.Generator().manual_seed(3)
    for seed in range(2):
        domain = draw_domain(setting, dtype, seed)
        bounds = propagate(setting, table, domain)
        for _ in range(POINTS):
            require_contained(setting, bounds, run(setting, domain, inside(generator)))
            require_contained(setting, bounds, run(setting, domain, corner(generator)))


def wider_input_is_never_tighter(setting: Setting, dtype: torch.dtype, table: RuleTable) -> None:
    """Monotone inclusion: the bounds of a box contain those of a smaller one."""
    narrow, wide = (propagate(setting, table, draw_domain(setting, dtype, 7, scale)) for scale in (0.4, 1.0))
    pairs = [("output", narrow.output, wide.output)]
    pairs += [(name, narrow.gradients[name], wide.gradients[name]) for name in narrow.gradients]
    for name, small, large in pairs:
        for bound in (small.lower, small.upper):
            require_inside(f"{setting}: {name} of a smaller box", bound.double(), large, slack(large))


def bounds_are_attained(setting: Setting, dtype: torch.dtype, table: RuleTable) -> None:
    """Where exactness is claimed, some corner reaches each bound."""
    domain = draw_domain(setting, dtype, seed=2)
    bounds = propagate(setting, table, domain)
    lowest: dict[str, Tensor] = {}
    highest: dict[str, Tensor] = {}
    for choose in _all_candidates(setting, domain):
        values = run(setting, domain, choose)
        for name, value in (("output", values.output), *values.gradients.items()):
            lowest[name] = torch.minimum(lowest.get(name, value), value)
            highest[name] = torch.maximum(highest.get(name, value), value)
    claimed = [("output", bounds.output)] if "output" in setting.exact else []
    claimed += list(bounds.gradients.items()) if "gradient" in setting.exact else []
    for name, interval in claimed:
        gap = torch.maximum(lowest[name] - interval.lower.double(), interval.upper.double() - highest[name])
        assert float(gap.max()) <= slack(interval), f"{setting}: {name} is loose by {gap.max().item():.3g}"


def _all_candidates(setting: Setting, domain: Domain) -> Iterator[Choice]:
    """Every combination of corners, zeros and reachable labels; the same choice for all samples at once."""
    sampled = (*domain.leaves, domain.seed)
    values = (*sampled, *domain.parameters.values())
    counts = [_entries(value, shared=position >= len(sampled)) for position, value in enumerate(values)]
    choices = [_choices(value, leaf=position < len(domain.leaves)) for position, value in enumerate(values)]
    options = [range(choice) for choice, count in zip(choices, counts, strict=True) for _ in range(count)]
    total = math.prod(len(option) for option in options)
    assert total <= MOST_CANDIDATES, f"{setting} has {total} candidates; make it smaller"
    for picks in itertools.product(*options):
        yield _picked(values, counts, picks)


def _choices(value: Value, *, leaf: bool) -> int:
    """Both ends, and zero for a leaf; one where nothing moves."""
    moves = not isinstance(value, Interval) or bool((value.lower < value.upper).any())
    return (3 if leaf else 2) if moves else 1


def _entries(value: Value, *, shared: bool) -> int:
    tensor = value.lower if isinstance(value, Interval) else value.index if isinstance(value, ClassLabels) else None
    if tensor is None:
        return 0
    return tensor.numel() if shared else tensor[0].numel()


def _picked(values: tuple[Value, ...], counts: list[int], picks: tuple[int, ...]) -> Choice:
    """Hand out the picks in the order in which `run` asks: by identity of the value."""
    shares: dict[int, Tensor] = {}
    start = 0
    for value, count in zip(values, counts, strict=True):
        shares[id(value)] = torch.tensor(picks[start : start + count], dtype=torch.int64)
        start += count

    def choose(value: Value) -> Tensor:
        if isinstance(value, Tensor):
            return value
        pick = shares[id(value)]
        if isinstance(value, ClassLabels):
            reachable = value.reachable(_classes(value))
            label = pick.reshape(value.index.shape[1:]).expand(value.index.shape)
            allowed = reachable.gather(-1, label[..., None])[..., 0]
            return torch.where(allowed, label, value.index)
        shape = value.shape if pick.numel() == value.lower.numel() else value.shape[1:]
        return torch.stack(_extremes(value)).gather(0, pick.reshape(shape).expand(value.shape)[None])[0]

    return choose


LAWS = (
    zero_width_equals_autograd,
    bounds_contain_sampled_points,
    wider_input_is_never_tighter,
)
"""Laws of every setting; `bounds_are_attained` holds where a setting claims it."""
