"""What a kernel computes: sums of the n largest gains, of gains that are stored or that are products of factors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.gradients import OuterProduct, samples_last
from agt_lightning.interval import Interval


@dataclass(frozen=True)
class OuterGains:
    """The gains of a weight matrix, ``up = Ũ - U`` and ``down = L - L̃`` of the products d z, sample by sample.

    Args:
        clean_outputs: bounds on w d, the weighted gradient at the layer's outputs, for the data as it is, (o, m).
        poisoned_outputs: the same for poisoned samples, (o, m).
        clean_inputs: bounds on z, the layer's inputs, for the data as it is, (k, m).
        poisoned_inputs: the same for poisoned samples, (k, m); the same object if inputs are the same.
    """

    clean_outputs: Interval
    poisoned_outputs: Interval
    clean_inputs: Interval
    poisoned_inputs: Interval

    @classmethod
    def between(
        cls, clean: OuterProduct, poisoned: OuterProduct, weights: Tensor, poisonable: Tensor | None
    ) -> OuterGains:
        """Return the factors of two gradients with one position per sample.

        Args:
            clean: bounds of all samples.
            poisoned: bounds of the poisonable samples.
            weights: w_i >= 0 of the poisonable samples, (m,).
            poisonable: indices of the poisonable samples, (m,); None if all are.
        """

        def units_first(factor: Interval, scale: Tensor | None = None) -> Interval:
            return factor.mapped(lambda bound: samples_last(bound if scale is None else bound * scale[:, None]))

        rows = slice(None) if poisonable is None else poisonable
        d, z, y = clean.outputs[rows, 0], clean.inputs[rows, 0], poisoned.inputs[:, 0]
        same = torch.equal(z.lower, y.lower) and torch.equal(z.upper, y.upper)
        inputs = units_first(z)
        outputs = units_first(d, weights), units_first(poisoned.outputs[:, 0], weights)
        return cls(*outputs, inputs, inputs if same else units_first(y))

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight, (o, k)."""
        return len(self.clean_outputs.lower), len(self.clean_inputs.lower)

    @property
    def shared_inputs(self) -> Tensor | None:
        """The inputs, (k, m); None unless they are the same points in both passes.

        The gains are then ``a z⁺ + b z⁻`` and ``b z⁺ + a z⁻`` with ``a = Ũ_d - U_d`` and ``b = L_d - L̃_d``.
        """
        same = self.clean_inputs is self.poisoned_inputs and self.clean_inputs.is_point
        return self.clean_inputs.lower if same else None

    def output_gains(self) -> tuple[Tensor, Tensor]:
        """Return a and b, the gains of the outputs alone, each (o, m)."""
        clean, poisoned = self.clean_outputs, self.poisoned_outputs
        return poisoned.upper - clean.upper, clean.lower - poisoned.lower


class TopNKernel(ABC):
    """``SEMax_n``: the largest sum of at most n gains, for each element of a parameter. Negative gains never count.

    A sum is exact up to its own rounding, that of at most n additions in any order. NaN among the gains, or among the
    factors that they are made of, makes a sum NaN.
    """

    @abstractmethod
    def sums(self, gains: Tensor, n: int) -> Tensor:
        """Return the sums of the n largest gains of each row.

        Args:
            gains: (e, m).
            n: largest number of gains in a sum, at least 0.

        Returns:
            (e,)
        """

    @abstractmethod
    def outer_sums(self, gains: OuterGains, n: int) -> tuple[Tensor, Tensor]:
        """Return the sums of the n largest gains of both bounds, without storing gains of more than a few elements.

        Args:
            gains: their factors.
            n: largest number of gains in a sum, at least 0.

        Returns:
            For the upper bound and for the lower one, each (o, k).
        """
