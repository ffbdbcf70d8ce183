"""A recorded training of a head, and what changed labels could have made of its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from agt_lightning.adversaries import BoundedAdversary
from agt_lightning.capture import Graph
from agt_lightning.domains.head import Head, match_trained
from agt_lightning.domains.influence.bounds import margin_bounds, prediction_bounds
from agt_lightning.domains.influence.codes import ClassCodes
from agt_lightning.domains.influence.flips import MEMORY, certified_flips
from agt_lightning.domains.influence.label_sets import LabelSet
from agt_lightning.domains.influence.linear import query_chunks
from agt_lightning.domains.influence.replay import LabelInfluence
from agt_lightning.domains.influence.threat import flips_of_classes, reachable_labels
from agt_lightning.errors import UnsoundBoundError
from agt_lightning.interval import Interval
from agt_lightning.rounding import accumulated_roundoff


@dataclass(frozen=True, eq=False)
class RecordedHead:
    """A trained linear layer with the record of its training and the adversary of that training.

    Two budgets live here. `outputs`, `margins` and `parameters` are for the ``adversary``: n samples of **each batch**,
    others in each step if it likes. `certified_flips` counts samples of the **whole data set**, each with one new label
    for all epochs; the adversary's n has no part in it.

    The replay computes the outputs of training in float64. How far the module's own outputs are from them is measured
    at every use, must be explained by rounding in the module's type, and widens every bound.

    Args:
        influence: the record.
        adversary: the threat model of the training.
        weight: name of the layer's weight.
        bias: name of its bias; None without one.
        codes: target of each class, (C, K); None where labels are numbers.
        dtype: type of the module's parameters.
    """

    influence: LabelInfluence
    adversary: BoundedAdversary
    weight: str
    bias: str | None
    codes: Tensor | None
    dtype: torch.dtype

    @cached_property
    def labels(self) -> LabelSet:
        """What the adversary can write."""
        return reachable_labels(self.adversary, self.influence.targets, self.codes)

    def outputs(self, head: Tensor, queries: Tensor) -> Interval:
        """Bounds on the outputs, (Q, K), for n samples of each batch.

        Args:
            head: the layer of the module, (K, D) in float64.
            queries: features that enter it, (Q, d).

        Raises:
            UnsoundBoundError: if the record does not lead to this layer.
        """
        strayed = self._strayed(self.influence, head, queries)
        bounds = prediction_bounds(self.influence, queries, self.adversary.n, self.labels, budget="batch")
        return _widened(bounds, strayed[:, None])

    def margins(self, head: Tensor, queries: Tensor, target: Tensor) -> Interval:
        """Bounds on ``f_target - f_k``, (Q, K), for n samples of each batch; for several outputs.

        Args:
            head: the layer of the module, (K, D) in float64.
            queries: features that enter it, (Q, d).
            target: integers (Q,).

        Raises:
            UnsoundBoundError: if the record does not lead to this layer.
        """
        strayed = self._strayed(self.influence, head, queries)
        reading = ClassCodes.one_hot(len(head))  # the largest output, whatever the targets are
        n = self.adversary.n
        bounds = margin_bounds(self.influence, queries, target, n, self.labels, reading, budget="batch")
        others = torch.ones_like(bounds.lower).scatter(1, target[:, None], 0.0)
        return _widened(bounds, 2 * strayed[:, None] * others)

    def parameters(self, head: Tensor) -> Interval:
        """Bounds on the layer, (K, D), for n samples of each batch; exact for each entry alone.

        Raises:
            UnsoundBoundError: if the record does not lead to this layer.
        """
        model = self.influence.of_inputs()
        axes = torch.eye(head.shape[1], dtype=torch.float64)
        strayed = self._strayed(model, head, axes)
        bounds = prediction_bounds(model, axes, self.adversary.n, self.labels, budget="batch")
        widened = _widened(bounds, strayed[:, None])
        return Interval.trusted(widened.lower.T.contiguous(), widened.upper.T.contiguous())

    def certified_flips(self, head: Tensor, queries: Tensor) -> Tensor:
        """Largest number of labels of the whole data set whose change leaves the prediction as it is, (Q,).

        Args:
            head: the layer of the module, (K, D) in float64.
            queries: features that enter it, (Q, d).

        Raises:
            UncertifiableError: if flips have no meaning for these targets, or it is not known which samples are the
                same.
            UnsoundBoundError: if the record does not lead to this layer.
        """
        flips = flips_of_classes(self.adversary, self.influence.targets, self.codes)
        strayed = float(self._strayed(self.influence, head, queries).max()) if len(queries) else 0.0
        # Both outputs of a margin can be off.
        return certified_flips(self.influence, queries, flips, budget="dataset", tolerance=2 * strayed)

    def head_of(self, module: nn.Module) -> Tensor:
        """The layer as it is in the module, (K, D) in float64 on the CPU."""
        names = (self.weight,) if self.bias is None else (self.weight, self.bias)
        columns = [module.get_parameter(name).detach().double().cpu() for name in names]
        return torch.cat([column if column.ndim == 2 else column[:, None] for column in columns], dim=1)

    def on(self, graph: Graph, names: Mapping[str, str], module: nn.Module) -> HeadInfluence | None:
        """The record for the layer of a graph; None if the graph does not end in it.

        Args:
            graph: a captured graph of the module.
            names: names of parameters in the module by value name.
            module: owner of the parameters.
        """
        match = match_trained(graph, names, {self.weight} if self.bias is None else {self.weight, self.bias})
        if match is None:
            return None
        head, dependent = match
        if [layer.weight for layer in head.layers] != [self.weight] or head.layers[0].bias != self.bias:
            return None
        return HeadInfluence(head, self, self.head_of(module), dependent)

    def _strayed(self, model: LabelInfluence, head: Tensor, queries: Tensor) -> Tensor:
        """Distance between the module's outputs and those of the replay, the largest over outputs, (Q,)."""
        distances = [part for chunk in self._chunks(queries) for part in self._checked(model, head, chunk)]
        return torch.cat(distances) if distances else queries.new_zeros(0, dtype=torch.float64)

    def _checked(self, model: LabelInfluence, head: Tensor, queries: Tensor) -> Iterator[Tensor]:
        replayed = model.predict(queries)
        inputs = queries.double()
        own = torch.nn.functional.pad(inputs, (0, head.shape[1] - inputs.shape[1]), value=1.0) @ head.T
        distance = (own - replayed.outputs).abs().amax(dim=1)
        roundoff = accumulated_roundoff(model.operations, self.dtype) + model.roundoff
        allowed = MOST_STRAYED * replayed.slack(roundoff, self._largest_residual)
        excess = distance - allowed
        if not bool((excess <= 0).all()):  # NaN included
            worst = int(torch.nan_to_num(excess, nan=torch.inf).argmax())
            raise UnsoundBoundError(
                f"Expected the recorded training to end in the outputs of `{self.weight}` up to rounding, but output "
                f"of query {worst} is {float(distance[worst]):.3g} away, where {float(allowed[worst]):.3g} is allowed. "
                "Something besides the recorded steps changed the parameters, or a step was recorded wrongly. If "
                "steps are so large that rounding errors grow, use a smaller learning rate or float64; else report it."
            )
        yield distance

    def _chunks(self, queries: Tensor) -> tuple[Tensor, ...]:
        largest = max(len(step.rows) for step in self.influence.steps)
        return query_chunks(queries, 8 * (2 * largest + self.influence.initial.shape[1]), MEMORY)

    @cached_property
    def _largest_residual(self) -> float:
        """At least the magnitude of residuals along the training: a label, and the outputs before the first step."""
        initial, record = self.influence.initial, self.influence
        if not bool(initial.any()):
            return self.labels.largest
        inputs = [torch.nn.functional.pad(part.double(), (0, int(record.bias)), value=1.0) for part in _rows(record)]
        return self.labels.largest + max(float((part @ initial.T).abs().max()) for part in inputs)


MOST_STRAYED = 1.0
"""Largest distance between module and replay, in units of what rounding of both can add up to."""


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
        """Bounds on the result of the layer, by value name; none if the features are not known exactly.

        Args:
            inputs: features that enter the head, (b, d).
        """
        if not inputs.is_point:
            return {}
        bounds = self.recorded.outputs(self.matrix, inputs.lower.cpu())
        return {self.head.output: _moved(bounds, inputs)}

    def margins(self, inputs: Interval, target: Tensor) -> Interval:
        """Bounds on ``f_target - f_k``, (b, K), for features that are known exactly.

        Args:
            inputs: features that enter the head, (b, d).
            target: integers (b,).
        """
        return _moved(self.recorded.margins(self.matrix, inputs.lower.cpu(), target.cpu()), inputs)

    def certified_flips(self, inputs: Interval) -> Tensor:
        """Largest number of labels of the whole data set whose change leaves the prediction as it is, (b,).

        Args:
            inputs: features that enter the head, (b, d), known exactly.
        """
        return self.recorded.certified_flips(self.matrix, inputs.lower.cpu()).to(inputs.lower.device)


def _rows(record: LabelInfluence) -> tuple[Tensor, ...]:
    return query_chunks(record.features, 16 * record.initial.shape[1], MEMORY)


def _moved(bounds: Interval, like: Interval) -> Interval:
    return bounds.to(dtype=like.dtype, device=like.device)


def _widened(bounds: Interval, by: Tensor) -> Interval:
    return Interval.trusted(bounds.lower - by, bounds.upper + by)
