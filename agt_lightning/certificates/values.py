"""Bounds on all values of a network for parameters that lie in a box and, for its head, in a ball as well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.certificates.margins import last_linear, output_margins
from agt_lightning.certificates.objectives import is_single_logit
from agt_lightning.domains.ball import HeadBall
from agt_lightning.interval import Interval
from agt_lightning.propagation import Program, propagate_forward
from agt_lightning.rules import Value
from agt_lightning.rules.base import interval


@dataclass(frozen=True)
class BoundedValues:
    """What both domains together say about one batch.

    Args:
        program: the network.
        values: bounds on all its values, by name; those of the box, cut to those of the ball.
        output: name of the outputs among them.
        head: the ball around the head; None without one.
        known: bounds of the ball alone on the head's layers, by name.
    """

    program: Program
    values: Mapping[str, Value]
    output: str
    head: HeadBall | None
    known: Mapping[str, Interval]

    @classmethod
    def of(
        cls,
        program: Program,
        inputs: Mapping[str, Value],
        output: str,
        head: HeadBall | None,
        skip: frozenset[str] = frozenset(),
    ) -> BoundedValues:
        """Propagate a box through the network.

        Args:
            program: the network.
            inputs: bounds on all inputs of its graph, parameters among them.
            output: name of the outputs.
            head: the ball around the head; None without one.
            skip: values that nobody asks for.
        """
        if head is None:
            return cls(program, propagate_forward(program, inputs, skip=skip), output, None, {})
        frozen = propagate_forward(program, inputs, skip=skip | head.dependent)
        known = head.enclose(interval(frozen[head.head.input]))
        values = propagate_forward(program, inputs, skip=skip, known=frozen, within=known)
        return cls(program, values, output, head, known)

    @property
    def outputs(self) -> Interval:
        """Bounds on the outputs."""
        return interval(self.values[self.output])

    def margins(self, target: Tensor) -> Interval:
        """Bounds on ``f_target - f_j`` for every class j; zero for the target itself."""
        margins = output_margins(self.program, self.values, self.output, target)
        if self.head is None or is_single_logit(self.outputs):
            return margins
        last = last_linear(self.program, self.output)
        if last is None or last.name != self.head.head.output:
            return margins
        return margins.intersect(self.head.margins(interval(self.values[self.head.head.input]), target))

    def deciding(self) -> dict[str, float]:
        """Share of the bounds on the head's outputs that each domain decides, by name."""
        if self.head is None:
            return {"box": 1.0}
        ball, both = self.known[self.head.head.output], interval(self.values[self.head.head.output])
        decided = torch.stack([both.lower <= ball.lower, both.upper >= ball.upper]).double().mean().item()
        return {"box": 1.0 - decided, "ball": decided}
