"""A trained network together with the bounds on its parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from agt_lightning.adversaries.base import check_order, check_size
from agt_lightning.adversaries.features import as_stored, perturbed
from agt_lightning.bounds import ParameterBounds
from agt_lightning.capture import Graph, reached
from agt_lightning.capture.replica import replica
from agt_lightning.certificates.decision import Decision, decide
from agt_lightning.certificates.goals import class_indices, is_single_logit, possible_classes
from agt_lightning.certificates.margins import last_linear, predicted_classes, single_logit_margins
from agt_lightning.certificates.predictions import Certification
from agt_lightning.certificates.probabilities import before_probabilities
from agt_lightning.certificates.recording import SUBJECT, forward_problems, outputs_of, record_forward
from agt_lightning.certificates.start import StartOfTraining
from agt_lightning.certificates.task import Task
from agt_lightning.certificates.values import BoundedValues, frozen_values
from agt_lightning.domains import DOMAINS, FlipCounter, ParameterSet
from agt_lightning.domains.head import Head, HeadBounds, unshaped
from agt_lightning.errors import BoundsMismatchError, UncertifiableError, require_one_of
from agt_lightning.interval import Interval
from agt_lightning.propagation import Method, Program, propagate_forward, require_method
from agt_lightning.propagation.evaluated import Prelude, cut
from agt_lightning.propagation.objective import ProgramCache, canonical_names, graph_inputs
from agt_lightning.propagation.precision import precision_problems
from agt_lightning.rounding import FLOATS, Floats
from agt_lightning.rules import RULES, RuleTable, Value
from agt_lightning.rules.values import as_interval


class CertifiedModel:
    """A trained network whose outputs are bounded for all parameters within bounds (Theorem 3.2).

    All methods evaluate the module in `eval` mode, in ``dtype``, and return results in the inputs' type, rounded
    outward. With ``epsilon > 0`` they hold for every input in a ball around ``x`` as well, the trigger set V(x) of a
    backdoor attack (equation 13).

    All bounds are for the adversary of the training, whose n counts samples of **each batch** unless it says otherwise.
    `certified_flips` counts samples of the **whole data set** in any case.

    Classes are those of the largest output. One output decides between class 0 and class 1 by its sign if it was
    trained as a logit, and by that of its logit if it is a sigmoid; for all others give ``threshold=``. A sigmoid or
    softmax at the end is stepped over, since it keeps the order of classes.

    Args:
        module: the trained module; `forward` is what is bounded.
        bounds: bounds on its parameters. Those of a training or a file name the weights they belong to, and no other
            weights are accepted, not even inside. Whoever makes bounds by hand claims that they belong to the module.
        method: how bounds are propagated, see `CertifiedTraining`.
        sets: other sets that contain the same parameters, by name of their domain, for tighter bounds on a head and for
            `certified_flips`; see `AbstractGradientEngine.parameter_sets`.
        excluded: reasons why the training went on without a domain, by its name, for messages.
        task: what the loss of the training compared with labels; None if that is unknown.
        start: the module before its first step; buffers and attributes that training changed since must not be read by
            `forward`. None if training wrote nothing but parameters.
        output: key, attribute or position of the outputs if `forward` returns several tensors.
        dtype: floating point type to compute in.
        rules: bound rules by overload.
        floats: ``"run"``: certificates are about the forward pass as hardware executes it in the module's own types, in
            any order of summation; ``"real"``: about real arithmetic. None means the level of the bounds, or
            ``"run"`` if it is not known.

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
        task: Task | None = None,
        start: StartOfTraining | None = None,
        output: str | int | None = None,
        dtype: torch.dtype = torch.float64,
        rules: RuleTable = RULES,
        floats: Floats | None = None,
    ) -> None:
        require_method(method)
        floats = floats or bounds.floats or "run"
        require_one_of("floats", floats, FLOATS)
        if floats != bounds.floats == "real":
            raise BoundsMismatchError(
                'Expected bounds on runs as hardware executes them for `floats="run"`, but these bounds are about runs '
                'in real arithmetic. Use `floats="real"`, or train with `floats="run"`.'
            )
        if bounds.running and method != "ibp":
            raise ValueError(
                f'Expected `method="ibp"` for bounds on running statistics of batch normalization, which have no '
                f"linear bounds yet, but got {method!r}."
            )
        bounds.require_weights(module)
        self.module = module
        self.bounds = bounds
        self.method: Method = method
        self.sets = dict(sets or {})
        self.excluded = dict(excluded or {})
        self.task = task
        self.start = start
        self.output = output
        self.dtype = dtype
        self.rules = rules
        self.floats: Floats = floats
        self._programs = ProgramCache(self._capture, self._kind)
        self._of_one_size: set[object] = set()  # kinds of inputs whose recordings are for batches of one size
        self._preludes: dict[int, Prelude] = {}  # what is evaluated as it is, by identity of the program

    def bound_forward(self, x: Tensor, epsilon: float = 0.0, p: float = math.inf) -> Interval:
        """Return bounds on ``module(x̃)`` for all parameters in bounds and every x̃ with ``‖x̃ - x‖_p <= epsilon``.

        Args:
            x: inputs, (batch, ...).
            epsilon: radius of the ball around each input, in the inputs' units.
            p: norm of the ball, 1, 2 or infinity.

        Returns:
            Interval of the outputs' shape.

        Raises:
            CaptureError: if `forward` cannot be recorded.
            UncertifiableError: if the network has an operation without a bound, `forward` returns several tensors and
                ``output`` names none, or `forward` reads what training wrote.
            ValueError: if ``epsilon`` or ``p`` is out of range, or ``epsilon`` is not 0 for integer inputs.
        """
        program = self._program(x)
        bounded = self._propagate(program, x, epsilon, p, program.graph.output)
        return bounded.outputs.to(dtype=self._result_type(x))

    def margins(self, x: Tensor, target: Tensor, epsilon: float = 0.0, *, threshold: float | None = None) -> Interval:
        """Return bounds on ``f_target - f_j`` for every class j; zero for the target itself.

        Differences are bounded through the last linear layer, whose input is the same for both outputs. That is
        tighter than subtracting the outputs' bounds.

        Args:
            x: inputs, (batch, ...).
            target: class of each sample, integers of shape (batch,); for one output also (batch, 1).
            epsilon: radius of the ℓ∞ ball around each input.
            threshold: as for `certify`; for one output only.

        Returns:
            Interval of shape (batch, classes), of differences of logits if `forward` ends in a sigmoid or softmax. For
            one output, classes are 0 and 1 and the margin is ± the logit, or ± the output less the threshold.

        Raises:
            TypeError: if ``target`` is not of an integer type, for several outputs.
            UncertifiableError: if the outputs do not decide between classes, see `certify`.
            ValueError: if ``target`` has another shape or holds no classes, or ``threshold`` is given for several
                outputs.
        """
        program = self._program(x)
        decision = self._decision(program, threshold)
        if decision.threshold is None:
            target = class_indices(Interval.point(self._nominal(program, x, decision.value)), target)
            bounded = self._propagate(program, x, epsilon, math.inf, decision.value, target)
            return bounded.margins(target).to(dtype=self._result_type(x))
        bounded = self._propagate(program, x, epsilon, math.inf, decision.value)
        if not is_single_logit(bounded.outputs):
            raise ValueError(
                "Expected no `threshold` for the margins of several outputs, which are differences between them. Use "
                "`certify(x, threshold=...)`, or `bound_forward(x)` less the threshold."
            )
        logits = decision.logits(bounded.outputs)
        return single_logit_margins(logits, class_indices(logits, target)).to(dtype=self._result_type(x))

    def certify(self, x: Tensor, epsilon: float = 0.0, *, threshold: float | None = None) -> Certification:
        """Return predictions, and whether any poisoned training could have changed them (equation 18, corrected).

        The correction, j ≠ i and a strict inequality, is docs/theory.md, eq. (9.1).

        Args:
            x: inputs, (batch, ...).
            epsilon: radius of the ℓ∞ ball around each input, for backdoors.
            threshold: outputs above it are class 1 and others class 0; at the threshold itself nothing is certified.
                With several outputs each decides for itself. None means the largest output or the sign of a logit.

        Raises:
            TypeError: if ``threshold`` is no number.
            UncertifiableError: if the outputs do not decide between classes: one output that was not trained as a
                logit, or several that were compared with real numbers or with labels of their own.
            ValueError: if ``epsilon`` is out of range, or not 0 for integer inputs, or ``threshold`` is not finite.
        """
        program = self._program(x)
        decision = self._decision(program, threshold)
        nominal = self._nominal(program, x, decision.value)
        if decision.threshold is not None:
            bounded = self._propagate(program, x, epsilon, math.inf, decision.value)
            return decision.certification(bounded.outputs, nominal, program.graph, self.floats)
        label = predicted_classes(nominal)
        bounded = self._propagate(program, x, epsilon, math.inf, decision.value, label)
        gap = decision.gap(program.graph, bounded.outputs, self.floats)
        beaten = bounded.margins(label).lower > gap
        possible = possible_classes(bounded.outputs, gap) & ~beaten
        label_is_possible = possible.gather(1, label[:, None]).squeeze(1)
        return Certification(label, label_is_possible & (possible.sum(dim=1) == 1), possible)

    def certified_flips(self, x: Tensor) -> Tensor:
        r"""Return the largest n such that no change of n labels **in the whole data set** alters the prediction; exact.

        The adversary gives n training samples another class each, which they keep in all epochs. Every n up to the
        returned one leaves the prediction as it is, and some choice of one label more changes it, up to rounding. This
        budget is not that of the training's adversary, whose n counts samples of **each batch** with fresh labels at
        every step and does not enter here. Its ``source_classes`` and ``target_classes`` enter if it flips labels, and
        so does ``poisonable``.

        A sample is what ``sample_ids`` give one name. Without them it is a distinct pair of features and target as the
        loss reads them. Samples of equal content then count as one; if they are not all in one step of every epoch, so
        that flips of some can do more than flips of all, this is refused. So are samples that the first epoch did not
        have, which random transforms make. ``certificate.json`` states the number of samples, and which of the two they
        are.

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
            raise UncertifiableError([self._why_no_flips()], "The number of flips")
        inputs = self._inputs(program, self._box(), x, 0.0, math.inf)
        features = as_interval(frozen_values(program, inputs, {name: head})[head.head.input])
        return head.certified_flips(features, self._gap_of_flips(program))

    def _gap_of_flips(self, program: Program) -> float:
        """Return by how much outputs of the head must differ so that those of `forward`, perhaps a log-softmax, do.

        What a log-softmax subtracts from all outputs of a sample is one number, so the spread of outputs that are no
        rivals does not count: the gap is that of equal outputs.
        """
        score, shape = before_probabilities(program.graph, program.graph.output), program.graph.shapes
        equal = Interval.point(torch.zeros(1, *shape[score][1:], dtype=torch.float64))
        return float(Decision(score, None).gap(program.graph, equal, self.floats).max())

    def deciding_domains(self, x: Tensor, epsilon: float = 0.0) -> dict[str, float]:
        """Return the share of the bounds on outputs that each domain decides by being the tightest, by its name.

        Args:
            x: inputs, (batch, ...).
            epsilon: radius of the ℓ∞ ball around each input.
        """
        program = self._program(x)
        return self._propagate(program, x, epsilon, math.inf, program.graph.output).domain_shares()

    def _program(self, x: Tensor) -> Program:
        """Return `forward` recorded for inputs like these, after checking what it reads.

        Raises:
            BoundsMismatchError: if the module has other parameters by now than those that the bounds belong to.
            UncertifiableError: if it reads a buffer that training changed, or depends on the size of the batch.
        """
        _require_samples(x)
        self.bounds.require_weights(self.module)
        program = self._programs(x)
        problems = self.start.buffer_problems(self.module, self._unbounded(program.graph)) if self.start else []
        problems = problems or self._recording_problems(program, x)
        if problems:
            raise UncertifiableError(problems, SUBJECT)
        return program

    def _recording_problems(self, program: Program, x: Tensor) -> list[str]:
        """Return a problem if the module computes other outputs for these inputs than the recording for two does."""
        try:
            outputs = outputs_of(self.module, x, self.output)
        except RuntimeError:  # the module itself has no outputs here, as for inputs of another type than its parameters
            return []
        points = {name: Interval.point(p.detach()).to(dtype=self.dtype) for name, p in self.module.named_parameters()}
        rounded = program.with_rounding(self.dtype, "run")
        values = propagate_forward(rounded, self._inputs(program, points, x, 0.0, math.inf))
        recorded = as_interval(values[program.graph.output])
        # A single sample can lose its axis to `.squeeze()`.
        if recorded.lower.numel() == outputs.numel() and recorded.contains(outputs.reshape(recorded.shape)):
            return []
        return [
            f"`forward` computes something else for these {len(x)} inputs than for two of them, by which it was "
            "recorded. Let it treat each sample alone, and not read the size of the batch."
        ]

    def _decision(self, program: Program, threshold: float | None) -> Decision:
        return decide(program.graph, self._names(program), self.task, threshold)

    def _propagate(
        self, program: Program, x: Tensor, epsilon: float, p: float, value: str, target: Tensor | None = None
    ) -> BoundedValues:
        """Bound all values; ``value`` is the name of those that count as outputs, ``target`` of margins to come."""
        check_size("epsilon", epsilon)
        check_order("p", p, {1, 2, math.inf})
        inputs = self._inputs(program, self._box(), x, epsilon, p)
        rounded = program.with_rounding(self.dtype, self.floats)
        return BoundedValues.of(rounded, inputs, value, self._heads(program), method=self.method, target=target)

    def _nominal(self, program: Program, x: Tensor, value: str) -> Tensor:
        """Return a value of the trained network."""
        points = {name: Interval.point(p.detach().to(self.dtype)) for name, p in self.module.named_parameters()}
        nominal = propagate_forward(program, self._inputs(program, points, x, 0.0, math.inf))
        return as_interval(nominal[value]).lower

    def _box(self) -> dict[str, Interval]:
        """Return the bounds on all parameters, and on buffers that training has moved, by name."""
        owned = (*self.module.named_parameters(), *self.module.named_buffers(remove_duplicate=False))
        owners = {name: each.device for name, each in owned}
        bounds = {**self.bounds, **self._running()}
        return {name: _marked(each.to(dtype=self.dtype, device=owners[name])) for name, each in bounds.items()}

    def _running(self) -> dict[str, Interval]:
        """Return the bounds on buffers that training has moved, by every name that these have in the module."""
        buffers = dict(self.module.named_buffers(remove_duplicate=False))
        bounds = {id(buffers[name]): each for name, each in self.bounds.running.items()}
        return {name: bounds[id(buffer)] for name, buffer in buffers.items() if id(buffer) in bounds}

    def _unbounded(self, graph: Graph) -> set[str]:
        """Return the names of the buffers that `forward` reads and that have no bounds."""
        return set(graph.buffers.values()) - self._running().keys()

    def _heads(self, program: Program) -> dict[str, HeadBounds]:
        """Return the bounds of other sets on the trained layers that this program ends in, by name of the domain."""
        names = self._names(program)
        bounds = {
            name: each.head_bounds(program.graph, names, self.module, self.dtype) for name, each in self.sets.items()
        }
        return {name: head for name, head in bounds.items() if head is not None}

    @staticmethod
    def _ends_in(program: Program, head: Head) -> bool:
        """Return whether the program's outputs predict as the head's do: nothing after them changes the class."""
        last = last_linear(program, program.graph.output)
        name = unshaped(program.graph, program.graph.output) if last is None else last.name
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
        values = graph_inputs(program.graph, self.module, self._names(program), parameters, self.dtype)
        values |= {leaf: self._leaf(x.detach(), epsilon, p) for leaf in program.graph.leaves}
        prelude = self._preludes.get(id(program))
        if prelude is None:
            return values
        if epsilon > 0:
            raise UncertifiableError(
                [
                    "Some operations before the first trained layer have no rules, so no ball of inputs can pass "
                    "through them. Set `epsilon=0`."
                ],
                SUBJECT,
            )
        given = prelude.values(self.module, [x.detach()], {})
        points = {name: tensor for name, tensor in given.items() if not tensor.is_floating_point()}
        return values | {name: points.get(name, self._leaf(tensor, 0.0, p)) for name, tensor in given.items()}

    def _names(self, program: Program) -> dict[str, str]:
        """Return the names of parameters in the module by value name."""
        canonical = canonical_names(self.module)
        return {value: canonical[target] for value, target in program.graph.parameters.items()}

    def _leaf(self, x: Tensor, epsilon: float, p: float) -> Value:
        if not x.is_floating_point():
            if epsilon > 0:
                raise ValueError(
                    f"Expected floating point inputs for `epsilon={epsilon}`, but got {x.dtype}, which no ball "
                    "perturbs. Cast them (`x.float()`) and let `forward` take that, or set `epsilon=0`."
                )
            return x
        wide = Interval.point(x).to(dtype=self.dtype)
        if epsilon == 0:
            return wide
        moved = perturbed(wide.lower, epsilon, p)
        if not wide.is_point:
            moved = moved.hull(perturbed(wide.upper, epsilon, p))
        return as_stored(moved, x.to(self.dtype), x.dtype)

    def _capture(self, x: Tensor) -> Program:
        """Record the forward pass for samples of this shape and type.

        Raises:
            CaptureError: if it cannot be recorded.
            UncertifiableError: if it has no bounds, or reads what training wrote.
        """
        # Two samples, since `.squeeze()` can remove the axis of a batch of one.
        example = x[:1].repeat(2, *[1] * (x.ndim - 1))
        graph = record_forward(replica(self.module), example, self.output)
        program = self._joined(graph)
        if cut(program, self._wide(graph)) is None:
            self._require_bounds(program, graph, example)
            return program
        self._of_one_size.add(self._kind(x))
        graph = record_forward(replica(self.module), x, self.output)
        program = self._joined(graph)
        front = cut(program, self._wide(graph))
        if front is not None:  # None for sizes at which a change of shape happens to change nothing
            rest, prelude = front
            program, graph = self._joined(rest), prelude.graph
            self._preludes[id(program)] = prelude
        self._require_bounds(program, graph, x)
        return program

    def _kind(self, x: Tensor) -> object:
        """Return all of inputs that a recording depends on: the size of a batch only if a part is run as it is."""
        kind = (tuple(x.shape[1:]), x.dtype)
        return (*kind, len(x)) if kind in self._of_one_size else kind

    def _wide(self, graph: Graph) -> set[str]:
        """Return the parameters that are no points, and the buffers with bounds, by value name."""
        names, running = canonical_names(self.module), self._running()
        wide = {value for value, name in graph.parameters.items() if not self.bounds[names[name]].is_point}
        return wide | {value for value, name in graph.buffers.items() if name in running}

    def _joined(self, graph: Graph) -> Program:
        sources = {*graph.leaves, *(name for name, counts_samples in graph.given.items() if counts_samples)}
        return Program.build(
            graph, self.rules, samples=reached(graph, sources), trainable=reached(graph, self._wide(graph))
        )

    def _require_bounds(self, program: Program, graph: Graph, example: Tensor) -> None:
        """Raise if `forward` has no bounds, or reads what training wrote.

        Args:
            program: its recording, or the rest of it.
            graph: the whole recording.
            example: the inputs that it was recorded for.

        Raises:
            UncertifiableError: with the reasons.
        """
        problems = forward_problems(program, len(example))
        problems += precision_problems(program.graph, self.dtype, example.device, self.floats)
        if self.start is not None:
            problems += self.start.problems(self.module, graph, example, self.output, bounded=self._running())
        if problems:
            raise UncertifiableError(problems, SUBJECT)

    def _result_type(self, x: Tensor) -> torch.dtype:
        if x.is_floating_point():
            return x.dtype
        return next((p.dtype for p in self.module.parameters()), torch.get_default_dtype())


def _marked(bounds: Interval) -> Interval:
    """Mark a parameter that cannot move as a point, so that features before the head are points too."""
    return Interval.point(bounds.lower) if torch.equal(bounds.lower, bounds.upper) else bounds


def _require_samples(x: object) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"Expected a tensor of inputs, but got {type(x).__name__}. Let `forward` take one tensor.")
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"Expected inputs of shape (batch, ...) with a sample or more, but got {tuple(x.shape)}.")
