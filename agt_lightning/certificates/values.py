"""Bounds on all values of a network for parameters that lie in a box and, for its head, in other domains as well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.certificates.goals import is_single_logit
from agt_lightning.certificates.margins import last_linear, output_margins, substituted_margins
from agt_lightning.domains.head import HeadBounds
from agt_lightning.interval import Interval
from agt_lightning.propagation import Method, Program, propagate_forward, refinement, substitution
from agt_lightning.rules import Value
from agt_lightning.rules.base import as_interval


@dataclass(frozen=True)
class BoundedValues:
    """What all domains together say about one batch.

    Args:
        program: the network.
        values: bounds on all its values, by name; those of the box, cut to those of the others.
        output: name of the outputs among them.
        heads: the domains that know something of the head, by name.
        known: bounds of each of them alone on the head's layers, by name.
        method: how the box was propagated.
    """

    program: Program
    values: Mapping[str, Value]
    output: str
    heads: Mapping[str, HeadBounds]
    known: Mapping[str, Mapping[str, Interval]]
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
    ) -> BoundedValues:
        """Propagate a box through the network.

        Args:
            program: the network.
            inputs: bounds on all inputs of its graph, parameters among them.
            output: name of the outputs.
            heads: what other domains know of the head, by name of the domain.
            skip: values that nobody asks for.
            method: how bounds are propagated.
        """
        refine = refinement(method, program, skip, frozenset({output}))
        if not heads:
            return cls(program, propagate_forward(program, inputs, skip=skip, refine=refine), output, {}, {}, method)
        frozen = frozen_values(program, inputs, heads, skip)
        found = {name: head.bound_values(as_interval(frozen[head.head.input])) for name, head in heads.items()}
        known = {name: bounds for name, bounds in found.items() if bounds}
        within = _intersection(known)
        values = propagate_forward(program, inputs, skip=skip, known=frozen, within=within, refine=refine)
        return cls(program, values, output, {name: heads[name] for name in known}, known, method)

    @property
    def outputs(self) -> Interval:
        """Bounds on the outputs."""
        return as_interval(self.values[self.output])

    def margins(self, target: Tensor) -> Interval:
        """Bounds on ``f_target - f_j`` for every class j; zero for the target itself."""
        margins = output_margins(self.program, self.values, self.output, target)
        if is_single_logit(self.outputs):
            return margins
        last = last_linear(self.program, self.output)
        linear = substitution(self.method, self.program)
        if linear is not None:
            logits = self.output if last is None else last.name
            margins = margins.intersect(substituted_margins(linear, self.values, logits, target))
        for head in self.heads.values():
            if last is not None and last.name == head.head.output:
                margins = margins.intersect(head.margins(as_interval(self.values[head.head.input]), target))
        return margins

    def deciding(self) -> dict[str, float]:
        """Share of the bounds on the head's outputs that each domain decides, by name; of equal ones the first."""
        shares, open_bounds = {"box": 1.0}, None
        for name, head in self.heads.items():
            own, tightest = self.known[name][head.head.output], as_interval(self.values[head.head.output])
            reached = torch.stack([tightest.lower <= own.lower, tightest.upper >= own.upper])
            open_bounds = torch.ones_like(reached) if open_bounds is None else open_bounds
            shares[name] = (reached & open_bounds).double().mean().item()
            open_bounds = open_bounds & ~reached
        return shares if open_bounds is None else {**shares, "box": open_bounds.double().mean().item()}


def frozen_values(
    program: Program,
    inputs: Mapping[str, Value],
    heads: Mapping[str, HeadBounds],
    skip: frozenset[str] = frozenset(),
) -> dict[str, Value]:
    """Bounds on all values that depend on no parameter of these heads, by name."""
    dependent = frozenset[str]().union(*(head.dependent for head in heads.values()))
    return propagate_forward(program, inputs, skip=skip | dependent)


def _intersection(known: Mapping[str, Mapping[str, Interval]]) -> dict[str, Interval]:
    """What all domains allow of each value, by name."""
    within: dict[str, Interval] = {}
    for bounds in known.values():
        for value, bound in bounds.items():
            within[value] = within[value].intersect(bound) if value in within else bound
    return within
