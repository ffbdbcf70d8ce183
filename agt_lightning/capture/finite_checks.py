"""Checks of the loss for NaN, which come out the same in every run.

``if math.isnan(loss.item())`` and ``if torch.isnan(loss).any()`` are branches on data. But all values that gradients
pass through have finite bounds in every run, so their checks are known. Those of other values are branches on data.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from agt_lightning.capture.source import current_line

_CHECKS = {
    getattr(owner, name): name == "isfinite" for owner in (torch, Tensor) for name in ("isnan", "isinf", "isfinite")
}
_COPIES = (Tensor.detach, Tensor.cpu, Tensor.clone, Tensor.to, Tensor.float, Tensor.double, torch.clone)
_REDUCTIONS = (Tensor.any, Tensor.all, torch.any, torch.all)
_NEGATIONS = (Tensor.__invert__, Tensor.logical_not, torch.logical_not)


@dataclass(frozen=True)
class _Check:
    """The result of `torch.isnan` or the like, with the tensor that was checked and the value for finite ones."""

    result: Tensor
    checked: Tensor
    value: bool


@dataclass
class FiniteChecks:
    """The checks for NaN and infinity that one recording makes.

    Attributes:
        made: the tensors that were checked, each with the line.
    """

    made: list[tuple[Tensor | None, str]] = field(default_factory=list)
    _copies: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _checks: dict[int, _Check] = field(default_factory=dict)

    def note(self, checked: Tensor | None) -> None:
        """Note that the code branches on whether a tensor is finite; None if it is unknown which one."""
        self.made.append((checked, current_line()))

    def value_of(self, tensor: object, unproven: Collection[str] = ()) -> bool | None:
        """Return the value of a check if a tensor is the result of one, and note it; else None.

        Args:
            tensor: that code looks at.
            unproven: lines whose checks are not known.
        """
        check = self._checks.get(id(tensor))
        if check is None or current_line() in unproven:
            return None
        self.note(check.checked)
        return check.value

    def follow(self, func: object, args: Sequence[Any], result: object) -> None:
        """Remember the result of a call of torch if it is a check, or a copy of what can be checked later."""
        if not isinstance(result, Tensor) or not args:
            return
        source = args[0]
        if func in _COPIES:
            self._copies[id(result)] = (result, source)
        elif func in _CHECKS:
            self._checks[id(result)] = _Check(result, source, _CHECKS[func])
        elif func in (*_REDUCTIONS, *_NEGATIONS) and id(source) in self._checks:
            check = self._checks[id(source)]
            self._checks[id(result)] = _Check(result, check.checked, check.value != (func in _NEGATIONS))

    def unproven(self, result: Tensor, nodes: Collection[Node]) -> frozenset[str]:
        """Return the lines of checks that may come out otherwise in another run: of values off the gradient's way.

        Args:
            result: the loss.
            nodes: those of its autograd graph.
        """
        sources = [(self._source(tensor), line) for tensor, line in self.made]
        return frozenset(
            line for source, line in sources if source is not result and (source is None or source.grad_fn not in nodes)
        )

    def _source(self, tensor: Tensor | None) -> Tensor | None:
        while id(tensor) in self._copies:
            tensor = self._copies[id(tensor)][1]
        return tensor
