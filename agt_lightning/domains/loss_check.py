"""A comparison of a captured loss with the function that it was recognised as, at random outputs and targets."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from agt_lightning.capture import Call, Graph, reached
from agt_lightning.capture.graph import COUNTED_MEAN, SATURATING, UNDERFLOWING, map_references
from agt_lightning.domains.losses import HeadLoss, SoftmaxLoss
from agt_lightning.errors import UnsoundBoundError
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.rules.shape import CASTS, RESHAPES

_aten = torch.ops.aten

_SIZES = (0.5, 6.0)
"""Largest outputs that are tried: near zero, where losses look alike, and where exponentials do not yet cancel."""

_RELATIVE = 1e-9
"""Difference, relative to the largest element, of float64 sums of products that agree in real arithmetic."""


def require_same_function(bounded: BoundedObjective, output: str, loss: HeadLoss, target: str) -> None:
    """Compare value, gradient and products of the Hessian, in outputs and numeric targets together, in float64.

    Outputs and targets of all samples are random, so that terms between samples would be seen as well.

    Args:
        bounded: the captured loss.
        output: name of the head's outputs.
        loss: of one sample, as it was recognised.
        target: name of the value that holds its targets.

    Raises:
        UnsoundBoundError: if they differ, or the graph needs anything else.
    """
    evaluation = _Evaluation(bounded.program.graph, output, target)
    weight = bounded.sample_weight(evaluation.graph.shapes[output][0])
    generator = torch.Generator().manual_seed(0)
    for size in _SIZES:
        point = evaluation.point(size, loss, generator)
        directions = [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in point.variables]
        captured = _derivatives(point, evaluation.loss(point), directions)
        outputs, targets = point.values[output], evaluation.targets(point, loss)
        known = _derivatives(point, weight * loss.value(outputs, targets).sum(), directions)
        for name, own, other in zip(("value", "gradient", "second derivative"), captured, known, strict=True):
            if not _close(own, other):
                raise UnsoundBoundError(
                    f"Expected the loss that `training_step` computes to be the {type(loss).__name__} that it was "
                    f"recognised as, but they differ in their {name}. Write the loss by one call of torch, and report "
                    "this."
                )


class _Point:
    """Random outputs and targets.

    Args:
        values: by value name in the graph.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.values = values
        self.variables = [value for value in values.values() if value.requires_grad]


class _Evaluation:
    """The part of a graph between the head's outputs, the source of the targets, and the loss."""

    def __init__(self, graph: Graph, output: str, target: str) -> None:
        self.graph = graph
        self.output = output
        self.target = target
        self.producers = {call.name: call for call in graph.calls}
        self.source, self.classes = self._source(target)

    def _source(self, target: str) -> tuple[str, int | None]:
        """Return what a target is computed from by sums, products and changes of shape or type alone.

        It is varied instead of the target itself, which the loss can read in several copies. For class labels the
        number of classes is returned as well.
        """
        call = self.producers.get(target)
        while call is not None and call.inputs:
            if call.op is _aten.one_hot.default:
                return call.inputs[0], call.shape[-1]
            tensors = [name for name in call.inputs if name not in self.graph.constants]
            simple = call.op in (*RESHAPES, *CASTS)
            scaled = call.op in (_aten.mul.Tensor, _aten.add.Tensor, _aten.sub.Tensor, _aten.rsub.Scalar)
            if len(set(tensors)) != 1 or not (simple or scaled and call.dtype.is_floating_point):
                break
            target = tensors[0]
            call = self.producers.get(target)
        return target, None

    def point(self, size: float, loss: HeadLoss, generator: torch.Generator) -> _Point:
        """Draw outputs up to a size, and targets."""
        shapes = self.graph.shapes
        outputs = torch.empty(shapes[self.output], dtype=torch.float64).uniform_(-size, size, generator=generator)
        classes = shapes[self.output][1] if isinstance(loss, SoftmaxLoss) else self.classes
        call = self.producers.get(self.source)
        kind = self.graph.types[self.source] if call is None else call.dtype
        if classes is not None or not kind.is_floating_point:
            high = 2 if classes is None else classes
            source = torch.randint(0, high, shapes[self.source], generator=generator).to(kind)
        else:
            source = torch.rand(shapes[self.source], generator=generator, dtype=torch.float64).requires_grad_()
        return _Point({self.output: outputs.requires_grad_(), self.source: source})

    def loss(self, point: _Point) -> Tensor:
        """Return what the graph computes."""
        return self._values(point, self.graph.output)[self.graph.output]

    def targets(self, point: _Point, loss: HeadLoss) -> Tensor:
        """Return the targets at a point, in the shape in which torch takes them."""
        targets = self._values(point, self.target)[self.target]
        return targets if isinstance(loss, SoftmaxLoss) else targets.double().reshape(self.graph.shapes[self.output])

    def _values(self, point: _Point, wanted: str) -> dict[str, Tensor]:
        """Return all values that one is computed from, constants in float64."""
        needed = {wanted}
        for call in reversed(self.graph.calls):
            if call.name in needed and call.name not in point.values:
                needed.update(call.inputs)
        values = {name: _wide(value) for name, value in self.graph.constants.items()} | dict(point.values)
        moving = reached(self.graph, set(point.values))
        for call in self.graph.calls:
            if call.name in needed and call.name not in values:
                missing = [name for name in call.inputs if name not in values]
                if missing:
                    raise UnsoundBoundError(
                        f"Expected a loss of outputs and targets alone, but {call.source} reads `{missing[0]}`. Report "
                        "this."
                    )
                result = _run(call, values)
                values[call.name] = result if call.name in moving else result.detach()
        return values


def _run(call: Call, values: Mapping[str, Tensor]) -> Tensor:
    """Run a call in float64; casts between floating point types do nothing."""
    if call.op in CASTS:
        value = values[call.inputs[0]]
        return value.double() if call.dtype.is_floating_point else value.to(call.dtype)
    filled = {
        name: map_references(argument, lambda reference: values[reference.name])
        for name, argument in call.arguments.items()
        if name not in (SATURATING, UNDERFLOWING, COUNTED_MEAN)
    }
    if filled.get("dtype") is not None and call.dtype.is_floating_point:
        filled["dtype"] = torch.float64
    if filled.get("device") is not None:
        filled["device"] = torch.device("cpu")
    result: Tensor = call.op(**filled)
    return result


def _wide(value: Tensor) -> Tensor:
    return value.detach().cpu().double() if value.is_floating_point() else value.detach().cpu()


def _derivatives(point: _Point, value: Tensor, directions: list[Tensor]) -> tuple[list[Tensor], ...]:
    """Return the value, its gradient, and the Hessian times the directions; zeros where there is no dependence."""
    variables = point.variables
    first = torch.autograd.grad(value, variables, create_graph=True, allow_unused=True, materialize_grads=True)
    along = sum(((each * direction).sum() for each, direction in zip(first, directions, strict=True)), torch.zeros(()))
    second = torch.autograd.grad(along, variables, allow_unused=True, materialize_grads=True)
    return [value.detach()], [each.detach() for each in first], list(second)


def _close(own: list[Tensor], other: list[Tensor]) -> bool:
    """Return whether tensors agree up to rounding, relative to the largest element; NaN never does."""
    for mine, theirs in zip(own, other, strict=True):
        size = max(float(theirs.abs().max()), float(mine.abs().max()), 2.0**-100)
        if not float((mine - theirs).abs().max()) <= _RELATIVE * size:
            return False
    return True
