"""Bounds on the output of a head from bounds along its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.domains.adjoint.boxed.head_box import HeadBox, ScalarHead
from agt_lightning.domains.adjoint.boxed.replay import ScalarDirections
from agt_lightning.domains.adjoint.output_bounds import OneHiddenCombinations
from agt_lightning.domains.ball.layers import Layer
from agt_lightning.interval import Interval


@dataclass(frozen=True, eq=False)
class BoxedOutputs:
    """``f(x)`` of a head with one output, for parameters in a box.

    Args:
        layers: both layers at the nominal parameters.
        box: around them.
        radius: of a ball that contains the box.
        arithmetic: of the runs; bounds are computed in float64.
        inputs: features, as runs compute them, (Q, d).
    """

    layers: tuple[Layer, Layer]
    box: HeadBox
    radius: float
    arithmetic: Arithmetic
    inputs: Interval

    @cached_property
    def _head(self) -> ScalarHead:
        return ScalarHead.of(self.layers)

    @cached_property
    def _whole(self) -> OneHiddenCombinations:
        """The same in a ball, for roundings."""
        row = torch.tensor([[1.0]] if self._head.speed == 1 else [[-1.0, 1.0]], dtype=torch.float64)
        rows = row.expand(self.inputs.shape[0], -1)
        return OneHiddenCombinations(self.layers, self.radius, self.arithmetic, self.inputs, rows)

    @cached_property
    def directions(self) -> ScalarDirections:
        """Gradients of the output, as they are computed."""
        found = self._whole.directions
        return ScalarDirections(found.first, found.second[:, -1])

    @cached_property
    def nominal(self) -> Tensor:
        """F at the nominal parameters, (Q,)."""
        return self._whole.nominal

    @cached_property
    def _hidden(self) -> Tensor:
        first = self.layers[0]
        hidden = self._whole.center @ first.weight.T
        return hidden if first.bias is None else hidden + first.bias

    @cached_property
    def _moves(self) -> Tensor:
        """V, how far the box moves h, (Q, h)."""
        return self.box.moves(torch.nn.functional.pad(self._whole.center, (0, 1), value=1.0))

    @cached_property
    def _past(self) -> Tensor:
        """How far the box moves h past its kink, (Q, h)."""
        room = self._moves + 2 * self._whole.doubt[:, None] - self._hidden.abs()
        return self._whole.upward * room.clamp(min=0)

    @cached_property
    def _slack(self) -> Tensor:
        """What rounding changes, (Q,)."""
        values = self._hidden.clamp(min=0).norm(dim=1) + 1
        slack: Tensor = 2 * self._whole.slack + 4 * self._head.rounded * values
        return slack

    def reach(self, displacements: Interval) -> Interval:
        """Bound ``f̃ - f`` over all runs, as runs compute them, (Q,).

        Args:
            displacements: bounds on ``c · δ`` along `directions`, (Q,).

        Reference:
            docs/theory.md, eq. (15.14).
        """
        width, second = self.box.second[:-1], self._head.second[:-1]
        both = ((self._hidden > 0).double() * self._moves) @ width
        up, down = ((sign * second + width).clamp(min=0) for sign in (1.0, -1.0))
        upward = self._whole.upward
        higher = displacements.upper + both + self._past @ up + self._slack
        lower = -displacements.lower + both + self._past @ down + self._slack
        rounding = (upward - 1) * (self.nominal.abs() + higher + lower)
        return Interval.checked(-lower - rounding, higher + rounding)

    def each(self, widths: Sequence[Tensor | None]) -> Interval:
        """Bound each output over the box alone, (Q, K).

        Args:
            widths: half-widths of both layers' weights and biases.
        """
        second, (_, _, width, offset) = self.layers[1], widths
        assert width is not None
        values = (self._hidden > 0).double() * self._moves + self._past
        moved = values @ (second.weight.abs() + width).T + self._hidden.clamp(min=0) @ width.T
        moved = moved + self._slack[:, None] + (0.0 if offset is None else offset)
        outputs = self._hidden.clamp(min=0) @ second.weight.T + (0.0 if second.bias is None else second.bias)
        reach = self._whole.upward * moved + (self._whole.upward - 1) * outputs.abs()
        return Interval.checked(outputs - reach, outputs + reach)
