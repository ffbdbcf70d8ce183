"""Linear upper bounds: what backward substitution carries from an output towards the inputs.

Axis letters: ``b`` samples, ``r`` rows (one per bounded quantity), then the axes of one sample of a value. A size of
one on axis ``b`` stands for all samples. A lower bound of f is minus an upper bound of -f, so there are upper bounds
only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.interval import Interval
from agt_lightning.propagation.crown.concretize import inner, largest


@dataclass(frozen=True)
class Terms:
    """The linear form that replaces one call's result when it is expressed by the call's inputs.

    Args:
        coefficients: of each tensor input of the call, (b, r, *shape); None if the result is not expressed by it.
        constant: (b, r).
        size: sum of the magnitudes that the constant was computed from, (b, r); rounding is relative to it.
    """

    coefficients: Sequence[Tensor | None]
    constant: Tensor
    size: Tensor


@dataclass(frozen=True)
class Forms:
    """Upper bounds ``f_r <= Σ_v ⟨Λ_v[r], v⟩ + c_r``, for all parameters and inputs in their boxes.

    The coefficients are numbers, not intervals: an uncertain parameter is resolved to its worst value as soon as it
    comes in (see `resolve`), because the sign of what it multiplies is known by then.

    Args:
        coefficients: Λ_v by name of the value v, (b, r, *shape).
        constant: c, (b, r).
        magnitude: sum of the magnitudes of all constants so far, (b, r); rounding is relative to it.
    """

    coefficients: Mapping[str, Tensor]
    constant: Tensor
    magnitude: Tensor

    @classmethod
    def start(cls, name: str, coefficient: Tensor) -> Forms:
        """Return the quantities ``⟨coefficient[r], v⟩`` of one value v.

        Example:
            >>> Forms.start("f", torch.eye(2)[None]).constant
            tensor([[0., 0.]])
        """
        zero = coefficient.new_zeros(coefficient.shape[:2])
        return cls({name: coefficient}, zero, zero)

    def replace(self, name: str, inputs: Sequence[str], terms: Terms, boxes: Sequence[Interval]) -> Forms:
        """Express the value ``name`` by ``inputs``.

        Args:
            name: of the value.
            inputs: names of the call's inputs.
            terms: the form that replaces the value.
            boxes: bounds of the inputs: a rounded coefficient costs its error times their magnitude.
        """
        coefficients = {other: value for other, value in self.coefficients.items() if other != name}
        magnitude = self.magnitude + terms.size
        lost = _underflow(self.coefficients[name])
        constant = self.constant + terms.constant + lost
        for source, towards, box in zip(inputs, terms.coefficients, boxes, strict=True):
            if towards is not None:
                coefficients[source] = coefficients[source] + towards if source in coefficients else towards
                magnitude = magnitude + 2 * inner(towards.abs(), box.magnitude)
                constant = constant + lost * box.magnitude.reshape(len(box.lower), -1).sum(dim=1, keepdim=True)
        return Forms(coefficients, constant, magnitude)

    def noting(self, magnitude: Tensor) -> Forms:
        """Return the same forms with more that rounding is relative to, (b, r)."""
        return Forms(self.coefficients, self.constant, self.magnitude + magnitude)

    def raised(self, by: Tensor) -> Forms:
        """Return forms with a larger constant, (b, r)."""
        return Forms(self.coefficients, self.constant + by, self.magnitude + by)

    def settle(self, name: str, value: Interval) -> Forms:
        """Replace the value ``name`` by its worst case: the largest of its form over its box and ball."""
        coefficients = dict(self.coefficients)
        coefficient = coefficients.pop(name)
        constant = self.constant + largest(coefficient, value) + _underflow(coefficient)
        return Forms(coefficients, constant, self.magnitude + inner(coefficient.abs(), value.magnitude))


def _underflow(coefficient: Tensor) -> float:
    """Return what underflow can take from a sum of products with each element of a value, (b, r, *shape)."""
    return 4.0 * (math.prod(coefficient.shape[2:]) + 1) * torch.finfo(coefficient.dtype).tiny


def unit_rows(shape: Sequence[int], first: int, last: int, like: Tensor) -> Tensor:
    """Return rows for upper bounds of the elements ``first`` to ``last`` of a value, then rows for their lower bounds.

    Args:
        shape: shape of one sample.
        first: flat index of the first element.
        last: flat index behind the last element.
        like: a tensor of the wanted type and device.

    Returns:
        ``(1, 2 (last - first), *shape)``

    Example:
        >>> unit_rows((2,), 0, 2, torch.zeros(()))
        tensor([[[ 1.,  0.],
                 [ 0.,  1.],
                 [-1., -0.],
                 [-0., -1.]]])
    """
    size = torch.Size(shape).numel()
    rows = like.new_zeros(last - first, size)
    rows[:, first:last] = torch.eye(last - first, dtype=like.dtype, device=like.device)
    return torch.cat([rows, -rows]).reshape(1, -1, *shape)
