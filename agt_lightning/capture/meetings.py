"""Where batch entries meet parameters and predictions, and what that makes of each.

Follow an entry through the calls whose inputs depend on no parameter. A call that combines its value with one that
depends on parameters is a *meeting*. The entry enters the model there if the call, or any call on the result, reads a
parameter, trained or frozen: it is a *feature*. If nothing reads a parameter any more, the entry is compared with a
prediction, or weighs it: it *looks like a label*. An entry can do both, as in an autoencoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from agt_lightning.capture.graph import Call, Graph
from agt_lightning.capture.reached import reached

_aten = torch.ops.aten

_COMPARISONS = frozenset(
    {
        _aten.eq.Scalar,
        _aten.eq.Tensor,
        _aten.ne.Scalar,
        _aten.ne.Tensor,
    }
)
_LOOKUPS = frozenset(
    {
        _aten.cross_entropy_loss.default,
        _aten.embedding.default,
        _aten.gather.default,
        _aten.index.Tensor,
        _aten.index_select.default,
        _aten.nll_loss_nd.default,
        _aten.one_hot.default,
    }
)
_PRODUCTS = frozenset({_aten.mul.Tensor, _aten.div.Tensor})
_DIFFERENCES = frozenset({_aten.sub.Tensor})
_DISTANCES = frozenset({_aten.abs.default, _aten.pow.Tensor_Scalar, _aten.square.default})
_LOSSES = frozenset(
    {
        _aten.binary_cross_entropy_with_logits.default,
        _aten.cross_entropy_loss.default,
        _aten.huber_loss.default,
        _aten.l1_loss.default,
        _aten.mse_loss.default,
        _aten.smooth_l1_loss.default,
    }
)
_ELEMENTWISE = _PRODUCTS | {_aten.add.Tensor, _aten.sub.Tensor, _aten.neg.default, _aten.rsub.Scalar}
_LINEAR = _ELEMENTWISE | {
    _aten.expand.default,
    _aten.flatten.using_ints,
    _aten.mean.default,
    _aten.mean.dim,
    _aten.reshape.default,
    _aten.select.int,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.sum.default,
    _aten.sum.dim_IntList,
    _aten.to.dtype,
    _aten._to_copy.default,
    _aten.unsqueeze.default,
    _aten.view.default,
}


@dataclass(frozen=True)
class Meeting:
    """A call in which a leaf, possibly transformed, first meets a value that depends on parameters.

    Args:
        leaf: name of the leaf.
        feature: whether this call or a later one on its result reads a parameter.
        call: the call.
        prediction: name of the first value in the call that depends on parameters.
        target: name of the leaf's value in the call.
    """

    leaf: str
    feature: bool
    call: Call
    prediction: str
    target: str


class Meetings:
    """All meetings of a captured loss.

    Args:
        graph: the captured loss.
        leaves: names of the batch entries whose axis 0 counts samples.
        samples: names of values that depend on samples.
        reduced: names of values after the reduction over samples; what they read is the loss's, not the model's.
    """

    def __init__(self, graph: Graph, leaves: Iterable[str], samples: frozenset[str], reduced: frozenset[str]) -> None:
        self.graph = graph
        self.leaves = tuple(leaves)
        self.samples = samples
        self.reduced = reduced
        self.parameters = reached(graph, set(graph.parameters))
        self._later = self._read_parameters_later()
        self.meetings = self._found()

    # --- what an entry is ------------------------------------------------------------------------------------------

    @property
    def features(self) -> tuple[str, ...]:
        """The leaves that enter the model."""
        return tuple(leaf for leaf in self.leaves if any(m.leaf == leaf and m.feature for m in self.meetings))

    @property
    def comparisons(self) -> dict[str, Meeting]:
        """The first meeting of each leaf after which no parameter is read, for leaves that have one."""
        first: dict[str, Meeting] = {}
        for meeting in self.meetings:
            if not meeting.feature:
                first.setdefault(meeting.leaf, meeting)
        return first

    def scales_loss(self, leaf: str) -> bool:
        """Return whether the leaf multiplies terms of the loss, with nothing but linear calls afterwards."""
        return all(
            meeting.call.op in _PRODUCTS
            and all(call.op in _LINEAR for call in self.graph.calls if call.name in self._from(meeting.call.name))
            for meeting in self._comparisons_of(leaf)
        )

    def is_weight(self, leaf: str) -> bool:
        """Return whether the leaf scales terms of the loss in which predictions are compared with other entries."""
        compared = self.comparisons.keys() - {leaf}
        return self.scales_loss(leaf) and all(
            any(self._origins[name] & compared for name in meeting.call.inputs if name in self.parameters)
            for meeting in self._comparisons_of(leaf)
        )

    def is_target(self, leaf: str, masks: frozenset[str]) -> bool:
        """Return whether a loss function, or a square or absolute value of a difference, compares just this leaf.

        Args:
            leaf: name of the leaf.
            masks: leaves that may be combined with it.
        """
        return all(
            self._origins[meeting.target] - masks <= {leaf}
            and (meeting.call.op in _LOSSES or meeting.call.op in _DIFFERENCES and self._is_residual(meeting.call))
            for meeting in self._comparisons_of(leaf)
        )

    def other_targets(self, label: str) -> list[str]:
        """Return features that could be the label just as well as the only entry that looks like one.

        These are features that are compared with a prediction themselves, unless the label is compared with the result,
        as in residual learning; and those that meet a prediction after elementwise calls on parameters alone, such as
        ``y - self.offset``, or after any call if the label may be a weight.
        """
        weight = self.scales_loss(label)
        compared = [m for m in self.meetings if m.leaf in self.features and not m.feature]
        own = [meeting.call.name for meeting in self._comparisons_of(label)]
        found = [m.leaf for m in compared if weight or not self._all_after(own, m.call.name)]
        found += [
            leaf
            for call in self._joins_of_predictions
            for leaf in self._on_one_side(call)
            if leaf in self.features and (weight or self._has_elementwise_parameters_only(leaf, call))
        ]
        return list(dict.fromkeys(found))

    def is_read_as_number(self, leaf: str) -> bool:
        """Return whether values of a discrete leaf are used as quantities, not only as names of rows or classes."""
        discrete = {leaf}
        for call in self.graph.calls:
            if not discrete.intersection(call.inputs) or call.op in _LOOKUPS | _COMPARISONS:
                continue
            if call.dtype.is_floating_point or call.dtype == torch.bool:
                return True
            discrete.add(call.name)
        return False

    def is_compared_by_value(self, leaf: str) -> bool:
        """Return whether the leaf is tested for equality before it meets a prediction, which makes it a class."""
        own = reached(self.graph, {leaf}) - self.parameters
        return any(call.op in _COMPARISONS and call.name in own for call in self.graph.calls)

    def _comparisons_of(self, leaf: str) -> list[Meeting]:
        return [meeting for meeting in self.meetings if meeting.leaf == leaf and not meeting.feature]

    def _is_residual(self, call: Call) -> bool:
        users = self.graph.users(call.name)
        return bool(users) and all(user.op in _DISTANCES for user in users)

    # --- the graph -------------------------------------------------------------------------------------------------

    def _reads_parameter(self, call: Call) -> bool:
        return any(name in self.parameters and name not in self.samples for name in call.inputs)

    def _read_parameters_later(self) -> frozenset[str]:
        """Return the values from which a call is computed that reads a parameter, before samples are reduced."""
        later: set[str] = set()
        for call in reversed(self.graph.calls):
            if call.name not in self.reduced and (call.name in later or self._reads_parameter(call)):
                later.update(call.inputs)
        return frozenset(later)

    def _found(self) -> list[Meeting]:
        origins: dict[str, set[str]] = {leaf: {leaf} for leaf in self.leaves}
        meetings: list[Meeting] = []
        for call in self.graph.calls:
            if call.name not in self.parameters:
                origins[call.name] = set().union(*(origins.get(name, set()) for name in call.inputs))
                continue
            partners = [name for name in call.inputs if name in self.parameters]
            feature = self._reads_parameter(call) or call.name in self._later
            for name in call.inputs:
                own = sorted(origins.get(name, set())) if name not in self.parameters else []
                meetings += [Meeting(leaf, feature, call, partners[0], name) for leaf in own]
        return meetings

    def _from(self, name: str) -> frozenset[str]:
        """Return the values computed from a value, without itself."""
        return reached(self.graph, {name}) - {name}

    def _all_after(self, calls: Iterable[str], earlier: str) -> bool:
        after = reached(self.graph, {earlier})
        return all(call in after for call in calls)

    @cached_property
    def _origins(self) -> Mapping[str, frozenset[str]]:
        """The leaves that each value is computed from."""
        origins: dict[str, frozenset[str]] = {leaf: frozenset({leaf}) for leaf in self.leaves}
        for call in self.graph.calls:
            origins[call.name] = frozenset().union(*(origins.get(name, frozenset()) for name in call.inputs))
        return origins

    @cached_property
    def _joins_of_predictions(self) -> list[Call]:
        """The calls, with no parameter read later, that combine two values of the model."""
        return [
            call
            for call in self.graph.calls
            if call.name not in self.reduced
            and call.name not in self._later
            and not self._reads_parameter(call)
            and len(self._predictions(call)) > 1
        ]

    def _predictions(self, call: Call) -> list[str]:
        """Return the inputs of a call that depend on parameters and samples."""
        return list(dict.fromkeys(name for name in call.inputs if name in self.parameters & self.samples))

    def _on_one_side(self, call: Call) -> list[str]:
        """Return the leaves from which some, but not all values of the model in a call are computed."""
        sides = [self._origins.get(name, frozenset()) for name in self._predictions(call)]
        return sorted(frozenset().union(*sides) - frozenset.intersection(*sides))

    def _has_elementwise_parameters_only(self, leaf: str, end: Call) -> bool:
        """Return whether all calls from a leaf to ``end`` that read parameters are elementwise."""
        between = _between(self.graph, leaf, end.name)
        return all(call.op in _ELEMENTWISE for call in between if self._reads_parameter(call))


def _between(graph: Graph, start: str, end: str) -> list[Call]:
    """Return the calls on the paths from one value to another, the last one left out."""
    after, needed = reached(graph, {start}), {end}
    for call in reversed(graph.calls):
        if call.name in needed:
            needed.update(call.inputs)
    return [call for call in graph.calls if call.name in after & needed and call.name != end]
