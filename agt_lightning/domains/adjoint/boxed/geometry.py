"""One recorded step as all directions meet it: samples at the nominal parameters, and what the box can do to them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from agt_lightning.arithmetic.compiled import Array as Values
from agt_lightning.domains.adjoint.boxed.head_box import HeadBox, ScalarHead
from agt_lightning.domains.adjoint.boxed.kernel import PairArrays, SampleArrays, UnitArrays
from agt_lightning.domains.adjoint.boxed.scalar_loss import ScalarLoss
from agt_lightning.domains.adjoint.label_moves import ClassMoves, NumberMoves
from agt_lightning.domains.adjoint.one_hidden.roundings import own_errors
from agt_lightning.domains.adjoint.one_hidden.step import OneHiddenStep


@dataclass(frozen=True, eq=False)
class BoxedGeometry:
    """One step at its nominal parameters, with the parameters of runs anywhere in a box.

    Args:
        whole: the same step with a ball around the box: samples, loss, poison, and all roundings.
        head: its layers as a head of one output.
        box: around them.
        output_reach: other upper bounds on ``|f̃ - f|``, (b,); None without any.

    Reference:
        docs/theory.md, section 15.
    """

    whole: OneHiddenStep
    head: ScalarHead
    box: HeadBox
    output_reach: Tensor | None = None

    @property
    def upward(self) -> float:
        """Above the rounding of sums and products of numbers that are not negative."""
        return self.whole.upward

    @cached_property
    def loss(self) -> ScalarLoss:
        """The loss of the output."""
        return ScalarLoss.of(self.whole.loss)

    @cached_property
    def inputs(self) -> Tensor:
        """x̂, (b, d + 1)."""
        return torch.nn.functional.pad(self.whole.data.samples.inputs, (0, 1), value=1.0).contiguous()

    @property
    def hidden(self) -> Tensor:
        """h, (b, h)."""
        return self.whole.hidden

    @cached_property
    def active(self) -> Tensor:
        """m, 0 or 1, (b, h)."""
        return (self.hidden > 0).double()

    @cached_property
    def outputs(self) -> Tensor:
        """f, (b,)."""
        return self.hidden.clamp(min=0) @ self.head.second[:-1] + self.head.second[-1]

    @cached_property
    def gradient(self) -> Tensor:
        """g, (b,)."""
        return self.whole.gradient[:, -1]

    @cached_property
    def moves(self) -> Tensor:
        """V, how far the box moves h, (b, h)."""
        return self.box.moves(self.inputs)

    @cached_property
    def past(self) -> Tensor:
        """How far the box, and rounding, move h past its kink, (b, h)."""
        return self.upward * (self.moves + 2 * self.whole.doubt[:, None] - self.hidden.abs()).clamp(min=0)

    @cached_property
    def near(self) -> Tensor:
        """Units that the box may switch, boolean (b, h)."""
        return self.hidden.abs() <= self.upward * (self.moves + self.whole.doubt[:, None])

    @cached_property
    def farthest(self) -> Tensor:
        """``|v_j|`` at most, (h,)."""
        return self.head.second[:-1].abs() + self.box.second[:-1]

    @cached_property
    def reach(self) -> Tensor:
        """D, upper bound on ``|f̃ - f|``, (b,), with the rounding of f."""
        width = self.box.second
        linear = (self.active * self.moves) @ self.farthest + self.hidden.clamp(min=0) @ width[:-1] + width[-1]
        kinks = torch.where(self.near, self.past, 0.0) @ self.farthest
        reach = self.upward * (linear + kinks)
        if self.output_reach is not None:
            reach = torch.minimum(reach, self.output_reach)
        return reach + 4 * self.own_output_error

    # --- poisoned features -----------------------------------------------------------------------------------------

    @cached_property
    def half_widths(self) -> Tensor:
        """The largest half-widths of features, (d,); zero if they stay."""
        features = self.whole.features
        if features is None:
            return self.inputs.new_zeros(self.inputs.shape[1] - 1)
        return features.half_widths.amax(dim=0).double()

    @cached_property
    def unit_moves(self) -> Tensor:
        """How far features move h, at the nominal parameters and what the box adds, (2, h)."""
        nominal = self.head.first[:, :-1].abs() @ self.half_widths
        return self.upward * torch.stack([nominal, self.box.first[:, :-1] @ self.half_widths])

    @cached_property
    def unsure(self) -> Tensor:
        """Units that box and poisoned features together may switch, boolean (b, h)."""
        return self.hidden.abs() <= self.upward * (self.moves + self.unit_moves.sum(dim=0) + self.whole.doubt[:, None])

    @cached_property
    def poisoned_past(self) -> Tensor:
        """How far features move a unit of these past its kink, anywhere in the box, (b, h)."""
        moved = self.unit_moves.sum(dim=0)
        doubt = self.whole.doubt[:, None]
        room = self.moves + 2 * doubt + moved - self.hidden.abs()
        return torch.where(self.unsure, self.upward * torch.minimum(room.clamp(min=0), moved + doubt), 0.0)

    @cached_property
    def slope(self) -> Tensor:
        """``a = ∂f/∂x``, (b, d)."""
        return (self.active * self.head.second[:-1]) @ self.head.first[:, :-1]

    @cached_property
    def slack(self) -> Tensor:
        """E_f, upper bound on ``|f(x̃) - f(x) - a Δx|`` anywhere in the box, (b,)."""
        nominal, added = self.unit_moves
        linear = self.box.second[:-1] * nominal + self.farthest * added
        slack: Tensor = self.upward * (self.active @ linear + self.poisoned_past @ self.farthest)
        return slack

    @cached_property
    def feature_reach(self) -> Tensor:
        """F, upper bound on ``|f(x̃) - f(x)|`` anywhere in the box, (b,)."""
        rounding = (self.upward - 1) * self.whole.largest_slope * self.half_widths.norm() * 4
        reach: Tensor = self.upward * (self.slope.abs() @ self.half_widths + self.slack) + rounding
        return reach

    # --- roundings -------------------------------------------------------------------------------------------------

    @cached_property
    def _own(self) -> tuple[Tensor, Tensor, Tensor]:
        return own_errors(self.whole, self.upward - 1)

    @cached_property
    def own_output_error(self) -> Tensor:
        """How far f as it is computed can be from that of the nominal parameters, (b,)."""
        analysis = self.whole.analysis
        return self.upward * (analysis.roundoff.output_error + self.head.rounded * (analysis.activation_norm + 1))

    # --- arrays ----------------------------------------------------------------------------------------------------

    @cached_property
    def sample_arrays(self) -> SampleArrays:
        """For the loops of `kernel`."""
        gradient_error, curvature_error, _ = self._own
        curve = self.loss.curvature(self.outputs)
        change, bend = self.loss.change(self.outputs, self.reach)
        top, other = self.loss.curvatures(self.outputs, self.reach + self.feature_reach)
        off = gradient_error + curvature_error * self.reach
        fall, rise = self._labels
        columns = [
            self.whole.weights,
            self.gradient,
            curve,
            self.upward * (change + off),
            self.upward * (bend + off),
            self.slack,
            self.upward * top * self.feature_reach,
            self.upward * (other + curvature_error) * self.feature_reach,
            fall,
            rise,
        ]
        return SampleArrays(
            _array(self.inputs),
            _array(self.active),
            _array(self.hidden.clamp(min=0)),
            _array(self.moves),
            _array(torch.stack(columns, dim=1)),
            _array(self.slope),
        )

    @property
    def _labels(self) -> tuple[Tensor, Tensor]:
        """How far labels lower and raise g, (b,) each."""
        moves, none = self.whole.label_moves, torch.zeros_like(self.outputs)
        if isinstance(moves, NumberMoves):
            return -moves.lower[:, 0], moves.upper[:, 0]
        if isinstance(moves, ClassMoves):
            own, reach = moves.own, moves.reach.double()
            flipped = moves.slope * reach.gather(1, 1 - own[:, None])[:, 0]
            return torch.where(own == 0, flipped, 0.0), torch.where(own == 1, flipped, 0.0)
        return none, none

    @cached_property
    def unit_arrays(self) -> UnitArrays:
        """For the loops of `kernel`."""
        first, second = self.head.first[:, :-1], self.head.second[:-1]
        widths = self.box.second[:-1], self.unit_moves[1], self.half_widths
        return UnitArrays(_array(first), _array(second), *(_array(each) for each in widths))

    @cached_property
    def pair_arrays(self) -> PairArrays:
        """For the loops of `kernel`."""
        flat = np.flatnonzero((self.near | self.unsure).numpy())
        sample, unit = np.divmod(flat, self.hidden.shape[1])
        hidden, doubt = self.hidden.numpy().reshape(-1)[flat], self.whole.doubt.numpy()[sample]
        return PairArrays(
            np.searchsorted(sample, np.arange(len(self.inputs) + 1)).astype(np.int64),
            unit.astype(np.int64),
            self.near.numpy().reshape(-1)[flat].astype(np.int64),
            np.where(np.abs(hidden) <= doubt, 0.0, np.sign(hidden)),
            self.past.numpy().reshape(-1)[flat],
            self.poisoned_past.numpy().reshape(-1)[flat],
            doubt,
        )

    @cached_property
    def coupling(self) -> Tensor:
        """``Σ_i w_i g_i m_ij x̂_i``, (h, d + 1): how the two layers of H pull at each other."""
        return (self.active * (self.whole.weights * self.gradient)[:, None]).T @ self.inputs

    def prepare(self) -> None:
        """Compute what all directions read."""
        for name in ("sample_arrays", "unit_arrays", "pair_arrays", "coupling"):
            getattr(self, name)


def _array(values: Tensor) -> Values:
    return values.double().contiguous().numpy()
