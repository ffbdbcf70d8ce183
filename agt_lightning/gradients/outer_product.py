"""Gradients of weight matrices: outer products of an output gradient and an input."""

from torch import Tensor

from agt_lightning.arithmetic import matmul, multiply
from agt_lightning.gradients.base import FactoredGradient
from agt_lightning.interval import Interval


class OuterProduct(FactoredGradient):
    """``δ_i = Σ_t d_it ⊗ z_it``: o + k numbers per sample and position instead of o k.

    Args:
        outputs: bounds on d, the gradient at the layer's output, (b, t, o).
        inputs: bounds on z, the layer's input, (b, t, k).

    Reference:
        Paper, section 3.4, "Backward Pass Bounds".

    Example:
        >>> import torch
        >>> gradient = OuterProduct(Interval.point(torch.ones(3, 1, 2)), Interval.point(torch.ones(3, 1, 4)))
        >>> gradient.shape, gradient.total(torch.ones(3)).upper[0, 0]
        ((2, 4), tensor(3.))
    """

    def __init__(self, outputs: Interval, inputs: Interval) -> None:
        self.outputs = outputs
        self.inputs = inputs

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, (o, k)."""
        return (self.outputs.shape[2], self.inputs.shape[2])

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.outputs.shape[0]

    def block(self, start: int, stop: int) -> Interval:
        """Elements of the weight, expanded: exact products of intervals, summed over positions."""
        first, last = start // self.row, (stop - 1) // self.row
        outputs = _per_position(self.outputs, slice(first, last + 1))
        inputs = _per_position(self.inputs, slice(start - first * self.row, stop - last * self.row))
        result: Interval | None = None
        for d, z in zip(outputs, inputs, strict=True):
            product = multiply(_view(d, (-1, 1, self.samples)), _view(z, (1, -1, self.samples)))
            result = product if result is None else result + product
        assert result is not None
        return _view(result, (-1, self.samples))

    def total(self, weights: Tensor) -> Interval | None:
        """``dᵀ z`` as one interval product; only where no pair of factors straddles zero twice."""
        if not (self.outputs.is_point or self.inputs.is_point or self.inputs.nonnegative or self.outputs.nonnegative):
            return None
        weighted = multiply(self.outputs, Interval.point(weights[:, None, None], nonnegative=True))
        return matmul(_columns(weighted), _columns(self.inputs))

    def scale(self, weights: Tensor) -> float:
        """``Σ_i w_i Σ_t max |d_it| max |z_it|``."""
        largest = self.outputs.magnitude.amax(dim=2) * self.inputs.magnitude.amax(dim=2)
        return float(largest.sum(dim=1) @ weights)

    def square_sums(self) -> Interval:
        """Products of the factors' squared norms, without expanding, where there is one position."""
        if self.outputs.shape[1] != 1:
            return super().square_sums()
        lower = self.outputs.mignitude.square().sum(dim=(1, 2)) * self.inputs.mignitude.square().sum(dim=(1, 2))
        upper = self.outputs.magnitude.square().sum(dim=(1, 2)) * self.inputs.magnitude.square().sum(dim=(1, 2))
        return Interval.trusted(lower, upper, nonnegative=True)


def _per_position(factor: Interval, units: slice) -> list[Interval]:
    """One (units, b) interval per position, samples last and contiguous."""
    lower = factor.lower.permute(1, 2, 0)[:, units].contiguous()
    upper = lower if factor.is_point else factor.upper.permute(1, 2, 0)[:, units].contiguous()
    return [
        Interval.trusted(low, low if factor.is_point else high, nonnegative=factor.nonnegative)
        for low, high in zip(lower, upper, strict=True)
    ]


def _columns(factor: Interval) -> Interval:
    """Samples and positions as the inner dimension: (units, b t)."""
    lower = factor.lower.flatten(0, 1).T
    upper = lower if factor.is_point else factor.upper.flatten(0, 1).T
    return Interval.trusted(lower, upper, nonnegative=factor.nonnegative)


def _view(interval: Interval, shape: tuple[int, ...]) -> Interval:
    lower = interval.lower.reshape(shape)
    upper = lower if interval.is_point else interval.upper.reshape(shape)
    return Interval.trusted(lower, upper, nonnegative=interval.nonnegative)
