"""The loss of one sample as a formula: few functions of the outputs, each weighted by a number and the target.

A loss is read from the captured graph back to the outputs f of the head. On the way are sums and means, changes of
shape, factors and products with the target; at the end are

    (f_k - y_k)²,   softplus(f_k) = log(1 + exp f_k),   lse(f) = log Σ_k exp f_k,   f_k

and the losses of torch, which are sums of these. All numbers are fractions, so that what cancels does so exactly.
Whatever is not listed here is refused: an operation that merely resembles a known one could void every certificate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod

import torch

from agt_lightning.capture import Call, Graph
from agt_lightning.capture.graph import SATURATING, UNDERFLOWING, Reference
from agt_lightning.capture.terms import LossTerm
from agt_lightning.capture.totals import OVER_ROOT_OF_MEAN, OVER_TOTAL
from agt_lightning.domains.head import HeadError
from agt_lightning.domains.losses import LogitLimit, exponential_limit, sigmoid_limit, softmax_limit, softplus_limit
from agt_lightning.rules.base import name_of
from agt_lightning.rules.shape import CASTS, RESHAPES

_aten = torch.ops.aten

ACCEPTED_FORMS = (
    "mse_loss or (f - y)**2, huber_loss, smooth_l1_loss, binary_cross_entropy_with_logits or the same by sigmoid and "
    "log, logsigmoid or softplus, cross_entropy with class labels, smoothed or not, or the same by log_softmax and "
    "one_hot"
)
"""What a loss can be made of, for messages."""

_RESIDUAL_LOSSES = frozenset({_aten.mse_loss.default, _aten.huber_loss.default, _aten.smooth_l1_loss.default})


@dataclass(frozen=True)
class Target:
    """What the elements of a target are: two with equal fields are equal in every run.

    Args:
        source: name of the value that they are copies of; of class labels if they are one-hot vectors.
        types: floating point types that round them on the way.
        classes: number of classes of one-hot vectors; None for numbers.
    """

    source: str
    types: tuple[torch.dtype, ...] = ()
    classes: int | None = None


@dataclass(frozen=True)
class Weight:
    """A factor ``constant + slope · y`` of each element.

    Args:
        constant: a number.
        slope: a number; zero if there is no target.
        target: y; None if the factor is the same for all elements.
    """

    constant: Fraction = Fraction(0)
    slope: Fraction = Fraction(0)
    target: Target | None = None

    def __add__(self, other: Weight) -> Weight:
        if self.target is not None and other.target is not None and self.target != other.target:
            raise HeadError("the loss has two targets")
        slope = self.slope + other.slope
        return Weight(self.constant + other.constant, slope, (self.target or other.target) if slope else None)

    def __rmul__(self, number: Fraction) -> Weight:
        return Weight(number * self.constant, number * self.slope, self.target if number else None)

    def __neg__(self) -> Weight:
        return Fraction(-1) * self

    def times(self, other: Weight) -> Weight | None:
        """Return the product; None if both depend on a target."""
        if self.target is None:
            return self.constant * other
        return other.constant * self if other.target is None else None

    def over_classes(self, count: int) -> Weight:
        """Return the sum over the classes; over numbers the slope stands for their sum."""
        if self.target is not None and self.target.classes == count:
            return Weight(count * self.constant + self.slope)
        return replace(self, constant=count * self.constant)


@dataclass(frozen=True)
class ResidualPart:
    """``coefficient · Σ_k h(f_k - y_k)`` for an even h.

    Args:
        coefficient: factor in front.
        target: name of the value y.
        factors: number of factors and means that a run multiplies it with, two roundings each.
        call: the loss of torch that has this h; None for the square.
    """

    coefficient: Fraction
    target: str
    factors: int
    call: Call | None = None


@dataclass(frozen=True)
class LogitPart:
    """``Σ_k softplus·softplus(f_k) + linear·f_k``, plus ``lse·lse(f)``, each with its weight.

    Args:
        softplus: weight of each softplus.
        lse: weight of lse(f); its slope stands for the sum of the target over the classes.
        linear: weight of each output.
        factors: number of factors, means and sums that a run computes its weight by, two roundings each.
        limits: sizes of outputs above which a run in floating point computes something else.
    """

    softplus: Weight = Weight()
    lse: Weight = Weight()
    linear: Weight = Weight()
    factors: int = 0
    limits: tuple[LogitLimit, ...] = ()


@dataclass(frozen=True)
class Formula:
    """A loss ``Σ_i w_i Σ (parts of sample i)``, for the weight ``w_i > 0`` of each sample in the objective.

    Args:
        output: name of the head's outputs, (b, K).
        outputs: K.
        residuals: parts that are functions of the residual.
        logits: all other parts.
        frozen: values that parts are multiplied with, and those that these are computed from, as weights.
    """

    output: str
    outputs: int
    residuals: tuple[ResidualPart, ...]
    logits: tuple[LogitPart, ...]
    frozen: Mapping[str, Weight]


def read_formula(graph: Graph, terms: Sequence[LossTerm], dependent: frozenset[str]) -> Formula:
    """Read the terms of a captured loss.

    Args:
        graph: the captured loss.
        terms: its summands; the first one has the weight that the objective gives samples.
        dependent: names of all values that depend on trained parameters.

    Raises:
        HeadError: if the loss is no such formula; the message names the call and the forms that are known.
    """
    reader = _Reader(graph, dependent)
    for term in terms:
        reader.visit(term.value, Weight(_relative(graph, term, terms[0])), 0)
    if len(reader.heads) != 1:
        raise HeadError(f"the loss reads the outputs of {len(reader.heads)} linear layers")
    (output,) = reader.heads
    return Formula(output, graph.shapes[output][1], tuple(reader.residuals), tuple(reader.logits), dict(reader.frozen))


def keeps_order(graph: Graph, call: Call) -> bool:
    """Return whether a call gives all elements in the same order, in another shape.

    Args:
        graph: the captured graph.
        call: one of its calls.
    """
    return call.op in RESHAPES or (
        call.op is _aten.select.int and prod(call.shape) == prod(graph.shapes[call.inputs[0]])
    )


def _relative(graph: Graph, term: LossTerm, first: LossTerm) -> Fraction:
    """Return the factor of each element of a term, in units of the weight of a sample that the first term implies."""
    if term.coefficient == 0:
        raise HeadError("the loss has a term with the factor zero; leave it out")
    ratio = Fraction(term.coefficient) / abs(Fraction(first.coefficient))
    batch = graph.shapes[first.value][0]
    per_element = Fraction(1, prod(graph.shapes[term.value])) if term.mean else Fraction(1)
    return ratio * per_element * (batch if first.mean else 1)


class _Reader:
    """A walk from the terms of a loss back to the outputs."""

    def __init__(self, graph: Graph, dependent: frozenset[str]) -> None:
        self.graph = graph
        self.dependent = dependent
        self.producers = {call.name: call for call in graph.calls}
        self.heads: set[str] = set()
        self.residuals: list[ResidualPart] = []
        self.logits: list[LogitPart] = []
        self.frozen: dict[str, Weight] = {}

    def visit(self, name: str, weight: Weight, factors: int) -> None:
        """Enter ``Σ (weight · elements of the value)``, behind a number of factors."""
        if name not in self.dependent:
            raise HeadError(f"{self._place(name)} adds something to the loss that does not depend on the outputs")
        if self._outputs(name) is not None:
            self.logits.append(LogitPart(linear=weight, factors=factors))
            return
        call = self.producers[name]
        summands = self._summands(call, weight, factors)
        for summand, scaled, more in summands or ():
            self.visit(summand, scaled, factors + more)
        if summands is None:
            self._enter(call, weight, factors)

    # --- linear calls ----------------------------------------------------------------------------------------------

    def _summands(self, call: Call, weight: Weight, factors: int) -> list[tuple[str, Weight, int]] | None:
        """Return values x with weights so that ``Σ weight · result = Σ_x Σ weight_x · x``, and the factors of each.

        None if the call is not linear in the only value, or the sum of the values, that depend on the outputs.
        """
        arguments, op = call.arguments, call.op
        if self._keeps_elements(call):
            return [(call.inputs[0], weight, 0)]
        if op is _aten.neg.default:
            return [(call.inputs[0], -weight, 0)]
        if op in (_aten.sum.dim_IntList, _aten.mean.dim):
            return self._reduced(call, weight)
        if op in (_aten.add.Tensor, _aten.sub.Tensor):
            return self._added(call, weight, factors)
        if op in (_aten.mul.Tensor, _aten.div.Tensor):
            scaled = self._scaled(call)
            if scaled is not None:
                return [(scaled[0], scaled[1] * weight, 1)]
        if op is _aten.mul.Tensor:
            left, right = arguments["self"], arguments["other"]
            for value, factor in ((left, right), (right, left)):
                if isinstance(value, Reference) and isinstance(factor, Reference) and factor.name not in self.dependent:
                    return [self._multiplied(call, value.name, factor.name, weight)]
        return None

    def _keeps_elements(self, call: Call) -> bool:
        """Return whether a call gives the same elements in the same order, none of them rounded."""
        return keeps_order(self.graph, call) or call.op in CASTS and not self.graph.narrows(call)

    def _reduced(self, call: Call, weight: Weight) -> list[tuple[str, Weight, int]]:
        before = self.graph.shapes[call.inputs[0]]
        dims = call.arguments["dim"]
        over_samples = not isinstance(dims, list) or not dims or any(int(dim) % len(before) == 0 for dim in dims)
        if over_samples or self._narrows(call):
            raise self._unknown(call)
        if weight.target is not None:
            raise HeadError(f"`{name_of(call)}` at {call.source} is multiplied by a weight of each sample")
        if call.op is _aten.sum.dim_IntList:
            return [(call.inputs[0], weight, 0)]
        return [(call.inputs[0], Fraction(prod(call.shape), prod(before)) * weight, 1)]

    def _narrows(self, call: Call) -> bool:
        """Return whether a call that can compute in another type rounds its input to it."""
        return call.arguments.get("dtype") is not None and self.graph.narrows(call)

    def _added(self, call: Call, weight: Weight, factors: int) -> list[tuple[str, Weight, int]]:
        sign = Fraction(1 if call.op is _aten.add.Tensor else -1) * _fraction(call, call.arguments["alpha"])
        summands: list[tuple[str, Weight, int]] = []
        for argument, factor in ((call.arguments["self"], Fraction(1)), (call.arguments["other"], sign)):
            if not isinstance(argument, Reference):
                raise self._unknown(call)
            if self.graph.shapes[argument.name] == call.shape:
                summands.append((argument.name, factor * weight, int(abs(factor) != 1)))
            elif not self._enter_row(call, argument.name, factor * weight, factors):
                raise HeadError(
                    f"`{name_of(call)}` at {call.source} broadcasts shape {self.graph.shapes[argument.name]} to "
                    f"{call.shape}; give both values one shape"
                )
        return summands

    def _enter_row(self, call: Call, name: str, weight: Weight, factors: int) -> bool:
        """Enter lse(f) of shape (b, 1), read once for each class; return whether it is that."""
        shape = self.graph.shapes[name]
        others = [self.graph.shapes[other] for other in call.inputs if other != name]
        outputs = self._log_sum_exp(self.producers.get(name))
        if outputs is None or shape != (*call.shape[:1], 1) or others != [call.shape]:
            return False
        if call.shape != self.graph.shapes[outputs]:
            return False
        self.logits.append(
            LogitPart(lse=weight.over_classes(call.shape[1]), factors=factors + 1, limits=(exponential_limit,))
        )
        return True

    def _multiplied(self, call: Call, value: str, factor: str, weight: Weight) -> tuple[str, Weight, int]:
        """Return a value that is multiplied with a frozen one, element by element, as one summand."""
        shapes = self.graph.shapes
        if not shapes[value] == shapes[factor] == call.shape:
            raise HeadError(
                f"`{name_of(call)}` at {call.source} multiplies shapes {shapes[value]} and {shapes[factor]}; give both "
                "one shape"
            )
        multiplier, factors = self._weight_of(factor)
        product = weight.times(multiplier)
        if product is None:
            raise HeadError(f"`{name_of(call)}` at {call.source} multiplies the loss by two values of each sample")
        return value, product, factors + 1

    def _scaled(self, call: Call) -> tuple[str, Fraction] | None:
        """Return value and factor of a product with a number, or of a division by one; None if it is neither."""
        left, right = call.arguments["self"], call.arguments["other"]
        pairs = [(left, right)] if call.op is _aten.div.Tensor else [(left, right), (right, left)]
        for value, factor in pairs:
            number = self._number(call, factor)
            if not isinstance(value, Reference) or number is None or self.graph.shapes[value.name] != call.shape:
                continue
            if call.op is _aten.div.Tensor:
                if call.arguments.get("rounding_mode") is not None or number == 0:
                    raise self._unknown(call)
                number = 1 / number
            return value.name, number
        return None

    def _number(self, call: Call, argument: object) -> Fraction | None:
        """Return a number, also one that is recorded as a tensor of one element."""
        if isinstance(argument, Reference):
            constant = self.graph.constants.get(argument.name)
            return None if constant is None or constant.numel() != 1 else _fraction(call, constant.item())
        return _fraction(call, argument)

    # --- values that depend on no trained parameter ----------------------------------------------------------------

    def _weight_of(self, name: str) -> tuple[Weight, int]:
        """Return a frozen value as a weight, and the number of factors and sums in it."""
        self.frozen[name], factors = weight, _ = self._read_weight(name)
        return weight, factors

    def _read_weight(self, name: str) -> tuple[Weight, int]:
        call = self.producers.get(name)
        if call is not None and call.inputs and call.dtype.is_floating_point:
            read = self._affine(call)
            if read is not None:
                return read
        if call is not None and call.inputs and self._keeps_elements(call):
            return self._weight_of(call.inputs[0])
        return Weight(Fraction(0), Fraction(1), self._target(name)), 0

    def _affine(self, call: Call) -> tuple[Weight, int] | None:
        """Return the weight of a value that is computed from others by sums and numbers; None if it is not."""
        op, arguments = call.op, call.arguments
        if op in (_aten.neg.default, _aten.rsub.Scalar) and self.graph.shapes[call.inputs[0]] != call.shape:
            return None
        if op in (_aten.mul.Tensor, _aten.div.Tensor):
            scaled = self._scaled(call)
            if scaled is None:
                return None
            weight, factors = self._weight_of(scaled[0])
            return scaled[1] * weight, factors + 1
        if op is _aten.neg.default:
            weight, factors = self._weight_of(call.inputs[0])
            return -weight, factors
        if op is _aten.rsub.Scalar:
            weight, factors = self._weight_of(call.inputs[0])
            alpha = _fraction(call, arguments["alpha"])
            return Weight(_fraction(call, arguments["other"])) + -alpha * weight, factors + 1
        if op in (_aten.add.Tensor, _aten.sub.Tensor):
            return self._sum_of_weights(call)
        return None

    def _sum_of_weights(self, call: Call) -> tuple[Weight, int] | None:
        sign = Fraction(1 if call.op is _aten.add.Tensor else -1) * _fraction(call, call.arguments["alpha"])
        total, factors = Weight(), 1
        for argument, factor in ((call.arguments["self"], Fraction(1)), (call.arguments["other"], sign)):
            number = self._number(call, argument)
            if number is not None:
                weight, more = Weight(number), 0
            elif isinstance(argument, Reference) and self.graph.shapes[argument.name] == call.shape:
                weight, more = self._weight_of(argument.name)
            else:
                return None
            if total.target is not None and weight.target is not None and total.target != weight.target:
                return None
            total, factors = total + factor * weight, factors + more
        return total, factors

    def _target(self, name: str) -> Target:
        """Return what the elements of a frozen value are."""
        types: list[torch.dtype] = []
        call = self.producers.get(name)
        while call is not None and (self._keeps_elements(call) or call.op in CASTS and call.dtype.is_floating_point):
            if not self._keeps_elements(call):
                types.append(call.dtype)
            name = call.inputs[0]
            call = self.producers.get(name)
        if call is not None and call.op is _aten.one_hot.default:
            return Target(call.inputs[0], (), call.shape[-1])
        return Target(name, tuple(types))

    # --- functions of the outputs ----------------------------------------------------------------------------------

    def _enter(self, call: Call, weight: Weight, factors: int) -> None:
        """Enter a call that is not linear in the outputs."""
        op = call.op
        if op in (_aten.pow.Tensor_Scalar, _aten.square.default, _aten.mul.Tensor):
            self._enter_square(call, weight, factors)
        elif op in _RESIDUAL_LOSSES:
            self._enter_residual_loss(call, weight, factors)
        elif op is _aten.binary_cross_entropy_with_logits.default:
            self._enter_binary_cross_entropy(call, weight, factors)
        elif op is _aten.cross_entropy_loss.default:
            self._enter_cross_entropy(call, weight, factors)
        elif op is _aten.log_softmax.int:
            self._enter_log_softmax(call, weight, factors)
        elif op is _aten.log.default and self._log_sum_exp(call) is not None and weight.target is None:
            self.logits.append(LogitPart(lse=weight, factors=factors, limits=(exponential_limit,)))
        else:
            self._enter_log_probability(call, weight, factors)

    def _enter_square(self, call: Call, weight: Weight, factors: int) -> None:
        if weight.target is not None:
            raise HeadError(f"`{name_of(call)}` at {call.source} is weighted sample by sample")
        if call.op is _aten.pow.Tensor_Scalar and call.arguments["exponent"] != 2:
            raise self._unknown(call)
        sides = call.inputs if call.op is _aten.mul.Tensor else (call.inputs[0],) * 2
        if len(sides) != 2 or any(self.graph.shapes[name] != call.shape for name in sides):
            raise self._unknown(call)
        left, right = (self._residual(name) for name in sides)
        if left is None or right is None or left.target != right.target:
            raise self._unknown(call)
        coefficient = left.coefficient * right.coefficient * weight.constant
        self.residuals.append(ResidualPart(coefficient, left.target, factors + left.factors + right.factors))

    def _residual(self, name: str) -> ResidualPart | None:
        """Return ``s (f - y)``, computed by one difference, with s as coefficient; None if it is something else."""
        scale, factors = Fraction(1), 0
        call = self.producers.get(name)
        while call is not None:
            if self._keeps_elements(call):
                call = self.producers.get(call.inputs[0])
                continue
            if call.op is _aten.neg.default:
                scale, call = -scale, self.producers.get(call.inputs[0])
                continue
            scaled = self._scaled(call) if call.op in (_aten.mul.Tensor, _aten.div.Tensor) else None
            if scaled is None:
                break
            scale, factors, call = scale * scaled[1], factors + 1, self.producers.get(scaled[0])
        if call is None or call.op not in (_aten.sub.Tensor, _aten.add.Tensor) or call.arguments["alpha"] != 1:
            return None
        difference = self._difference(call)
        return None if difference is None else ResidualPart(scale * difference[0], difference[1], factors)

    def _difference(self, call: Call) -> tuple[Fraction, str] | None:
        """Return the sign of f and the name of y for ``f - y`` or ``y - f``; None if it is something else."""
        left, right = call.arguments["self"], call.arguments["other"]
        if not isinstance(left, Reference) or not isinstance(right, Reference):
            return None
        if not self.graph.shapes[left.name] == self.graph.shapes[right.name] == call.shape:
            return None
        second = Fraction(1 if call.op is _aten.add.Tensor else -1)
        for outputs, target, sign, other in (
            (left.name, right.name, Fraction(1), second),
            (right.name, left.name, second, Fraction(1)),
        ):
            if outputs in self.dependent and target not in self.dependent:
                own = self._sign_of_outputs(outputs)
                if own is not None and own * sign == -other:
                    return -other, target
        return None

    def _enter_residual_loss(self, call: Call, weight: Weight, factors: int) -> None:
        prediction, target = call.inputs[:2]
        self._require_same_elements(call, prediction, target)
        if weight.target is not None:
            raise HeadError(f"`{name_of(call)}` at {call.source} is weighted sample by sample")
        own = None if call.op is _aten.mse_loss.default else call
        self.residuals.append(ResidualPart(weight.constant, target, factors, own))

    def _enter_binary_cross_entropy(self, call: Call, weight: Weight, factors: int) -> None:
        _require_unweighted(call)
        logits, target = call.inputs[:2]
        self._require_same_elements(call, logits, target)
        multiplier, more = self._weight_of(target)
        pull = weight.times(multiplier)
        if pull is None or weight.target is not None:
            raise HeadError(f"`{name_of(call)}` at {call.source} is weighted sample by sample")
        limits = (sigmoid_limit,) if call.arguments.get(SATURATING) else ()
        self.logits.append(LogitPart(softplus=weight, linear=-pull, factors=factors + more, limits=limits))

    def _enter_cross_entropy(self, call: Call, weight: Weight, factors: int) -> None:
        _require_unweighted(call)
        logits, target = call.inputs[:2]
        classes = self.graph.shapes[self._require_outputs(logits)][1]
        if target in self.dependent:
            raise HeadError("the targets depend on trained parameters")
        if self.graph.shapes[logits] != (*call.shape[:1], classes) or len(self.graph.shapes[target]) != 1:
            raise HeadError(f"cross_entropy at {call.source} needs logits (batch, classes) and class labels (batch,)")
        if weight.target is not None:
            raise HeadError(f"`{name_of(call)}` at {call.source} is weighted sample by sample")
        smoothing = _fraction(call, call.arguments["label_smoothing"])
        label = Weight(smoothing / classes, 1 - smoothing, Target(target, (), classes))
        linear = -weight.constant * label
        self.logits.append(LogitPart(lse=weight, linear=linear, factors=factors, limits=_limits(call)))

    def _enter_log_softmax(self, call: Call, weight: Weight, factors: int) -> None:
        logits, dim = call.inputs[0], call.arguments["dim"]
        outputs = self._require_outputs(logits)
        if self.graph.shapes[logits] != self.graph.shapes[outputs] or not isinstance(dim, int) or dim % 2 != 1:
            raise HeadError(f"`{name_of(call)}` at {call.source} is not over the classes of shape (batch, classes)")
        if self._narrows(call):
            raise self._unknown(call)
        lse = -weight.over_classes(call.shape[1])
        self.logits.append(LogitPart(lse=lse, linear=weight, factors=factors, limits=_limits(call)))

    def _log_sum_exp(self, call: Call | None) -> str | None:
        """Return the name of the outputs f for ``log Σ_k exp f_k``, (b,) or (b, 1); None if it is something else."""
        total = self._producer_of_input(call, _aten.log.default)
        exponential = self._producer_of_input(total, _aten.sum.dim_IntList)
        if call is None or total is None or exponential is None or exponential.op is not _aten.exp.default:
            return None
        logits = exponential.inputs[0]
        outputs = self._outputs(logits)
        dims = total.arguments["dim"]
        over_classes = isinstance(dims, list) and [int(dim) % 2 for dim in dims] == [1]
        if outputs is None or not over_classes or self._narrows(total):
            return None
        return outputs if self.graph.shapes[logits] == self.graph.shapes[outputs] else None

    def _enter_log_probability(self, call: Call, weight: Weight, factors: int) -> None:
        """Enter ``log σ(± f)`` or ``softplus(± f)``: with ``log σ(f) = f - softplus(f)``, ``log σ(-f) = -softplus``."""
        read = self._log_probability(call)
        if read is None:
            raise self._unknown(call)
        sign, positive, limits = read  # softplus(z) = -log σ(-z)
        own = -weight if positive else weight
        toward_one = sign > 0 and not positive or sign < 0 and positive
        linear = own if toward_one else Weight()
        self.logits.append(LogitPart(softplus=-own, linear=linear, factors=factors, limits=limits))

    def _log_probability(self, call: Call) -> tuple[Fraction, bool, tuple[LogitLimit, ...]] | None:
        """Return the sign of f, whether it is a softplus, and limits; None if it is something else."""
        if call.op is _aten.log_sigmoid.default:
            own = self._sign_of_outputs(call.inputs[0])
            return None if own is None else (own, False, ())
        if call.op is _aten.softplus.default:
            own = self._sign_of_outputs(call.inputs[0])
            usual = call.arguments["beta"] == 1 and call.arguments["threshold"] == 20
            return None if own is None or not usual else (own, True, (softplus_limit,))
        if call.op is not _aten.log.default:
            return None
        probability = self.producers.get(call.inputs[0])
        own = self._probability(probability)
        if own is not None:
            return own, False, (exponential_limit,)
        if probability is None or probability.op is not _aten.rsub.Scalar:
            return None
        if probability.arguments["other"] != 1 or probability.arguments["alpha"] != 1:
            return None
        own = self._probability(self.producers.get(probability.inputs[0]))
        return None if own is None else (-own, False, (sigmoid_limit,))

    def _probability(self, call: Call | None) -> Fraction | None:
        """Return the sign of f for ``σ(± f)``; None if it is something else."""
        while call is not None and self._keeps_elements(call):
            call = self.producers.get(call.inputs[0])
        if call is None or call.op is not _aten.sigmoid.default:
            return None
        return self._sign_of_outputs(call.inputs[0])

    # --- the outputs -----------------------------------------------------------------------------------------------

    def _outputs(self, name: str) -> str | None:
        """Return the result of a linear layer that a value is a reshaped copy of; None if it is something else."""
        call = self.producers.get(name)
        while call is not None and self._keeps_elements(call):
            name = call.inputs[0]
            call = self.producers.get(name)
        if call is None or call.op is not _aten.linear.default or len(call.shape) != 2 or name not in self.dependent:
            return None
        self.heads.add(name)
        return name

    def _sign_of_outputs(self, name: str) -> Fraction | None:
        """Return the sign for ``± f``; None if it is something else."""
        sign = Fraction(1)
        call = self.producers.get(name)
        while call is not None and (call.op is _aten.neg.default or self._keeps_elements(call)):
            sign = -sign if call.op is _aten.neg.default else sign
            name = call.inputs[0]
            call = self.producers.get(name)
        return None if self._outputs(name) is None else sign

    def _require_outputs(self, name: str) -> str:
        outputs = self._outputs(name)
        if outputs is None:
            raise HeadError(
                f"{self._place(name)} is trained or stands between trained layers, where only linear layers and ReLU "
                "may be"
            )
        return outputs

    def _require_same_elements(self, call: Call, prediction: str, target: str) -> None:
        """Raise unless a loss reads each output of the head once, with a target of its own."""
        self._require_outputs(prediction)
        if target in self.dependent:
            raise HeadError("the targets depend on trained parameters")
        shapes = self.graph.shapes
        if shapes[prediction] != shapes[target]:
            raise HeadError(
                f"`{name_of(call)}` at {call.source} reads predictions {shapes[prediction]} and targets "
                f"{shapes[target]}; give both one shape"
            )

    def _producer_of_input(self, call: Call | None, op: object) -> Call | None:
        """Return what computes the input of a call of ``op``; None if it is another call."""
        return self.producers.get(call.inputs[0]) if call is not None and call.op is op else None

    def _place(self, name: str) -> str:
        call = self.producers.get(name)
        return f"`{name}`" if call is None else f"`{name_of(call)}` at {call.source}"

    def _unknown(self, call: Call) -> HeadError:
        if call.op in (OVER_ROOT_OF_MEAN, OVER_TOTAL):
            return HeadError(
                f"the loss at {call.source} is divided by a number of the whole batch: a root of its mean, or the sum "
                "of its class weights; leave out the root, or the weights"
            )
        return HeadError(
            f"`{name_of(call)}` at {call.source} makes the loss no known function of outputs and target. Known are "
            f"{ACCEPTED_FORMS}, averaged or summed, also times a number"
        )


def _limits(call: Call) -> tuple[LogitLimit, ...]:
    return (softmax_limit,) if call.arguments.get(UNDERFLOWING) else ()


def _require_unweighted(call: Call) -> None:
    if any(call.arguments.get(name) is not None for name in ("weight", "pos_weight")):
        raise HeadError(f"`{name_of(call)}` at {call.source} has weights; leave them out")


def _fraction(call: Call, argument: object) -> Fraction:
    """Return a number exactly."""
    if not isinstance(argument, int | float) or isinstance(argument, bool) or argument in (float("inf"), -float("inf")):
        raise HeadError(f"`{name_of(call)}` at {call.source} reads {argument!r}, which is no finite number")
    if argument != argument:
        raise HeadError(f"`{name_of(call)}` at {call.source} reads NaN")
    return Fraction(argument)
