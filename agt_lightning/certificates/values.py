"""Bounds on all values of a network, for parameters that lie in a box and, in its head, in other sets as well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.certificates.goals import class_indices, is_single_logit
from agt_lightning.certificates.margins import last_linear, output_margins, single_logit_margins, substituted_margins
from agt_lightning.domains.base import ReplayedBounds
from agt_lightning.domains.head import HeadBounds
from agt_lightning.interval import Interval
from agt_lightning.propagation import Method, Program, propagate_forward, refinement, substitution
from agt_lightning.rules import Value
from agt_lightning.rules.values import as_interval


@dataclass(frozen=True)
class BoundedValues:
    """Bounds on the values of a network on one batch, by all domains together.

    Args:
        program: the network.
        values: bounds on all its values, by name: those of the box, intersected with those of the other domains.
        output: name of the outputs among them.
        heads: bounds of other domains on the head, by name of the domain; only those that bound its layers here.
        head_values: bounds on the results of the head's layers by each of these domains alone, by name.
        method: how the box was propagated.
    """

    program: Program
    values: Mapping[str, Value]
    output: str
    heads: Mapping[str, HeadBounds]
    head_values: Mapping[str, Mapping[str, Interval]]
    method: Method = "ibp"

    @classmethod
    def of(
        cls,
        program: Program,
        inputs: Mapping[str, Value],
        output: str,
        heads: Mapping[str, HeadBounds],
        skip: frozenset[str] = frozenset(),
        method: Method = "ibp",
        target: Tensor | None = None,
    ) -> BoundedValues:
        """Propagate a box through the network, and intersect with the bounds of other domains at the head's layers.

        Args:
            program: the network.
            inputs: bounds on all inputs of its graph, parameters among them, by name.
            output: name of the outputs.
            heads: bounds of other domains on the head, by name of the domain.
            skip: names of values that are not needed.
            method: how bounds are propagated.
            target: class of each sample, integers of shape (batch,), if its `margins` will be asked for; None if not.
        """
        refine = refinement(method, program, skip, frozenset({output}))
        if not heads:
            return cls(program, propagate_forward(program, inputs, skip=skip, refine=refine), output, {}, {}, method)
        frozen = frozen_values(program, inputs, heads, skip)
        if target is not None:
            _foresee(program, output, frozen, heads, target)
        bounds = {name: head.bound_values(as_interval(frozen[head.head.input])) for name, head in heads.items()}
        head_values = {name: by_value for name, by_value in bounds.items() if by_value}
        within = _intersection(head_values)
        values = propagate_forward(program, inputs, skip=skip, known=frozen, within=within, refine=refine)
        return cls(program, values, output, {name: heads[name] for name in head_values}, head_values, method)

    @property
    def outputs(self) -> Interval:
        """Bounds on the outputs."""
        return as_interval(self.values[self.output])

    def margins(self, target: Tensor) -> Interval:
        """Return bounds on ``f_target - f_j`` for every class j; zero for the target itself.

        Args:
            target: class of each sample, integers of shape (batch,); for one logit, 0 and 1 of any real type, also of
                shape (batch, 1).

        Raises:
            ValueError: if the shape does not match or a class is out of range.
            TypeError: if the target is not of an integer type, with several logits.
        """
        target = class_indices(self.outputs, target)
        if is_single_logit(self.outputs):
            return single_logit_margins(self.outputs, target)
        margins = output_margins(self.program, self.values, self.output, target)
        last = last_linear(self.program, self.output)
        linear = substitution(self.method, self.program)
        if linear is not None:
            logits = self.output if last is None else last.name
            margins = margins.intersect(substituted_margins(linear, self.values, logits, target))
        for head in self.heads.values():
            if last is not None and last.name == head.head.output:
                margins = margins.intersect(head.margins(as_interval(self.values[head.head.input]), target))
        return margins

    def domain_shares(self) -> dict[str, float]:
        """Return the share of the bounds on the head's outputs that each domain decides, by its name.

        A domain decides a bound if it is the tightest; of several equal ones, the first decides, and the box is last.
        """
        shares, undecided = {"box": 1.0}, None
        for name, head in self.heads.items():
            bounds, tightest = self.head_values[name][head.head.output], as_interval(self.values[head.head.output])
            attained = torch.stack([tightest.lower <= bounds.lower, tightest.upper >= bounds.upper])
            undecided = torch.ones_like(attained) if undecided is None else undecided
            shares[name] = (attained & undecided).double().mean().item()
            undecided = undecided & ~attained
        return shares if undecided is None else {**shares, "box": undecided.double().mean().item()}


def frozen_values(
    program: Program,
    inputs: Mapping[str, Value],
    heads: Mapping[str, HeadBounds],
    skip: frozenset[str] = frozenset(),
) -> dict[str, Value]:
    """Return bounds on all values that depend on no parameter of these heads, by name."""
    dependent = frozenset[str]().union(*(head.dependent for head in heads.values()))
    return propagate_forward(program, inputs, skip=skip | dependent)


def _foresee(
    program: Program, output: str, frozen: Mapping[str, Value], heads: Mapping[str, HeadBounds], target: Tensor
) -> None:
    """Let heads whose bounds take a replay make bounds and margins by one."""
    last = last_linear(program, output)
    for head in heads.values():
        if (
            isinstance(head, ReplayedBounds)
            and last is not None
            and last.name == head.head.output
            and last.shape[1] > 1
        ):
            head.foresee(as_interval(frozen[head.head.input]), target)


def _intersection(head_values: Mapping[str, Mapping[str, Interval]]) -> dict[str, Interval]:
    """Return the intersection of all domains' bounds on each value, by name of the value."""
    intersection: dict[str, Interval] = {}
    for bounds in head_values.values():
        for value, bound in bounds.items():
            intersection[value] = intersection[value].intersect(bound) if value in intersection else bound
    return intersection
