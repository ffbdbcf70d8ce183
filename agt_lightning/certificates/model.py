"""A trained network together with the bounds on its parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from agt_lightning.adversaries.base import check_order, check_size
from agt_lightning.adversaries.features import perturbed
from agt_lightning.arithmetic import matmul
from agt_lightning.bounds import ParameterBounds
from agt_lightning.capture import Call, Graph, capture, reached
from agt_lightning.capture.replica import replica
from agt_lightning.certificates.objectives import is_single_logit, possible_classes
from agt_lightning.certificates.predictions import Certification
from agt_lightning.errors import BoundsMismatchError, UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.propagation import Program, propagate_forward
from agt_lightning.rules import RULES, RuleTable, Value
from agt_lightning.rules.base import interval

_aten = torch.ops.aten

_KEEP_DIFFERENCES = frozenset({_aten.log_softmax.int, _aten._to_copy.default, _aten.to.dtype, _aten.dropout.default})
"""Calls after which two outputs of a sample differ by as much as before."""


class CertifiedModel:
    """Bounds on the outputs of ``module`` for every parameter in ``bounds`` (Theorem 3.2).

    All methods evaluate the module in `eval` mode, in double precision, and return results in the inputs' type, rounded
    outward. With ``epsilon > 0`` they hold for every input in a ball around ``x`` as well, the trigger set V(x) of a
    backdoor attack (equation 13).

    Args:
        module: the trained module; `forward` is what is bounded.
        bounds: bounds on its parameters, which contain them.
        method: how bounds are propagated; ``"ibp"``.
        dtype: floating point type to compute in.
        rules: bound rules by overload.

    Raises:
        ValueError: if the method is unknown.
        BoundsMismatchError: if bounds and module do not belong together.

    Example:
        >>> module = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> model = CertifiedModel(module, ParameterBounds.point(module))
        >>> bool(model.certify(torch.randn(5, 2)).certified.all())
        True
    """

    def __init__(
        self,
        module: nn.Module,
        bounds: ParameterBounds,
        method: str = "ibp",
        *,
        dtype: torch.dtype = torch.float64,
        rules: RuleTable = RULES,
    ) -> None:
        if method != "ibp":
            raise ValueError(f"Expected `method` to be 'ibp', but got {method!r}.")
        outside = bounds.violations(module)
        if outside:
            raise BoundsMismatchError(
                f"Expected the parameters of `module` inside their bounds, but {outside} lie outside. These are the "
                "bounds of another run, or the module was changed after training."
            )
        self.module = module
        self.bounds = bounds
        self.method = method
        self.dtype = dtype
        self.rules = rules
        self._programs: dict[object, Program] = {}

    def bound_forward(self, x: Tensor, epsilon: float = 0.0, p: float = math.inf) -> Interval:
        """Bounds on ``module(x̃)`` for every reachable parameter and every x̃ with ``‖x̃ - x‖_p <= epsilon``.

        Args:
            x: inputs, (batch, ...).
            epsilon: radius of the ball around each input.
            p: norm of the ball, 1, 2 or infinity.

        Returns:
            Interval of the outputs' shape.

        Raises:
            UncertifiableError: if the network has an operation without a bound.
        """
        _, values, program = self._propagate(x, epsilon, p)
        return interval(values[program.graph.output]).to(dtype=self._result_type(x))

    def margins(self, x: Tensor, target: Tensor, epsilon: float = 0.0) -> Interval:
        """Bounds on ``f_target - f_j`` for every class j; zero for the target itself.

        Differences are bounded through the last linear layer, whose input is the same for both outputs. That is
        tighter than subtracting the outputs' bounds.

        Args:
            x: inputs, (batch, ...).
            target: class of each sample, integers of shape (batch,).
            epsilon: radius of the ℓ∞ ball around each input.

        Returns:
            Interval of shape (batch, classes); for one logit, classes are 0 and 1 and the margin is ± the logit.
        """
        _, values, program = self._propagate(x, epsilon, math.inf)
        margins = output_margins(program, values, program.graph.output, target)
        return margins.to(dtype=self._result_type(x))

    def certify(self, x: Tensor, epsilon: float = 0.0) -> Certification:
        """Predictions, and whether any poisoned training could have changed them (equation 18 with j ≠ i, strict).

        Args:
            x: inputs, (batch, ...).
            epsilon: radius of the ℓ∞ ball around each input, for backdoors.
        """
        inputs, values, program = self._propagate(x, epsilon, math.inf)
        points = {name: Interval.point(p.detach().to(self.dtype)) for name, p in self.module.named_parameters()}
        nominal = self._forward(program, inputs | self._inputs(program, points, x, 0.0, math.inf))
        label = predicted_classes(interval(nominal[program.graph.output]).lower)
        outputs = interval(values[program.graph.output])
        beaten = output_margins(program, values, program.graph.output, label).lower > 0
        possible = possible_classes(outputs) & ~beaten
        own = possible.gather(1, label[:, None]).squeeze(1)
        return Certification(label, own & (possible.sum(dim=1) == 1), possible)

    def _propagate(self, x: Tensor, epsilon: float, p: float) -> tuple[dict[str, Value], dict[str, Value], Program]:
        check_size("epsilon", epsilon)
        check_order("p", p, {1, 2, math.inf})
        program = self._program(x)
        box = {name: bounds.to(dtype=self.dtype) for name, bounds in self.bounds.items()}
        inputs = self._inputs(program, box, x, epsilon, p)
        return inputs, self._forward(program, inputs), program

    def _forward(self, program: Program, inputs: Mapping[str, Value]) -> dict[str, Value]:
        return propagate_forward(program, inputs)

    def _inputs(
        self, program: Program, parameters: Mapping[str, Interval], x: Tensor, epsilon: float, p: float
    ) -> dict[str, Value]:
        graph = program.graph
        buffers = dict(self.module.named_buffers(remove_duplicate=False))
        first = {id(parameter): name for name, parameter in self.module.named_parameters()}
        names = {name: first[id(p)] for name, p in self.module.named_parameters(remove_duplicate=False)}
        values: dict[str, Value] = {value: parameters[names[target]] for value, target in graph.parameters.items()}
        fixed = {value: buffers[target] for value, target in graph.buffers.items()} | dict(graph.constants)
        for value, tensor in fixed.items():
            values[value] = Interval.point(tensor.to(self.dtype)) if tensor.is_floating_point() else tensor
        for leaf in graph.leaves:
            values[leaf] = self._ball(x.detach(), epsilon, p)
        return values

    def _ball(self, x: Tensor, epsilon: float, p: float) -> Value:
        if not x.is_floating_point():
            return x
        wide = x.to(self.dtype)
        return Interval.point(wide) if epsilon == 0 else perturbed(wide, epsilon, p)

    def _program(self, x: Tensor) -> Program:
        """The captured forward pass, recorded once per shape of a sample."""
        key = (tuple(x.shape[1:]), x.dtype)
        if key not in self._programs:
            self._programs[key] = self._capture(x)
        return self._programs[key]

    def _capture(self, x: Tensor) -> Program:
        twin = replica(self.module).eval()
        # Two samples: a batch of one can lose its axis to `.squeeze()`.
        example = x[:1].repeat(2, *[1] * (x.ndim - 1))
        graph = capture(twin, lambda leaves: twin(leaves[0]), [example])
        wide = {name for name, bounds in self.bounds.items() if not bounds.is_point}
        program = Program.build(
            graph,
            self.rules,
            samples=reached(graph, set(graph.leaves)),
            trainable=reached(graph, {value for value, name in graph.parameters.items() if name in wide}),
        )
        problems = [*program.problems, *_missing_samples(graph)]
        if problems:
            raise UncertifiableError(problems)
        return program

    def _result_type(self, x: Tensor) -> torch.dtype:
        if x.is_floating_point():
            return x.dtype
        return next((p.dtype for p in self.module.parameters()), torch.get_default_dtype())


def _missing_samples(graph: Graph) -> list[str]:
    if graph.shapes[graph.output][:1] == (2,):
        return []
    return [f"`forward` returns shape {graph.shapes[graph.output]} for a batch of 2; the batch must be the first axis."]


def output_margins(program: Program, values: Mapping[str, Value], output: str, target: Tensor) -> Interval:
    """Bounds on ``f_target - f_j`` for the value named ``output``; zero for the target itself.

    Args:
        program: the program that computed ``values``.
        values: bounds of all its values.
        output: name of logits of shape (batch, classes), or of one logit per sample.
        target: class of each sample, integers of shape (batch,).
    """
    outputs = interval(values[output])
    if is_single_logit(outputs):
        return _single_logit_margins(outputs, target)
    if outputs.lower.ndim != 2:
        raise ValueError(f"Expected outputs of shape (batch, classes), but got {tuple(outputs.shape)}.")
    last = _last_linear(program, output)
    if last is None:
        rows = torch.arange(len(target), device=target.device)
        own = Interval.trusted(outputs.lower[rows, target][:, None], outputs.upper[rows, target][:, None])
        margins = own - outputs
    else:
        z, weight, *bias = (interval(values[name]) for name in last.inputs)
        margins = _linear_margins(z, weight, bias[0] if bias else None, target)
    own_class = torch.nn.functional.one_hot(target, outputs.shape[1]).bool()
    return Interval.trusted(margins.lower.masked_fill(own_class, 0), margins.upper.masked_fill(own_class, 0))


def predicted_classes(outputs: Tensor) -> Tensor:
    """Largest logit, or for one logit whether it is positive, integers of shape (batch,)."""
    if is_single_logit(Interval.point(outputs)):
        return (outputs.reshape(-1) > 0).long()
    return outputs.argmax(dim=1)


def _single_logit_margins(logit: Interval, target: Tensor) -> Interval:
    """Class 1 has the logit, class 0 has zero."""
    lower, upper = logit.lower.reshape(-1), logit.upper.reshape(-1)
    zero = torch.zeros_like(lower)
    for_one = Interval.trusted(torch.stack([lower, zero], dim=1), torch.stack([upper, zero], dim=1))
    for_zero = Interval.trusted(torch.stack([zero, -upper], dim=1), torch.stack([zero, -lower], dim=1))
    one = (target == 1)[:, None]
    return Interval.trusted(
        torch.where(one, for_one.lower, for_zero.lower), torch.where(one, for_one.upper, for_zero.upper)
    )


def _last_linear(program: Program, output: str) -> Call | None:
    """The linear layer that the outputs' differences come from, if nothing but a log-softmax follows it."""
    call = program.graph.producer(output)
    while call is not None and call.op in _KEEP_DIFFERENCES:
        if call.op is _aten.log_softmax.int and call.arguments["dim"] not in (1, -1):
            return None
        call = program.graph.producer(call.inputs[0])
    return call if call is not None and call.op is _aten.linear.default and len(call.shape) == 2 else None


def _linear_margins(z: Interval, weight: Interval, bias: Interval | None, target: Tensor) -> Interval:
    """``(W_t - W_j) z + β_t - β_j``; rows of W are independent, so the difference of their boxes is exact."""
    lower = z.lower.new_empty(len(target), weight.shape[0])
    upper = torch.empty_like(lower)
    for label in target.unique().tolist():
        rows = (target == label).nonzero().squeeze(1)
        margin = matmul(z[rows], _row_differences(weight, label))
        if bias is not None:
            margin = margin + _row_differences(bias, label)
        lower[rows], upper[rows] = margin.lower, margin.upper
    return Interval.trusted(lower, upper)


def _row_differences(rows: Interval, label: int) -> Interval:
    """Bounds on ``rows[label] - rows``."""
    own = Interval.trusted(rows.lower[label : label + 1], rows.upper[label : label + 1])
    if rows.is_point:
        return Interval.point(rows.lower[label : label + 1] - rows.lower)
    return own - rows
