"""A trained network together with the bounds on its parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from agt_lightning.adversaries.base import check_order, check_size
from agt_lightning.adversaries.features import perturbed
from agt_lightning.bounds import ParameterBounds
from agt_lightning.capture import Graph, capture, reached
from agt_lightning.capture.replica import replica
from agt_lightning.certificates.goals import possible_classes
from agt_lightning.certificates.margins import last_linear, predicted_classes
from agt_lightning.certificates.predictions import Certification
from agt_lightning.certificates.values import BoundedValues, frozen_values
from agt_lightning.domains import DOMAINS, FlipCounter, ParameterSet
from agt_lightning.domains.head import Head, HeadBounds, unshaped
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.propagation import Method, Program, propagate_forward, require_method
from agt_lightning.propagation.objective import ProgramCache, canonical_names, graph_inputs
from agt_lightning.rules import RULES, RuleTable, Value
from agt_lightning.rules.base import as_interval


class CertifiedModel:
    """A trained network whose outputs are bounded for all parameters within bounds (Theorem 3.2).

    All methods evaluate the module in `eval` mode, in ``dtype``, and return results in the inputs' type, rounded
    outward. With ``epsilon > 0`` they hold for every input in a ball around ``x`` as well, the trigger set V(x) of a
    backdoor attack (equation 13).

    All bounds are for the adversary of the training, whose n counts samples of **each batch**. `certified_flips` alone
    counts samples of the **whole data set**.

    Args:
        module: the trained module; `forward` is what is bounded.
        bounds: bounds on its parameters. Those of a training or a file name the weights they belong to, and no other
            weights are accepted, not even inside. Whoever makes bounds by hand claims that they belong to the module.
        method: how bounds are propagated, see `CertifiedTraining`.
        sets: other sets that contain the same parameters, by name of their domain, for tighter bounds on a head and for
            `certified_flips`; see `AbstractGradientEngine.parameter_sets`.
        excluded: reasons why the training went on without a domain, by its name, for messages.
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
        method: Method = "ibp",
        *,
        sets: Mapping[str, ParameterSet] | None = None,
        excluded: Mapping[str, str] | None = None,
        dtype: torch.dtype = torch.float64,
        rules: RuleTable = RULES,
    ) -> None:
        require_method(method)
        bounds.require_weights(module)
        self.module = module
        self.bounds = bounds
        self.method: Method = method
        self.sets = dict(sets or {})
        self.excluded = dict(excluded or {})
        self.dtype = dtype
        self.rules = rules
        self._program = ProgramCache(self._capture, lambda x: (tuple(x.shape[1:]), x.dtype))

    def bound_forward(self, x: Tensor, epsilon: float = 0.0, p: float = math.inf) -> Interval:
        """Return bounds on ``module(x̃)`` for all parameters in bounds and every x̃ with ``‖x̃ - x‖_p <= epsilon``.

        Args:
            x: inputs, (batch, ...).
            epsilon: radius of the ball around each input, in the inputs' units.
            p: norm of the ball, 1, 2 or infinity.

        Returns:
            Interval of the outputs' shape.

        Raises:
            UncertifiableError: if the network has an operation without a bound.
            ValueError: if ``epsilon`` or ``p`` is out of range.
        """
        return self._propagate(x, epsilon, p).outputs.to(dtype=self._result_type(x))

    def margins(self, x: Tensor, target: Tensor, epsilon: float = 0.0) -> Interval:
        """Return bounds on ``f_target - f_j`` for every class j; zero for the target itself.

        Differences are bounded through the last linear layer, whose input is the same for both outputs. That is
        tighter than subtracting the outputs' bounds.

        Args:
            x: inputs, (batch, ...).
            target: class of each sample, integers of shape (batch,).
            epsilon: radius of the ℓ∞ ball around each input.

        Returns:
            Interval of shape (batch, classes); for one logit, classes are 0 and 1 and the margin is ± the logit.
        """
        return self._propagate(x, epsilon, math.inf).margins(target).to(dtype=self._result_type(x))

    def certify(self, x: Tensor, epsilon: float = 0.0) -> Certification:
        """Return predictions, and whether any poisoned training could have changed them (equation 18, corrected).

        The correction, j ≠ i and a strict inequality, is docs/theory.md, eq. (9.1).

        Args:
            x: inputs, (batch, ...).
            epsilon: radius of the ℓ∞ ball around each input, for backdoors.
        """
        bounded = self._propagate(x, epsilon, math.inf)
        program = bounded.program
        points = {name: Interval.point(p.detach().to(self.dtype)) for name, p in self.module.named_parameters()}
        nominal = propagate_forward(program, self._inputs(program, points, x, 0.0, math.inf))
        label = predicted_classes(as_interval(nominal[program.graph.output]).lower)
        beaten = bounded.margins(label).lower > 0
        possible = possible_classes(bounded.outputs) & ~beaten
        label_is_possible = possible.gather(1, label[:, None]).squeeze(1)
        return Certification(label, label_is_possible & (possible.sum(dim=1) == 1), possible)

    def certified_flips(self, x: Tensor) -> Tensor:
        r"""Return the largest n such that no change of n labels **in the whole data set** alters the prediction; exact.

        The adversary gives n training samples another class each, which they keep in all epochs. Every n up to the
        returned one leaves the prediction as it is, and some choice of one label more changes it, up to rounding. This
        budget is not that of the training's adversary, whose n counts samples of **each batch** with fresh labels at
        every step and does not enter here. Its ``source_classes`` and ``target_classes`` enter if it flips labels, and
        so does ``poisonable``.

        Args:
            x: inputs, (batch, ...).

        Returns:
            Integers (batch,): 0 if one flip is enough to change the prediction; the number of poisonable samples if no
            number of flips is.

        Raises:
            UncertifiableError: if no domain that counts flips was in use, or it does not cover `forward`, if targets
                are no codes of classes, or if samples of several epochs cannot be identified.
            UnsoundBoundError: if a replay of the training does not lead to the module's parameters.

        Reference:
            docs/theory.md, eq. (11.5).
        """
        program = self._program(x)
        counters = {name: h for name, h in self._heads(program).items() if isinstance(h, FlipCounter)}
        name, head = next(iter(counters.items()), ("", None))
        if not isinstance(head, FlipCounter) or not self._ends_in(program, head.head):
            raise UncertifiableError([self._why_no_flips()])
        inputs = self._inputs(program, self._box(), x, 0.0, math.inf)
        return head.certified_flips(as_interval(frozen_values(program, inputs, {name: head})[head.head.input]))

    def deciding_domains(self, x: Tensor, epsilon: float = 0.0) -> dict[str, float]:
        """Return the share of the bounds on outputs that each domain decides by being the tightest, by its name.

        Args:
            x: inputs, (batch, ...).
            epsilon: radius of the ℓ∞ ball around each input.
        """
        return self._propagate(x, epsilon, math.inf).domain_shares()

    def _propagate(self, x: Tensor, epsilon: float, p: float) -> BoundedValues:
        check_size("epsilon", epsilon)
        check_order("p", p, {1, 2, math.inf})
        program = self._program(x)
        inputs = self._inputs(program, self._box(), x, epsilon, p)
        return BoundedValues.of(program, inputs, program.graph.output, self._heads(program), method=self.method)

    def _box(self) -> dict[str, Interval]:
        return {name: _marked(bounds.to(dtype=self.dtype)) for name, bounds in self.bounds.items()}

    def _heads(self, program: Program) -> dict[str, HeadBounds]:
        """Return the bounds of other sets on the trained layers that this program ends in, by name of the domain."""
        names = {value: self._canonical[target] for value, target in program.graph.parameters.items()}
        bounds = {
            name: each.head_bounds(program.graph, names, self.module, self.dtype) for name, each in self.sets.items()
        }
        return {name: head for name, head in bounds.items() if head is not None}

    @staticmethod
    def _ends_in(program: Program, head: Head) -> bool:
        """Return whether the program's outputs predict as the head's do: nothing after them changes the class."""
        last, producers = last_linear(program, program.graph.output), {c.name: c for c in program.graph.calls}
        name = unshaped(producers, program.graph.output) if last is None else last.name
        return name == head.output

    def _why_no_flips(self) -> str:
        counting = [name for name, kind in DOMAINS.items() if kind.counts_flips]
        if any(name in self.sets for name in counting):
            return "`certified_flips` needs a `forward` that ends in the trained linear layer. Return its outputs."
        reasons = " ".join(self.excluded.get(name, "It was not in use, or no step was made.") for name in counting)
        names = " or ".join(f"`{name}`" for name in counting)
        return f"`certified_flips` needs the domain {names}: {reasons} Use `domains='auto'`, or name it."

    def _inputs(
        self, program: Program, parameters: Mapping[str, Interval], x: Tensor, epsilon: float, p: float
    ) -> dict[str, Value]:
        names = {value: self._canonical[target] for value, target in program.graph.parameters.items()}
        values = graph_inputs(program.graph, self.module, names, parameters, self.dtype)
        return values | {leaf: self._leaf(x.detach(), epsilon, p) for leaf in program.graph.leaves}

    @property
    def _canonical(self) -> dict[str, str]:
        return canonical_names(self.module)

    def _leaf(self, x: Tensor, epsilon: float, p: float) -> Value:
        if not x.is_floating_point():
            return x
        wide = x.to(self.dtype)
        return Interval.point(wide) if epsilon == 0 else perturbed(wide, epsilon, p)

    def _capture(self, x: Tensor) -> Program:
        """Record the forward pass for samples of this shape and type."""
        module = replica(self.module).eval()
        # Two samples, since `.squeeze()` can remove the axis of a batch of one.
        example = x[:1].repeat(2, *[1] * (x.ndim - 1))
        graph = capture(module, lambda leaves: module(leaves[0]), [example])
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


def _marked(bounds: Interval) -> Interval:
    """Mark a parameter that cannot move as a point, so that features before the head are points too."""
    return Interval.point(bounds.lower) if torch.equal(bounds.lower, bounds.upper) else bounds


def _missing_samples(graph: Graph) -> list[str]:
    if graph.shapes[graph.output][:1] == (2,):
        return []
    return [f"`forward` returns shape {graph.shapes[graph.output]} for a batch of 2; the batch must be the first axis."]
