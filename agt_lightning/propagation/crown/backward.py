"""Backward substitution: linear forms of one value, expressed by the values that it depends on.

See docs/theory.md, section "CROWN with interval parameters".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from agt_lightning.capture import Call
from agt_lightning.interval import Interval
from agt_lightning.propagation.crown.concretize import inner
from agt_lightning.propagation.crown.forms import Forms, unit_rows
from agt_lightning.propagation.crown.roundings import CallErrors, exact_rule
from agt_lightning.propagation.crown.slopes import Slopes, adaptive
from agt_lightning.propagation.crown.table import RELAXATIONS
from agt_lightning.propagation.program import Program
from agt_lightning.rounding import accumulated_roundoff
from agt_lightning.rules import Value
from agt_lightning.rules.values import as_interval, select

DEFAULT_MEMORY_BUDGET = 32 * 2**20
"""Bytes for coefficients: larger blocks leave the caches and are no faster."""

_COPIES = 8
"""Tensors of the size of a form's coefficients that are alive at once."""


@dataclass(frozen=True)
class Box:
    """Bounds of values by name, for some of the samples; values without a sample axis are shared.

    Args:
        values: bounds for all samples.
        part: the samples.
        samples: names of the values whose axis 0 counts samples.
        errors: what rounding adds to the results of calls.
    """

    values: Mapping[str, Value]
    part: slice
    samples: frozenset[str]
    errors: CallErrors

    def __call__(self, name: str) -> Value:
        """Return the bounds of a value."""
        value = self.values[name]
        return select(value, self.part) if name in self.samples else value

    def error(self, call: Call) -> Tensor | None:
        """Return what rounding adds to a call's result."""
        error = self.errors(call, self.values)
        return None if error is None else error[self.part]


@dataclass(frozen=True)
class Substitution:
    """Computes bounds by backward substitution through one program.

    Args:
        program: the program.
        slopes: slopes of the lines below kinked functions.
        memory_budget: bytes for coefficients; samples, and then rows, are handled in parts that fit.
    """

    program: Program
    slopes: Slopes = adaptive
    memory_budget: int = DEFAULT_MEMORY_BUDGET

    def bounds(self, values: Mapping[str, Value], name: str, like: Interval) -> Interval:
        """Compute bounds of every element of a call's result.

        Args:
            values: bounds of all values up to the call.
            name: name of its result.
            like: other bounds of the result, for their shape and type.
        """
        units = like.shape[1:].numel()
        step = self._fitting(2 * like.lower.element_size(), units)
        parts: list[tuple[Tensor, ...]] = []
        for first in range(0, units, step):
            rows = unit_rows(like.shape[1:], first, min(first + step, units), like.lower)
            parts.append(self.largest(values, name, rows).chunk(2, dim=1))
        upper, negative = (torch.cat(sides, dim=1).reshape(like.shape) for sides in zip(*parts, strict=True))
        return Interval.trusted(-negative, upper)

    def largest(self, values: Mapping[str, Value], name: str, rows: Tensor) -> Tensor:
        """Compute upper bounds of ``⟨rows_r, v⟩`` for the value v of this name.

        Args:
            values: bounds of all values that v depends on, and of v.
            name: name of v.
            rows: ``(b, r, *shape)``, or ``(1, r, *shape)`` for all samples.

        Returns:
            (b, r), widened by the rounding of its own computation.
        """
        samples = as_interval(values[name]).shape[0]
        step = self._fitting(rows.shape[1] * rows.element_size(), samples)
        parts = [slice(first, first + step) for first in range(0, samples, step)]
        return torch.cat(
            [self._part(self._box(values, part), name, rows if len(rows) == 1 else rows[part]) for part in parts]
        )

    def _part(self, box: Box, name: str, rows: Tensor) -> Tensor:
        """Compute the bounds for some samples."""
        return self._walk(box, name, rows, self.slopes)

    def _walk(self, box: Box, name: str, rows: Tensor, slopes: Slopes) -> Tensor:
        """Substitute call by call, last one first, with the given slopes of lower lines."""
        forms = Forms.start(name, rows)
        for call in reversed(self.program.graph.calls):
            if call.name in forms.coefficients:
                forms = self._expressed(box, call, forms, slopes)
        for source in tuple(forms.coefficients):
            forms = forms.settle(source, as_interval(box(source)))
        return forms.constant + forms.magnitude * self._roundoff(rows.dtype)

    def _expressed(self, box: Box, call: Call, forms: Forms, slopes: Slopes) -> Forms:
        """Express a call by its inputs, or by its own box if that is a point or if the call has no relaxation."""
        known, operands = as_interval(box(call.name)), [box(name) for name in call.inputs]
        relaxation, site = RELAXATIONS.get(call.op), self.program.sites[call.name]
        if known.is_point or relaxation is None or not relaxation.applies(site, operands):
            return forms.settle(call.name, known)
        rule, coefficient = exact_rule(self.program.rules[call.name]), forms.coefficients[call.name]
        terms = relaxation.substitute(site, rule, coefficient, operands, slopes)
        forms = forms.replace(call.name, call.inputs, terms, [as_interval(value) for value in operands])
        if not relaxation.affine:
            # Lines are computed from the ends of the box, and from values of the function there.
            forms = forms.noting(inner(coefficient.abs(), 1 + known.magnitude + as_interval(operands[0]).magnitude))
        error = box.error(call)
        return forms if error is None else forms.raised(inner(coefficient.abs(), error))

    def _box(self, values: Mapping[str, Value], part: slice) -> Box:
        return Box(values, part, self.program.samples, self._errors)

    @cached_property
    def _errors(self) -> CallErrors:
        return CallErrors(self.program)

    def _fitting(self, size: int, most: int) -> int:
        """Return how many items fit the budget whose coefficients take ``size`` bytes per unit of the widest value."""
        return max(1, min(most, self.memory_budget // (_COPIES * size * self._widest)))

    @cached_property
    def _widest(self) -> int:
        """Number of elements per sample of the largest value."""
        shapes = self.program.graph.shapes
        return max(torch.Size(shapes[name][1:]).numel() for name in self.program.samples)

    def _roundoff(self, dtype: torch.dtype) -> float:
        """Return the rounding of a substitution through all calls, relative to the sum of magnitudes.

        Each of these passes through a sum over the elements of a value, and through one sum for each call.
        """
        return accumulated_roundoff(16 * self._widest + 4 * len(self.program.graph.calls) + 64, dtype)
