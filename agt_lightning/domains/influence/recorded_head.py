"""A recorded training of a head, and bounds on its outputs over the labels an adversary can write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from agt_lightning.adversaries import BoundedAdversary
from agt_lightning.adversaries.base import counts_dataset
from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.capture import Graph
from agt_lightning.domains.head import Head, match_trained
from agt_lightning.domains.influence.certified_flips import certified_flips
from agt_lightning.domains.influence.label_bounds import margin_bounds, prediction_bounds
from agt_lightning.domains.influence.label_sets import LabelSet, allowed_labels, class_flips
from agt_lightning.domains.influence.model import MEMORY, Budget, query_chunks
from agt_lightning.domains.influence.replay import LabelInfluence
from agt_lightning.domains.influence.target_encoding import TargetEncoding
from agt_lightning.errors import UnsoundBoundError
from agt_lightning.interval import Interval
from agt_lightning.rounding import Floats


@dataclass(frozen=True, eq=False)
class RecordedHead:
    """A trained linear layer with the record of its training and the adversary of that training.

    There are two budgets. `outputs`, `margins` and `parameters` are for the ``adversary``: n samples of **each batch**,
    which can be others in each step, or of the **whole data set**, each with one new label for all epochs, as its
    ``per`` says. `certified_flips` counts samples of the whole data set, and does not depend on the adversary's n.

    The replay computes the outputs of training in float64. Those of the module, which is a run in floating point, must
    lie within the rounding errors that are proved for runs in its type. Bounds on runs in real arithmetic are widened
    by their distance, so that they contain the module's outputs too.

    Args:
        influence: the record.
        adversary: the threat model of the training.
        weight: name of the layer's weight.
        bias: name of its bias; None if it has none.
        codewords: target of each class, (C, K); None if labels are numbers.
        dtype: type of the module's parameters.
        floats: which runs the bounds contain.

    Reference:
        docs/theory.md, section 11.
    """

    influence: LabelInfluence
    adversary: BoundedAdversary
    weight: str
    bias: str | None
    codewords: Tensor | None
    dtype: torch.dtype
    floats: Floats = "run"

    costly: ClassVar[bool] = True

    @property
    def budget(self) -> Budget:
        """What the adversary's n counts; of each batch, which contains n of the data set, if samples are unknown."""
        return "dataset" if counts_dataset(self.adversary) and self.influence.problem is None else "batch"

    @cached_property
    def labels(self) -> LabelSet:
        """The labels that the adversary can write."""
        return allowed_labels(self.adversary, self.influence.targets, self.codewords)

    def outputs(self, head: Tensor, queries: Tensor) -> Interval:
        """Bound the outputs, (Q, K), for the adversary's n samples.

        Args:
            head: the layer of the module, (K, D) in float64.
            queries: features that enter it, (Q, d).

        Raises:
            UnsoundBoundError: if the record does not lead to this layer.
        """
        deviation = self._deviation(self.influence, head, queries) + self._evaluated(queries)
        bounds = prediction_bounds(self.influence, queries, self.adversary.n, self.labels, budget=self.budget)
        return bounds.widened(deviation[:, None])

    def margins(self, head: Tensor, queries: Tensor, target: Tensor) -> Interval:
        """Bound ``f_target - f_k``, (Q, K), for the adversary's n samples; for several outputs.

        Args:
            head: the layer of the module, (K, D) in float64.
            queries: features that enter it, (Q, d).
            target: integers (Q,).

        Raises:
            UnsoundBoundError: if the record does not lead to this layer.
        """
        deviation = self._deviation(self.influence, head, queries) + self._evaluated(queries)
        argmax = TargetEncoding.one_hot(len(head))  # whatever the targets are
        n = self.adversary.n
        bounds = margin_bounds(self.influence, queries, target, n, self.labels, argmax, budget=self.budget)
        others = torch.ones_like(bounds.lower).scatter(1, target[:, None], 0.0)
        return bounds.widened(2 * deviation[:, None] * others)  # both outputs of a margin can deviate

    def parameters(self, head: Tensor) -> Interval:
        """Bound the entries of the layer, (K, D), for the adversary's n samples; exact for each entry alone.

        Args:
            head: the layer of the module, (K, D) in float64.

        Raises:
            UnsoundBoundError: if the record does not lead to this layer.
        """
        model = self.influence.of_inputs()
        axes = torch.eye(head.shape[1], dtype=torch.float64)
        deviation = self._deviation(model, head, axes)
        bounds = prediction_bounds(model, axes, self.adversary.n, self.labels, budget=self.budget)
        widened = bounds.widened(deviation[:, None])
        return Interval.trusted(widened.lower.T.contiguous(), widened.upper.T.contiguous())

    def certified_flips(self, head: Tensor, queries: Tensor, off: Tensor | None = None, gap: float = 0.0) -> Tensor:
        """Compute the largest number of labels of the whole data set whose change leaves the prediction as it is, (Q,).

        Args:
            head: the layer of the module, (K, D) in float64.
            queries: features that enter it, (Q, d).
            off: what the rounding of these features can change in an output, (Q,); None means nothing.
            gap: by how much two outputs must differ so that they decide.

        Raises:
            UncertifiableError: if flips have no meaning for these targets, or rows cannot be attributed to samples.
            UnsoundBoundError: if the record does not lead to this layer.
        """
        flips = class_flips(self.adversary, self.influence.targets, self.codewords)
        deviations = self._deviation(self.influence, head, queries) + self._evaluated(queries)
        deviations = deviations if off is None else deviations + off
        deviation = float(deviations.max()) if len(queries) else 0.0
        # Both outputs of a margin can deviate.
        return certified_flips(self.influence, queries, flips, budget="dataset", tolerance=2 * deviation + gap)

    def head_of(self, module: nn.Module) -> Tensor:
        """Return the layer as it is in the module, (K, D) in float64 on the CPU."""
        names = (self.weight,) if self.bias is None else (self.weight, self.bias)
        columns = [module.get_parameter(name).detach().double().cpu() for name in names]
        return torch.cat([column if column.ndim == 2 else column[:, None] for column in columns], dim=1)

    def head_bounds(
        self, graph: Graph, names: Mapping[str, str], module: nn.Module, dtype: torch.dtype
    ) -> HeadInfluence | None:
        """Return the record for the layer of a graph; None if the graph does not end in that layer.

        Args:
            graph: a captured graph of the module.
            names: names of parameters in the module by value name.
            module: owner of the parameters.
            dtype: has no effect; the replay computes in float64.
        """
        match = match_trained(graph, names, {self.weight} if self.bias is None else {self.weight, self.bias})
        if match is None:
            return None
        head, dependent = match
        if [layer.weight for layer in head.layers] != [self.weight] or head.layers[0].bias != self.bias:
            return None
        return HeadInfluence(head, self, self.head_of(module), dependent)

    def largest_output(self, norms: Tensor) -> Tensor:
        """Bound the outputs of every run for inputs of these norms, (Q,)."""
        head = self.influence.largest_head
        return (head.constant + head.per_label * self.labels.largest) * norms

    def _evaluated(self, queries: Tensor) -> Tensor:
        """Return the rounding of the forward pass of a run on these features, (Q,)."""
        run = self.dtype if self.floats == "run" else None
        columns = self.influence.initial.shape[1]
        norms = (queries.double().square().sum(dim=1) + 1).sqrt()
        return Arithmetic(run, torch.float64).relative(columns + 2) * self.largest_output(norms)

    def _deviation(self, model: LabelInfluence, head: Tensor, queries: Tensor) -> Tensor:
        """Return the distance between the module's outputs and those of the replay, the largest over outputs, (Q,).

        It is zero for bounds on float runs, of which the module is one.
        """
        distances = [self._chunk_deviation(model, head, chunk) for chunk in self._chunks(queries)]
        return torch.cat(distances) if distances else queries.new_zeros(0, dtype=torch.float64)

    def _chunk_deviation(self, model: LabelInfluence, head: Tensor, queries: Tensor) -> Tensor:
        replayed = model.predict(queries)
        inputs = queries.double()
        outputs = torch.nn.functional.pad(inputs, (0, head.shape[1] - inputs.shape[1]), value=1.0) @ head.T
        distance = (outputs - replayed.outputs).abs().amax(dim=1)
        in_floats = model if self.floats == "run" else replace(model, run=self.dtype)
        slack = replayed if self.floats == "run" else in_floats.predict(queries)
        own = Arithmetic(None, torch.float64).relative(head.shape[1]) * outputs.abs().amax(dim=1)
        allowed = slack.slack(self.labels.largest) + 4 * own
        excess = distance - allowed
        if not bool((excess <= 0).all()):  # NaN included
            worst = int(torch.nan_to_num(excess, nan=torch.inf).argmax())
            raise UnsoundBoundError(
                f"Expected the recorded training to end in the outputs of `{self.weight}` up to rounding, but output "
                f"of query {worst} is {float(distance[worst]):.3g} away, where {float(allowed[worst]):.3g} is allowed. "
                "Something besides the recorded steps changed the parameters, or a step was recorded wrongly. If "
                "steps are so large that rounding errors grow, use a smaller learning rate or float64; else report it."
            )
        return torch.zeros_like(distance) if self.floats == "run" else distance + 4 * own

    def _chunks(self, queries: Tensor) -> tuple[Tensor, ...]:
        largest = max(len(step.rows) for step in self.influence.steps)
        return query_chunks(queries, 8 * (2 * largest + self.influence.initial.shape[1]), MEMORY)


@dataclass(frozen=True, eq=False)
class HeadInfluence:
    """A recorded layer in one captured graph.

    Args:
        head: the layer, by the graph's names.
        recorded: the record of its training.
        matrix: the layer in the module, (K, D) in float64.
        dependent: names of all values of the graph that depend on it.
    """

    head: Head
    recorded: RecordedHead
    matrix: Tensor
    dependent: frozenset[str]

    def bound_values(self, inputs: Interval) -> dict[str, Interval]:
        """Bound the result of the layer, by value name.

        Args:
            inputs: features that enter the head, (b, d).
        """
        center, off = self._center(inputs)
        bounds = self.recorded.outputs(self.matrix, center).widened(off[:, None])
        return {self.head.output: bounds.to(dtype=inputs.dtype, device=inputs.device)}

    def margins(self, inputs: Interval, target: Tensor) -> Interval:
        """Bound ``f_target - f_k``, (b, K).

        Args:
            inputs: features that enter the head, (b, d).
            target: integers (b,).
        """
        center, off = self._center(inputs)
        bounds = self.recorded.margins(self.matrix, center, target.cpu())
        others = torch.ones_like(bounds.lower).scatter(1, target.cpu()[:, None], 0.0)
        return bounds.widened(2 * off[:, None] * others).to(dtype=inputs.dtype, device=inputs.device)

    def certified_flips(self, inputs: Interval, gap: float = 0.0) -> Tensor:
        """Compute the largest number of labels of the whole data set whose change leaves the prediction as it is, (b,).

        Args:
            inputs: features that enter the head, (b, d).
            gap: by how much two outputs must differ so that they decide.
        """
        center, off = self._center(inputs)
        flips = self.recorded.certified_flips(self.matrix, center, off, gap)
        return flips.to(inputs.lower.device)

    def _center(self, inputs: Interval) -> tuple[Tensor, Tensor]:
        """Return features, and what their distance from others within bounds can change in an output of any run."""
        center, radius = inputs.center.double().cpu(), euclidean_norm(inputs.radius.double().cpu(), dim=1)
        return center, self.recorded.largest_output(radius * (1 + 2.0**-20))
